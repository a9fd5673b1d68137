"""Words: pluggable segmenters, and which word each token lies in (for masking whole words)."""

from __future__ import annotations

import logging
import re
import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import accumulate, pairwise

from tokenizers import Encoding

from .tokenizer import Tokenizer

Segmenter = Callable[[str], list[str]]

_EAST_ASIAN = "\u2e80"  # from here on scripts that put no spaces between words
_SENTENCE_END = re.compile(r"""(?:[。！？!?…]+|\.(?=[”’"')\]]*(?:\s|$)))[”’"'」』）)\]]*\s*|\s*\n\s*""")
# a run of letters and digits with inner apostrophes or hyphens, a run of white space, or one other character
_WORDS = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*|\s+|.", re.DOTALL)


@lru_cache(maxsize=1)
def _jieba() -> Segmenter:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of its own regular expressions and of pkg_resources
        import jieba

    jieba.setLogLevel(logging.ERROR)
    jieba.initialize()
    cut: Segmenter = jieba.lcut
    return cut


def _jieba_words(text: str) -> list[str]:
    """jieba's words, with the words of other scripts as `_whitespace` has them.

    jieba reads "don't" and "e-mail" as several words and a space as a word of its own.
    """
    cut = _jieba()
    words: list[str] = []
    for part in _WORDS.findall(text):
        words += cut(part) if len(part) > 1 and not part.isascii() and not part.isspace() else [part]
    return words


def _whitespace(text: str) -> list[str]:
    return _WORDS.findall(text)


_segmenters: dict[str, Segmenter] = {"jieba": _jieba_words, "characters": list, "whitespace": _whitespace}


def register_segmenter(name: str, function: Segmenter) -> None:
    """Make a segmenter known by a name. It takes a text and returns its words, which joined must equal the text."""
    if not callable(function):
        raise ValueError(f"a segmenter is a function from a text to a list of words, not {type(function).__name__}")
    _segmenters[name] = function


def segmenters() -> list[str]:
    """The names of the known segmenters."""
    return sorted(_segmenters)


def segmenter(name: str = "jieba") -> Segmenter:
    """The segmenter of a name: "jieba" (Chinese words), "characters", "whitespace" (also parted at punctuation), or a registered one.

    The function returned raises ValueError where the words do not add up to the text.
    """
    if name not in _segmenters:
        raise ValueError(f"no segmenter is named {name!r}; known are {', '.join(segmenters())} (register_segmenter adds one)")
    function = _segmenters[name]

    def segment(text: str) -> list[str]:
        words = [word for word in function(text) if word]
        if "".join(words) != text:
            raise ValueError(f"the segmenter {name!r} changed the text {text[:40]!r}; its words joined must equal the text")
        return words

    return segment


def sentences(text: str) -> list[str]:
    """The sentences of a Chinese or English text, each with its closing quotes and the white space after it; joined they are the text.

    A sentence ends with 。！？!?…, with a full stop that white space follows, or with its line.
    """
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    cuts = [0, *ends, len(text)]
    return [text[a:b] for a, b in pairwise(cuts) if a < b]


def word_ids(
    tokenizer: Tokenizer, text: str | Iterable[int], segment: Segmenter | None = None, encoding: Encoding | None = None
) -> list[int | None]:
    """For each token the index of the word that it lies in, or None for a special token and for white space.

    text: a text, whose tokens are `tokenizer.encode(text)`; or token ids, whose words are those of the decoded text.
    encoding: what `tokenizer.encodings` made of the text, where that is known.
    segment: words of a text, jieba's by default. A token that reaches over several words belongs to the first.
    """
    segment = segment or segmenter("jieba")
    if isinstance(text, str):
        encoding = encoding or tokenizer.encodings([text])[0]
        ids = encoding.ids
        spelled, spans = _spelled(tokenizer, ids)
        if spelled != text:  # the tokens do not hold the whole text; the encoder still knows where they come from
            spans = encoding.offsets
    else:
        ids = [int(i) for i in text]
        text, spans = _spelled(tokenizer, ids)
    words = segment(text)
    starts = [0, *accumulate(map(len, words))]
    special = tokenizer.special_ids - {tokenizer.unk}
    result: list[int | None] = []
    for i, (start, end) in zip(ids, spans, strict=True):
        while start < end and text[start].isspace():  # a piece may begin with a space
            start += 1
        result.append(None if i in special or start >= end else bisect_right(starts, start) - 1)
    return result


@lru_cache(maxsize=2**17)
def _piece(tokenizer: Tokenizer, token: int) -> str:
    return tokenizer.backend.decode([token], skip_special_tokens=True)


def _spelled(tokenizer: Tokenizer, ids: list[int]) -> tuple[str, list[tuple[int, int]]]:
    """The text of token ids, with U+FFFD for each unknown and a line break for each special token, and every token's span in it."""
    prefix = getattr(tokenizer.backend.model, "continuing_subword_prefix", None)
    apart = type(tokenizer.backend.model).__name__ == "WordPiece"
    text = ""
    spans: list[tuple[int, int]] = []
    partial: list[int] = []  # tokens that are bytes of a character not yet complete

    def add(piece: str, tokens: int = 1) -> None:
        nonlocal text
        spans.extend([(len(text), len(text) + len(piece))] * tokens)
        text += piece

    def flush() -> None:
        if partial:
            add(tokenizer.decode(partial), len(partial))
            partial.clear()

    for i in ids:
        if i in tokenizer.special_ids:
            flush()
            add("\ufffd" if i == tokenizer.unk else "\n")
        elif apart:
            name = tokenizer.backend.id_to_token(i) or ""
            if prefix and name.startswith(prefix):
                add(name.removeprefix(prefix))
            else:
                text += " " if name.isascii() and text else ""
                add(name)
        elif not partial and not _piece(tokenizer, i).endswith("\ufffd"):
            add(_piece(tokenizer, i))
        else:
            partial.append(i)
            if len(partial) > 3 or not tokenizer.decode(partial).endswith("\ufffd"):
                flush()
    flush()
    return text, spans


def joined(words: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """The text of words and the characters (start, end) of each in it; spaces stand between words of scripts that have them."""
    text = ""
    places: list[tuple[int, int]] = []
    for word in words:
        if text and text[-1] < _EAST_ASIAN and word[0] < _EAST_ASIAN:
            text += " "
        places.append((len(text), len(text) + len(word)))
        text += word
    return text, places
