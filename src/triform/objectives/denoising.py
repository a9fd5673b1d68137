"""Denoising: a text written out whole from a version of it that was spoilt in up to five ways (BART, Lewis et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from triform import config
from triform.config.spec import spec
from triform.data.shards import Shards
from triform.text.framing import decoder_start
from triform.text.framing import source as framed

from .base import Batch, Objective, Sample, Samples, documents, need, need_language_model, texts_of
from .pairs import pair_batch
from .sentences import begins


@spec
class Denoising:
    """BART's noises, each with its own share, one after another in this order; the defaults are those of its pretraining.

    permute: the share of texts whose sentences are put in a random order. rotate: the share of texts that begin at a
    random token, with what was before it at the end. infill: the share of tokens that are replaced in spans, each by one
    [MASK], whose lengths are drawn from Poisson(`span`); a span of no tokens is a [MASK] between two. mask: the share of
    the tokens left that each turn into a [MASK]. delete: the share of the tokens left that are taken out.
    """

    length: int = 512
    text: str = "text"
    permute: float = 1.0
    rotate: float = 0.0
    infill: float = 0.3
    span: float = 3.0
    mask: float = 0.0
    delete: float = 0.0

    def __post_init__(self) -> None:
        if self.length < 4:
            raise ValueError(f"length: expected at least 4 tokens, got {self.length}")
        for name in ("permute", "rotate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a share from 0 to 1, got {getattr(self, name)}")
        for name in ("infill", "mask", "delete"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a share from 0 up to but not including 1, got {getattr(self, name)}")
        if self.span < 1:
            raise ValueError(f"span: expected at least 1 token, got {self.span}")
        if not any((self.permute, self.rotate, self.infill, self.mask, self.delete)):
            raise ValueError("infill: expected one of permute, rotate, infill, mask and delete above 0, got 0 for all")

    def longest(self) -> dict[str, tuple[str, int]]:
        """For each stack the field that decides on its longest row, and that row's tokens: what frames it included."""
        return {"encoder": ("length", self.length), "decoder": ("length", self.length)}


def permuted(ids: np.ndarray, begin: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(T,) tokens with their sentences in a random order; `begin` (T,) is True where one begins."""
    sentences = np.split(ids, np.flatnonzero(begin[1:]) + 1)
    return np.concatenate([sentences[i] for i in rng.permutation(len(sentences))])


def rotated(ids: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(T,) tokens from a random one on, and then those before it."""
    return np.roll(ids, -int(rng.integers(len(ids))))


def infilled(ids: np.ndarray, share: float, span: float, mask: int, rng: np.random.Generator) -> np.ndarray:
    """(T,) tokens, `share` of them in spans of Poisson(`span`) tokens that are one `mask` each; at most T tokens.

    Spans are drawn until they hold enough tokens, and the last is cut to fit. Spans of none, each a `mask` more, are kept as far as
    the others have made room.
    """
    budget = round(share * len(ids))
    if not budget:
        return ids
    lengths: list[int] = []
    while (left := budget - sum(lengths)) > 0:
        lengths.append(min(int(rng.poisson(span)), left))
    spans = [n for n in lengths if n]
    spans += [0] * min(len(lengths) - len(spans), budget - len(spans))
    spans = [spans[i] for i in rng.permutation(len(spans))]
    # the spans and the tokens that are kept, in any order, are all equally likely
    slots = len(ids) - budget + len(spans)
    places = np.sort(rng.choice(slots, len(spans), replace=False))
    out, at, done = [], 0, 0
    for place, size in zip(places.tolist(), spans, strict=True):
        kept = place - done
        out += [ids[at : at + kept], [mask]]
        at, done = at + kept + size, place + 1
    return np.concatenate([*out, ids[at:]]).astype(ids.dtype)


def masked(ids: np.ndarray, share: float, mask: int, rng: np.random.Generator) -> np.ndarray:
    """(T,) tokens, `share` of them, at random places, turned into `mask`."""
    out = ids.copy()
    out[rng.choice(len(ids), round(share * len(ids)), replace=False)] = mask
    return out


def deleted(ids: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """(T,) tokens without `share` of them, at random places; one stays at least."""
    count = min(round(share * len(ids)), len(ids) - 1)
    return np.delete(ids, rng.choice(len(ids), count, replace=False))


class DenoisingObjective(Objective):
    """In: pieces of documents, each of 2 to `length` tokens with what frames them.

    Out: what `pair_batch` gives: inputs (B, T) of the spoilt piece, framed as the tokenizer's template says; labels
    (B, U) of the whole piece and [EOS].
    """

    spec: Denoising

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Sequence[int]]]:
        """Columns "text", pieces of one document, and "begin", 1 where a sentence begins."""
        size = self.spec.length - max(1, len(framed(self.tokenizer, [])))
        texts = texts_of(rows, self.spec.text)
        out: list[dict[str, Sequence[int]]] = []
        for text, encoding in zip(texts, self.tokenizer.encodings(texts, plain=True), strict=True):
            ids, begin = encoding.ids, begins(self.tokenizer, text, encoding)
            pieces = [slice(i, i + size) for i in range(0, len(ids), size)]
            out += [{"text": ids[piece], "begin": begin[piece]} for piece in pieces if len(ids[piece]) > 1]
        return out

    def sizes(self) -> dict[str, int]:
        return {"text": self.tokenizer.vocab_size, "begin": 2}

    def samples(self, shards: Shards) -> Samples:
        found = documents(shards, "text", self.spec.length)
        begin = shards.column("begin")
        return Samples(found.lengths, lambda index: found[index] | {"begin": np.asarray(begin[index], dtype=bool)})

    def spoilt(self, ids: np.ndarray, begin: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(T,) tokens with all noises of the recipe: 1 to T tokens."""
        spec, mask = self.spec, self.tokenizer.mask
        if rng.random() < spec.permute:
            ids = permuted(ids, begin, rng)
        if rng.random() < spec.rotate:
            ids = rotated(ids, rng)
        if spec.infill or spec.mask:
            assert mask is not None
            ids = infilled(ids, spec.infill, spec.span, mask, rng)
            ids = masked(ids, spec.mask, mask, rng)
        return deleted(ids, spec.delete, rng) if spec.delete else ids

    def collate(self, samples: Sequence[Sample], seeds: Sequence[tuple[int, ...]]) -> Batch:
        sources = []
        for sample, seed in zip(samples, seeds, strict=True):
            source = self.spoilt(sample["text"], sample["begin"], np.random.default_rng(seed))
            sources.append(np.asarray(framed(self.tokenizer, source.tolist()), dtype=np.int64))
        return pair_batch(self.tokenizer, sources, [sample["text"] for sample in samples])

    def check(self, model: config.Model) -> None:
        need_language_model(model, "Denoising", "encoder-decoder")
        need(self.tokenizer.eos is not None, "Denoising", "a tokenizer with an eos token", "one without")
        need(
            self.tokenizer.mask is not None or not (self.spec.infill or self.spec.mask),
            "Denoising", "a tokenizer with a mask token, or infill and mask of 0", "one without",
        )  # fmt: skip
        decoder_start(self.tokenizer)
