"""Token shards: encoded documents on disk, memory-mapped, written once.

A shard set is a folder. For each named column ("text"; "source" and "target"; "text" and "label") it holds the tokens of
all documents end to end (NAME.tokens, little-endian 16 or 32 bits) and where each begins (NAME.offsets, 64 bits, one more
than there are documents); manifest.json tells their sizes, SHA-256, and the fingerprint of what they were made from.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .cache import file_hash, new_folder

_FORMAT = 1
_MANIFEST = "manifest.json"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
Tokens = Sequence[int] | NDArray[Any] | int


@dataclass(frozen=True)
class Column:
    """One column: tokens (all,) of uint16 or uint32, and offsets (documents + 1,) of int64, both memory-mapped."""

    tokens: NDArray[Any]
    offsets: NDArray[np.int64]

    def __getitem__(self, i: int) -> NDArray[Any]:
        return self.tokens[self.offsets[i] : self.offsets[i + 1]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """The number of tokens of each document, (documents,)."""
        return np.diff(self.offsets)


class Shards(Sequence[dict[str, NDArray[Any]]]):
    """An opened shard set: `shards[i]` is a document as {column: tokens}. It can be sent to other processes, which open it anew."""

    def __init__(self, folder: Path, manifest: dict[str, Any], columns: dict[str, Column]) -> None:
        self.folder = folder
        self.manifest = manifest
        self._columns = columns

    def __reduce__(self) -> tuple[Callable[[Path], Shards], tuple[Path]]:
        return Shards.open, (self.folder,)

    def __len__(self) -> int:
        return int(self.manifest["documents"])

    def __getitem__(self, i):  # type: ignore[no-untyped-def]
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            raise IndexError(f"document {i} of {len(self)}")
        return {name: column[int(i) % len(self)] for name, column in self._columns.items()}

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns."""
        return tuple(self._columns)

    @property
    def fingerprint(self) -> str:
        """What the shards were made from, as the writer named it."""
        return str(self.manifest["fingerprint"])

    def column(self, name: str) -> Column:
        """A column by its name. Raises ValueError when there is none."""
        if name not in self._columns:
            raise ValueError(f"{self.folder}: no column {name!r}; there are {', '.join(self._columns)}")
        return self._columns[name]

    @classmethod
    def open(cls, folder: str | Path, *, verify: bool = False) -> Shards:
        """Open a shard set. Sizes are always checked; `verify` reads every file to check its SHA-256 too.

        Raises ValueError when it is none, or when a file is missing, cut short or altered.
        """
        folder = Path(folder)
        manifest = _manifest(folder)
        columns = {}
        for name, facts in manifest["columns"].items():
            for part in ("tokens", "offsets"):
                _check(folder / f"{name}.{part}", facts[part], verify)
            columns[name] = Column(
                _mapped(folder / f"{name}.tokens", np.dtype(facts["dtype"])), _mapped(folder / f"{name}.offsets", np.dtype("<i8"))
            )
            offsets = columns[name].offsets
            whole = len(offsets) == manifest["documents"] + 1 and offsets[0] == 0 and offsets[-1] == len(columns[name].tokens)
            if not whole or (verify and np.any(np.diff(offsets) < 0)):
                raise ValueError(f"{folder}: the offsets of {name!r} do not fit its tokens; delete the folder to have it made again")
        return cls(folder, manifest, columns)


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((folder / _MANIFEST).read_text("utf-8"))
        if manifest["format"] != _FORMAT:
            raise ValueError(f"{folder}: token shards of format {manifest['format']}, but this version reads {_FORMAT}")
        for name, facts in manifest["columns"].items():
            if not _NAME.fullmatch(name) or facts["dtype"] not in ("<u2", "<u4"):
                raise KeyError(name)
    except FileNotFoundError:
        raise ValueError(f"{folder}: no token shards here; expected a folder with a {_MANIFEST}") from None
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder / _MANIFEST}: not a manifest of token shards ({error!r})") from None
    return manifest


def _check(file: Path, facts: dict[str, Any], verify: bool) -> None:
    size = file.stat().st_size if file.is_file() else -1
    if size != facts["bytes"]:
        found = "missing" if size < 0 else f"{size:,} bytes"
        raise ValueError(f"{file}: {found}, but {facts['bytes']:,} bytes were written; delete the folder to have it made again")
    if verify and file_hash(file) != facts["sha256"]:
        raise ValueError(f"{file}: altered since it was written (SHA-256 differs); delete the folder to have it made again")


def _mapped(file: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
    if file.stat().st_size == 0:
        return np.empty(0, dtype)  # an empty file cannot be mapped
    return np.memmap(file, dtype, mode="r")


class _Writer:
    """One column as it is written."""

    def __init__(self, folder: Path, name: str, vocab_size: int) -> None:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} cannot name a column of token shards; use letters, digits, - and _")
        self.dtype = np.dtype("<u2" if vocab_size <= 2**16 else "<u4")
        self.name, self.vocab_size, self.folder = name, vocab_size, folder
        self.hash = hashlib.sha256()
        self.offsets = array("q", [0])
        self.stream: IO[bytes] = (folder / f"{name}.tokens").open("wb")

    def add(self, tokens: Tokens) -> None:
        ids = np.atleast_1d(np.asarray(tokens))
        if ids.size and (ids.dtype.kind not in "iu" or ids.ndim != 1):
            raise ValueError(f"document {len(self.offsets) - 1}: the column {self.name!r} should be a list of token ids")
        if ids.size and (ids.min() < 0 or ids.max() >= self.vocab_size):
            worst = int(ids.min() if ids.min() < 0 else ids.max())
            raise ValueError(f"document {len(self.offsets) - 1}: {self.name!r} has the id {worst}, outside of 0 to {self.vocab_size - 1}")
        data = ids.astype(self.dtype).tobytes()
        self.hash.update(data)
        self.stream.write(data)
        self.offsets.append(self.offsets[-1] + ids.size)

    def finish(self) -> dict[str, Any]:
        data = np.asarray(self.offsets, "<i8").tobytes()
        (self.folder / f"{self.name}.offsets").write_bytes(data)
        size = self.offsets[-1] * self.dtype.itemsize
        return {
            "dtype": self.dtype.str,
            "tokens": {"count": self.offsets[-1], "bytes": size, "sha256": self.hash.hexdigest()},
            "offsets": {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()},
        }


