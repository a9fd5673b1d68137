"""The report card of a tokenizer: what it makes of a text."""

from __future__ import annotations

import time
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from .tokenizer import Tokenizer
from .training import sample

if TYPE_CHECKING:
    from rich.console import RenderableType

SCRIPTS = ("han", "kana", "latin", "digits", "punctuation", "space", "other")
REPORT_BYTES = 4 * 2**20


@lru_cache(maxsize=2**16)
def script(character: str) -> str:
    """The script of one character: one of `SCRIPTS`."""
    category = unicodedata.category(character)
    name = unicodedata.name(character, "")
    if character.isspace():
        return "space"
    if name.startswith(("CJK UNIFIED", "CJK COMPATIBILITY IDEOGRAPH")) or character in "々〇〆":
        return "han"
    if "HIRAGANA" in name or "KATAKANA" in name:
        return "kana"
    if category[0] == "N":
        return "digits"
    if category[0] == "P" or category in ("Sm", "Sc", "Sk"):
        return "punctuation"
    return "latin" if category[0] == "L" and "LATIN" in name else "other"


@dataclass(frozen=True)
class ScriptCount:
    """How much of one script the text has, and in how many tokens."""

    characters: int
    tokens: int
    characters_per_token: float


@dataclass(frozen=True)
class Report:
    """What a tokenizer makes of a text. Sizes in bytes are of UTF-8; speed is in millions of bytes a second, on all cores."""

    vocab_size: int
    bytes_read: int
    bytes_examined: int
    characters: int
    tokens: int
    characters_per_token: float
    scripts: dict[str, ScriptCount]
    unknown_tokens: int
    unknown_rate: float
    unknown_characters: list[tuple[str, int]]
    lines: int
    round_trip_failures: int
    round_trip_failures_beyond_space: int
    round_trip_examples: list[tuple[str, str]]
    longest_tokens: list[str]
    vocabulary_used: int
    encode_megabytes_per_second: float

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return asdict(self)

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table

        scripts = Table("script", "characters", "tokens", "characters per token")
        for name, count in self.scripts.items():
            scripts.add_row(name, f"{count.characters:,}", f"{count.tokens:,}", f"{count.characters_per_token:.2f}")
        scripts.add_row("all", f"{self.characters:,}", f"{self.tokens:,}", f"{self.characters_per_token:.2f}", style="bold")
        for column in scripts.columns[1:]:
            column.justify = "right"
        facts = Table.grid(padding=(0, 2))
        for name, value in self._facts():
            facts.add_row(name, value)
        return Group(scripts, facts)

    def _facts(self) -> list[tuple[str, str]]:
        from rich.markup import escape

        unknown = " ".join(f"{character} ×{count}" for character, count in self.unknown_characters)
        rows = [
            ("text examined", f"{self.bytes_examined:,} of {self.bytes_read:,} bytes"),
            ("vocabulary", f"{self.vocab_size:,} tokens, {self.vocabulary_used:,} of them seen in this text"),
            ("unknown", f"{self.unknown_rate:.4%} of tokens" + (f": {unknown}" if unknown else "")),
            (
                "round trip",
                f"{self.round_trip_failures:,} of {self.lines:,} lines change, "
                f"{self.round_trip_failures_beyond_space:,} of them in more than white space",
            ),
            *(("", f"{before!r} → {after!r}") for before, after in self.round_trip_examples),
            ("longest tokens", " ".join(repr(token) for token in self.longest_tokens)),
            ("encoding", f"{self.encode_megabytes_per_second:.1f} MB/s"),
        ]
        return [(name, escape(value)) for name, value in rows]


def report(tokenizer: Tokenizer, texts: Iterable[str], *, limit: int = REPORT_BYTES, examples: int = 5) -> Report:
    """Examine a tokenizer on (a uniform sample of at most `limit` bytes of) a stream of texts.

    A token counts for the script of its first character that is no space; the bytes of one character are so many tokens.
    Raises ValueError when there is no text.
    """
    pieces, read = sample(texts, limit)
    if not pieces:
        raise ValueError("there is no text to examine the tokenizer on")
    start = time.perf_counter()
    tokenizer.encode_batch(pieces, plain=True)
    seconds = time.perf_counter() - start
    characters: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    used: set[int] = set()
    failed: list[tuple[str, str]] = []
    unknown_tokens = lines = 0
    for piece in pieces:
        encoding = tokenizer.encodings([piece], plain=True)[0]
        previous = (0, 0)
        for i, span in zip(encoding.ids, encoding.offsets, strict=True):
            text = piece[span[0] : span[1]]
            kind = script(text.lstrip()[:1] or " ")
            tokens[kind] += 1
            if span != previous:
                characters[kind] += len(text)
            previous = span
            if i == tokenizer.unk:
                unknown_tokens += 1
                unknown[text] += 1
        used.update(encoding.ids)
        parts = piece.splitlines(keepends=True)
        lines += len(parts)
        if tokenizer.decode(encoding.ids) != piece:
            failed += [(part, back) for part in parts if (back := tokenizer.decode(tokenizer.encode(part, plain=True))) != part]
    total = tokens.total()
    worst = [pair for pair in failed if "".join(pair[0].split()) != "".join(pair[1].split())]
    return Report(
        vocab_size=tokenizer.vocab_size,
        bytes_read=read["bytes_read"],
        bytes_examined=read["bytes_sampled"],
        characters=characters.total(),
        tokens=total,
        characters_per_token=characters.total() / max(total, 1),
        scripts={s: ScriptCount(characters[s], tokens[s], characters[s] / tokens[s]) for s in SCRIPTS if tokens[s]},
        unknown_tokens=unknown_tokens,
        unknown_rate=unknown_tokens / max(total, 1),
        unknown_characters=unknown.most_common(10),
        lines=lines,
        round_trip_failures=len(failed),
        round_trip_failures_beyond_space=len(worst),
        round_trip_examples=[_difference(*pair) for pair in (worst or failed)[:examples]],
        longest_tokens=longest_tokens(tokenizer),
        vocabulary_used=len(used),
        encode_megabytes_per_second=read["bytes_sampled"] / 1e6 / max(seconds, 1e-9),
    )


def longest_tokens(tokenizer: Tokenizer, count: int = 10) -> list[str]:
    """The longest tokens of the vocabulary (but those of white space) as readable text, the longest first."""
    prefix = getattr(tokenizer.backend.model, "continuing_subword_prefix", None) or ""
    ids = [i for i in tokenizer.backend.get_vocab().values() if i not in tokenizer.special_ids]
    texts = tokenizer.backend.decode_batch([[i] for i in ids])
    names = {(text.removeprefix(prefix) if prefix else text) for text in texts if text.strip()}
    return sorted(names, key=lambda text: (-len(text), text))[:count]


def _difference(before: str, after: str, width: int = 24) -> tuple[str, str]:
    """The neighbourhood of the first character in which two texts differ."""
    same = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(len(before), len(after)))
    start = max(0, same - width // 2)
    return before[start : start + width], after[start : start + width]
