"""Products of linear layers while training on a CPU, forward and backward.

In fp32 they go through oneDNN where that was chosen, which multiplies faster than torch's own choice on many processors. Under
autocast a weight is narrowed again in the backward pass, where it is multiplied at once, instead of being kept from the
forward pass: that takes 2 bytes less a parameter, and next to no time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

_COPIED = 1 << 16  # numbers of a transposed matrix, which oneDNN copies first, at a time
_TURNED = 4096  # rows of a product that is added in another dtype, which takes two copies, at a time
_ADDED = 1 << 20  # numbers that are added in another dtype, which takes a copy, at a time
_LEAST = 1 << 20  # multiplications, below which a call of oneDNN's costs more than it saves


class _Waiting(NamedTuple):
    """A table's gradient that is yet to be scaled and widened, and rows to add to it."""

    table: Tensor
    gradient: Tensor
    scale: Tensor
    rows: list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Products:
    """How products are made.

    onednn: in fp32 by oneDNN. in_place: gradients of tables are added to `.grad` as they come up, or at `settle`, which must follow
    the backward pass. narrow: gradients of the layers' weights are left in the dtype of the products, where a weight's `grad_dtype`
    allows it. layers: linear layers are ours; not where blocks are compiled, as a compiler knows its own.
    """

    onednn: bool = False
    in_place: bool = False
    narrow: bool = False
    layers: bool = True
    _waiting: list[_Waiting] = field(default_factory=list, compare=False)

    def multiply(self, a: Tensor, b: Tensor) -> Tensor:
        """a (M, K) times b (K, N)."""
        if self.onednn and a.dtype == torch.float32 and a.is_cpu and a.numel() * b.shape[1] >= _LEAST:
            return _onednn(a, b.t())
        return a @ b

    def multiply_turned(self, a: Tensor, b: Tensor, total: Tensor | None) -> Tensor:
        """a (K, M) transposed times b (K, N), added to `total`, in fp32 or better, if there is one; large matrices are not copied."""
        if self.onednn and a.dtype == torch.float32 and a.is_cpu:
            out = b.new_zeros(a.shape[1], b.shape[1]) if total is None else total
            step = max(16, _COPIED // max(1, len(a)))
            for rows, columns in zip(torch.split(out, step), torch.split(a, step, 1), strict=True):
                rows += self.multiply(columns.t(), b)
            return out
        if total is None:
            return a.t() @ b
        if total.dtype == a.dtype:
            return total.addmm_(a.t(), b)
        for rows, columns in zip(torch.split(total, _TURNED), torch.split(a, _TURNED, 1), strict=True):
            rows += columns.t() @ b
        return total

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x (..., K) times weight (N, K) transposed, plus bias (N,)."""
        flat = x.reshape(-1, x.shape[-1])
        if self.onednn and x.dtype == torch.float32 and x.is_cpu and flat.numel() * len(weight) >= _LEAST:
            return _onednn(flat, weight, bias).view(*x.shape[:-1], -1)
        return (flat @ weight.t() if bias is None else torch.addmm(bias, flat, weight.t())).view(*x.shape[:-1], -1)

    def gathers(self, table: Tensor) -> bool:
        """Whether gradients of a table are added in place."""
        return self.in_place and table.is_leaf and table.requires_grad

    def given(self, weight: Tensor, dtype: torch.dtype) -> torch.dtype:
        """In what autograd is to get the gradient of a layer's weight, of products in `dtype`.

        To be asked in the forward pass: what a recomputed block saves are copies of its weights, which are leaves no more.
        """
        keep = self.narrow and weight.is_leaf and getattr(weight, "grad_dtype", weight.dtype) is None
        return dtype if keep else weight.dtype

    def gather(self, table: Tensor, gradient: Tensor, scale: Tensor) -> None:
        """Add a gradient times a number to a table's; it is used up, and a narrower one may wait until `settle`."""
        if table.grad is not None:
            _add(table.grad, gradient, float(scale))
        elif gradient.dtype == table.dtype:
            table.grad = gradient.mul_(scale)
        else:
            self._waiting.append(_Waiting(table, gradient, scale, []))

    def gather_rows(self, table: Tensor, ids: Tensor, rows: Tensor) -> None:
        """Add rows (N, D) to those of a table's gradient with these numbers (N,), at `settle` where others wait."""
        found = [waiting for waiting in self._waiting if waiting.table is table]
        if found:
            found[-1].rows.append((ids, rows))
            return
        if table.grad is None:
            table.grad = torch.zeros_like(table)
        table.grad.index_add_(0, ids, rows.to(table.dtype))

    def settle(self) -> None:
        """Add what waits: by the end of a backward pass activations have made room for gradients in full width."""
        waiting, self._waiting[:] = list(self._waiting), []
        for table, gradient, scale, rows in waiting:
            if table.grad is None:
                table.grad = gradient.to(table.dtype).mul_(scale)
            else:
                _add(table.grad, gradient, float(scale))
            for ids, more in rows:
                table.grad.index_add_(0, ids, more.to(table.dtype))


def _add(total: Tensor, part: Tensor, scale: float) -> None:
    """total += part * scale, both (V, D) and in one piece."""
    for some, more in zip(torch.split(total.view(-1), _ADDED), torch.split(part.view(-1), _ADDED), strict=True):
        some.add_(more, alpha=scale)


def allow_narrow(parameters: Iterable[Tensor]) -> None:
    """From now on these may have gradients of another dtype, as `narrow` leaves them, where this torch knows such."""
    for parameter in parameters:
        if parameter.is_leaf and hasattr(parameter, "grad_dtype"):
            parameter.grad_dtype = None


class _Choice(threading.local):
    how: Products | None = None


_choice = _Choice()
_PLAIN = Products()


def chosen() -> Products:
    """What `training_products` says here."""
    return _choice.how or _PLAIN


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (M, K) times weight (N, K) transposed, by a private operator of torch."""
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return found


def works() -> bool:
    """Whether this torch has oneDNN's product and it gives what torch's own does."""
    try:
        x, weight, bias = torch.randn(8, 32), torch.randn(16, 32), torch.randn(16)
        return torch.allclose(_onednn(x, weight, bias), F.linear(x, weight, bias), atol=1e-4)
    except (AttributeError, RuntimeError, TypeError):
        return False


def narrowed(device: str, dtype: torch.dtype) -> torch.dtype:
    """The dtype that autocast gives a product of `dtype` here."""
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) and dtype != torch.float64 else dtype


def gradients(
    how: Products, gradient: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, needs: Sequence[bool], given: torch.dtype
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of a linear layer by x, of x's dtype, by its weight, of dtype `given`, and by its bias; gradient and x are of one dtype."""
    rows, flat = gradient.reshape(-1, gradient.shape[-1]), x.reshape(-1, x.shape[-1])
    by_x, by_weight, by_bias = needs
    return (
        how.multiply(rows, weight.to(rows.dtype)).view_as(x) if by_x else None,
        how.multiply(rows.t(), flat).to(given) if by_weight else None,
        rows.sum(0).to(bias.dtype) if by_bias and bias is not None else None,
    )


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, how: Products) -> Tensor:
        narrow = x.to(dtype)
        ctx.save_for_backward(narrow, weight, bias)
        ctx.how, ctx.dtype, ctx.given = how, x.dtype, how.given(weight, dtype)
        with torch.autocast("cpu", enabled=False):
            return how.linear(narrow, weight.to(dtype), None if bias is None else bias.to(dtype))

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        by_x, by_weight, by_bias = gradients(ctx.how, gradient, x, weight, bias, ctx.needs_input_grad[:3], ctx.given)
        return None if by_x is None else by_x.to(ctx.dtype), by_weight, by_bias, None, None


