"""What can be said of a document by itself: its normalised text, why it is not fit, and what to compare it by."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from multiprocessing import connection, get_context, parent_process
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import filters
from .cleaning import Clean
from .duplicates import digest, signatures
from .ngrams import Hashes, ngram_hashes, unit_hashes, units
from .normalize import normalize
from .overlap import EvaluationSet

Row = Mapping[str, Any]


@dataclass
class Judged:
    """A normalised row and its text. reason: why it is dropped, None if nothing is wrong with it by itself.

    key, signature: what tells equal and similar texts. found_in: the evaluation sets that share an n-gram with it.
    """

    row: dict[str, Any]
    text: str
    reason: str | None
    key: bytes = b""
    signature: NDArray[np.uint32] | None = None
    found_in: tuple[str, ...] = ()


class Judge:
    """Judges rows; it can be sent to other processes."""

    def __init__(self, clean: Clean, evaluation_sets: Sequence[EvaluationSet] = ()) -> None:
        self.clean, self.evaluation_sets = clean, evaluation_sets

    def __call__(self, rows: Sequence[Row]) -> list[Judged]:
        """The rows in their order, with what is made of each."""
        judged, hashed = [], []
        for row in rows:
            one, hashes = self._alone(row)
            judged.append(one)
            hashed.append(hashes)
        how = self.clean.deduplicate
        if how is not None and how.near is not None:
            left = [i for i, one in enumerate(judged) if one.reason is None]
            for i, signature in zip(left, signatures([hashed[i] for i in left], how), strict=True):
                judged[i].signature = signature
        return judged

    def _alone(self, row: Row) -> tuple[Judged, Hashes]:
        clean, none = self.clean, np.empty(0, np.uint64)
        new = dict(row)
        if clean.normalize is not None:
            new |= {name: normalize(row[name], clean.normalize) for name in clean.columns}
        text = "\n".join(new[name] for name in clean.columns)
        reason = None
        if clean.filter is not None:
            reason = filters.by_characters(text, clean.filter) or filters.by_lines(text, clean.filter)
        found: list[str] = [] if reason else units(text)
        hashes = unit_hashes(found)
        if clean.filter is not None and reason is None:
            reason = filters.by_ngrams(found, hashes, clean.filter)
        if reason is not None:
            return Judged(new, text, reason), none
        found_in: tuple[str, ...] = ()
        if clean.overlap is not None and len(hashes) >= clean.overlap.ngram:
            grams = ngram_hashes(hashes, clean.overlap.ngram)
            found_in = tuple(each.name for each in self.evaluation_sets if each.holds(grams))
        return Judged(new, text, None, digest(text), None, found_in), hashes


_judge: Judge


def _begin(judge: Judge) -> None:
    global _judge
    _judge = judge
    parent = parent_process()
    if parent is not None:  # a parent that is killed cannot end its workers
        threading.Thread(target=lambda: (connection.wait([parent.sentinel]), os._exit(1)), daemon=True).start()


def _judged_here(rows: Sequence[Row]) -> list[Judged]:
    return _judge(rows)


def judge_all(batches: Iterable[Sequence[Row]], judge: Judge, workers: int) -> Iterator[list[Judged]]:
    """Batches judged in their order, by so many processes of their own (1: by this one). At most 2 batches a process wait."""
    if workers <= 1:
        yield from map(judge, batches)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), _begin, (judge,)) as pool:
        stream = iter(batches)
        waiting: deque[Future[list[Judged]]] = deque()
        try:
            while True:
                waiting.extend(pool.submit(_judged_here, batch) for batch in islice(stream, 2 * workers - len(waiting)))
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
