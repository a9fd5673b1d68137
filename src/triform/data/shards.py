"""Token shards: encoded documents on disk, memory-mapped, written once.

A shard set is a folder. For each named column ("text"; "source" and "target"; "text" and "label") it holds the tokens of
all documents end to end (NAME.tokens, little-endian 16 or 32 bits) and where each begins (NAME.offsets, 64 bits, one more
than there are documents); manifest.json tells their sizes, SHA-256, and the fingerprint of what they were made from.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .cache import file_hash, new_folder
from .shard_writer import FORMAT, MANIFEST, NAME, ShardWriter, Tokens

COMMIT_TOKENS = 4_000_000


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
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text("utf-8"))
        if manifest["format"] != FORMAT:
            raise ValueError(f"{folder}: token shards of format {manifest['format']}, but this version reads {FORMAT}")
        for name, facts in manifest["columns"].items():
            if not NAME.fullmatch(name) or facts["dtype"] not in ("<u2", "<u4"):
                raise KeyError(name)
    except FileNotFoundError:
        raise ValueError(f"{folder}: no token shards here; expected a folder with a {MANIFEST}") from None
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder / MANIFEST}: not a manifest of token shards ({error!r})") from None
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
    folder = _claimed(folder)
    with _put_aside(folder) as put_aside, new_folder(folder) as work:
        writer = ShardWriter(work, vocab_size, fingerprint)
        try:
            for row in rows:
                writer.add(row)
            writer.finish(info or {})
        finally:
            writer.close()
        put_aside()
    return Shards.open(folder)


def _claimed(folder: str | Path) -> Path:
    folder = Path(folder)
    if folder.exists() and not (folder / MANIFEST).is_file() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(f"{folder}: exists and holds something else than token shards; name another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def _put_aside(folder: Path) -> Iterator[Callable[[], None]]:
    """Gives a function that moves an older set away; it comes back when the block ends with no new one in its place."""
    old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    try:
        yield lambda: os.replace(folder, old) if folder.exists() else None
    finally:
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        shutil.rmtree(old, ignore_errors=True)


def fingerprint(parts: Mapping[str, Any]) -> str:
    """SHA-256 (hexadecimal) of named facts, such as {"text": source.fingerprint(), "tokenizer": tokenizer.fingerprint}."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str).encode()).hexdigest()


def find(folder: str | Path, parts: Mapping[str, Any], vocab_size: int | Mapping[str, int]) -> Shards | None:
    """The shard set that these `parts` make, where the folder holds it whole; see `prepare`."""
    try:
        shards = Shards.open(folder)
    except ValueError:
        return None
    return shards if shards.fingerprint == fingerprint({**parts, "vocab_size": vocab_size}) else None


def prepare(
    rows: Iterable[Mapping[str, Any]],
    encode: Callable[[list[Mapping[str, Any]]], Iterable[Mapping[str, Tokens]]],
    folder: str | Path,
    parts: Mapping[str, Any],
    *,
    vocab_size: int | Mapping[str, int],
    progress: bool = True,
    batch_size: int = 256,
    total: int | None = None,
) -> Shards:
    """Encode rows into a shard set, unless the folder holds the one that these `parts` make: then it is opened, and nothing read.

    What a killed process had committed (every 4 million tokens) is gone on from, to the same bytes.

    encode: a list of rows to their token ids by column, for example `lambda batch: [{"text": ids} for ids in
    tokenizer.encode_batch([row["text"] for row in batch])]`.
    parts: all that the tokens depend on (fingerprints of text and tokenizer, settings of the split); see `fingerprint`.
    progress: a bar on standard error, where that is a terminal. total: about how many rows there are, for the bar.
    """
    found = find(folder, parts, vocab_size)
    if found is not None:
        return found
    folder = _claimed(folder)
    work = folder.with_name(f"{folder.name}.partial")
    writer = ShardWriter(work, vocab_size, fingerprint({**parts, "vocab_size": vocab_size}))
    try:
        total = len(rows) if isinstance(rows, Sequence) else total
        with _bar(progress, writer.rows, total) as advance:
            stream = islice(rows, writer.rows, None)
            done = writer.rows
            while batch := list(islice(stream, batch_size)):
                for document in encode(batch):
                    writer.add(document)
                done += len(batch)
                if writer.tokens - writer.committed >= COMMIT_TOKENS:
                    writer.commit(done)
                advance(done)
        writer.finish(parts)
    finally:
        writer.close()
    with _put_aside(folder) as put_aside:
        put_aside()
        os.replace(work, folder)
    return Shards.open(folder)


@contextmanager
def _bar(progress: bool, done: int, total: int | None) -> Iterator[Callable[[int], None]]:
    console = Console(stderr=True)
    shown = (TextColumn("tokenizing"), BarColumn(), MofNCompleteColumn(), TextColumn("documents"), TextColumn("{task.fields[rate]}"))
    left = (TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*shown, *left, console=console, transient=True, disable=not (progress and console.is_terminal)) as bar:
        task = bar.add_task("tokenizing", total=total, completed=done, rate="")

        def advance(done: int) -> None:
            speed = bar.tasks[0].speed if bar.tasks else None
            bar.update(task, completed=done, rate=f"{speed:,.0f}/s" if speed else "")

        yield advance
