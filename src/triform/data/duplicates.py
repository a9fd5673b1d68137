"""Documents that were seen before, the same or nearly so. What is remembered lies on disk, so that memory stays flat."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cleaning import Deduplicate
from .ngrams import Hashes, ngram_hashes

MOST_CANDIDATES = 256
_TABLES = """
CREATE TABLE IF NOT EXISTS seen (digest BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS signatures (document INTEGER PRIMARY KEY, signature BLOB);
CREATE TABLE IF NOT EXISTS bands (key INTEGER, document INTEGER, PRIMARY KEY (key, document)) WITHOUT ROWID;
"""


def digest(text: str) -> bytes:
    """A hash of a text, 16 bytes, that white space does not change."""
    return hashlib.blake2b(" ".join(text.split()).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def signatures(documents: Sequence[Hashes], how: Deduplicate) -> list[NDArray[np.uint32] | None]:
    """The MinHash signature of each document's n-grams, (permutations,); None where there is no unit.

    documents: the hashes of their units. Raises ValueError when rensa, which makes them, is not installed.
    """
    try:
        from rensa import RMinHash
    except ModuleNotFoundError:
        raise ValueError('near-duplicates need rensa; pip install "triform[data]"') from None
    grams = [ngram_hashes(hashes, how.ngram).tolist() for hashes in documents]
    rows: Any = RMinHash.digest_matrix_from_token_hash_sets(grams, how.permutations, 0).to_rows()
    return [np.asarray(row, np.uint32) if found else None for row, found in zip(rows, grams, strict=True)]


def rows_of_a_band(near: float, permutations: int) -> int:
    """The most rows to a band with which 97 % of the pairs of that similarity share one: 1 - (1 - s^r)^(p // r) >= 0.97."""
    fitting = [r for r in range(1, permutations // 2) if 1 - (1 - near**r) ** (permutations // r) >= 0.97]
    return max(fitting, default=1)


class Seen:
    """The documents that were kept, in an SQLite database whose transactions the caller ends."""

    def __init__(self, database: sqlite3.Connection, how: Deduplicate) -> None:
        self.database, self.how = database, how
        self.rows = rows_of_a_band(how.near, how.permutations) if how.near is not None else 0
        for statement in filter(str.strip, _TABLES.split(";")):
            database.execute(statement)

    def add(self, key: bytes, signature: NDArray[np.uint32] | None) -> str | None:
        """Remember a document, or say what it is: "duplicate" or "near-duplicate" of one that was kept."""
        if self.database.execute("SELECT 1 FROM seen WHERE digest = ?", (key,)).fetchone():
            return "duplicate"
        if signature is not None and self.how.near is not None:
            keys = self._bands(signature)
            if self._has_alike(signature, keys, self.how.near):
                return "near-duplicate"
            document = self.database.execute("INSERT INTO signatures (signature) VALUES (?)", (signature.tobytes(),)).lastrowid
            self.database.executemany("INSERT OR IGNORE INTO bands VALUES (?, ?)", [(band, document) for band in keys])
        self.database.execute("INSERT INTO seen VALUES (?)", (key,))
        return None

    def _bands(self, signature: NDArray[np.uint32]) -> list[int]:
        keys = []
        for i in range(len(signature) // self.rows):
            part = signature[i * self.rows : (i + 1) * self.rows].tobytes()
            keys.append(int.from_bytes(hashlib.blake2b(part, digest_size=8, salt=str(i).encode()).digest(), "little", signed=True))
        return keys

    def _has_alike(self, signature: NDArray[np.uint32], keys: list[int], near: float) -> bool:
        marks = ", ".join("?" * len(keys))
        found = self.database.execute(
            f"SELECT signature FROM signatures WHERE document IN "
            f"(SELECT DISTINCT document FROM bands WHERE key IN ({marks}) ORDER BY document LIMIT {MOST_CANDIDATES})",
            keys,
        )
        return any(np.count_nonzero(np.frombuffer(other, np.uint32) == signature) >= near * len(signature) for (other,) in found)
