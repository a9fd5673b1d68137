"""Span corruption: dropped spans written out after the marks that stand for them (T5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from triform import config
from triform.config.spec import spec
from triform.data.shards import Shards
from triform.text.framing import decoder_start
from triform.text.framing import source as framed

from .base import Batch, Objective, Sample, Samples, documents, need, need_language_model, texts_of
from .pairs import pair_batch


@spec
class SpanCorruption:
    """`density` of the tokens are dropped in spans of `span` tokens on average (Raffel et al. 2020, section 3.1.4).

    mixture: `ul2` draws one of UL2's seven denoisers for each sample instead (see `UL2`). modes: each of them says which
    kind it is by a first token of the source, [R], [S] or [X].
    """

    length: int = 512
    text: str = "text"
    density: float = 0.15
    span: float = 3.0
    mixture: Literal["ul2"] | None = None
    modes: bool = False

    def __post_init__(self) -> None:
        if self.length < 2:
            raise ValueError(f"length: expected at least 2 tokens, got {self.length}")
        if not 0 < self.density < 1:
            raise ValueError(f"density: expected a share between 0 and 1, got {self.density}")
        if self.span < 1:
            raise ValueError(f"span: expected at least 1 token, got {self.span}")
        if self.modes and self.mixture is None:
            raise ValueError("modes: expected mixture: ul2 with it, since without a mixture there is but one mode")

    @property
    def denoisers(self) -> tuple[Denoiser, ...]:
        """What a sample's denoiser is drawn from."""
        return UL2 if self.mixture == "ul2" else (Denoiser("R", self.span, self.density),)

    def longest(self) -> dict[str, tuple[str, int]]:
        """For each stack the field that decides on its longest row, and that row's tokens: what frames it included."""
        sizes = [denoiser.longest(self.length) for denoiser in self.denoisers]
        source, target = (max(size) for size in zip(*sizes, strict=True))
        return {"encoder": ("length", source + self.modes + 2), "decoder": ("length", target + 1)}


@dataclass(frozen=True)
class Denoiser:
    """One way to drop tokens. span: tokens on average; None: one span that reaches to the end, of every length alike up to
    twice `density` of the tokens."""

    mode: Literal["R", "S", "X"]
    span: float | None
    density: float

    def longest(self, length: int) -> tuple[int, int]:
        """The most tokens of a source and of a target, without what frames them, for texts of up to `length` tokens."""
        if self.span is None:
            return length, self.most(length) + 1
        noise, spans = noise_amounts(length, self.density, self.span)
        return length - noise + spans, noise + spans

    def most(self, length: int) -> int:
        """The most tokens that are dropped of `length` in one span at the end."""
        return min(max(round(2 * self.density * length), 1), length - 1)

    def draw(self, length: int, rng: np.random.Generator) -> np.ndarray:
        """True (length,) where tokens are dropped."""
        if self.span is not None:
            return noise_spans(length, self.density, self.span, rng)
        return np.arange(length) >= length - rng.integers(1, self.most(length) + 1)


# Tay et al. 2022, table 1: regular, extreme (many tokens, or long spans) and sequential denoising, drawn alike
UL2 = (
    Denoiser("R", 3.0, 0.15),
    Denoiser("R", 8.0, 0.15),
    Denoiser("S", None, 0.25),
    Denoiser("X", 3.0, 0.5),
    Denoiser("X", 8.0, 0.5),
    Denoiser("X", 64.0, 0.15),
    Denoiser("X", 64.0, 0.5),
)


def noise_amounts(length: int, density: float, span: float) -> tuple[int, int]:
    """How many of `length` tokens are dropped, and in how many spans."""
    noise = min(max(round(length * density), 1), length - 1)
    return noise, min(max(round(noise / span), 1), length - noise)


def _cut(items: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """`items` cut at random into `parts` runs of at least one."""
    marks = np.zeros(items - 1, dtype=np.int64)
    marks[: parts - 1] = 1
    return np.bincount(np.concatenate(([0], np.cumsum(rng.permutation(marks)))), minlength=parts)


def noise_spans(length: int, density: float, span: float, rng: np.random.Generator) -> np.ndarray:
    """True (length,) where tokens are dropped, of at least two tokens; the first one stays (T5's `random_spans_noise_mask`)."""
    noise, spans = noise_amounts(length, density, span)
    runs = np.stack((_cut(length - noise, spans, rng), _cut(noise, spans, rng)), axis=1).ravel()
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs)


def corrupt(ids: np.ndarray, dropped: np.ndarray, sentinels: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """(T,) tokens to the source, with a sentinel for each dropped span, and the target, each span after its sentinel."""
    first = dropped & ~np.concatenate(([False], dropped[:-1]))
    marks = np.asarray(sentinels)[np.cumsum(first) - 1]
    source = np.where(first, marks, ids)[~dropped | first]
    places = np.flatnonzero(dropped)
    target = np.insert(ids[places], np.flatnonzero(first[places]), marks[first])
    return source, target


class SpanCorruptionObjective(Objective):
    """In: pieces of documents, each of 2 to `length` tokens.

    Out: what `pair_batch` gives: inputs (B, T) of what was left with a sentinel in each gap, framed as the tokenizer's
    template says, after the mode's token if there is one; labels (B, U) of each dropped span after its sentinel, and [EOS].
    """

    spec: SpanCorruption

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Sequence[int]]]:
        """Column "text": pieces of at most `length` tokens of one document."""
        encoded = self.tokenizer.encode_batch(texts_of(rows, self.spec.text), plain=True)
        size = self.spec.length
        return [{"text": ids[i : i + size]} for ids in encoded for i in range(0, len(ids), size) if len(ids[i : i + size]) > 1]

    def samples(self, shards: Shards) -> Samples:
        return documents(shards, "text", self.spec.length)

    def collate(self, samples: Sequence[Sample], seeds: Sequence[tuple[int, ...]]) -> Batch:
        sources, targets = [], []
        for sample, seed in zip(samples, seeds, strict=True):
            ids, rng, choice = sample["text"], np.random.default_rng(seed), self.spec.denoisers
            denoiser = choice[int(rng.integers(len(choice)))] if len(choice) > 1 else choice[0]
            source, target = corrupt(ids, denoiser.draw(len(ids), rng), self.tokenizer.sentinels)
            mode = [self._mode(denoiser)] if self.spec.modes else []
            sources.append(np.asarray(framed(self.tokenizer, [*mode, *source.tolist()]), dtype=np.int64))
            targets.append(target)
        return pair_batch(self.tokenizer, sources, targets)

    def _mode(self, denoiser: Denoiser) -> int:
        found = self.tokenizer.id(f"[{denoiser.mode}]")
        if found is None:
            names = ", ".join(f"'[{mode}]'" for mode in "RSX")
            raise ValueError(f"objective.modes: expected a tokenizer with the tokens of the modes; set tokenizer.add: [{names}]")
        return found

    def check(self, model: config.Model) -> None:
        need_language_model(model, "SpanCorruption", "encoder-decoder")
        amounts = [noise_amounts(self.spec.length, d.density, d.span)[1] for d in self.spec.denoisers if d.span is not None]
        most = max(amounts)
        if self.spec.modes:
            for denoiser in self.spec.denoisers:
                self._mode(denoiser)
        found = len(self.tokenizer.sentinels)
        need(found >= most, "SpanCorruption", f"a tokenizer with at least {most} sentinels (set tokenizer.sentinels)", found)
        need(self.tokenizer.eos is not None, "SpanCorruption", "a tokenizer with an eos token", "one without")
        decoder_start(self.tokenizer)
