"""Floating-point operations of a pass, from the configuration."""

from __future__ import annotations

from triform import config

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


def training(
    model: config.Model, length: int, target_length: int | None = None, scored: int | None = None, recompute: Recompute = "none"
) -> int:
    """FLOPs of the matrix products of one sequence's forward and backward pass, those that are made twice included.

    A backward pass makes two products for each one of the forward pass, by the weights and by
    the input, so it costs twice as much; only pixels need no gradient. Lengths and `scored` are
    as for `forward`.
    """
    stacks = (model.text, model.image) if isinstance(model, config.DualEncoder) else (model.encoder, model.decoder)
    pixels = sum(_patches(stack) for stack in stacks if stack is not None)
    return 3 * forward(model, length, target_length, scored) - pixels + recomputed(model, length, target_length, recompute)


def recomputed(model: config.Model, length: int, target_length: int | None = None, how: Recompute = "full") -> int:
    """FLOPs of the products that a backward pass makes again for one sequence, as `triform.nn.recompute` does.

    `full` makes every layer's again; `selective` those of attention's scores and context where
    no fused kernel keeps them, which is with dropout on the probabilities or a learned bias.
    """
    if how == "none":
        return 0
    if isinstance(model, config.DualEncoder):
        return sum(_again(stack, _length(stack, length), 0, how) for stack in (model.text, model.image))
    total, read = 0, length
    if model.encoder is not None:
        read = _length(model.encoder, length)
        total += _again(model.encoder, read, 0, how)
    if model.decoder is not None:
        own = length if model.encoder is None or target_length is None else target_length
        total += _again(model.decoder, own, read if model.encoder is not None else 0, how, model.encoder.width if model.encoder else 0)
    return total


def _again(stack: config.Stack, length: int, memory: int, how: Recompute, memory_width: int = 0) -> int:
    total = _layers(stack, length, memory, memory_width) if how == "full" else 0
    for index in range(stack.depth):
        block = stack.block(index)
        if how == "full":
            total -= _unneeded(block, stack.width, length)
            continue
        for attention, keys in ((block.attention, length), (block.cross, memory)):
            if attention is not None and (attention.dropout > 0 or isinstance(attention.position, config.Bucketed)):
                total += 4 * attention.heads * stack.head_width(attention) * length * keys
    return total


def _unneeded(block: config.Block, width: int, length: int) -> int:
    """A block's last product, which is not made again where nothing after it is needed to go backward."""
    body = block.feed_forward
    if block.placement != "pre" or block.dropout > 0 or isinstance(body, config.Experts):
        return 0
    return 2 * body.hidden * width * length


def _length(stack: config.Stack, length: int) -> int:
    return stack.input.length if isinstance(stack.input, config.Patches) else length


def _stack(stack: config.Stack, length: int, memory: int = 0, memory_width: int = 0) -> int:
    return _patches(stack) + _layers(stack, length, memory, memory_width)


def _patches(stack: config.Stack) -> int:
    spec = stack.input
    return 2 * spec.channels * spec.patch**2 * stack.width * (spec.length - 1) if isinstance(spec, config.Patches) else 0


def _layers(stack: config.Stack, length: int, memory: int, memory_width: int) -> int:
    width = stack.width
    kinds = {
        block: _attention(block.attention, stack, length, length, width)
        + (_attention(block.cross, stack, length, memory, memory_width) if block.cross else 0)
        + _feed_forward(block.feed_forward, width, length)
        for block in dict.fromkeys(stack.pattern)
    }
    return sum(kinds[stack.block(index)] for index in range(stack.depth))


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
