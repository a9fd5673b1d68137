"""Rows of several sources as one, each as often as its weight says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from .split import Row, document_hash


@dataclass(frozen=True)
class Mixture(Iterable[Row]):
    """One epoch of a mixture: parts are (rows, weight), read in turn; each pass reads them anew.

    A weight of 2.5 gives every row twice, and half of them, chosen by their content and the seed, a third time.
    """

    parts: Sequence[tuple[Iterable[Row], float]]
    seed: int = 0

    def __iter__(self) -> Iterator[Row]:
        for rows, weight in self.parts:
            whole, rest = int(weight), weight - int(weight)
            for _ in range(whole):
                yield from rows
            if rest:
                yield from (row for row in rows if document_hash(row, self.seed) < rest)
