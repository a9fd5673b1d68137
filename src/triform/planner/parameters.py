"""The weights of a model, by name and shape, from its configuration."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple

from triform import config

from . import describe


@dataclass(frozen=True)
class Part:
    """A module, or a weight if it has a `shape`, under the name it has in the model.

    `idle`: parameters that a token does not pass, in experts it was not sent to.
    `shared`: the full name of the weight that serves here too; it is counted there alone.
    """

    name: str
    count: int
    idle: int = 0
    shape: tuple[int, ...] | None = None
    children: tuple[Part, ...] = ()
    note: str = ""
    shared: str | None = None

    @property
    def active(self) -> int:
        """Parameters that one token passes."""
        return self.count - self.idle

    def weights(self, prefix: str = "") -> Iterator[tuple[str, tuple[int, ...]]]:
        """Full names and shapes of the weights, each shared one once."""
        name = f"{prefix}.{self.name}" if prefix else self.name
        if self.shape is not None and self.shared is None:
            yield name, self.shape
        for child in self.children:
            yield from child.weights(name)

    def to_dict(self) -> dict[str, Any]:
        """Plain data: name, parameters, and where they apply active, shape, note, shared and children."""
        data: dict[str, Any] = {"name": self.name, "parameters": self.count}
        if self.idle:
            data["active_parameters"] = self.active
        if self.shape is not None:
            data["shape"] = list(self.shape)
        data |= {key: value for key, value in (("note", self.note), ("shared", self.shared)) if value}
        if self.children:
            data["children"] = [child.to_dict() for child in self.children]
        return data


class Count(NamedTuple):
    """total: shared weights once, fixed biases not at all. active: what one token passes.

    embedding: the tables of tokens, positions and segments. tree: a nameless part that
    holds the model's. shapes: of the weights, by full names, each shared one once.
    """

    total: int
    active: int
    embedding: int
    tree: Part
    shapes: Mapping[str, tuple[int, ...]]


@lru_cache(maxsize=64)
def parameters(model: config.Model) -> Count:
    """The parameters of a model, counted as `triform.nn.build(model).parameters()` has them."""
    tree = _dual_encoder(model) if isinstance(model, config.DualEncoder) else _transformer(model)
    tables = (".input.token.", ".input.position", ".input.segment.")
    shapes = MappingProxyType(dict(tree.weights()))
    embedding = sum(math.prod(shape) for name, shape in shapes.items() if any(table in name for table in tables))
    return Count(tree.count, tree.active, embedding, tree, shapes)


def _weight(name: str, *shape: int) -> Part:
    return Part(name, math.prod(shape), shape=shape)


def _module(name: str, *children: Part | None, note: str = "") -> Part:
    kept = tuple(child for child in children if child is not None)
    return Part(name, sum(c.count for c in kept), sum(c.idle for c in kept), children=kept, note=note)


def _linear(name: str, inputs: int, outputs: int, bias: bool = True) -> Part:
    return _module(name, _weight("weight", outputs, inputs), _weight("bias", outputs) if bias else None)


def _norm(name: str, norm: config.Norm | None, width: int) -> Part | None:
    if norm is None:
        return None
    bias = isinstance(norm, config.LayerNorm) and norm.bias
    return _module(name, _weight("weight", width), _weight("bias", width) if bias else None, note=describe.norm(norm))


def _attention(spec: config.Attention, stack: config.Stack, source_width: int, cross: bool = False) -> Part:
    width, head_width = stack.width, stack.head_width(spec)
    inner, shared = spec.heads * head_width, (spec.kv_heads or spec.heads) * head_width
    inside = spec.bias in ("qkv", "all")
    return _module(
        "body",
        _linear("query", width, inner, inside),
        _linear("key", source_width, shared, inside),
        _linear("value", source_width, shared, inside),
        _linear("out", inner, width, spec.bias in ("out", "all")),
        _norm("query_norm", spec.qk_norm, head_width),
        _norm("key_norm", spec.qk_norm, head_width),
        note=", ".join(describe.attention(spec, stack, cross=cross)),
    )


def _feed_forward(name: str, spec: config.FeedForward, width: int) -> Part:
    return _module(
        name,
        _linear("gate", width, spec.hidden, spec.bias) if spec.gated else None,
        _linear("up", width, spec.hidden, spec.bias),
        _linear("down", spec.hidden, width, spec.bias),
        note=describe.feed_forward(spec),
    )


def _experts(spec: config.Experts, width: int) -> Part:
    count, hidden, expert = spec.count, spec.expert.hidden, spec.expert
    own = [
        _weight("gate", count, hidden, width) if expert.gated else None,
        _weight("up", count, hidden, width),
        _weight("down", count, width, hidden),
        _weight("up_bias", count, hidden) if expert.bias else None,
        _weight("gate_bias", count, hidden) if expert.bias and expert.gated else None,
        _weight("down_bias", count, width) if expert.bias else None,
    ]
    waiting = count - spec.top_k
    own = [part and replace(part, idle=part.count // count * waiting) for part in own]
    shared = _feed_forward("shared", spec.shared, width) if spec.shared else None
    return _module("body", *own, _linear("router", width, count, bias=False), shared, note=describe.experts(spec))


def _block(block: config.Block, stack: config.Stack, memory_width: int | None) -> Part:
    def sublayer(name: str, body: Part) -> Part:
        after = block.norm if block.placement == "sandwich" else None
        return _module(name, body, _norm("norm", block.norm, stack.width), _norm("norm_out", after, stack.width))

    chosen = block.feed_forward
    body = _experts(chosen, stack.width) if isinstance(chosen, config.Experts) else _feed_forward("body", chosen, stack.width)
    return _module(
        "",
        sublayer("attention", _attention(block.attention, stack, stack.width)),
        sublayer("cross", _attention(block.cross, stack, memory_width or stack.width, cross=True)) if block.cross else None,
        sublayer("feed_forward", body),
        note=f"{block.placement} norm",
    )


def _input(stack: config.Stack, shared: str | None) -> Part:
    spec, width = stack.input, stack.width
    norm = _norm("norm", spec.norm, width)
    if isinstance(spec, config.Patches):
        patch = [_weight("weight", width, spec.channels, spec.patch, spec.patch), _weight("bias", width) if spec.bias else None]
        first, position = _weight("first", width), _weight("position", spec.length, width)
        return _module("input", first, position, _module("patch", *patch), norm, note=describe.patches(spec))
    token = _weight("weight", spec.vocab_size, width)
    if shared:
        token = replace(token, count=0, shared=shared)
    learned = spec.position if isinstance(spec.position, config.Learned) else None
    return _module(
        "input",
        _module("token", token),
        _module("position", _weight("weight", learned.length + learned.offset, width)) if learned else None,
        _module("segment", _weight("weight", spec.segments, width)) if spec.segments else None,
        norm,
        note=describe.position(spec.position),
    )


def _biases(stack: config.Stack) -> Part | None:
    """Score biases, one for each distinct kind in the pattern; only T5's has weights."""
    kinds = dict.fromkeys(
        (a.position, a.heads, a.mask == "bidirectional")
        for a in (block.attention for block in stack.pattern[: stack.depth])
        if isinstance(a.position, config.Bucketed | config.Alibi)
    )
    parts = [
        _module(str(index), _weight("weight", position.buckets, heads), note=describe.position(position))
        for index, (position, heads, _) in enumerate(kinds)
        if isinstance(position, config.Bucketed)
    ]
    return _module("biases", *parts) if parts else None


