"""Blocks in a row, and what they share in one pass.

Shapes: B batch, T tokens, S keys, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from triform import config

from .attention import Attention, Trace
from .cache import Cache, Span
from .dropout import Dropout
from .embed import PatchInput, TokenInput
from .feedforward import Experts, FeedForward, Routing
from .mask import Layout, Part, View, masked_bias, positions_of, visible
from .norm import build_norm
from .position import AlibiBias, BucketedBias, Rotation, rotation
from .recompute import call, chosen


class Sublayer(nn.Module):
    """x + f(x), with the norm before f, after the sum, or on both sides of f."""

    def __init__(self, body: nn.Module, block: config.Block, width: int) -> None:
        super().__init__()
        self.body, self.placement = body, block.placement
        # A router reads its input in full width.
        self.norm = build_norm(block.norm, width, narrow=block.placement != "post" and not isinstance(body, Experts))
        self.norm_out = build_norm(block.norm if block.placement == "sandwich" else None, width)
        self.dropout = Dropout(block.dropout)

    def forward(self, x: Tensor, *args: Any) -> tuple[Tensor, Any]:
        """The new residual stream, and whatever else f returns."""
        y = self.body(x if self.placement == "post" else self.norm(x), *args)
        y, extra = y if isinstance(y, tuple) else (y, None)
        if self.placement == "post":
            return self.norm(x + self.dropout(y)), extra
        return x + self.dropout(self.norm_out(y)), extra


@dataclass
class Scene:
    """What every layer of one pass shares."""

    views: list[View]  # one per distinct attention of the stack
    across: View  # of the memory
    memory: Tensor | None = None
    seen: Tensor | None = None  # (B, T), False where padding
    cache: Cache | None = None
    trace: Trace | None = None
    name: str = ""


class Block(nn.Module):
    """Attention, cross-attention if any, feed-forward."""

    def __init__(self, spec: config.Block, width: int, view: int, memory_width: int | None) -> None:
        super().__init__()
        self.spec, self.view = spec, view
        self.attention = Sublayer(Attention(spec.attention, width), spec, width)
        self.cross = Sublayer(Attention(spec.cross, width, memory_width), spec, width) if spec.cross else None
        body = Experts(spec.feed_forward, width) if isinstance(spec.feed_forward, config.Experts) else FeedForward(spec.feed_forward, width)
        self.feed_forward = Sublayer(body, spec, width)

    def forward(self, x: Tensor, scene: Scene, index: int) -> tuple[Tensor, Routing | None]:
        """x (B, T, D) to (B, T, D), as layer `index` of the stack, and what its experts chose, if it has any."""
        cache, trace = scene.cache, scene.trace
        probes: dict[str, dict[str, Tensor]] | None = {"attention": {}, "cross": {}} if trace is not None and trace.weights else None
        x, _ = self.attention(x, scene.views[self.view], None, cache and cache.layers[index], probes and probes["attention"])
        if self.cross is not None:
            x, _ = self.cross(x, scene.across, scene.memory, cache and cache.crosses[index], probes and probes["cross"])
        if trace is not None and probes is not None:
            trace.attention |= {f"{scene.name}.layers.{index}.{kind}": probe["weights"] for kind, probe in probes.items() if probe}
        if isinstance(self.feed_forward.body, Experts):
            x, routing = self.feed_forward(x, scene.seen)
            return x, routing
        x, _ = self.feed_forward(x)
        return x, None


_BiasKind = tuple[config.Bucketed | config.Alibi, int, bool]


def _bias_kind(attention: config.Attention) -> _BiasKind | None:
    if isinstance(attention.position, config.Bucketed | config.Alibi):
        return attention.position, attention.heads, attention.mask == "bidirectional"
    return None


def _build_bias(position: config.Bucketed | config.Alibi, heads: int, both_ways: bool) -> nn.Module:
    return BucketedBias(position, heads, both_ways) if isinstance(position, config.Bucketed) else AlibiBias(heads)


class Stack(nn.Module):
    """An input, `depth` blocks and a final norm.

    Layers are addressed by their global index. For a stage of a pipeline `input` and `norm`
    may be set to None and layers deleted; without an input the stack takes hidden states.
    """

    def __init__(self, spec: config.Stack, name: str, memory_width: int | None = None) -> None:
        super().__init__()
        self.spec, self.name = spec, name
        self.input: PatchInput | TokenInput | None
        self.input = PatchInput(spec.input, spec.width) if isinstance(spec.input, config.Patches) else TokenInput(spec.input, spec.width)
        self.distinct = list(dict.fromkeys(block.attention for block in spec.pattern[: spec.depth]))
        self.layers = nn.ModuleDict()
        for index in range(spec.depth):
            block = spec.block(index)
            self.layers[str(index)] = Block(block, spec.width, self.distinct.index(block.attention), memory_width)
        self.norm: nn.Module | None = build_norm(spec.norm, spec.width)
        kinds = [_bias_kind(attention) for attention in self.distinct]
        distinct = list(dict.fromkeys(kind for kind in kinds if kind is not None))
        self.biases = nn.ModuleList(_build_bias(*kind) for kind in distinct)  # each shared by the layers that name it
        self._bias_of = [None if kind is None else distinct.index(kind) for kind in kinds]

    def forward(
        self,
        inputs: Tensor,
        mask: Tensor | None = None,
        layout: Layout | None = None,
        memory: tuple[Tensor | None, View] = (None, View()),
        cache: Cache | None = None,
        trace: Trace | None = None,
    ) -> tuple[Tensor, list[Routing]]:
        """ids (B, T), pixels, or what an earlier stage gave, to (B, T, D).

        `mask` (B, T) is False where padding; `memory` is another stack's output and its view. What the
        layers keep for a backward pass is as `recomputing` says; with a cache, all.
        """
        layout = layout or Layout()
        x = self.input(inputs) if isinstance(self.input, PatchInput) else inputs
        seen = None if mask is None else mask.bool()
        if layout.documents is not None:
            if cache is not None:
                raise ValueError("packed documents are for training and scoring; with a cache, give each document a row of its own")
            seen = layout.documents >= 0 if seen is None else seen & (layout.documents >= 0)
        at = positions_of(x, seen, layout.documents) if cache is None else cache.extend(len(x), x.shape[1], seen, x.device)
        self._check(at, x.shape[1] if cache is None else cache.length)
        if isinstance(self.input, TokenInput):
            x = self.input(inputs, at, layout.segments)
        views = []
        for index, attention in enumerate(self.distinct):
            if cache is not None and cache.spans:
                parts = tuple(self._part(index, span, layout, x) for span in cache.spans)
                views.append(View(None, self._turn(attention, at), parts=parts))
                continue
            keys_at, keys_seen = (at, seen) if cache is None else cache.keys(attention.window, x.shape[1], x.device)
            views.append(self._view(index, (at, keys_at, keys_seen), layout, x))
        scene = Scene(views, memory[1], memory[0], seen, cache, trace, self.name)
        how, choices = "none" if cache is not None else chosen(), []
        for key, layer in self.layers.items():
            if trace is not None:
                trace.hidden.append(x)
            x, routing = call(how, layer, x, scene, int(key))
            if routing is not None:
                choices.append(routing)
        if self.norm is not None:
            x = self.norm(x)
        if trace is not None:
            trace.hidden.append(x)
        return x, choices

    def bias_of(self, view: int) -> nn.Module | None:
        """What biases the scores of the attentions with this view, if anything does."""
        index = self._bias_of[view]
        return None if index is None else self.biases[index]

    def _check(self, at: Tensor, slots: int) -> None:
        """Refuse positions that were not learned. Padding and packing leave fewer positions than slots, which are cheaper to count."""
        position = self.spec.input.position if isinstance(self.spec.input, config.Tokens) else None
        if not isinstance(position, config.Learned) or slots <= position.length:
            return
        needed = slots if at.is_meta else int(at.max()) + 1
        if needed > position.length:
            raise ValueError(f"the {self.name} has {position.length} learned positions and the sequence needs {needed}; shorten it")

    def _turn(self, attention: config.Attention, at: Tensor) -> Rotation | None:
        if not isinstance(attention.position, config.Rotary):
            return None
        return rotation(attention.position, at, self.spec.head_width(attention))

    def _part(self, index: int, span: Span, layout: Layout, x: Tensor) -> Part:
        """What tokens of a span see: nothing stands between their rows' keys, so that a key's place is its position."""
        attention, bias = self.distinct[index], self._bias_of[index]
        first = 0 if attention.window is None else max(0, span.past - attention.window + 1)
        prefix = None if layout.prefix is None or attention.mask != "prefix" else layout.prefix[0, span.tokens].view_as(span.at)
        part, new = Part(span.tokens, span.rows, slice(first, span.end)), span.at.shape[1]
        if bias is None and prefix is None and span.even:
            if new == 1:
                return part
            if span.past == 0 and (attention.window is None or new <= attention.window):
                return part._replace(causal=True)
        distance = torch.arange(first, span.end, device=x.device) - span.at[:, :, None]
        mask = visible(attention, distance, prefix)[:, None]
        return part._replace(mask=mask if bias is None else masked_bias(self.biases[bias](distance), mask, x))

    def _view(self, index: int, place: tuple[Tensor, Tensor, Tensor | None], layout: Layout, x: Tensor) -> View:
        attention, bias = self.distinct[index], self._bias_of[index]
        at, keys_at, keys_seen = place
        turn = self._turn(attention, at)
        has_prefix = attention.mask == "prefix" and layout.prefix is not None
        plain = keys_seen is None and layout.documents is None and bias is None and not has_prefix
        if plain and (attention.window is None or max(at.shape[1], keys_at.shape[1]) <= attention.window):
            if attention.mask == "bidirectional" or at.shape[1] == 1:
                return View(None, turn)
            if at.shape[1] == keys_at.shape[1]:
                return View(None, turn, causal=True)
        distance = keys_at[:, None, :] - at[:, :, None]
        mask = visible(attention, distance, layout.prefix)
        if keys_seen is not None:
            mask = mask & (keys_seen if keys_seen.ndim == 3 else keys_seen[:, None, :])
        if layout.documents is not None:
            mask = mask & (layout.documents[:, None, :] == layout.documents[:, :, None])
        mask = mask[:, None]
        return View(mask if bias is None else masked_bias(self.biases[bias](distance), mask, x), turn)
