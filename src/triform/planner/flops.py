"""Floating-point operations of a pass, from the configuration."""

from __future__ import annotations

from triform import config


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
    if isinstance(model, config.DualEncoder):
        towers = sum(_stack(stack, _length(stack, length)) for stack in (model.text, model.image))
        return towers + 2 * model.width * (model.text.width + model.image.width + 1)
    total, read = 0, length
    if model.encoder is not None:
        read = _length(model.encoder, length)
        total += _stack(model.encoder, read)
    if model.decoder is not None:
        memory = read if model.encoder is not None else 0
        read = length if model.encoder is None or target_length is None else target_length
        total += _stack(model.decoder, read, memory, model.encoder.width if model.encoder else 0)
    return total + _head(model.head, model.last, read, scored) + _head(model.sentence_head, model.last, read, None)


def _length(stack: config.Stack, length: int) -> int:
    return stack.input.length if isinstance(stack.input, config.Patches) else length


def _stack(stack: config.Stack, length: int, memory: int = 0, memory_width: int = 0) -> int:
    spec, width = stack.input, stack.width
    total = 0
    if isinstance(spec, config.Patches):
        total += 2 * spec.channels * spec.patch**2 * width * (spec.length - 1)
    kinds = {
        block: _attention(block.attention, stack, length, length, width)
        + (_attention(block.cross, stack, length, memory, memory_width) if block.cross else 0)
        + _feed_forward(block.feed_forward, width, length)
        for block in dict.fromkeys(stack.pattern)
    }
    return total + sum(kinds[stack.block(index)] for index in range(stack.depth))


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
