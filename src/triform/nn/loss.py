"""Cross-entropy over a vocabulary without ever holding all the logits.

Shapes: N tokens, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from triform.kernels import training as native

from .norm import at_least_float
from .products import chosen

IGNORE = -100  # the label of a position that is not scored


def chunk_rows(vocab_size: int) -> int:
    """How many tokens' logits exist at once in full width, at least 256.

    Some 4 million numbers are few enough for a processor's caches to help.
    """
    return max(256, (1 << 22) // vocab_size)


def joined_rows(model_width: int, size: int) -> int:
    """How many tokens' gradients by the logits, of `size` bytes a number, are kept to be multiplied with the states at once.

    Each such product passes over the gradient of the whole matrix: 256 tokens are enough for that to be a small part of the work.
    Where sums have to be wider than the products they cost more, and so as many tokens as take 1.5 times what that gradient takes.
    """
    return max(512, 6 * model_width // size) if size < 4 else 256


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, weights: tuple[float, float], needs: tuple[bool, ...]
    ) -> Tensor:
        # `needs` and not ctx.needs_input_grad, which is True for a parameter even where gradients are off.
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        with torch.autocast(device, enabled=False):
            total, ctx.gradients = _passes(hidden.to(dtype), weight.to(dtype), bias, labels, weights, needs)
        ctx.how, ctx.table = chosen(), weight
        ctx.dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        return total

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the loss over a vocabulary can be gone back through once: its gradients are used up")
        (by_hidden, by_weight, by_bias), ctx.gradients = ctx.gradients, None
        if by_weight is not None and ctx.how.gathers(ctx.table):
            ctx.how.gather(ctx.table, by_weight, grad)
            by_weight = None
        scaled = [None if g is None else g.to(d).mul_(grad) for g, d in zip((by_hidden, by_weight, by_bias), ctx.dtypes, strict=True)]
        return (*scaled, None, None, None)


def _passes(
    states: Tensor, matrix: Tensor, bias: Tensor | None, labels: Tensor, weights: tuple[float, float], needs: tuple[bool, ...]
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """The summed loss, and its gradients by states, matrix and bias where they are needed."""
    wide, how = torch.promote_types(states.dtype, torch.float32), chosen()
    total, by_weight = torch.zeros((), dtype=wide, device=states.device), None
    by_hidden = torch.empty_like(states) if needs[0] else None
    by_bias = torch.zeros_like(bias, dtype=wide) if bias is not None and needs[2] else None
    joined = joined_rows(matrix.shape[1], matrix.element_size())
    for begin in range(0, len(states), joined):
        part = slice(begin, begin + joined)
        loss, gradient = _scores(states[part], matrix, bias, labels[part], weights, by_bias)
        total += loss
        if by_hidden is not None:
            by_hidden[part] = how.multiply(gradient, matrix)
        if begin + joined >= len(states):
            del matrix
        if needs[1]:
            by_weight = None if by_weight is None else by_weight.to(wide)
            by_weight = how.multiply_turned(gradient, states[part], by_weight)
        del gradient
    if needs[1] and by_weight is None:  # nothing is scored
        by_weight = torch.zeros_like(matrix)
    return total, (by_hidden, by_weight, by_bias)


def _scores(
    states: Tensor, matrix: Tensor, bias: Tensor | None, labels: Tensor, weights: tuple[float, float], by_bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The summed loss of some tokens, and its gradient by their logits (N, V) in the dtype of `states`; that by the bias is added up."""
    how = chosen()
    if native.serves(states, matrix, bias):
        gradient = how.multiply(states, matrix.T)
        loss = native.cross_entropy(gradient, bias, labels, *weights).sum()
        if by_bias is not None:
            by_bias += gradient.sum(0, dtype=by_bias.dtype)
        return loss, gradient
    loss = torch.zeros((), dtype=torch.promote_types(states.dtype, torch.float32), device=states.device)
    gradient = states.new_empty(len(states), len(matrix))
    step = chunk_rows(len(matrix))
    for first in range(0, len(states), step):
        part = slice(first, first + step)
        logits = at_least_float(how.multiply(states[part], matrix.T))
        if bias is not None:
            logits += bias
        some, by_logits = _loss_and_gradient(logits, labels[part, None], *weights)
        loss += some
        if by_bias is not None:
            by_bias += by_logits.sum(0)
        gradient[part] = by_logits
        del logits, by_logits
    return loss, gradient


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
