"""Filling rows of fixed length with documents."""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_AT_ONCE = 1 << 16  # documents that are Python's numbers at one time


class Bins(Sequence[NDArray[np.int64]]):
    """What `pack` found: for each bin the indices of its documents, the longest first. Takes 8 bytes a document and 8 a bin."""

    def __init__(self, documents: NDArray[np.int64], offsets: NDArray[np.int64]) -> None:
        self.documents, self.offsets = documents, offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i):  # type: ignore[no-untyped-def]
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            raise IndexError(f"bin {i} of {len(self)}")
        place = int(i) % len(self)
        return self.documents[self.offsets[place] : self.offsets[place + 1]]

    def sums(self, lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        """The tokens in each bin, (bins,), of documents with these lengths."""
        return np.add.reduceat(lengths[self.documents], self.offsets[:-1]) if len(self) else np.zeros(0, np.int64)


def pack(lengths: Sequence[int] | NDArray[np.int64], capacity: int) -> Bins:
    """Put documents of the given lengths (tokens) into as few bins of `capacity` tokens as best-fit decreasing finds.

    Each document, the longest first, goes where the least room is left over after it, else into a new bin; ties go to the
    lower index. At most 11/9 of the fewest bins possible, and 4 more (Johnson et al. 1974). Takes about 40 bytes a
    document while it works. Raises ValueError for a document longer than the capacity (cut it first) or without tokens.
    """
    sizes = np.asarray(lengths, np.int64)
    wrong = np.flatnonzero((sizes < 1) | (sizes > capacity))
    if len(wrong):
        first = int(wrong[0])
        raise ValueError(f"document {first} has {int(sizes[first])} tokens; to be packed it needs 1 to {capacity} (cut longer ones first)")
    order = np.argsort(-sizes, kind="stable")
    chosen = np.empty(len(sizes), np.int64)  # the bin of each document of `order`
    room: dict[int, array[int]] = {}  # room left: the bins that have it
    rooms: list[int] = []  # the keys of `room`, ascending
    bins = 0
    for start in range(0, len(order), _AT_ONCE):
        part = []
        for length in sizes[order[start : start + _AT_ONCE]].tolist():
            place = bisect_left(rooms, length)
            if place == len(rooms):
                found, left = bins, capacity
                bins += 1
            else:
                left = rooms[place]
                found = room[left].pop()
                if not room[left]:
                    del room[left], rooms[place]
            part.append(found)
            left -= length
            if left:
                if left not in room:
                    insort(rooms, left)
                    room[left] = array("q")
                room[left].append(found)
        chosen[start : start + _AT_ONCE] = part
    by_bin = np.argsort(chosen, kind="stable")
    return Bins(order[by_bin], np.searchsorted(chosen[by_bin], np.arange(bins + 1)))


@dataclass(frozen=True)
class PackedRow:
    """One row over the concatenated documents: tokens[start:stop], and for each of them

    documents: which document of this row it belongs to, 0, 1, … from the left; attention stays within one document.
    positions: its place in that document's part of the row, from 0.
    """

    start: int
    stop: int
    documents: NDArray[np.int64]
    positions: NDArray[np.int64]


class PackedRows(Sequence[PackedRow]):
    """Rows of `length` tokens over documents laid end to end; the last row may be shorter. Made by `rows_of`."""

    def __init__(self, offsets: NDArray[np.int64], length: int, drop_last: bool) -> None:
        self.offsets = offsets
        self.length = length
        total = int(offsets[-1])
        self._count = total // length if drop_last else -(-total // length)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[PackedRow]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i):  # type: ignore[no-untyped-def]
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            raise IndexError(f"row {i} of {len(self)}")
        start = (int(i) % len(self)) * self.length
        stop = min(start + self.length, int(self.offsets[-1]))
        first = int(np.searchsorted(self.offsets, start, side="right")) - 1
        last = int(np.searchsorted(self.offsets, stop, side="left"))
        bounds = np.clip(self.offsets[first : last + 1], start, stop)
        sizes = np.diff(bounds)
        begins, sizes = bounds[:-1][sizes > 0], sizes[sizes > 0]  # documents without tokens count for nothing
        documents = np.repeat(np.arange(len(sizes)), sizes)
        return PackedRow(start, stop, documents, np.arange(start, stop) - begins[documents])


def rows_of(offsets: Sequence[int] | NDArray[np.int64], length: int, drop_last: bool = False) -> PackedRows:
    """Rows of a fixed number of tokens over documents laid end to end, every token in exactly one row.

    offsets: (documents + 1,), the n-th document being tokens[offsets[n]:offsets[n + 1]], as `Column.offsets` has them.
    A document that crosses the end of a row goes on in the next as if it began there. Each row tells documents apart, so
    that with a document mask those packed together never see each other. `drop_last` leaves out a last row that is shorter.
    """
    offsets = np.asarray(offsets, np.int64)
    if length < 1:
        raise ValueError(f"rows need a length of 1 token or more, not {length}")
    if offsets.ndim != 1 or len(offsets) < 2 or offsets[0] != 0 or np.any(np.diff(offsets) < 0):
        raise ValueError("offsets must begin with 0 and never fall, with one more than there are documents")
    return PackedRows(offsets, length, drop_last)