def _stack(name: str, stack: config.Stack, memory_width: int | None = None, shared: str | None = None) -> Part:
    kinds = {block: _block(block, stack, memory_width) for block in dict.fromkeys(stack.pattern)}
    layers = [replace(kinds[stack.block(index)], name=str(index)) for index in range(stack.depth)]
    norm = _norm("norm", stack.norm, stack.width)
    note = f"width {stack.width:,}, {stack.depth} layer{'s' if stack.depth > 1 else ''}"
    return _module(name, _input(stack, shared), _module("layers", *layers), norm, _biases(stack), note=note)


def _head(name: str, head: config.Head | None, stack: config.Stack, table: str) -> Part | None:
    width = stack.width
    if head is None:
        return None
    note = describe.head(head)
    dense = _linear("dense", width, width) if getattr(head, "transform", None) else None
    match head:
        case config.LanguageModel():
            assert isinstance(stack.input, config.Tokens)
            vocab = stack.input.vocab_size
            weight = _weight("weight", vocab, width)
            weight = replace(weight, count=0, shared=table) if head.tied else weight
            bias = _weight("bias", vocab) if head.bias == "learned" else None
            return _module(name, weight, bias, dense, _norm("norm", head.norm, width) if dense else None, note=note)
        case config.Embed():
            return _module(name, dense, _linear("out", width, head.width, bias=False) if head.width else None, note=note)
        case config.Classify():
            return _module(name, dense, _linear("out", width, head.labels, head.bias), note=note)
        case config.ClassifyTokens():
            return _module(name, _linear("out", width, head.labels), note=note)
        case config.AnswerSpan():
            return _module(name, _linear("out", width, 2), note=note)


def _transformer(model: config.Transformer) -> Part:
    encoder, decoder = model.encoder, model.decoder
    first = "encoder.input.token.weight"
    shared = first if model.share_tokens else None
    table = first if decoder is None or model.share_tokens else "decoder.input.token.weight"
    return _module(
        "",
        _stack("encoder", encoder) if encoder else None,
        _stack("decoder", decoder, encoder.width if encoder else None, shared) if decoder else None,
        _head("head", model.head, model.last, table),
        _head("sentence_head", model.sentence_head, model.last, table),
    )


def _dual_encoder(model: config.DualEncoder) -> Part:
    return _module(
        "",
        _weight("temperature"),
        _stack("text", model.text),
        _stack("image", model.image),
        _linear("text_out", model.text.width, model.width, bias=False),
        _linear("image_out", model.image.width, model.width, bias=False),
    )
