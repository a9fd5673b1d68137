"""Cross-entropy over a vocabulary without ever holding all the logits.

Shapes: N tokens, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .norm import at_least_float

IGNORE = -100  # the label of a position that is not scored


def chunk_rows(vocab_size: int) -> int:
    """How many tokens' logits exist at once: some 4 million numbers, few enough for a processor's caches to help.

    With a large vocabulary at least 256 tokens, as each chunk also passes over the
    gradient of the whole matrix.
    """
    return max(256, (1 << 22) // vocab_size)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, weights: tuple[float, float], needs: tuple[bool, ...]
    ) -> Tensor:
        # `needs` and not ctx.needs_input_grad, which is True for a parameter even where gradients are off.
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        wide = torch.promote_types(dtype, torch.float32)
        total = torch.zeros((), dtype=wide, device=hidden.device)
        with torch.autocast(device, enabled=False):
            states, matrix = hidden.to(dtype), weight.to(dtype)
            grad_hidden = torch.empty_like(states) if needs[0] else None
            grad_weight = torch.zeros_like(weight, dtype=wide) if needs[1] else None
            grad_bias = torch.zeros_like(bias, dtype=wide) if bias is not None and needs[2] else None
            step = chunk_rows(len(weight))
            for first in range(0, len(states), step):
                part = slice(first, first + step)
                logits = at_least_float(states[part] @ matrix.T)
                if bias is not None:
                    logits += bias
                loss, gradient = _loss_and_gradient(logits, labels[part, None], *weights)
                total += loss
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
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradients = [None if g is None else (g * grad).to(dtype) for g, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)]
        return (*gradients, None, None, None)


def _loss_and_gradient(logits: Tensor, labels: Tensor, z_loss: float, smoothing: float) -> tuple[Tensor, Tensor]:
    """Summed loss of logits (N, V) and its gradient by them, which takes their place in memory; labels (N, 1)."""
    most = logits.amax(-1, keepdim=True)
    chosen = logits.gather(1, labels)
    mean = logits.mean(-1, keepdim=True) if smoothing else chosen
    gradient = logits.sub_(most).exp_()
    partition = gradient.sum(-1, keepdim=True)
    log_sum = partition.log() + most
    loss = log_sum - (1 - smoothing) * chosen - smoothing * mean + z_loss * log_sum.square()
    gradient *= (1 + 2 * z_loss * log_sum) / partition
    if smoothing:
        gradient -= smoothing / gradient.shape[1]
    return loss.sum(), gradient.scatter_add_(1, labels, torch.full_like(chosen, smoothing - 1))


def scored(hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The hidden states (N, D) and labels (N,) of hidden (..., D) and labels (...) whose label is not IGNORE."""
    hidden, labels = hidden.flatten(0, -2), labels.flatten()
    kept = (labels != IGNORE).nonzero()[:, 0]
    return (hidden, labels) if len(kept) == len(labels) else (hidden[kept], labels[kept])


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
    hidden, labels = scored(hidden, labels)
    needs = tuple(torch.is_grad_enabled() and t is not None and t.requires_grad for t in (hidden, weight, bias))
    loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, bias, labels, (z_loss, smoothing), needs)  # type: ignore[no-untyped-call]
    return loss
