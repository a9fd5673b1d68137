"""What stands around a text's tokens, by what reads them. Training and running frame alike, or the model meets what it never saw."""

from __future__ import annotations

from collections.abc import Sequence

from .tokenizer import Tokenizer


def judged(tokenizer: Tokenizer, ids: Sequence[int], length: int | None = None) -> list[int]:
    """A text to judge: [CLS] ids [SEP], or ids [EOS] for a tokenizer without them; ids are cut so that `length` tokens hold all."""
    before, after = [], [] if tokenizer.eos is None else [tokenizer.eos]
    if tokenizer.cls is not None and tokenizer.sep is not None:
        before, after = [tokenizer.cls], [tokenizer.sep]
    room = len(ids) if length is None else max(0, length - len(before) - len(after))
    return [*before, *ids[:room], *after]


def opening(tokenizer: Tokenizer) -> list[int]:
    """What a decoder-only model reads before a text: bos, or what else the tokenizer's template begins with; nothing without a template."""
    plain, framed = tokenizer.encode("a"), tokenizer.encode("a", special=True)
    before = next((at for at in range(len(framed) - len(plain) + 1) if framed[at : at + len(plain)] == plain), 0)
    return [tokenizer.bos] if before and tokenizer.bos is not None else framed[:before]


def prompts(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """What a decoder-only model continues. An empty text is the tokenizer's bos alone, and no tokens where there is none."""
    before = opening(tokenizer)
    empty = before or ([] if tokenizer.bos is None else [tokenizer.bos])
    return [(before if text else empty) + ids for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True)]


def sources(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """What the encoder of an encoder-decoder reads: as the tokenizer's template says, but for a bos, which is for decoders.

    A bos that is the [CLS] too stays (BART).
    """
    dropped = None if tokenizer.bos == tokenizer.cls else tokenizer.bos
    framed = tokenizer.encode_batch(texts, special=True)
    return [ids[1:] if ids and ids[0] == dropped else ids for ids in framed]


def decoder_start(tokenizer: Tokenizer) -> int:
    """The token that the decoder of an encoder-decoder begins with: bos, or the padding as T5 does."""
    start = tokenizer.bos if tokenizer.bos is not None else tokenizer.pad
    if start is None:
        raise ValueError("an encoder-decoder needs a tokenizer with a bos or pad token to begin with, and this one has neither")
    return start