class _Through(TorchFunctionMode):
    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if function is F.linear and not kwargs and args[0].is_cpu and args[1].ndim == 2:
            found = _linear(args[0], args[1], args[2] if len(args) > 2 else None)
            if found is not None:
                return found
        return function(*args, **(kwargs or {}))


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """A linear layer in our way; None where torch's own is as good."""
    dtype, how = narrowed("cpu", x.dtype), chosen()
    large = x.numel() * len(weight) >= _LEAST
    if not torch.is_grad_enabled() or x.dtype == torch.float64:
        return None
    if (dtype == torch.float32 == x.dtype == weight.dtype and how.onednn and large) or dtype != weight.dtype:
        found: Tensor = _Linear.apply(x, weight, bias, dtype, how)  # type: ignore[no-untyped-call]
        return found
    return None


@contextmanager
def training_products(how: Products = _PLAIN) -> Iterator[None]:
    """Linear layers that run in this context make their products so, and in their backward pass wherever that is.

    With `recomputing` it must be given there too: no backward pass is in such a context.
    """
    before, _choice.how = _choice.how, how
    try:
        with _Through() if how.layers else nullcontext():
            yield
    finally:
        _choice.how = before


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids: Tensor, table: Tensor) -> Tensor:
        ctx.save_for_backward(ids, table)
        ctx.how = chosen()
        return F.embedding(ids, table)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None]:
        ids, table = ctx.saved_tensors
        ctx.how.gather_rows(table, ids.flatten(), gradient.reshape(-1, gradient.shape[-1]))
        return None, None


def gathers(table: Tensor) -> bool:
    """Whether `training_products` says here that a table's gradients are added in place."""
    return chosen().gathers(table) and torch.is_grad_enabled()


def lookup(ids: Tensor, table: Tensor) -> Tensor:
    """Rows of a table (V, D) for ids (...): (..., D). Its gradient is added in place where `gathers` says so."""
    if gathers(table):
        found: Tensor = _Lookup.apply(ids, table)  # type: ignore[no-untyped-call]
        return found
    return F.embedding(ids, table)
