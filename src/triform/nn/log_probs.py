"""The log-probability of each label over a vocabulary, without ever holding all the logits.

Shapes: N tokens, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .loss import chunk_rows
from .norm import at_least_float
from .products import Products, chosen, narrowed


class _LinearLogProbs(torch.autograd.Function):
    """The backward pass makes each chunk's logits again: by how much each label's counts is not known before."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, with_entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        device = hidden.device.type
        ctx.how, ctx.dtype = chosen(), narrowed(device, torch.promote_types(hidden.dtype, weight.dtype))
        wide = torch.promote_types(ctx.dtype, torch.float32)
        found, log_sums, entropy = (torch.zeros(len(labels), dtype=wide, device=hidden.device) for _ in range(3))
        with torch.autocast(device, enabled=False):
            states, matrix = hidden.to(ctx.dtype), weight.to(ctx.dtype)
            for part in _chunks(len(labels), len(matrix)):
                logits = _logits(ctx.how, states[part], matrix, bias)
                log_sums[part] = logits.logsumexp(-1)
                found[part] = logits.gather(1, labels[part, None])[:, 0] - log_sums[part]
                if with_entropy:
                    entropy[part] = torch.special.entr(logits.sub_(log_sums[part, None]).exp_()).sum(-1)
        ctx.save_for_backward(hidden, weight, bias, labels, log_sums)
        if not with_entropy:
            return found, None
        ctx.mark_non_differentiable(entropy)
        return found, entropy

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, labels, log_sums = ctx.saved_tensors
        needs, how = ctx.needs_input_grad, ctx.how
        with torch.autocast(hidden.device.type, enabled=False):
            states, matrix = hidden.to(ctx.dtype), weight.to(ctx.dtype)
            by_hidden = torch.empty_like(states) if needs[0] else None
            by_weight = torch.zeros_like(weight, dtype=log_sums.dtype) if needs[1] else None
            by_bias = torch.zeros_like(bias, dtype=log_sums.dtype) if needs[2] else None
            for part in _chunks(len(labels), len(matrix)):
                logits = _logits(how, states[part], matrix, bias)
                by_logits = logits.sub_(log_sums[part, None]).exp_().mul_(-gradient[part, None])
                by_logits.scatter_add_(1, labels[part, None], gradient[part, None].to(by_logits.dtype))
                if by_bias is not None:
                    by_bias += by_logits.sum(0)
                by_logits = by_logits.to(ctx.dtype)
                if by_hidden is not None:
                    by_hidden[part] = how.multiply(by_logits, matrix)
                if by_weight is not None:
                    by_weight += how.multiply(by_logits.T, states[part])
        return (
            None if by_hidden is None else by_hidden.to(hidden.dtype),
            None if by_weight is None else by_weight.to(weight.dtype),
            None if by_bias is None else by_bias.to(bias.dtype),
            None,
            None,
        )


def _chunks(tokens: int, vocab_size: int) -> list[slice]:
    step = chunk_rows(vocab_size)
    return [slice(start, min(start + step, tokens)) for start in range(0, tokens, step)]


def _logits(how: Products, states: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    logits = at_least_float(how.multiply(states, matrix.T))
    return logits if bias is None else logits + bias


def linear_log_probs(
    hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None, *, entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """The log-probabilities (N,) of labels (N,) by `hidden @ weight.T + bias`, and the entropies (N,) there where asked for, in nats.

    hidden (N, D), weight (V, D). Only the logits of a chunk of tokens exist at once; they are made again for the
    gradient, which the entropies have none of.
    """
    found: tuple[Tensor, Tensor | None] = _LinearLogProbs.apply(hidden, weight, bias, labels, entropy)  # type: ignore[no-untyped-call]
    return found
