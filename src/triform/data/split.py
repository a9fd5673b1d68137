"""Splits of rows into training, validation and test parts, by document and the same in every run."""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Part(Iterable[Row]):
    """The rows of one part, in the order of the source; each pass reads the source anew. ValueError when there is none."""

    name: str
    rows: Iterable[Row]
    keep: Callable[[int, Row], bool]

    def __iter__(self) -> Iterator[Row]:
        empty = True
        for i, row in enumerate(self.rows):
            if self.keep(i, row):
                empty = False
                yield row
        if empty:
            raise ValueError(f"the {self.name} part is empty; with so few documents, ask for a number of them (validation=1) or less")


class Splits(NamedTuple):
    """The parts; `validation` and `test` are None where none was asked for."""

    train: Iterable[Row]
    validation: Iterable[Row] | None
    test: Iterable[Row] | None


def document_hash(row: Row, seed: int = 0) -> float:
    """A number in [0, 1) drawn from a row's content and the seed: equal documents have equal numbers."""
    content = json.dumps(row, sort_keys=True, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(content, digest_size=8, key=str(seed).encode()).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def split(
    rows: Iterable[Row], *, validation: float | int = 0.05, test: float | int = 0, seed: int = 0, tail: int | None = None
) -> Splits:
    """Split rows by document.

    validation, test: a share of the rows (a float below 1), or how many (an int). Which rows is drawn from their content
    and the seed, so that equal documents fall on one side, and adding others moves none of a share.
    tail: hold out the last so many rows in order as validation instead (`test` then takes the rows before those).
    rows: read once for each part that is read, and once more to count where a number or a tail is asked for;
    an iterator, which cannot be read again, is held in memory.

    Raises ValueError when nothing would be left to train on.
    """
    if iter(rows) is rows:
        rows = list(rows)
    wanted = {"test": test, "validation": validation if tail is None else tail}
    for name, amount in wanted.items():
        if isinstance(amount, float) and not 0 <= amount < 1:
            raise ValueError(f"{name}={amount} is no share of the rows; give a number from 0 to below 1, or a whole number of rows")
        if amount < 0:
            raise ValueError(f"{name}={amount} must not be negative")
    place = _by_tail(rows, wanted) if tail is not None else _by_hash(rows, wanted, seed)
    parts = {name: Part(name, rows, lambda i, row, name=name: place(i, row) == name) for name in ("train", "validation", "test")}  # type: ignore[misc]
    return Splits(parts["train"], parts["validation"] if wanted["validation"] else None, parts["test"] if wanted["test"] else None)


def _by_tail(rows: Iterable[Row], wanted: dict[str, float | int]) -> Callable[[int, Row], str]:
    if any(isinstance(amount, float) for amount in wanted.values()):
        raise ValueError("with tail, give test as a whole number of rows")
    total = sum(1 for _ in rows)
    start = total - wanted["validation"]
    first = start - wanted["test"]
    if first <= 0:
        raise ValueError(f"{total} rows are too few to hold out {wanted['validation'] + wanted['test']} of them and train on the rest")
    return lambda i, row: "train" if i < first else "test" if i < start else "validation"


def _by_hash(rows: Iterable[Row], wanted: dict[str, float | int], seed: int) -> Callable[[int, Row], str]:
    bounds: list[tuple[float, str]] = []  # a row belongs to the first part whose bound lies above its number
    counted = sum(amount for amount in wanted.values() if isinstance(amount, int))
    lowest: list[float] = []
    if counted:
        lowest = _lowest((document_hash(row, seed) for row in rows), counted + 1)
        if counted >= len(lowest):
            raise ValueError(f"{len(lowest)} different rows are too few to hold out {counted} of them and train on the rest")
    taken, bound = 0, 0.0
    for name, amount in sorted(wanted.items(), key=lambda item: isinstance(item[1], float)):
        if isinstance(amount, int):
            taken += amount
            bound = lowest[taken] if lowest else 0.0
        else:
            bound += amount
        bounds.append((bound, name))
    if bound >= 1:
        raise ValueError("validation and test together leave nothing to train on")

    def place(i: int, row: Row) -> str:
        number = document_hash(row, seed)
        return next((name for bound, name in bounds if number < bound), "train")

    return place


def _lowest(numbers: Iterable[float], count: int) -> list[float]:
    """The `count` lowest of the different numbers, ascending; only so many are ever held."""
    kept: list[float] = []  # a heap of the numbers with the other sign, the highest first
    among: set[float] = set()
    for number in numbers:
        if number in among or (len(kept) == count and number >= -kept[0]):
            continue
        among.add(number)
        heapq.heappush(kept, -number)
        if len(kept) > count:
            among.remove(-heapq.heappop(kept))
    return sorted(among)
