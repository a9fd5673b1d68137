"""Texts as units and n-grams of them: words, and single characters in scripts that put no spaces between words."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

# Han with its extensions, kana, Thai, Lao, Khmer and Burmese stand alone; elsewhere letters and digits run together.
_ALONE = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\U00020000-\U0003ffff"
_UNIT = re.compile(rf"[{_ALONE}]|(?:(?![{_ALONE}_])\w)+")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)

Hashes = NDArray[np.uint64]


def units(text: str) -> list[str]:
    """The words and characters of a text, in lower case, without punctuation."""
    return _UNIT.findall(text.lower())


@lru_cache(maxsize=2**16)
def _hash(unit: str) -> int:
    return int.from_bytes(hashlib.blake2b(unit.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def unit_hashes(found: list[str]) -> Hashes:
    """A 64-bit hash of each unit, the same in every process."""
    return np.fromiter(map(_hash, found), np.uint64, len(found))


def rolling(hashes: Hashes, longest: int) -> Iterator[tuple[int, Hashes]]:
    """For n = 1, ..., `longest` the hashes of all n-grams, (len(hashes) - n + 1,); ends where the text is shorter than n.

    The hash is a polynomial in the units' hashes modulo 2^64 (Karp & Rabin 1987).
    """
    current = hashes
    for n in range(1, min(longest, len(hashes)) + 1):
        if n > 1:
            current = current[:-1] * _FACTOR + hashes[n - 1 :]
        yield n, current


def ngram_hashes(hashes: Hashes, n: int) -> Hashes:
    """The hashes of all n-grams; of a text with fewer units, one hash of all of it. Empty for no units."""
    last = hashes[:0]
    for _, grams in rolling(hashes, n):
        last = grams
    return last
