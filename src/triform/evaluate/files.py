"""Data of tasks from files, with the file and the line of whatever is wrong in them."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from triform.data.rows import place_of
from triform.data.sources import open_source
from triform.train.prepare import splits
from triform.train.recipe import read_recipe

LARGEST = 2**30  # bytes of a file that is read whole
T = TypeVar("T")


class Line(NamedTuple):
    """A record of a file and the line that it begins in. place: what names it, where that is not its line."""

    file: Path
    number: int
    fields: Mapping[str, Any]
    place: str | None = None

    def text(self, *names: str, empty: bool = False) -> str:
        """The field by the first of these names that is there. Raises ValueError where it is none, or empty."""
        for name in names:
            found = self.fields.get(name)
            if isinstance(found, str) and (empty or found.strip()):
                return found
            if found is not None:
                raise self.error(f"expected text in {name!r}, got {_shown(found)}")
        raise self.error(f"expected {' or '.join(map(repr, names))}, found {', '.join(map(repr, list(self.fields)[:12])) or 'nothing'}")

    def error(self, message: str) -> ValueError:
        """An error that says where it is."""
        return ValueError(f"{self.place or f'{self.file}:{self.number}'}: {message}")


class BadLine(NamedTuple):
    """A line that is no record."""

    error: ValueError


def text_of(file: Path) -> str:
    """A file in UTF-8. Raises ValueError, with the line, for other bytes, and for what is too large."""
    if not file.is_file():
        raise ValueError(f"{file}: expected a file, found none; check the name")
    with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
        try:
            raw = stream.read(LARGEST + 1)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{file}: expected a whole gzip file, got a damaged one ({error}); get it again") from None
    if len(raw) > LARGEST:
        raise ValueError(f"{file}: expected at most {LARGEST:,} bytes, got more; split it")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}:{raw[: error.start].count(10) + 1}: expected text in UTF-8, got other bytes; convert it") from None


def records(file: Path, columns: Sequence[str] | None = None) -> Iterator[Line | BadLine]:
    """The records of a .jsonl, .json (a list), .csv or .tsv file (each also .gz) or a .parquet file, or the rows that a recipe
    (.yaml) holds out. `columns` names those of a table without a head."""
    kind = _kind(file)
    if kind in (".yaml", ".yml", ".parquet"):
        yield from _rows(file, kind)
        return
    text = text_of(file)
    if kind == ".json":
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file}: expected JSON, got what is none ({error}); mend it") from None
        if not isinstance(found, list):
            raise ValueError(f"{file}: expected a list of objects, got {_shown(found)}")
        yield from (_object(file, number, one) for number, one in enumerate(found, 1))
    elif kind in (".csv", ".tsv"):
        yield from _table(file, text, columns)
    else:
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                try:
                    yield _object(file, number, json.loads(line))
                except (ValueError, RecursionError):
                    yield BadLine(ValueError(f"{file}:{number}: expected a JSON object, got {line.strip()[:40]!r}"))


def _kind(file: Path) -> str:
    return Path(file.stem).suffix if file.suffix == ".gz" else file.suffix


def _rows(file: Path, kind: str) -> Iterator[Line]:
    found: Iterable[Mapping[str, Any]] | None
    if kind == ".parquet":
        found = open_source(file, text=None)
    else:
        found = splits(read_recipe(file).data)[1]
        if found is None:
            raise ValueError(f"{file}: expected a recipe that holds rows out, and this one holds out none; set data.validation")
    for number, row in enumerate(found, 1):
        yield Line(file, number, row, place_of(row) or f"{file}, row {number}")


def _object(file: Path, number: int, found: Any) -> Line | BadLine:
    if not isinstance(found, dict):
        return BadLine(ValueError(f"{file}:{number}: expected a JSON object, got {_shown(found)}"))
    return Line(file, number, found)


def _table(file: Path, text: str, columns: Sequence[str] | None) -> Iterator[Line | BadLine]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if _kind(file) == ".tsv" else ",")
    names, last = columns, 0
    try:
        for row in reader:
            number, last = last + 1, reader.line_num
            if not row:
                continue
            if names is None:
                names = [name.strip().lower() for name in row]
            elif len(row) != len(names):
                yield BadLine(ValueError(f"{file}:{number}: expected {len(names)} columns, got {len(row)}"))
            else:
                yield Line(file, number, dict(zip(names, row, strict=True)))
    except csv.Error as error:
        raise ValueError(f"{file}:{last + 1}: {error}; expected a table in CSV") from None


def read(
    lines: Iterator[Line | BadLine], make: Callable[[Line], T], *, skip_bad: bool = False, limit: int | None = None
) -> tuple[list[T], int]:
    """What `make` makes of each line, and how many lines were bad. Raises the first one's ValueError unless they are to be skipped."""
    found: list[T] = []
    bad = 0
    for line in lines:
        if limit is not None and len(found) >= limit:
            break
        try:
            if isinstance(line, BadLine):
                raise line.error
            found.append(make(line))
        except ValueError as error:
            if not skip_bad:
                raise ValueError(f"{error}; mend it, or leave such lines out with skip_bad (--skip-bad)") from None
            bad += 1
    return found, bad


def found_in(place: Path, *patterns: str) -> list[Path]:
    """The file itself, or the files of a folder that fit the first pattern that any does. Raises ValueError where there is none."""
    if place.is_file():
        return [place]
    for pattern in patterns:
        if place.is_dir() and (files := sorted(place.glob(pattern))):
            return files
    raise ValueError(f"{place}: expected a file, or a folder with {' or '.join(patterns)}, found none")


def some(items: Sequence[T], place: Path) -> Sequence[T]:
    """The items, if there are any. Raises ValueError that names the place."""
    if not items:
        raise ValueError(f"{place}: expected at least one item, found none")
    return items


def _shown(value: Any) -> str:
    return f"{type(value).__name__} {str(value)[:40]!r}"


def library(name: str, extra: str = "evaluate") -> Any:
    """A module that only some tasks need. Raises ValueError that names the extra, where it is not installed."""
    try:
        return import_module(name)
    except ModuleNotFoundError:
        raise ValueError(f'this task needs {name.split(".")[0]}, which is not installed; pip install "triform[{extra}]"') from None
