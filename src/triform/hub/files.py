"""The weights of a checkpoint by name, from whatever files hold them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from .fields import read_json
from .pickled import read_pickle
from .safetensors import read_header
from .stored import Stored, regular, shown

if TYPE_CHECKING:
    from torch import Size, Tensor, dtype

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_Reader = Callable[[Path], Mapping[str, Stored]]
_LAYOUTS: tuple[tuple[str, str, _Reader], ...] = (
    (SINGLE, INDEX, read_header),
    ("pytorch_model.bin", "pytorch_model.bin.index.json", read_pickle),
)


class WeightFiles(Mapping[str, "Tensor"]):
    """The tensors of one file, or of a folder with `model.safetensors`, its shards and their index, or an older `pytorch_model.bin`.

    Names, shapes and types are read at first, and checked against the files' sizes; each
    look-up reads one tensor. Raises ValueError of one line that names the file at fault.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.stored: dict[str, Stored] = self._read()

    def _read(self) -> dict[str, Stored]:
        if not self.path.is_dir():
            read: _Reader = read_pickle if self.path.suffix in (".bin", ".pt", ".pth") else read_header
            return dict(read(self.path))
        for single, index, reader in _LAYOUTS:
            if (self.path / single).exists():
                return dict(reader(self.path / single))
            if (self.path / index).exists():
                return _shards(self.path / index, reader)
        known = ", ".join(name for layout in _LAYOUTS for name in layout[:2])
        raise ValueError(f"{self.path}: expected weights in one of {known}, found none of them")

    def shape(self, name: str) -> Size:
        """A tensor's shape, without reading it."""
        from torch import Size

        return Size(self.stored[name].shape)

    def dtype(self, name: str) -> dtype:
        """A tensor's type, without reading it."""
        import torch

        found: dtype = getattr(torch, self.stored[name].dtype)
        return found

    def read_into(self, name: str, target: Tensor) -> None:
        """Copy a tensor into one of as many elements, in their order, a piece at a time."""
        self.stored[name].read_into(target)

    def equal(self, one: str, other: str) -> bool:
        """Whether two tensors hold the same, compared a piece at a time."""
        a, b = self.stored[one], self.stored[other]
        return a.shape == b.shape and a.dtype == b.dtype and all(x.equal(y) for x, y in zip(a.pieces(), b.pieces(), strict=True))

    def release(self, name: str) -> None:
        """Say that a tensor will not be read again, so that a file that is in memory as a whole can let go of it."""
        self.stored[name].release()

    def __getitem__(self, name: str) -> Tensor:
        return self.stored[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)


def _shards(index: Path, read: _Reader) -> dict[str, Stored]:
    """The tensors of all shards that an index names, each in the shard that the index says."""
    places = read_json(regular(index)).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(file, str) for file in places.values()):
        raise ValueError(f"{index}: expected a weight_map of names to files")
    files = sorted(set(places.values()))
    for file in files:
        if file in ("", ".", "..") or not file.isprintable() or any(mark in file for mark in "/\\:"):
            raise ValueError(f"{index}: expected files beside it, got {shown(file) or 'nothing'}")
        regular(index.parent / file)
    found: dict[str, Stored] = {}
    for file in files:
        held = read(index.parent / file)
        for name in held:
            if places.get(name) != file:
                where = f"places in {shown(places[name])}" if name in places else "does not name"
                raise ValueError(f"{index.parent / file}: holds {shown(name)}, which {index.name} {where}")
        found |= held
    if lost := next((name for name in places if name not in found), None):
        raise ValueError(f"{index.parent / places[lost]}: lacks {shown(lost)}, which {index.name} places there")
    return found
