"""One attention for all: self or cross; bidirectional, causal, prefix or windowed; MHA, GQA or MQA.

Shapes: B batch, T queries, S keys, D width, H heads, W width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triform import config

from . import fused
from .cache import Growing
from .mask import Part, View
from .norm import build_norm
from .position import rotate
from .products import narrowed


@dataclass
class Trace:
    """Fill-in record of one pass, handed in by the caller.

    hidden: what enters each layer, then each stack's output; (B, T, D), in order.
    attention: with `weights=True`, the probabilities (B, H, T, S) of each attention, by
        its name, such as `decoder.layers.0.cross`.
    """

    weights: bool = False
    hidden: list[Tensor] = field(default_factory=list)
    attention: dict[str, Tensor] = field(default_factory=dict)


class Attention(nn.Module):
    """Scaled dot-product attention (Vaswani et al. 2017, section 3.2).

    With a `source_width` it is cross-attention, to a memory of that width. The number of
    heads is read off the projections' width, so that a shard that holds some of the
    heads runs the same code.
    """

    def __init__(self, spec: config.Attention, width: int, source_width: int | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.head_width = spec.head_width or width // spec.heads
        self.is_cross = source_width is not None
        inner, shared = spec.heads * self.head_width, (spec.kv_heads or spec.heads) * self.head_width
        source_width = source_width or width
        inside, outside = spec.bias in ("qkv", "all"), spec.bias in ("out", "all")
        self.query = nn.Linear(width, inner, bias=inside)
        self.key = nn.Linear(source_width, shared, bias=inside)
        self.value = nn.Linear(source_width, shared, bias=inside)
        self.out = nn.Linear(inner, width, bias=outside)
        self.query_norm = build_norm(spec.qk_norm, self.head_width)
        self.key_norm = build_norm(spec.qk_norm, self.head_width)

    def forward(
        self, x: Tensor, view: View, memory: Tensor | None = None, store: Growing | None = None, probe: dict[str, Tensor] | None = None
    ) -> Tensor:
        """x (B, T, D) to (B, T, D); cross-attention takes keys and values from `memory` (B, S, D').

        `probe` receives the probabilities (B, H, T, S) under the key "weights".
        """
        query = self._split(self.query(x), self.query_norm)
        if view.rotation is not None:
            query = rotate(query, view.rotation)
        key, value = self._keys_and_values(x, view, memory, store)
        if probe is not None:
            probe["weights"] = self._weights(query, key, view)
        y = self._attend(query, key, value, view)
        out: Tensor = self.out(y.transpose(1, 2).flatten(-2).type_as(value))
        return out

    def keys_and_values(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, S, W) of x or of the memory (B, S, D), not yet rotated."""
        return self._split(self.key(source), self.key_norm), self._split(self.value(source))

    def _keys_and_values(self, x: Tensor, view: View, memory: Tensor | None, store: Growing | None) -> tuple[Tensor, Tensor]:
        if self.is_cross and store is not None and (held := store.held()) is not None:
            return held  # the memory never changes, and need not be given again
        source = memory if self.is_cross else x
        assert source is not None
        key, value = self.keys_and_values(source)
        if view.rotation is not None:
            key = rotate(key, view.rotation)
        return (key, value) if store is None else store.append(key, value)

    def _attend_part(self, query: Tensor, key: Tensor, value: Tensor, part: Part) -> Tensor:
        rows = query[0, :, part.queries]
        rows = rows.view(len(rows), part.rows.stop - part.rows.start, -1, self.head_width).transpose(0, 1)
        y = self._attend(rows, key[part.rows, :, part.keys], value[part.rows, :, part.keys], View(part.mask, causal=part.causal))
        return y.transpose(0, 1).flatten(1, 2)[None]

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, view: View) -> Tensor:
        if view.parts:
            return torch.cat([self._attend_part(query, key, value, part) for part in view.parts], dim=2)
        mask, dropout = view.mask, self.spec.dropout if self.training else 0.0
        dtype = narrowed(query.device.type, query.dtype)
        biased = mask is not None and mask.dtype != torch.bool
        if dropout == 0 and fused.fits(query) and fused.attends(dtype, key.shape[2], biased):
            scores = mask.to(dtype) if biased and mask is not None else mask
            return fused.attention(query.to(dtype), key.to(dtype), value.to(dtype), scores, view.causal, self.spec.scale)
        with torch.autocast(query.device.type, enabled=torch.is_autocast_enabled(query.device.type)):
            y = F.scaled_dot_product_attention(
                query, key, value, mask, dropout, view.causal, scale=self.spec.scale, enable_gqa=key.shape[1] != query.shape[1]
            )
        return y

    def _split(self, x: Tensor, norm: nn.Module | None = None) -> Tensor:
        """(B, T, H W) to heads (B, H, T, W), normed each."""
        heads = x.view(*x.shape[:-1], -1, self.head_width)
        return (heads if norm is None else norm(heads)).transpose(1, 2)

    def _weights(self, query: Tensor, key: Tensor, view: View) -> Tensor:
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        scores = query.float() @ key.float().mT * (self.head_width**-0.5 if self.spec.scale is None else self.spec.scale)
        seen = view.mask
        if view.causal:
            seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        if seen is not None:
            scores = scores.masked_fill(~seen, -torch.inf) if seen.dtype == torch.bool else scores + seen
        return scores.softmax(-1).nan_to_num().detach()  # a query that sees nothing has no weights
