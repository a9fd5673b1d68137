"""Weights in safetensors files, read one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Size, Tensor

from .fields import read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


class WeightFiles(Mapping[str, Tensor]):
    """The tensors of a safetensors file, or of a folder with `model.safetensors` or its shards and their index.

    Only names are read at first; each look-up reads one tensor.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._opened: dict[Path, Any] = {}
        self._file_of = {name: file for file in self._files() for name in self._open(file).keys()}  # noqa: SIM118

    def _files(self) -> list[Path]:
        if self.path.is_file():
            return [self.path]
        if (self.path / SINGLE).is_file():
            return [self.path / SINGLE]
        if (self.path / INDEX).is_file():
            return self._shards()
        if list(self.path.glob("*.bin")) or list(self.path.glob("*.pt")):
            raise ValueError(f"{self.path}: found only pickled weights, which can run code when read; convert them to {SINGLE}")
        raise ValueError(f"{self.path}: expected {SINGLE} or {INDEX}, found neither")

    def _shards(self) -> list[Path]:
        shards = read_json(self.path / INDEX).get("weight_map")
        names = sorted(set(shards.values())) if isinstance(shards, dict) and all(isinstance(v, str) for v in shards.values()) else []
        if not names:
            raise ValueError(f"{self.path / INDEX}: expected a weight_map of names to files")
        for name in names:
            if Path(name).name != name:
                raise ValueError(f"{self.path / INDEX}: expected files beside it, got {name!r}")
            if not (self.path / name).is_file():
                raise ValueError(f"{self.path}: lacks the shard {name} that {INDEX} names")
        return [self.path / name for name in names]

    def _open(self, file: Path) -> Any:
        if file not in self._opened:
            try:
                self._opened[file] = safe_open(file, framework="pt")
            except SafetensorError as error:
                raise ValueError(f"{file}: not a readable safetensors file ({error})") from None
        return self._opened[file]

    def shape(self, name: str) -> Size:
        """A tensor's shape, without reading it."""
        return Size(self._open(self._file_of[name]).get_slice(name).get_shape())

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._open(self._file_of[name]).get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)
