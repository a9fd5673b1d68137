"""Evaluation sets as sorted n-gram hashes, to find training documents that hold a part of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from .cleaning import Overlap
from .ngrams import Hashes, ngram_hashes, unit_hashes, units
from .sources import open_source

MOST_NGRAMS = 2**26  # 512 MiB of hashes


@dataclass(frozen=True)
class EvaluationSet:
    """The n-grams of one evaluation set. grams: their hashes, sorted, each once.

    short: how many of its texts have fewer than n units, and cannot be looked for.
    """

    name: str
    grams: Hashes
    texts: int
    short: int

    def holds(self, grams: Hashes) -> bool:
        """Whether one of these n-grams is in the set."""
        places = np.searchsorted(self.grams, grams)
        places[places == len(self.grams)] = 0
        return bool(len(self.grams)) and bool(np.any(self.grams[places] == grams))


def read_evaluation_sets(overlap: Overlap) -> list[EvaluationSet]:
    """The sets that a recipe names. Memory: 8 bytes an n-gram. Raises ValueError for more than 67 million n-grams."""
    return [_read(name, overlap.ngram) for name in overlap.sources]


def _read(name: str, n: int) -> EvaluationSet:
    texts = short = held = 0
    waiting: list[Hashes] = []
    for text in _texts(name):
        hashes = unit_hashes(units(text))
        texts += 1
        if len(hashes) < n:
            short += 1
            continue
        waiting.append(ngram_hashes(hashes, n))
        held += len(waiting[-1])
        if held > MOST_NGRAMS:
            waiting = [np.unique(np.concatenate(waiting))]
            held = len(waiting[0])
            if held > MOST_NGRAMS // 2:
                raise ValueError(f"overlap: {name} has more than {MOST_NGRAMS // 2:,} n-grams; name a smaller evaluation set")
    grams = np.unique(np.concatenate(waiting)) if waiting else np.empty(0, np.uint64)
    return EvaluationSet(name, grams, texts, short)


def _texts(name: str) -> Iterable[str]:
    for row in open_source(name, text=None):
        yield from (value for value in row.values() if isinstance(value, str))
