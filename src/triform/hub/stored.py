"""Tensors where they lie in a file: known by their place, read piece by piece into memory that is already there.

Plain reads instead of a memory map: mapped pages count as the process's own, so that a
model read from a map would take twice its size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # shapes and types are known where torch is absent
    from torch import Tensor

PIECE = 4 * 2**20  # bytes that a conversion holds at a time
SIZES = {
    "bool": 1, "uint8": 1, "int8": 1, "float8_e5m2": 1, "float8_e4m3fn": 1, "float8_e8m0fnu": 1, "int16": 2, "uint16": 2, "float16": 2,
    "bfloat16": 2, "int32": 4, "uint32": 4, "float32": 4, "complex64": 8, "float64": 8, "int64": 8, "uint64": 8,
}  # fmt: skip
"""Bytes of a number, by torch's name of its type."""


def shown(name: object, most: int = 80) -> str:
    """A name out of a file as it can be printed: on one line, and not too long."""
    text = name if isinstance(name, str) and name.isprintable() else ascii(name)
    return text if len(text) <= most else f"{text[: most - 4]} ..."


def regular(file: Path) -> Path:
    """The file, if it can be read as one. Raises ValueError for a folder, a device, a pipe or a link to nowhere."""
    try:
        if file.is_file():
            return file
        what = "something else" if file.exists() else "none"
    except (OSError, ValueError):  # a name that no file can have
        what = "none"
    raise ValueError(f"{shown(str(file), 1000)}: expected a file, found {what}")


@dataclass(frozen=True, kw_only=True)
class Stored(ABC):
    """A tensor in a file: torch's name of its type, and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return prod(self.shape)

    @abstractmethod
    def read(self) -> Tensor:
        """The tensor, in memory of its own or of the file's reader."""

    def read_into(self, target: Tensor) -> None:
        """Copy it into a tensor of as many elements, in their order, converting to its type."""
        target.copy_(self.read().view(target.shape))

    def pieces(self) -> Iterator[Tensor]:
        """Its numbers in their order, in flat tensors each of which is good until the next."""
        yield self.read().flatten()

    def release(self) -> None:  # noqa: B027  (only what is held in memory has to do something)
        """Say that it will not be read again."""


@dataclass(frozen=True, kw_only=True)
class InFile(Stored):
    """A tensor whose bytes begin at `start`; `strides` in elements, None where it is contiguous."""

    file: Path
    start: int
    strides: tuple[int, ...] | None = None

    @property
    def span(self) -> int:
        """How many elements lie from its first to its last."""
        if self.strides is None or not self.elements:
            return self.elements
        return 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))

    def read(self) -> Tensor:
        import torch

        flat = torch.empty(self.span, dtype=getattr(torch, self.dtype))
        with self._open() as source:
            self._fill(source, flat)
        return flat.view(self.shape) if self.strides is None else flat.as_strided(self.shape, self.strides)

    def read_into(self, target: Tensor) -> None:
        if self.strides is not None or not target.is_contiguous():
            super().read_into(target)
            return
        flat = target.view(-1)
        if str(target.dtype) == f"torch.{self.dtype}" and target.device.type == "cpu":
            with self._open() as source:
                self._fill(source, flat)
            return
        at = 0
        for piece in self.pieces():
            flat[at : at + len(piece)].copy_(piece)
            at += len(piece)

    def pieces(self) -> Iterator[Tensor]:
        import torch

        if self.strides is not None:
            yield from super().pieces()
            return
        step = PIECE // SIZES[self.dtype]
        buffer = torch.empty(min(step, self.elements), dtype=getattr(torch, self.dtype))
        with self._open() as source:
            for at in range(0, self.elements, step):
                piece = buffer[: self.elements - at]
                self._fill(source, piece)
                yield piece

    def _open(self) -> FileIO:
        source = FileIO(self.file)
        source.seek(self.start)
        return source

    def _fill(self, source: FileIO, flat: Tensor) -> None:
        import torch

        room = flat.view(torch.uint8).numpy().data
        while len(room):
            count = source.readinto(room)
            if not count:
                raise ValueError(f"{self.file}: ended while it was read; was it changed meanwhile?")
            room = room[count:]
