"""Floating-point operations of a pass, from the configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from triform import config

from . import adapters
from .setting import Recompute


def forward(model: config.Model, length: int, target_length: int | None = None, scored: int | None = None) -> int:
    """FLOPs of the matrix products of one forward pass over one sequence; a multiply-add is two.

    Attention is counted over all pairs of queries and keys, those that a mask hides
    included, as torch's counter does and as utilization is usually stated (Chowdhery et
    al. 2022, appendix B). Experts are counted without capacity. A backward pass costs
    twice as much again.

    length: tokens of the sequence, or of the encoder's; patches have a length of their own.
    target_length: tokens of an encoder-decoder's target; None: `length`.
    scored: positions that a language-model head scores; None: all.
    """
    total = sum(_patches(run.stack) + _layers(run) for run in _runs(model, length, target_length))
    if isinstance(model, config.DualEncoder):
        return total + 2 * model.width * (model.text.width + model.image.width + 1)
    read = _runs(model, length, target_length)[-1].length
    return total + _head(model.head, model.last, read, scored) + _head(model.sentence_head, model.last, read, None)


def training(
    model: config.Model, length: int, target_length: int | None = None, scored: int | None = None, recompute: Recompute = "none",
    adapter: config.Adapter | None = None,
) -> int:  # fmt: skip
    """FLOPs of the matrix products of one sequence's forward and backward pass, those that are made twice included.

    A backward pass makes two products for each one of the forward pass, by the weights and by
    the input, so it costs twice as much; only pixels need no gradient. Lengths and `scored` are
    as for `forward`. With an adapter none is made by the frozen weights, so a backward pass costs as much as a forward pass,
    but for attention's products of tokens with tokens and the adapter's own.
    """
    if adapter is not None:
        own, each = forward(model, length, target_length, scored), adapters.forward(model, adapter, length, target_length)[0]
        return 2 * own + pairs(model, length, target_length) + 3 * each + recomputed(model, length, target_length, recompute)
    pixels = sum(_patches(run.stack) for run in _runs(model, length, target_length))
    return 3 * forward(model, length, target_length, scored) - pixels + recomputed(model, length, target_length, recompute)


def recomputed(model: config.Model, length: int, target_length: int | None = None, how: Recompute = "full") -> int:
    """FLOPs of the products that a backward pass makes again for one sequence, as `triform.nn.recompute` does.

    `full` makes every layer's again; `selective` those of attention's scores and context where
    no fused kernel keeps them, which is with dropout on the probabilities or a learned bias.
    """
    runs = _runs(model, length, target_length)
    match how:
        case "none":
            return 0
        case "full":
            return sum(_layers(run) - sum(_unneeded(block, run.stack.width, run.length) for block in _blocks(run.stack)) for run in runs)
        case "selective":
            return sum(_pairs(run, lambda spec: spec.dropout > 0 or isinstance(spec.position, config.Bucketed)) for run in runs)


def pairs(model: config.Model, length: int, target_length: int | None = None) -> int:
    """The part of `forward` that goes to attention's scores and contexts: products of tokens with tokens, not with weights."""
    return sum(_pairs(run) for run in _runs(model, length, target_length))


class _Run(NamedTuple):
    """One stack in a pass: its tokens, those of the memory that it looks at, and the memory's width."""

    stack: config.Stack
    length: int
    memory: int = 0
    memory_width: int = 0


def _runs(model: config.Model, length: int, target_length: int | None) -> list[_Run]:
    if isinstance(model, config.DualEncoder):
        return [_Run(stack, _length(stack, length)) for stack in (model.text, model.image)]
    runs = []
    if model.encoder is not None:
        runs.append(_Run(model.encoder, _length(model.encoder, length)))
    if model.decoder is not None:
        if model.encoder is None:
            runs.append(_Run(model.decoder, length))
        else:
            runs.append(_Run(model.decoder, length if target_length is None else target_length, runs[0].length, model.encoder.width))
    return runs


def _blocks(stack: config.Stack) -> Iterator[config.Block]:
    return (stack.block(index) for index in range(stack.depth))


def _pairs(run: _Run, which: Callable[[config.Attention], bool] = lambda spec: True) -> int:
    total = 0
    for block in _blocks(run.stack):
        for attention, keys in ((block.attention, run.length), (block.cross, run.memory)):
            if attention is not None and which(attention):
                total += 4 * attention.heads * run.stack.head_width(attention) * run.length * keys
    return total


def _unneeded(block: config.Block, width: int, length: int) -> int:
    """A block's last product, which is not made again where nothing after it is needed to go backward."""
    body = block.feed_forward
    if block.placement != "pre" or block.dropout > 0 or isinstance(body, config.Experts):
        return 0
    return 2 * body.hidden * width * length


def _length(stack: config.Stack, length: int) -> int:
    return stack.input.length if isinstance(stack.input, config.Patches) else length


def _patches(stack: config.Stack) -> int:
    spec = stack.input
    return 2 * spec.channels * spec.patch**2 * stack.width * (spec.length - 1) if isinstance(spec, config.Patches) else 0


def _layers(run: _Run) -> int:
    stack, length, width = run.stack, run.length, run.stack.width
    kinds = {
        block: _attention(block.attention, stack, length, length, width)
        + (_attention(block.cross, stack, length, run.memory, run.memory_width) if block.cross else 0)
        + _feed_forward(block.feed_forward, width, length)
        for block in dict.fromkeys(stack.pattern)
    }
    return sum(kinds[block] for block in _blocks(stack))


def _attention(spec: config.Attention, stack: config.Stack, queries: int, keys: int, source_width: int) -> int:
    inner = spec.heads * stack.head_width(spec)
    shared = (spec.kv_heads or spec.heads) * stack.head_width(spec)
    projections = 2 * stack.width * inner * queries + 2 * source_width * shared * keys
    return 2 * projections + 4 * inner * queries * keys


def _feed_forward(spec: config.FeedForward | config.Experts, width: int, length: int) -> int:
    if isinstance(spec, config.FeedForward):
        return 2 * (3 if spec.gated else 2) * width * spec.hidden * length
    shared = _feed_forward(spec.shared, width, length) if spec.shared else 0
    return spec.top_k * _feed_forward(spec.expert, width, length) + 2 * width * spec.count * length + shared


def _head(head: config.Head | None, stack: config.Stack, length: int, scored: int | None) -> int:
    width = stack.width
    dense = 2 * width * width if getattr(head, "transform", None) else 0
    match head:
        case config.LanguageModel():
            assert isinstance(stack.input, config.Tokens)
            return (length if scored is None else scored) * (dense + 2 * width * stack.input.vocab_size)
        case config.Classify():
            return dense + 2 * width * head.labels
        case config.Embed():
            return dense + 2 * width * (head.width or 0)
        case config.ClassifyTokens():
            return 2 * width * head.labels * length
        case config.AnswerSpan():
            return 4 * width * length
        case None:
            return 0
