"""What a configuration computes, apart from how it is written and how it is trained."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, TypeVar

from triform import config

_M = TypeVar("_M", bound=config.Model)


def function(model: _M) -> _M:
    """The configuration with defaults spelled out and with what only training uses (dropout, capacity, start) left out.

    Two configurations are equal after this where models of them with equal weights give equal results.
    """
    if isinstance(model, config.DualEncoder):
        return replace(model, text=_stack(model.text), image=_stack(model.image), init=config.Init())
    return replace(
        model,
        encoder=model.encoder and _stack(model.encoder),
        decoder=model.decoder and _stack(model.decoder),
        head=_head(model.head),
        sentence_head=model.sentence_head and replace(model.sentence_head, dropout=0.0),
        init=config.Init(),
    )


def period(blocks: list[config.Block]) -> tuple[config.Block, ...]:
    """The shortest pattern that repeats to `blocks`."""
    numbers: dict[config.Block, int] = {}
    row = [numbers.setdefault(block, len(numbers)) for block in blocks]
    border = [0] * len(row)  # how much of the row's start each place ends (Knuth, Morris and Pratt 1977); thousands of layers are quick
    for i in range(1, len(row)):
        length = border[i - 1]
        while length and row[i] != row[length]:
            length = border[length - 1]
        border[i] = length + (row[i] == row[length])
    return tuple(blocks[: len(row) - border[-1]])


def depths(model: config.Model) -> list[int]:
    """The layers of each stack; 0 where there is none."""
    stacks = (model.text, model.image) if isinstance(model, config.DualEncoder) else (model.encoder, model.decoder)
    return [0 if stack is None else stack.depth for stack in stacks]


def _stack(stack: config.Stack) -> config.Stack:
    blocks = [_block(stack.block(i), stack) for i in range(stack.depth)]
    return replace(stack, input=replace(stack.input, dropout=0.0), pattern=period(blocks))


def _block(block: config.Block, stack: config.Stack) -> config.Block:
    return replace(
        block,
        attention=_attention(block.attention, stack),
        cross=block.cross and _attention(block.cross, stack),
        feed_forward=_feed_forward(block.feed_forward),
        dropout=0.0,
    )


def _attention(spec: config.Attention, stack: config.Stack) -> config.Attention:
    width, position = stack.head_width(spec), spec.position
    if isinstance(position, config.Rotary) and isinstance(position.scaling, config.Yarn):
        position = replace(position, scaling=replace(position.scaling, attention_factor=position.scaling.magnitude))
    return replace(
        spec, kv_heads=spec.kv_heads or spec.heads, head_width=width, position=position, dropout=0.0,
        scale=width**-0.5 if spec.scale is None else spec.scale,
    )  # fmt: skip


def _feed_forward(spec: config.FeedForward | config.Experts) -> config.FeedForward | config.Experts:
    if isinstance(spec, config.FeedForward):
        return replace(spec, dropout=0.0)
    shared = spec.shared and replace(spec.shared, dropout=0.0)
    return replace(spec, expert=replace(spec.expert, dropout=0.0), shared=shared, capacity=None)


def _head(head: config.Head | None) -> config.Head | None:
    match head:
        case config.LanguageModel(transform=None):
            return replace(head, norm=config.LayerNorm())  # only a transform has a norm
        case config.Classify() | config.ClassifyTokens() | config.AnswerSpan():
            return replace(head, dropout=0.0)
        case _:
            return head


def differences(one: config.Model, other: config.Model) -> dict[str, tuple[str, str]]:
    """The fields in which two configurations compute otherwise: path to the values of each, as words.

    Numbers agree to nine digits, more than fp32 carries. Layers of a pattern are named once.
    """
    found: dict[str, tuple[str, str]] = {}
    _compare(_plain(one), _plain(other), "", found)
    return found


def _plain(model: config.Model) -> Any:
    return config.to_dict(function(model), defaults=True, hint=config.Model)


def _compare(one: Any, other: Any, where: str, found: dict[str, tuple[str, str]]) -> None:
    if isinstance(one, dict) and isinstance(other, dict) and one.get("kind") == other.get("kind"):
        for name in one:
            _compare(one[name], other[name], f"{where}.{name}" if where else name, found)
    elif isinstance(one, list) and isinstance(other, list):
        for i in range(max(len(one), len(other))):
            _compare(one[i % len(one)], other[i % len(other)], f"{where}[{i % len(one)}]", found)
    elif not _same(one, other):
        found.setdefault(where, (_shown(one), _shown(other)))


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) or isinstance(other, float):
        return isinstance(one, int | float) and isinstance(other, int | float) and math.isclose(one, other, rel_tol=1e-9)
    return bool(one == other)


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return str(value.get("kind", "one"))
    return f"{value:g}" if isinstance(value, float) else str(value)
