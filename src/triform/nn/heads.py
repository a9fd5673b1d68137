"""What stands on top of a stack.

Shapes: B batch, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triform import config

from .dropout import Dropout
from .feedforward import ACTIVATIONS
from .norm import build_norm


class LanguageModel(nn.Module):
    """Hidden states (..., D) to scores over the vocabulary (..., V)."""

    def __init__(self, spec: config.LanguageModel, width: int, vocab_size: int) -> None:
        super().__init__()
        self.spec = spec
        self.dense = nn.Linear(width, width) if spec.transform else None
        self.norm = build_norm(spec.norm if spec.transform else None, width)
        self.weight = None if spec.tied else nn.Parameter(torch.empty(vocab_size, width))
        self.bias: Tensor | None
        if spec.bias == "fixed":
            self.register_buffer("bias", torch.empty(vocab_size))
        else:
            self.register_parameter("bias", nn.Parameter(torch.empty(vocab_size)) if spec.bias == "learned" else None)

    def features(self, x: Tensor) -> Tensor:
        """What the output matrix is multiplied with, (..., D)."""
        if self.dense is not None and self.spec.transform is not None:
            x = self.norm(ACTIVATIONS[self.spec.transform](self.dense(x)))
        return x if self.spec.scale == 1.0 else x * self.spec.scale

    def matrix(self, table: Tensor | None) -> Tensor:
        """The output matrix (V, D): its own, or the token embedding's `table` when tied."""
        matrix = table if self.weight is None else self.weight
        assert matrix is not None, "a tied head needs the stack's input, which holds the table"
        return matrix

    def forward(self, x: Tensor, table: Tensor | None) -> Tensor:
        return F.linear(self.features(x), self.matrix(table), self.bias)


def pool(x: Tensor, how: config.Pooling, mask: Tensor | None, end: Tensor | None = None) -> Tensor:
    """One vector (B, D) for each row of x (B, T, D), padding (`mask` False) left out.

    `end` (B, T) marks the end tokens; 'end' takes the last of them.
    """
    rows = torch.arange(len(x), device=x.device)
    if how == "mean":
        if mask is None:
            return x.mean(1)
        total = (x * mask[..., None].to(x.dtype)).sum(1)
        return total / mask.sum(1, keepdim=True).clamp(min=1).to(x.dtype)
    if how == "end":
        mask = end if end is None or mask is None else end & mask
        if mask is None or not bool(mask.any(1).all()):
            raise ValueError("pooling at the end token: expected one in every row; add it to the input")
    if how == "first":
        return x[:, 0] if mask is None else x[rows, mask.int().argmax(1)]
    if mask is None:
        return x[:, -1]
    return x[rows, (mask.int() * torch.arange(1, x.shape[1] + 1, device=x.device)).argmax(1)]


class Pooled(nn.Module):
    """Pools, then an optional linear layer and activation: (B, T, D) to (B, D)."""

    def __init__(self, spec: config.Classify | config.Embed, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.dense = nn.Linear(width, width) if spec.transform else None

    def pooled(self, x: Tensor, mask: Tensor | None, ids: Tensor | None) -> Tensor:
        end = None if self.spec.end_token is None or ids is None else ids == self.spec.end_token
        y = pool(x, self.spec.pool, None if mask is None else mask.bool(), end)
        if self.dense is not None and self.spec.transform is not None:
            y = ACTIVATIONS[self.spec.transform](self.dense(y))
        return y


class Classify(Pooled):
    """One judgement a sequence: (B, T, D) to (B, labels)."""

    spec: config.Classify

    def __init__(self, spec: config.Classify, width: int) -> None:
        super().__init__(spec, width)
        self.dropout = Dropout(spec.dropout)
        self.out = nn.Linear(width, spec.labels, bias=spec.bias)

    def forward(self, x: Tensor, mask: Tensor | None = None, ids: Tensor | None = None) -> Tensor:
        out: Tensor = self.out(self.dropout(self.pooled(x, mask, ids)))
        return out


class Embed(Pooled):
    """One vector a sequence: (B, T, D) to (B, D or the head's width)."""

    spec: config.Embed

    def __init__(self, spec: config.Embed, width: int) -> None:
        super().__init__(spec, width)
        self.out = nn.Linear(width, spec.width, bias=False) if spec.width else None

    def forward(self, x: Tensor, mask: Tensor | None = None, ids: Tensor | None = None) -> Tensor:
        y = self.pooled(x, mask, ids)
        if self.out is not None:
            y = self.out(y)
        return F.normalize(y, dim=-1) if self.spec.normalize else y


class PerToken(nn.Module):
    """One judgement a token, (B, T, labels); for an answer span two: its start and its end."""

    def __init__(self, spec: config.ClassifyTokens | config.AnswerSpan, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.dropout = Dropout(spec.dropout)
        self.out = nn.Linear(width, spec.labels if isinstance(spec, config.ClassifyTokens) else 2)

    def forward(self, x: Tensor, mask: Tensor | None = None, ids: Tensor | None = None) -> Tensor:
        """Padding gets the smallest score as a place where an answer starts or ends."""
        scores: Tensor = self.out(self.dropout(x))
        if isinstance(self.spec, config.AnswerSpan) and mask is not None:
            scores = scores.masked_fill(~mask.bool()[..., None], torch.finfo(scores.dtype).min)
        return scores


Head = LanguageModel | Classify | Embed | PerToken


def build_head(spec: config.Head | None, stack: config.Stack) -> Head | None:
    """The module of a head's specification on top of a stack; None gives None."""
    match spec:
        case config.LanguageModel():
            assert isinstance(stack.input, config.Tokens)
            return LanguageModel(spec, stack.width, stack.input.vocab_size)
        case config.Classify():
            return Classify(spec, stack.width)
        case config.Embed():
            return Embed(spec, stack.width)
        case config.ClassifyTokens() | config.AnswerSpan():
            return PerToken(spec, stack.width)
        case None:
            return None
