"""Which documents are fit to train on, and why the others are not."""

from __future__ import annotations

import unicodedata
from collections import Counter
from functools import lru_cache

import numpy as np

from triform.text.report import script

from .cleaning import Filter
from .ngrams import Hashes, rolling

FEWEST_UNITS = 50


@lru_cache(maxsize=2**16)
def _category(character: str) -> str:
    return unicodedata.category(character)


def by_characters(text: str, rules: Filter) -> str | None:
    """Why a text is dropped for its length, script or symbols; None for one that is kept."""
    counts = Counter(text)
    length = sum(count for character, count in counts.items() if not character.isspace())
    if not length:
        return "empty"
    if rules.min_length is not None and length < rules.min_length:
        return "too short"
    if rules.max_length is not None and length > rules.max_length:
        return "too long"
    if rules.script is not None:
        letters = {character: count for character, count in counts.items() if _category(character)[0] == "L"}
        of_script = sum(count for character, count in letters.items() if script(character) == rules.script)
        if of_script < rules.script_share * sum(letters.values()) or not letters:
            return "script"
    if rules.symbols is not None:
        symbols = sum(count for character, count in counts.items() if _category(character)[0] in "SC" and not character.isspace())
        if symbols > rules.symbols * length:
            return "symbols"
    return None


def by_lines(text: str, rules: Filter) -> str | None:
    """Why a text is dropped for lines that repeat earlier ones; blank lines do not count."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if not lines:
        return None
    counts = Counter(lines)
    repeats = {line: count - 1 for line, count in counts.items() if count > 1}
    if rules.duplicate_lines is not None and sum(repeats.values()) / len(lines) > rules.duplicate_lines:
        return "duplicate lines"
    limit = rules.duplicate_line_characters
    if limit is not None and sum(len(line) * count for line, count in repeats.items()) / sum(map(len, lines)) > limit:
        return "duplicate lines"
    return None


def by_ngrams(found: list[str], hashes: Hashes, rules: Filter) -> str | None:
    """Why a text is dropped for n-grams that come again and again. found, hashes: its units (see `ngrams`)."""
    if len(found) < FEWEST_UNITS:
        return None
    lengths = np.fromiter(map(len, found), np.int64, len(found))
    ends = np.concatenate([[0], np.cumsum(lengths)])
    longest = max(len(rules.top_ngrams) + 1 if rules.top_ngrams else 0, len(rules.duplicate_ngrams) + 4 if rules.duplicate_ngrams else 0)
    for n, grams in rolling(hashes, longest):
        top = rules.top_ngrams[n - 2] if 0 <= n - 2 < len(rules.top_ngrams) else None
        duplicate = rules.duplicate_ngrams[n - 5] if 0 <= n - 5 < len(rules.duplicate_ngrams) else None
        if top is None and duplicate is None:
            continue
        _, first, place, counts = np.unique(grams, return_index=True, return_inverse=True, return_counts=True)
        if counts.max() == 1:
            return None  # longer grams are all different too
        if top is not None:
            most = int(np.argmax(counts))
            size = int(ends[first[most] + n] - ends[first[most]])
            if size * int(counts[most]) / int(ends[-1]) > top:
                return "repeated n-grams"
        if duplicate is not None:
            steps = np.zeros(len(found) + 1, np.int64)
            starts = np.flatnonzero(counts[place] > 1)
            steps[starts] += 1
            steps[starts + n] -= 1  # starts are distinct, and so are ends
            if int(lengths[np.cumsum(steps[:-1]) > 0].sum()) / int(ends[-1]) > duplicate:
                return "repeated n-grams"
    return None
