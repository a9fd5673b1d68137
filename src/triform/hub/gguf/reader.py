"""Models in GGUF files, read one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triform import config

from ..family import Family
from .header import BLOCKS, Header, Stored
from .names import family
from .spec import ROPE_FACTORS, read_spec, with_factors

if TYPE_CHECKING:
    import torch

    from triform.text import Tokenizer

_CHUNK = 2**18  # elements that are dequantized at once
_SIZES = {kind: (elements, width) for kind, elements, width in BLOCKS.values()}


class GGUFFile(Mapping[str, "torch.Tensor"]):
    """The tensors of a GGUF file by their names in the file, dequantized when they are looked up.

    fp32, fp16 and bf16 come as stored, quantized ones as fp32. Nothing but the header is read at first, and
    `spec`, `metadata` and `shape` need no torch.

    Raises ValueError of one line that names the file, for one that is damaged or holds what is not supported.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.header = Header(self.path)

    @property
    def metadata(self) -> dict[str, Any]:
        """The file's metadata: key to number, text, list of texts, or array of numbers."""
        return self.header.metadata

    @cached_property
    def spec(self) -> config.Transformer:
        """The model's configuration."""
        try:
            spec = read_spec(self.header)
            return with_factors(spec, self._factors(), str(self.path)) if ROPE_FACTORS in self.header.tensors else spec
        except ValueError as error:
            raise error if str(error).startswith(f"{self.path}: ") else ValueError(f"{self.path}: {error}") from None

    @cached_property
    def family(self) -> Family:
        """What the weights are called in the file, and their layouts."""
        return family(self.metadata["general.architecture"], self.spec)

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer in the file, its chat template and the ids that end an answer included; None where there is none."""
        from .vocabulary import read_tokenizer

        return read_tokenizer(self.header)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it."""
        return self.header.tensors[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """The type that a tensor has when it is looked up."""
        import torch

        return {"F16": torch.float16, "BF16": torch.bfloat16}.get(self.header.tensors[name].kind, torch.float32)

    def __getitem__(self, name: str) -> torch.Tensor:
        import torch

        out = torch.empty(self.header.tensors[name].shape, dtype=self.dtype(name))
        self.read_into(name, out)
        return out

    def read_into(self, name: str, target: torch.Tensor) -> None:
        """Copy a tensor into one of its shape, converting to its type; into one of its own type without a copy between."""
        import torch

        if target.dtype != self.dtype(name) or target.device.type != "cpu" or not target.is_contiguous():
            target.copy_(self[name])
            return
        stored, flat = self.header.tensors[name], target.detach().view(-1)
        plain = stored.kind in ("F32", "F16", "BF16")
        with FileIO(self.path) as source:
            source.seek(stored.offset)
            if plain:
                _fill(source, flat.view(torch.uint8).numpy())  # little-endian, as the machines that torch runs on
            else:
                _dequantize(source, stored, flat.numpy())

    def raw(self, name: str) -> torch.Tensor:
        """A matrix as it is in the file, (rows, bytes of a row), uint8."""
        import torch

        stored = self.header.tensors[name]
        out = torch.empty(stored.size, dtype=torch.uint8)
        with FileIO(self.path) as source:
            source.seek(stored.offset)
            _fill(source, out.numpy())
        return out.view(stored.shape[0], -1)

    def __iter__(self) -> Iterator[str]:
        return iter(self.header.tensors)

    def __len__(self) -> int:
        return len(self.header.tensors)

    def _factors(self) -> list[float]:
        stored = self.header.tensors[ROPE_FACTORS]
        if stored.kind != "F32" or len(stored.shape) != 1 or stored.size > 2**16:
            raise ValueError(f"{self.path}: {ROPE_FACTORS} is {stored.kind} of shape {stored.shape}; expected fp32 and one dimension")
        from array import array

        with self.path.open("rb") as file:
            file.seek(stored.offset)
            factors = array("f", file.read(stored.size))
        return factors.tolist()


def _fill(source: FileIO, target: Any) -> None:
    """Read into an array of bytes until it is full."""
    room = memoryview(target)
    while len(room):
        count = source.readinto(room)
        if not count:
            raise ValueError(f"{source.name}: ended while it was read; was it changed meanwhile?")
        room = room[count:]


def _dequantize(source: FileIO, stored: Stored, out: Any) -> None:
    """Blocks of bytes to fp32, a chunk at a time, so that memory stays near the tensor's own size."""
    import numpy as np
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    elements, width = _SIZES[stored.kind]
    for first in range(0, len(out), _CHUNK):
        part = out[first : first + _CHUNK]
        # as one row of many blocks, since the library goes through rows one by one
        blocks = np.empty((1, len(part) // elements * width), dtype=np.uint8)
        _fill(source, blocks[0])
        with np.errstate(all="ignore"):  # a damaged block gives nan, as it would in llama.cpp
            part[:] = dequantize(blocks, GGMLQuantizationType[stored.kind])[0]
