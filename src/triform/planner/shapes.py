"""A shape for a model of which only the form and the size are known."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

from triform import config

from .parameters import parameters

FORMS = ("decoder-only", "encoder-only", "encoder-decoder")
_LARGE = 2048  # the width from which models untie their tables, widen their heads and share keys
SMALLEST, LARGEST = 100_000, 2_000_000_000_000
_WIDTHS = (64, 96, 128, 192, 256, 320, 384, 448, 512, 576, 640, 768, 896, 1024, 1280, 1536, 1792, 2048, 2560, 3072, 4096, 5120, 6144, 8192,
           10240, 12288, 16384, 20480, 24576, 32768)  # fmt: skip


def form_of(text: str) -> str:
    """The form that a word stands for: decoder, encoder, encoder-decoder and the like."""
    word = text.strip().lower().replace("_", "-")
    found = {"decoder": "decoder-only", "encoder": "encoder-only"}.get(word, word)
    if found not in FORMS:
        raise ValueError(f"form: expected one of {', '.join(FORMS)}, got {text!r}")
    return found


def vocabulary(size: int) -> int:
    """Tokens that suit a model of so many parameters: tables should not outgrow the layers (Tao et al. 2024)."""
    for least, tokens in ((7_000_000_000, 128_000), (400_000_000, 64_000), (40_000_000, 32_000), (8_000_000, 16_000), (2_000_000, 8_000)):
        if size >= least:
            return tokens
    return 4_000


def build(form: str, width: int, depth: int, vocab_size: int, hidden: int | None = None) -> config.Transformer:
    """A modern model of a form: RMSNorm before each sublayer, rotary positions, SwiGLU, no biases.

    Heads are 64 wide, and 128 from a width of 2048; below it, output and token table are one.
    `depth` counts the layers of all stacks, which an encoder-decoder shares out evenly.
    `hidden`: of the feed-forward; None: 8/3 of the width.
    """
    encoder, decoder = {"decoder-only": (0, depth), "encoder-only": (depth, 0), "encoder-decoder": (depth // 2, depth - depth // 2)}[form]
    feed_forward = config.FeedForward(hidden=hidden or _hidden(width), activation="silu", gated=True, bias=False)

    def stack(layers: int, causal: bool) -> config.Stack | None:
        own = _attention(width, causal)
        cross = replace(own, mask="bidirectional", position=None) if causal and encoder else None
        block = config.Block(attention=own, cross=cross, feed_forward=feed_forward, norm=config.RMSNorm())
        tokens = config.Tokens(vocab_size=vocab_size)
        return config.Stack(width=width, depth=layers, input=tokens, pattern=(block,), norm=config.RMSNorm()) if layers else None

    return config.Transformer(
        encoder=stack(encoder, causal=False),
        decoder=stack(decoder, causal=True),
        head=config.LanguageModel(tied=width < _LARGE),
        share_tokens=bool(encoder and decoder),
        init=config.Init(scale_residuals=True),
    )


def _hidden(width: int) -> int:
    return round(width * 8 / 3 / 64) * 64


def _attention(width: int, causal: bool) -> config.Attention:
    heads = width // (128 if width >= _LARGE else 64 if width >= 256 else 32)
    grouped = causal and width >= _LARGE and heads % 4 == 0  # a smaller cache, as LLaMA 3 and Qwen have
    position = config.Rotary()
    return config.Attention(
        heads=heads, kv_heads=heads // 4 if grouped else None, mask="causal" if causal else "bidirectional", position=position, bias="none"
    )


@lru_cache(maxsize=256)
def shaped(form: str, size: int, vocab_size: int | None = None) -> config.Transformer:
    """A model of a form with about `size` parameters (within 1 %, where the smallest widths allow).

    Width over depth is near 64 at 125M parameters and grows slowly, as in GPT-2, LLaMA and Qwen;
    within wide limits the ratio hardly matters (Kaplan et al. 2020, section 3). Raises ValueError
    for a size that nothing sensible has.
    """
    if not SMALLEST <= size <= LARGEST:
        raise ValueError(f"a size of {SMALLEST:,} to {LARGEST:,} parameters was expected, got {size:,}")
    tokens = vocab_size or vocabulary(size)
    aspect = 64 * (size / 125e6) ** 0.12
    near = sorted(_fitting(form, size, tokens), key=lambda model: abs(math.log(_aspect(model) / aspect)))
    if not near:
        raise ValueError(f"a {form} model of {size:,} parameters has no room for layers beside {tokens:,} tokens; lower the vocabulary")
    return min(near[:3], key=lambda model: abs(parameters(model).total - size) > 0.01 * size)


def _aspect(model: config.Transformer) -> float:
    return model.last.width / sum(stack.depth for stack in (model.encoder, model.decoder) if stack)


def _fitting(form: str, size: int, vocab_size: int) -> Iterator[config.Transformer]:
    """For each width the model whose depth, and then hidden width, come nearest to the size."""
    step = 2 if form == "encoder-decoder" else 1
    for width in _WIDTHS:
        least, more = (parameters(build(form, width, depth, vocab_size)).total for depth in (step, 2 * step))
        depth = step + round((size - least) / (more - least)) * step
        if depth < 2 * step:
            return
        if depth > 200:
            continue
        total = parameters(build(form, width, depth, vocab_size)).total
        hidden = _hidden(width) + round((size - total) / (3 * width * depth) / 32) * 32
        if hidden >= width:
            yield build(form, width, depth, vocab_size, hidden)
