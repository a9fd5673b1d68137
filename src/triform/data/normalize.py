"""One way of writing the same text: Unicode normal forms, control characters, full-width letters, simplified Chinese."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from triform.text.training import without_surrogates

from .cleaning import Normalize
from .rows import Row, like

_INVISIBLE = (0xAD, 0x200B, 0x2060, 0xFEFF, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_CONTROL = dict.fromkeys((*range(9), *range(0xB, 0x20), *range(0x7F, 0xA0), *_INVISIBLE))
_HALF_WIDTH = {0x3000: 0x20} | {
    code: code - 0xFEE0 for code in (*range(0xFF10, 0xFF1A), *range(0xFF21, 0xFF3B), *range(0xFF41, 0xFF5B))
}


@lru_cache(maxsize=1)
def simplifier() -> Callable[[str], str]:
    """Traditional to simplified Chinese, word by word (OpenCC's t2s). Raises ValueError when OpenCC is not installed."""
    try:
        from opencc import OpenCC
    except ModuleNotFoundError:
        raise ValueError('simplified Chinese needs OpenCC; pip install "triform[data]"') from None
    convert: Callable[[str], str] = OpenCC("t2s").convert
    return convert


def normalize(text: str, how: Normalize) -> str:
    """A text as `how` says. Half of a surrogate pair becomes U+FFFD. Doing it twice changes nothing more."""
    text = without_surrogates(text)
    if how.control:
        text = text.replace("\r\n", "\n").replace("\r", "\n").translate(_CONTROL)
    if how.half_width:
        text = text.translate(_HALF_WIDTH)
    if how.simplified:
        text = simplifier()(text)
    if how.unicode:
        text = unicodedata.normalize(how.unicode, text)
    return text


def versions(how: Normalize) -> dict[str, str]:
    """What decides on the result beside the settings: the version of Unicode, and OpenCC's."""
    found = {"unicode": unicodedata.unidata_version}
    if how.simplified:
        simplifier()
        found["opencc"] = str(getattr(sys.modules["opencc"], "__version__", ""))
    return found


@dataclass(frozen=True)
class Normalized(Iterable[Row]):
    """Rows with the text of some columns normalised; each pass reads them anew."""

    rows: Iterable[Mapping[str, Any]]
    how: Normalize
    columns: Sequence[str]

    def __iter__(self) -> Iterator[Row]:
        for row in self.rows:
            texts = {name: normalize(row[name], self.how) for name in self.columns if isinstance(row.get(name), str)}
            yield like(row, {**row, **texts})
