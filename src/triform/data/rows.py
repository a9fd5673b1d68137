"""Rows that know where they come from, and what becomes of bad ones: reported with file and line, counted, left out only if asked."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from triform.config.files import replacing

T = TypeVar("T")
MOST_BAD = 100_000  # their places and reasons are held in memory


class Row(dict[str, Any]):
    """A row of a source. place: its file and line, or what else names it; None where nothing does."""

    __slots__ = ("place",)

    def __init__(self, fields: Mapping[str, Any], place: str | None = None) -> None:
        super().__init__(fields)
        self.place = place

    def __reduce__(self) -> tuple[type[Row], tuple[dict[str, Any], str | None]]:
        return Row, (dict(self), self.place)


def place_of(row: Mapping[str, Any]) -> str | None:
    """Where a row comes from, as far as it knows."""
    return getattr(row, "place", None)


def like(row: Mapping[str, Any], fields: Mapping[str, Any]) -> Row:
    """Other fields at the place of a row."""
    return Row(fields, place_of(row))


class BadRows:
    """What is wrong with the rows of some data. A row that is read again counts once.

    skip: bad rows are left out and counted; otherwise the first one ends the work. advice: what an error says of leaving them out.
    file: where those that are left out are listed, as JSON lines; what a killed process listed there is known already.
    """

    def __init__(self, skip: bool = False, advice: str = "", file: Path | None = None) -> None:
        self.skip, self.advice, self.file = skip, advice, file
        self.reasons: dict[str, str] = {}
        if file is not None and file.exists():
            whole = (line for line in file.read_text("utf-8").splitlines(keepends=True) if line.endswith("\n"))
            self.reasons = {row["place"]: row["reason"] for row in map(json.loads, whole)}
            with replacing(file) as temporary:  # without a line that was cut short
                temporary.write_text("".join(map(_listed, self.reasons.items())), "utf-8")

    def __len__(self) -> int:
        return len(self.reasons)

    def add(self, error: ValueError, place: str | None) -> None:
        """Report a bad row. Raises ValueError, with its place, unless such rows are left out, and where there are too many."""
        named = place or "a row of the data"
        if not self.skip:
            raise ValueError(f"{named}: {error}{self.advice}") from None
        if named in self.reasons:
            return
        if len(self.reasons) >= MOST_BAD:
            raise ValueError(f"more than {MOST_BAD:,} bad rows, so these data are of another kind; the first: {self.first}")
        self.reasons[named] = str(error)
        if self.file is not None:
            with self.file.open("a", encoding="utf-8") as out:
                out.write(_listed((named, str(error))))

    @property
    def first(self) -> str:
        """The first of them in one line, empty where there is none."""
        return next((f"{place}: {reason}" for place, reason in self.reasons.items()), "")

    def made(self, rows: Sequence[Mapping[str, Any]], make: Callable[[Sequence[Mapping[str, Any]]], Iterable[T]]) -> list[T]:
        """What `make` makes of rows together; where it raises ValueError, of each by itself, so that the bad ones are found."""
        try:
            return list(make(rows))
        except ValueError:
            found: list[T] = []
            for row in rows:
                try:
                    found += make([row])
                except ValueError as error:
                    self.add(error, place_of(row))
            return found

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """An error in this context says which rows were left out, where any were: it may come of there being none left."""
        try:
            yield
        except ValueError as error:
            if not self.reasons:
                raise
            raise ValueError(f"{error}; {len(self):,} bad rows are left out, the first: {self.first}") from None


def _listed(bad: tuple[str, str]) -> str:
    return json.dumps(dict(zip(("place", "reason"), bad, strict=True)), ensure_ascii=False) + "\n"
