"""What a GGUF file says about itself: its metadata and where its tensors are.

Read without torch, from files that nobody vouches for: each count, length and offset is
checked against the file's size before memory is taken for what it counts. The format is
described at https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import struct
import sys
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..stored import regular, shown

BLOCKS = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2), 8: ("Q8_0", 32, 34), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210),
}  # fmt: skip
"""Types of tensors that are read: number in the file, to name, elements in a block, bytes of a block."""
_OTHERS = {
    9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S",
    22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
    40: "NVFP4", 41: "Q1_0",
}  # fmt: skip
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MOST_PAIRS, _MOST_TENSORS, _MOST_ITEMS, _LONGEST_NAME = 2**16, 2**18, 2**22, 2**16


@dataclass(frozen=True)
class Stored:
    """One tensor as it is in the file: its shape as torch has it, type, and place in bytes."""

    shape: tuple[int, ...]
    kind: str
    offset: int
    size: int


class _Cursor:
    """Reads on through the file's bytes; every read is within them."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data, self.path, self.at = data, path, 0

    def fail(self, what: str) -> ValueError:
        return ValueError(f"{self.path}: {what}")

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def take(self, count: int, what: str) -> bytes:
        if count > self.left:
            raise self.fail(f"expected {count:,} bytes for {what}, and the file ends after {self.left:,}; it is cut short or damaged")
        found = self.data[self.at : self.at + count]
        self.at += count
        return found

    def number(self, code: str, what: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code), what))[0]

    def text(self, what: str, longest: int | None = None) -> str:
        length = self.number("Q", f"the length of {what}")
        if longest is not None and length > longest:
            raise self.fail(f"{what} is {length:,} bytes long, and at most {longest:,} are allowed; the file is damaged")
        try:
            return self.take(length, what).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.fail(f"{what} is not UTF-8 ({error.reason} at byte {error.start}); the file is damaged") from None

    def count(self, code: str, what: str, most: int, least_bytes: int) -> int:
        """How many of something follow, each of which takes `least_bytes` or more."""
        count: int = self.number(code, f"the number of {what}")
        if count > most or count * least_bytes > self.left:
            room = min(most, self.left // least_bytes)
            raise self.fail(f"claims {count:,} {what}, and there is room for {room:,}; it is cut short or damaged")
        return count

    def value(self, what: str) -> Any:
        kind = self.number("I", f"the type of {what}")
        return self._array(what) if kind == _ARRAY else self._scalar(kind, what)

    def _scalar(self, kind: int, what: str) -> Any:
        if kind == _STRING:
            return self.text(what)
        if kind not in _SCALARS:
            raise self.fail(f"{what} has type {kind}, which GGUF has not; the file is damaged")
        value = self.number(_SCALARS[kind], what)
        return _short(value) if kind == 6 else value

    def _array(self, what: str) -> Any:
        kind = self.number("I", f"the type of {what}")
        if kind == _ARRAY:
            raise self.fail(f"{what} is an array of arrays; expected an array of numbers or texts")
        if kind == _STRING:
            return [self.text(what) for _ in range(self.count("Q", f"items in {what}", _MOST_ITEMS, 8))]
        if kind not in _SCALARS:
            raise self.fail(f"{what} is an array of type {kind}, which GGUF has not; the file is damaged")
        code = "B" if kind == 7 else _SCALARS[kind]
        width = struct.calcsize("<" + code)
        found = array(code, self.take(width * self.count("Q", f"items in {what}", _MOST_ITEMS, width), what))
        if sys.byteorder == "big":
            found.byteswap()
        return found


def _short(value: float) -> float:
    """The shortest number that is this one in fp32: 1e-06 for 9.999999974752427e-07."""
    short = float(f"{value:.7g}")
    return short if math.isfinite(value) and abs(short) < 3.4e38 and struct.pack("<f", short) == struct.pack("<f", value) else value


class Header:
    """The metadata and the table of tensors of a GGUF file, versions 2 and 3.

    metadata: key to number, text, list of texts, or `array.array` of numbers (truth values as 0 and 1).
    tensors: name to `Stored`, in the file's order.

    Raises ValueError of one line that names the file and the fault. No tensor is read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = regular(Path(path))
        if self.path.stat().st_size < 24:
            raise ValueError(f"{self.path}: expected a GGUF file, and this is only {self.path.stat().st_size} bytes long")
        with self.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            cursor = _Cursor(data, self.path)
            tensors, pairs = self._begin(cursor)
            self.metadata: dict[str, Any] = {}
            for _ in range(pairs):
                self._pair(cursor)
            self.tensors: dict[str, Stored] = {}
            entries = [self._entry(cursor) for _ in range(tensors)]
            self._place(cursor, entries)

    def _begin(self, cursor: _Cursor) -> tuple[int, int]:
        if cursor.take(4, "the first word") != b"GGUF":
            raise cursor.fail("expected a GGUF file, and this does not begin with the word GGUF")
        version = cursor.number("I", "the version")
        if version & 0xFFFF == 0:
            raise cursor.fail("is a GGUF file for big-endian machines, which is not read; convert it to little-endian")
        if version not in (2, 3):
            raise cursor.fail(f"is GGUF of version {version}; expected version 2 or 3")
        # the least that one takes: an empty name, one dimension, type and offset; a name of one letter, type and one byte
        tensors = cursor.count("Q", "tensors", _MOST_TENSORS, 32)
        pairs = cursor.count("Q", "pairs of metadata", _MOST_PAIRS, 14)
        return tensors, pairs

    def _pair(self, cursor: _Cursor) -> None:
        key = cursor.text("a key of the metadata", _LONGEST_NAME)
        if not key or key in self.metadata:
            raise cursor.fail(f"the metadata has {shown(key)} twice; the file is damaged" if key else "the metadata has an empty key")
        self.metadata[key] = cursor.value(shown(key))

    def _entry(self, cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
        name = cursor.text("a tensor's name", _LONGEST_NAME)
        rank = cursor.number("I", f"the dimensions of {shown(name)}")
        if not 1 <= rank <= 4:
            raise cursor.fail(f"the tensor {shown(name)} has {rank:,} dimensions; expected 1 to 4")
        shape = tuple(cursor.number("Q", f"the dimensions of {shown(name)}") for _ in range(rank))
        return name, shape[::-1], cursor.number("I", f"the type of {shown(name)}"), cursor.number("Q", f"the offset of {shown(name)}")

    def _place(self, cursor: _Cursor, entries: list[tuple[str, tuple[int, ...], int, int]]) -> None:
        """Where each tensor is, each within the file and none on another."""
        step = self.metadata.get("general.alignment", 32)
        if not isinstance(step, int) or isinstance(step, bool) or not 1 <= step <= 2**20 or step & (step - 1):
            raise cursor.fail(f"general.alignment: expected a power of two up to {2**20:,}, got {str(step)[:80]!r}")
        start = -(-cursor.at // step) * step
        for name, shape, number, offset in entries:
            if name in self.tensors:
                raise cursor.fail(f"has the tensor {shown(name)} twice; the file is damaged")
            self.tensors[name] = self._stored(cursor, name, shape, number, start + offset)
            if offset % step:
                raise cursor.fail(f"the tensor {shown(name)} begins at {offset:,}, which is no multiple of the alignment {step:,}")
        end, last = start, ""
        for name, stored in sorted(self.tensors.items(), key=lambda item: item[1].offset):
            if stored.offset < end:
                raise cursor.fail(f"the tensors {shown(last)} and {shown(name)} overlap; the file is damaged")
            end, last = stored.offset + stored.size, name

    def _stored(self, cursor: _Cursor, name: str, shape: tuple[int, ...], number: int, at: int) -> Stored:
        if number not in BLOCKS:
            kind = _OTHERS.get(number, f"type {number}")
            read = ", ".join(kind for kind, _, _ in BLOCKS.values())
            raise cursor.fail(f"the tensor {shown(name)} is {kind}, which is not read; convert it to one of {read}")
        kind, elements, width = BLOCKS[number]
        if not all(shape):
            raise cursor.fail(f"the tensor {shown(name)} has the dimensions {shape}; expected none of zero")
        if shape[-1] % elements:
            raise cursor.fail(f"the tensor {shown(name)} has rows of {shape[-1]:,}; {kind} needs full blocks of {elements}")
        size = math.prod(shape) // elements * width
        if at + size > len(cursor.data):
            raise cursor.fail(
                f"the tensor {shown(name)} should end at byte {at + size:,}, and the file does at {len(cursor.data):,}; it is cut short"
            )
        return Stored(shape, kind, at, size)
