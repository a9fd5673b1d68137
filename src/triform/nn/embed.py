"""From token ids or pixels to vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from triform import config

from .dropout import Dropout
from .norm import build_norm
from .position import InputPosition
from .products import gathers, lookup


class TokenInput(nn.Module):
    """Token, position and segment vectors summed, normed, dropped: ids (B, T) to (B, T, width)."""

    def __init__(self, spec: config.Tokens, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.token = nn.Embedding(spec.vocab_size, width)
        self.position = InputPosition(spec.position, width) if spec.position else None
        self.segment = nn.Embedding(spec.segments, width) if spec.segments else None
        self.norm = build_norm(spec.norm, width)
        self.dropout = Dropout(spec.dropout)

    def forward(self, ids: Tensor, positions: Tensor, segments: Tensor | None = None) -> Tensor:
        """`positions` (B or 1, T); `segments` (B, T), all 0 when left out."""
        ours = type(self.token) is nn.Embedding and gathers(self.token.weight)  # packed ones look up themselves
        x = lookup(ids, self.token.weight) if ours else self.token(ids)
        if self.spec.scale != 1.0:
            x = x * self.spec.scale
        if self.position is not None:
            x = x + self.position(positions).type_as(x)
        if self.segment is not None:
            x = x + (self.segment.weight[0] if segments is None else self.segment(segments))
        out: Tensor = self.dropout(self.norm(x))
        return out


class PatchInput(nn.Module):
    """Pixels (B, channels, image, image) to a class token and patches (B, 1 + patches, width)."""

    def __init__(self, spec: config.Patches, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.first = nn.Parameter(torch.empty(width))
        self.patch = nn.Conv2d(spec.channels, width, spec.patch, spec.patch, bias=spec.bias)
        self.position = nn.Parameter(torch.empty(spec.length, width))
        self.norm = build_norm(spec.norm, width)
        self.dropout = Dropout(spec.dropout)

    def forward(self, pixels: Tensor) -> Tensor:
        expected = (self.spec.channels, self.spec.image, self.spec.image)
        if tuple(pixels.shape[1:]) != expected:
            raise ValueError(f"expected pixels of shape (batch, {', '.join(map(str, expected))}), got {tuple(pixels.shape)}")
        patches = self.patch(pixels.type_as(self.patch.weight)).flatten(2).transpose(1, 2)
        x = torch.cat((self.first.expand(len(patches), 1, -1), patches), dim=1) + self.position
        out: Tensor = self.dropout(self.norm(x))
        return out
