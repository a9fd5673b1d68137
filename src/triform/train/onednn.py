"""Linear layers in fp32 through oneDNN, which multiplies faster than torch's own choice on many processors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_LEAST = 1 << 20  # multiplications, below which the call costs more than it saves


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (M, K) times weight (N, K) transposed, by a private operator of torch."""
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return found


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows, flat = gradient.reshape(-1, gradient.shape[-1]), x.reshape(-1, x.shape[-1])
        by_x, by_weight, by_bias = ctx.needs_input_grad
        return (
            _product(rows, weight.t()).view_as(x) if by_x else None,
            _product(rows.t(), flat.t()) if by_weight else None,
            rows.sum(0) if by_bias else None,
        )


class _Through(TorchFunctionMode):
    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if function is F.linear and not kwargs and _suits(*args[:2]):
            return _Linear.apply(args[0], args[1], args[2] if len(args) > 2 else None)  # type: ignore[no-untyped-call]
        return function(*args, **(kwargs or {}))


def _suits(x: Tensor, weight: Tensor) -> bool:
    plain = x.dtype == weight.dtype == torch.float32 and x.is_cpu and weight.ndim == 2
    return plain and not torch.is_autocast_enabled("cpu") and x.numel() * len(weight) >= _LEAST


@contextmanager
def through_onednn(wanted: bool = True) -> Iterator[None]:
    """Linear layers that run in this context take oneDNN's products, and in their backward pass wherever that is; else torch's.

    With `recomputing` it must be given there too: no backward pass is in such a context.
    """
    if not wanted:
        yield
        return
    with _Through():
        yield


def check_onednn() -> None:
    """Raise ValueError where this torch has no such operator, or it does not give what torch's own product does."""
    try:
        x, weight, bias = torch.randn(8, 32), torch.randn(16, 32), torch.randn(16)
        good = torch.allclose(_product(x, weight, bias), F.linear(x, weight, bias), atol=1e-4)
    except (AttributeError, RuntimeError, TypeError):
        good = False
    if not good:
        raise ValueError("train.linear: this torch has no working oneDNN product; choose torch")