def write_shards(
    rows: Iterable[Mapping[str, Tokens]],
    folder: str | Path,
    *,
    vocab_size: int | Mapping[str, int],
    fingerprint: str,
    info: Mapping[str, Any] | None = None,
) -> Shards:
    """Write documents as a shard set and open it. The folder appears whole or not at all, and takes the place of an older set.

    rows: {column: token ids, or one id}, all with the same columns.
    vocab_size: ids are 0 to vocab_size - 1, in 16 bits up to 65,536, else 32; one number, or one for each column.
    info: what else the manifest should tell.

    Raises ValueError when there are no rows, for an id out of range, and rather than write over a folder of something else.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / _MANIFEST).is_file() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(f"{folder}: exists and holds something else than token shards; name another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    try:
        with new_folder(folder) as work:
            _write(rows, work, vocab_size, {"fingerprint": fingerprint, "info": dict(info or {})})
            if folder.exists():
                os.replace(folder, old)
    finally:
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        shutil.rmtree(old, ignore_errors=True)
    return Shards.open(folder)


def _write(rows: Iterable[Mapping[str, Tokens]], work: Path, vocab_size: int | Mapping[str, int], facts: dict[str, Any]) -> None:
    writers: dict[str, _Writer] = {}
    count = 0
    try:
        for row in rows:
            if not count:
                for name in row:
                    if not isinstance(vocab_size, int) and name not in vocab_size:
                        raise ValueError(f"vocab_size has no entry for the column {name!r}")
                    writers[name] = _Writer(work, name, vocab_size if isinstance(vocab_size, int) else vocab_size[name])
            if row.keys() != writers.keys() or not row:
                raise ValueError(f"document {count} has the columns {', '.join(row) or 'none'}; expected {', '.join(writers) or 'some'}")
            for name, tokens in row.items():
                writers[name].add(tokens)
            count += 1
    finally:
        for writer in writers.values():
            writer.stream.close()
    if not count:
        raise ValueError("there are no documents to write token shards of")
    columns = {name: writer.finish() for name, writer in writers.items()}
    manifest = {"format": _FORMAT, "documents": count, **facts, "columns": columns}
    (work / _MANIFEST).write_text(json.dumps(manifest, ensure_ascii=False, indent=2) + "\n", "utf-8")


def fingerprint(parts: Mapping[str, Any]) -> str:
    """SHA-256 (hexadecimal) of named facts, such as {"text": source.fingerprint(), "tokenizer": tokenizer.fingerprint}."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str).encode()).hexdigest()


def prepare(
    rows: Iterable[Mapping[str, Any]],
    encode: Callable[[list[Mapping[str, Any]]], Iterable[Mapping[str, Tokens]]],
    folder: str | Path,
    parts: Mapping[str, Any],
    *,
    vocab_size: int | Mapping[str, int],
    progress: bool = True,
    batch_size: int = 256,
) -> Shards:
    """Encode rows into a shard set, unless the folder holds the one that these `parts` make: then it is opened, and nothing read.

    encode: a list of rows to their token ids by column, for example `lambda batch: [{"text": ids} for ids in
    tokenizer.encode_batch([row["text"] for row in batch])]`.
    parts: all that the tokens depend on (fingerprints of text and tokenizer, settings of the split); see `fingerprint`.
    progress: a bar on standard error, where that is a terminal.
    """
    wanted = fingerprint({**parts, "vocab_size": vocab_size})
    if (Path(folder) / _MANIFEST).is_file():
        try:
            shards = Shards.open(folder)
            if shards.fingerprint == wanted:
                return shards
        except ValueError:
            pass  # damaged or of another version: made again
    return write_shards(_encoded(rows, encode, progress, batch_size), folder, vocab_size=vocab_size, fingerprint=wanted, info={**parts})


def _encoded(
    rows: Iterable[Mapping[str, Any]],
    encode: Callable[[list[Mapping[str, Any]]], Iterable[Mapping[str, Tokens]]],
    progress: bool,
    batch_size: int,
) -> Iterator[Mapping[str, Tokens]]:
    console = Console(stderr=True)
    shown = (TextColumn("tokenizing"), BarColumn(), MofNCompleteColumn(), TextColumn("documents"), TextColumn("{task.fields[rate]}"))
    total = len(rows) if isinstance(rows, Sequence) else None
    left = (TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*shown, *left, console=console, transient=True, disable=not (progress and console.is_terminal)) as bar:
        task = bar.add_task("tokenizing", total=total, rate="")
        stream = iter(rows)
        while batch := list(islice(stream, batch_size)):
            yield from encode(batch)
            speed = bar.tasks[0].speed if bar.tasks else None
            bar.update(task, advance=len(batch), rate=f"{speed:,.0f}/s" if speed else "")
