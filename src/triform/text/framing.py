"""What stands around a text's tokens, by what reads them. Training and running frame alike, or the model meets what it never saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from .tokenizer import Tokenizer


def judged(tokenizer: Tokenizer, ids: Sequence[int], length: int | None = None) -> list[int]:
    """A text to judge: [CLS] ids [SEP], or ids [EOS] for a tokenizer without them; ids are cut so that `length` tokens hold all."""
    before, after = [], [] if tokenizer.eos is None else [tokenizer.eos]
    if tokenizer.cls is not None and tokenizer.sep is not None:
        before, after = [tokenizer.cls], [tokenizer.sep]
    room = len(ids) if length is None else max(0, length - len(before) - len(after))
    return [*before, *ids[:room], *after]


@lru_cache(maxsize=8)
def template(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """What the tokenizer's template puts before and after a text."""
    plain, framed = tokenizer.encode("a"), tokenizer.encode("a", special=True)
    before = next((at for at in range(len(framed) - len(plain) + 1) if framed[at : at + len(plain)] == plain), 0)
    return framed[:before], framed[before + len(plain) :]


@dataclass(frozen=True)
class Pair:
    """What stands before, between and after two texts, and the segment of each of those tokens and of the texts' own."""

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    segments: tuple[int, int, int, int, int]  # before, first text, between, second text, after

    def joined(self, first: Sequence[int], second: Sequence[int]) -> tuple[list[int], list[int]]:
        """The row of two texts' ids, and the segment of each of its tokens."""
        parts = (self.before, first, self.between, second, self.after)
        ids = [i for part in parts for i in part]
        return ids, [segment for part, segment in zip(parts, self.segments, strict=True) for _ in part]


@lru_cache(maxsize=8)
def pair(tokenizer: Tokenizer) -> Pair:
    """How the tokenizer's template joins two texts; without one [CLS] A [SEP] B [SEP], or A [EOS] B [EOS]."""
    found = tokenizer.backend.encode("a", "b")
    places = [found.sequence_ids.index(part) for part in (0, 1)]
    lengths = [found.sequence_ids.count(part) for part in (0, 1)]
    ends = [place + length for place, length in zip(places, lengths, strict=True)]
    ids, kinds = found.ids, found.type_ids
    if places[0] == 0 and ends[0] == places[1] and ends[1] == len(ids):
        before, after = judged(tokenizer, [])[:-1], judged(tokenizer, [])[-1:]
        return Pair(tuple(before), tuple(after), tuple(after), (0, 0, 0, 1, 1))
    first, second = kinds[places[0]], kinds[places[1]]
    middle, last = kinds[ends[0]] if ends[0] < places[1] else first, kinds[-1]
    segments = (kinds[0], first, middle, second, last)
    return Pair(tuple(ids[: places[0]]), tuple(ids[ends[0] : places[1]]), tuple(ids[ends[1] :]), segments)


def opening(tokenizer: Tokenizer) -> list[int]:
    """What a decoder-only model reads before a text: bos, or what else the tokenizer's template begins with; nothing without a template."""
    before, _ = template(tokenizer)
    return [tokenizer.bos] if before and tokenizer.bos is not None else before


def prompts(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """What a decoder-only model continues. An empty text is the tokenizer's bos alone, and no tokens where there is none."""
    before = opening(tokenizer)
    empty = before or ([] if tokenizer.bos is None else [tokenizer.bos])
    return [(before if text else empty) + ids for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True)]


def source(tokenizer: Tokenizer, ids: Sequence[int], length: int | None = None) -> list[int]:
    """What the encoder of an encoder-decoder reads: ids as the tokenizer's template says, cut so that `length` tokens hold all.

    A bos is left out, as it is for decoders, unless it is the [CLS] too (BART).
    """
    before, after = template(tokenizer)
    if before == [tokenizer.bos] and tokenizer.bos != tokenizer.cls:
        before = []
    room = len(ids) if length is None else max(0, length - len(before) - len(after))
    return [*before, *ids[:room], *after]


def decoder_start(tokenizer: Tokenizer) -> int:
    """The token that the decoder of an encoder-decoder begins with: bos, or the padding as T5 does."""
    start = tokenizer.bos if tokenizer.bos is not None else tokenizer.pad
    if start is None:
        raise ValueError("an encoder-decoder needs a tokenizer with a bos or pad token to begin with, and this one has neither")
    return start


def windows(length: int, room: int, overlap: int) -> list[tuple[int, int]]:
    """Where to cut `length` tokens into windows of at most `room`, each of which repeats `overlap` tokens of the one before."""
    found = [(0, min(length, room))]
    while found[-1][1] < length:
        start = found[-1][1] - overlap
        found.append((start, min(length, start + room)))
    return found
