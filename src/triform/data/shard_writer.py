"""Token shards as they are written: appended to, and committed now and then, so that a killed process can go on."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from triform.config.files import replacing, sync

FORMAT = 1
MANIFEST = "manifest.json"
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
Tokens = Sequence[int] | NDArray[Any] | int
_JOURNAL = "journal.json"


class _Appended:
    """A file that grows, with the SHA-256 of its content."""

    def __init__(self, file: Path, begun: Mapping[str, Any] | None) -> None:
        self.hash, self.bytes = hashlib.sha256(), 0
        self.stream: IO[bytes] = file.open("wb" if begun is None else "r+b")
        if begun is not None:
            self._take_up(file, begun)

    def _take_up(self, file: Path, begun: Mapping[str, Any]) -> None:
        while self.bytes < begun["bytes"] and (piece := self.stream.read(min(2**20, begun["bytes"] - self.bytes))):
            self.hash.update(piece)
            self.bytes += len(piece)
        if self.facts() != begun:
            self.stream.close()
            raise ValueError(f"{file}: altered since it was begun")
        self.stream.truncate(self.bytes)

    def append(self, data: bytes) -> None:
        self.hash.update(data)
        self.stream.write(data)
        self.bytes += len(data)

    def facts(self) -> dict[str, Any]:
        return {"bytes": self.bytes, "sha256": self.hash.hexdigest()}

    def sync(self) -> None:
        self.stream.flush()
        os.fsync(self.stream.fileno())


class _Column:
    def __init__(self, folder: Path, name: str, vocab_size: int, begun: Mapping[str, Any] | None = None) -> None:
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} cannot name a column of token shards; use letters, digits, - and _")
        self.dtype = np.dtype("<u2" if vocab_size <= 2**16 else "<u4")
        self.name, self.vocab_size = name, vocab_size
        self.tokens = _Appended(folder / f"{name}.tokens", begun and begun["tokens"])
        self.offsets = _Appended(folder / f"{name}.offsets", begun and begun["offsets"])
        self.count = self.tokens.bytes // self.dtype.itemsize
        if begun is None:
            self.offsets.append(bytes(8))

    def add(self, document: int, tokens: Tokens) -> None:
        ids = np.atleast_1d(np.asarray(tokens))
        if ids.size and (ids.dtype.kind not in "iu" or ids.ndim != 1):
            raise ValueError(f"document {document}: the column {self.name!r} should be a list of token ids")
        if ids.size and (ids.min() < 0 or ids.max() >= self.vocab_size):
            worst = int(ids.min() if ids.min() < 0 else ids.max())
            raise ValueError(f"document {document}: {self.name!r} has the id {worst}, outside of 0 to {self.vocab_size - 1}")
        self.tokens.append(ids.astype(self.dtype).tobytes())
        self.count += ids.size
        self.offsets.append(self.count.to_bytes(8, "little"))

    def facts(self) -> dict[str, Any]:
        return {"dtype": self.dtype.str, "tokens": {"count": self.count, **self.tokens.facts()}, "offsets": self.offsets.facts()}


class ShardWriter:
    """Writes a shard set into the folder `work`.

    vocab_size: ids are 0 to vocab_size - 1; one number, or one for each column. fingerprint: what the set is made from;
    where `work` holds a set of the same that was begun, it is gone on with. rows: how many of the rows that the
    documents are made of were in it when it was last committed. Memory does not grow with the set.
    """

    def __init__(self, work: Path, vocab_size: int | Mapping[str, int], fingerprint: str) -> None:
        self.work, self.vocab_size, self.fingerprint = work, vocab_size, fingerprint
        self._columns: dict[str, _Column] = {}
        self.documents = self.rows = self.committed = 0
        try:
            self._take_up()
        except (OSError, ValueError, KeyError, TypeError):
            self.close()
            self._columns, self.documents, self.rows, self.committed = {}, 0, 0, 0
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True)

    def _take_up(self) -> None:
        journal = json.loads((self.work / _JOURNAL).read_text("utf-8"))
        if journal["fingerprint"] != self.fingerprint:
            raise ValueError("begun from something else")
        for name, begun in journal["columns"].items():
            begun["tokens"].pop("count")
            self._columns[name] = _Column(self.work, name, self._size(name), begun)
        self.documents, self.rows = journal["documents"], journal["rows"]
        self.committed = self.tokens

    def _size(self, name: str) -> int:
        if isinstance(self.vocab_size, int):
            return self.vocab_size
        if name not in self.vocab_size:
            raise ValueError(f"vocab_size has no entry for the column {name!r}")
        return self.vocab_size[name]

    @property
    def tokens(self) -> int:
        """How many tokens there are in all columns."""
        return sum(column.count for column in self._columns.values())

    def add(self, row: Mapping[str, Tokens]) -> None:
        """Append a document. Raises ValueError for other columns than the first one had, and for an id out of range."""
        if not self.documents:
            self._columns = {name: _Column(self.work, name, self._size(name)) for name in row}
        if row.keys() != self._columns.keys() or not row:
            expected = ", ".join(self._columns) or "some"
            raise ValueError(f"document {self.documents} has the columns {', '.join(row) or 'none'}; expected {expected}")
        for name, tokens in row.items():
            self._columns[name].add(self.documents, tokens)
        self.documents += 1

    def commit(self, rows: int) -> None:
        """Have all so far on disk, made of so many rows."""
        for column in self._columns.values():
            column.tokens.sync()
            column.offsets.sync()
        columns = {name: column.facts() for name, column in self._columns.items()}
        facts = {"fingerprint": self.fingerprint, "documents": self.documents, "rows": rows, "columns": columns}
        with replacing(self.work / _JOURNAL) as file:
            file.write_text(json.dumps(facts), "utf-8")
            sync(file)
        self.rows, self.committed = rows, self.tokens

    def finish(self, info: Mapping[str, Any]) -> None:
        """Write the manifest, which makes it a whole set. Raises ValueError when there is no document."""
        if not self.documents:
            raise ValueError("there are no documents to write token shards of")
        self.close()
        columns = {name: column.facts() for name, column in self._columns.items()}
        manifest = {"format": FORMAT, "documents": self.documents, "fingerprint": self.fingerprint, "info": dict(info), "columns": columns}
        (self.work / MANIFEST).write_text(json.dumps(manifest, ensure_ascii=False, indent=2) + "\n", "utf-8")
        (self.work / _JOURNAL).unlink(missing_ok=True)

    def close(self) -> None:
        """Close the files."""
        for column in self._columns.values():
            column.tokens.stream.close()
            column.offsets.stream.close()
