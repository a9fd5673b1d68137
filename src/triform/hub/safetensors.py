"""The safetensors format: its header checked before anything else is done, and files written tensor by tensor.

A file is 8 bytes that say how long the header is, the header (JSON: each tensor's type,
shape and place), and the tensors' bytes without a gap.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .stored import SIZES, InFile, regular, shown

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_HEADER_LIMIT = 100_000_000  # bytes, as the safetensors library has it
_DIMENSIONS = 64  # as many as torch can index
_TYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "F8_E5M2": "float8_e5m2", "F8_E4M3": "float8_e4m3fn", "F8_E8M0": "float8_e8m0fnu",
    "I16": "int16", "U16": "uint16", "F16": "float16", "BF16": "bfloat16", "I32": "int32", "U32": "uint32", "F32": "float32",
    "C64": "complex64", "F64": "float64", "I64": "int64", "U64": "uint64",
}  # fmt: skip
_NAMES = {torch_name: name for name, torch_name in _TYPES.items()}
_ORDER = list(_TYPES)


def read_header(file: Path) -> dict[str, InFile]:
    """The tensors of a safetensors file by name.

    Raises ValueError of one line that names the file for anything that the format does not
    allow; no more is read than the header, and that only where the file is as long as it says.
    """
    regular(file)
    try:
        with file.open("rb") as source:
            size = os.fstat(source.fileno()).st_size
            length = int.from_bytes(source.read(8), "little")
            if size < 8 or length > min(size - 8, _HEADER_LIMIT):
                what = f"a header of {length} bytes" if size >= 8 else "no header"
                raise ValueError(f"expected a safetensors file, got {size} bytes with {what}; was it cut short?")
            text = source.read(length)
        if not text.startswith(b"{"):
            raise ValueError("expected a header that is a mapping; this is not a safetensors file")
        return _places(file, json.loads(text.decode("utf-8"), object_pairs_hook=_once), 8 + length, size)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{file}: the header is not JSON ({shown(str(error), 300)})") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: {shown(str(error), 300)}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the header has {shown(name)} twice")
        found[name] = value
    return found


def _places(file: Path, header: dict[str, Any], data: int, size: int) -> dict[str, InFile]:
    """Each tensor's place, `data` being where the bytes begin and `size` the file's."""
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("__metadata__: expected a mapping of texts")
    found = {name: _place(file, name, entry, data, size) for name, entry in header.items()}
    at = data
    for name, place in sorted(found.items(), key=lambda pair: (pair[1].start, pair[1].elements)):
        if place.start != at:
            raise ValueError(f"{shown(name)} begins at byte {place.start}, expected {at}: tensors overlap or leave a gap")
        at += place.elements * SIZES[place.dtype]
    if at != size:
        raise ValueError(f"expected {at} bytes, as the header says, got {size}")
    return found


def _place(file: Path, name: str, entry: Any, data: int, size: int) -> InFile:
    def fail(what: str) -> ValueError:
        return ValueError(f"{shown(name)}: {what}")

    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise fail("expected dtype, shape and data_offsets")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in _TYPES:
        raise fail(f"expected a dtype of {', '.join(_TYPES)}, got {shown(kind)}")
    if not _whole(shape) or len(shape) > _DIMENSIONS or prod(n for n in shape if n) >= 2**63:
        raise fail(f"expected a shape of whole numbers whose product fits 63 bits, got {shown(shape)}")
    if not _whole(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= size - data:
        raise fail(f"expected data_offsets within the {size - data} bytes that there are, got {shown(offsets)}; was the file cut short?")
    need = prod(shape) * SIZES[_TYPES[kind]]
    if offsets[1] - offsets[0] != need:
        raise fail(f"expected {need} bytes for {kind} {shown(shape)}, got {offsets[1] - offsets[0]}")
    return InFile(file=file, dtype=_TYPES[kind], shape=tuple(shape), start=data + offsets[0])


def _whole(values: object) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**63 for v in values)


def write(file: Path, described: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Write a safetensors file from tensors that come one at a time, in any order, so that no two need be in memory.

    described: type and shape of every tensor by name. The file is the same, byte for byte,
    as the safetensors library makes of the same tensors.
    """

    def kind(name: str) -> str:
        return _NAMES[str(described[name][0]).removeprefix("torch.")]

    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in sorted(described, key=lambda n: (-_ORDER.index(kind(n)), n)):  # the widest first, which keeps each aligned
        shape = described[name][1]
        begin, end = end, end + prod(shape) * SIZES[_TYPES[kind(name)]]
        header[name] = {"dtype": kind(name), "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    left = set(described)
    with file.open("wb") as target:
        target.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors:
            assert (tensor.dtype, tuple(tensor.shape)) == (described[name][0], tuple(described[name][1])), name
            left.remove(name)
            target.seek(8 + len(text) + header[name]["data_offsets"][0])
            target.write(_bytes(tensor))
        target.truncate(8 + len(text) + end)
    assert not left, left


def _bytes(tensor: Tensor) -> memoryview:
    import torch

    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
