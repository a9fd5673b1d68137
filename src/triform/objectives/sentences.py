"""Pairs of segments for a sentence head: does the second follow the first (BERT), or are the two in order (ALBERT)?"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from triform.data.shards import Shards
from triform.text import Tokenizer
from triform.text.segment import sentences, word_ids

from .base import Sample, Samples

COLUMNS = ("text", "word", "begin")


def begins(tokenizer: Tokenizer, text: str, encoding: object) -> list[int]:
    """For each token of a text 1 where it is a sentence's first, else 0."""
    found, last = [], -1
    for number in word_ids(tokenizer, text, sentences, encoding):  # type: ignore[arg-type]
        found.append(int(number is not None and number > last))
        last = last if number is None else max(last, number)
    if found and not any(found):
        found[0] = 1
    return found


def spans(bounds: list[int], room: int) -> Iterator[tuple[int, int]]:
    """Runs of two sentences and more, which together have at most `room` tokens if there is such a run.

    bounds: where each sentence begins, and where the last one ends. Every sentence of a document with two or more is in a
    run; the last run begins with the sentence before it where it would hold but one.
    """
    first, last = 0, len(bounds) - 1
    while first < last - 1:
        end = first + 2
        while end < last and bounds[end + 1] - bounds[first] <= room:
            end += 1
        yield bounds[first], bounds[end]
        first = end - 1 if end == last - 1 else end


def pair_samples(shards: Shards, kind: str, room: int) -> Samples:
    """Runs of sentences, each a sample with the columns "text", "word" and "begin" of its own and, as "other_…", of a run
    of another document. Raises ValueError when no document has two sentences, and for "next" when but one has."""
    columns = [shards.column(name) for name in COLUMNS]
    offsets, begin = columns[0].offsets, columns[2].tokens
    found = tuple(array("q") for _ in range(3))  # a list of numbers would take four times the memory
    for number, (start, stop) in enumerate(pairwise(map(int, offsets))):
        bounds = [*(np.flatnonzero(begin[start:stop]) + start).tolist(), stop]
        for run in spans(bounds, room):
            for column, value in zip(found, (number, *run), strict=True):
                column.append(value)
    if not found[0]:
        raise ValueError("objective.pairs: expected documents of two sentences or more, found none; set data.by to paragraph or file")
    documents, starts, stops = (np.frombuffer(column, dtype=np.int64) for column in found)
    lengths = stops - starts
    if kind == "next" and documents[0] == documents[-1]:
        raise ValueError("objective.pairs: next needs sentences of another document, and there is but one; take order, or more documents")

    def get(index: int) -> Sample:
        here = np.searchsorted(documents, documents[index] + np.arange(2))
        others = len(documents) - int(here[1] - here[0])
        other = index
        if others:
            drawn = int(np.random.default_rng(index).integers(others))
            other = drawn if drawn < here[0] else drawn + int(here[1] - here[0])
        sample = {"index": np.array(index)}
        for prefix, i in (("", index), ("other_", other)):
            for name, column in zip(COLUMNS, columns, strict=True):
                sample[prefix + name] = np.asarray(column.tokens[starts[i] : stops[i]], dtype=np.int64)
        return sample

    return Samples(np.minimum(lengths, room) + 3, get)


@dataclass(frozen=True)
class Pair:
    """Two segments in their frame: ids, words and segments (T,), and the sentence head's label: 0 as in the text, 1 not."""

    ids: np.ndarray
    words: np.ndarray
    segments: np.ndarray
    label: int


def draw_pair(sample: Sample, kind: str, room: int, frame: tuple[int, int], rng: np.random.Generator) -> Pair:
    """A run of sentences cut in two where one of them begins. Half of the pairs are left so; of the others the second part
    is from another document ("next"), or the two are swapped ("order").

    Of what is longer than `room` tokens, the first part loses its beginning and the second its end. frame: [CLS] and [SEP].
    """
    ids, words = sample["text"], sample["word"]
    cut = int(rng.choice(np.flatnonzero(sample["begin"][1:]) + 1))
    first, second = (ids[:cut], words[:cut]), (ids[cut:], words[cut:])
    label = int(rng.random() < 0.5)
    if label and kind == "order":
        first, second = second, first
    elif label:
        start = int(rng.choice(np.flatnonzero(sample["other_begin"])))
        second = sample["other_text"][start:], sample["other_word"][start:]
    sizes = len(first[0]), len(second[0])
    kept = sizes[0] if sum(sizes) <= room else min(sizes[0], max(room - sizes[1], room - room // 2))
    a, b = (tuple(x[sizes[0] - kept :] for x in first), tuple(x[: room - kept] for x in second))
    cls, sep = frame
    return Pair(
        np.concatenate(([cls], a[0], [sep], b[0], [sep])),
        np.concatenate(([0], a[1], [0], b[1], [0])),
        np.repeat((0, 1), (len(a[0]) + 2, len(b[0]) + 1)),
        label,
    )
