"""Cross-entropy over a vocabulary without ever holding all the logits.

Shapes: N tokens, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

IGNORE = -100  # the label of a position that is not scored
_CHUNK = 1 << 24  # logits held at once, in elements


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, z_loss: float, smoothing: float) -> Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        needs = ctx.needs_input_grad
        total = torch.zeros((), dtype=torch.float64 if dtype == torch.float64 else torch.float32, device=hidden.device)
        with torch.autocast(device, enabled=False):
            states, matrix = hidden.to(dtype), weight.to(dtype)
            grad_hidden = torch.empty_like(states) if needs[0] else None
            grad_weight = torch.zeros_like(weight, dtype=total.dtype) if needs[1] else None
            grad_bias = torch.zeros_like(bias, dtype=total.dtype) if bias is not None and needs[2] else None
            step = max(1, _CHUNK // len(weight))
            for first in range(0, len(states), step):
                part = slice(first, first + step)
                logits = (states[part] @ matrix.T).to(total.dtype)
                if bias is not None:
                    logits += bias
                wanted = labels[part, None]
                log_sum = logits.logsumexp(-1, keepdim=True)
                chosen = logits.gather(1, wanted)
                loss = log_sum - (1 - smoothing) * chosen
                if smoothing:
                    loss -= smoothing * logits.mean(-1, keepdim=True)
                if z_loss:
                    loss += z_loss * log_sum.square()
                total += loss.sum()
                if not any(needs[:3]):
                    continue
                gradient = logits.sub_(log_sum).exp_()
                if z_loss:
                    gradient *= 1 + 2 * z_loss * log_sum
                if smoothing:
                    gradient -= smoothing / len(weight)
                gradient.scatter_add_(1, wanted, torch.full_like(chosen, smoothing - 1))
                if grad_bias is not None:
                    grad_bias += gradient.sum(0)
                gradient = gradient.to(dtype)
                if grad_hidden is not None:
                    torch.mm(gradient, matrix, out=grad_hidden[part])
                if grad_weight is not None:
                    grad_weight += gradient.T @ states[part]
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradients = [None if g is None else (g * grad).to(dtype) for g, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)]
        return (*gradients, None, None, None)


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None, *, z_loss: float = 0.0, smoothing: float = 0.0
) -> Tensor:
    """The summed cross-entropy (nats) of `hidden @ weight.T + bias` against labels.

    hidden (..., D), weight (V, D), labels (...) with IGNORE where nothing is scored. A
    sum, to be divided by the number of labels of the whole step. Only the logits of a
    chunk of tokens exist at once; gradients are worked out along with them.

    z_loss: weight of the squared log-partition (Chowdhery et al. 2022, section 5).
    smoothing: share of the label's weight spread over the vocabulary (Szegedy et al. 2016).
    """
    kept = labels != IGNORE
    loss: Tensor = _LinearCrossEntropy.apply(hidden[kept], weight, bias, labels[kept], z_loss, smoothing)  # type: ignore[no-untyped-call]
    return loss
