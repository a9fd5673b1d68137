"""Old `pytorch_model.bin` files: pickles of tensors, read by torch's restricted unpickler, which runs nothing.

A newer one is a zip archive with each tensor's bytes stored as they are: only its
structure is unpickled, and the bytes are read from the file. One from before torch 1.6
can only be read as a whole.
"""

from __future__ import annotations

import logging
import re
import struct
import sys
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .stored import SIZES, InFile, Stored, regular, shown

if TYPE_CHECKING:
    from torch import Tensor

_SHARED = 4  # a tied table stands under up to four names (T5)


def read_pickle(file: Path) -> Mapping[str, Stored]:
    """The tensors of a file that torch.save wrote, by name.

    Raises ValueError of one line that names the file for a pickle that asks for more than
    tensors, and for sizes that the file cannot hold; neither is anything run nor memory
    taken for them.
    """
    regular(file)
    try:
        size = file.stat().st_size
        places = _zipped(file, size) if zipfile.is_zipfile(file) else _old(file, size)
    except ValueError as error:
        raise ValueError(f"{file}: {shown(str(error), 300)}") from None
    except (OSError, NotImplementedError, zipfile.BadZipFile, struct.error) as error:  # what zipfile raises
        raise ValueError(f"{file}: not a file that torch.save wrote ({shown(str(error), 300)})") from None
    if sum(place.elements * SIZES[place.dtype] for place in places.values()) > _SHARED * size:
        raise ValueError(f"{file}: its tensors are larger than the file")
    return places


def _unpickled(file: Path, **options: Any) -> Any:
    """What torch's restricted unpickler makes of a file. Raises ValueError of one line for all that it may raise."""
    import torch

    try:
        with warnings.catch_warnings(action="ignore"):
            return torch.load(file, weights_only=True, **options)
    except Exception as error:  # of a spoilt pickle, any may come
        text = str(error).rpartition("WeightsUnpickler error:")[2]
        if asked := re.search(r"GLOBAL (\S+)|[Cc]lass:? (\S+)", text):
            name = (asked[1] or asked[2]).strip("`'")
            raise ValueError(f"the pickle asks for {shown(name)}, and what is more than tensors could run code") from None
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        why = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
        raise ValueError(f"not a file of tensors that torch.save wrote ({shown(why, 200)})") from None


def _tensors(loaded: Any) -> dict[str, Tensor]:
    from torch import Tensor, strided

    if not isinstance(loaded, Mapping) or not all(isinstance(name, str) for name in loaded):
        raise ValueError("expected a mapping of names to tensors")
    for name, tensor in loaded.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{shown(name)}: expected a tensor, got a {type(tensor).__name__}")
        if tensor.layout is not strided or str(tensor.dtype).removeprefix("torch.") not in SIZES:
            raise ValueError(f"{shown(name)}: expected plain numbers, got {tensor.dtype} in {tensor.layout}")
    return dict(loaded)


def _zipped(file: Path, size: int) -> dict[str, Stored]:
    records = _records(file, size)
    found: dict[str, Stored] = {}
    for name, tensor in _tensors(_unpickled(file, map_location="meta")).items():
        start = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
        if start not in records:
            raise ValueError(f"{shown(name)}: its bytes are in no record of the file")
        width = tensor.dtype.itemsize
        strides = None if tensor.is_contiguous() else tuple(tensor.stride())
        place = InFile(
            dtype=str(tensor.dtype).removeprefix("torch."), shape=tuple(tensor.shape), strides=strides,
            file=file, start=start + tensor.storage_offset() * width,
        )  # fmt: skip
        if place.elements > place.span or tensor.storage_offset() * width + place.span * width > records[start]:
            raise ValueError(f"{shown(name)}: a tensor of {place.elements} numbers is larger than its record of {records[start]} bytes")
        found[name] = place
    return found


def _records(file: Path, size: int) -> dict[int, int]:
    """Where the bytes of each record of a zip archive begin, and how many they are."""
    found = {}
    with zipfile.ZipFile(file) as archive, file.open("rb") as source:
        for record in archive.infolist():
            if record.compress_type != zipfile.ZIP_STORED or record.file_size != record.compress_size:
                raise ValueError(f"record {shown(record.filename)}: expected it stored as it is, found it compressed")
            source.seek(record.header_offset + 26)
            start = record.header_offset + 30 + sum(struct.unpack("<HH", source.read(4)))
            if start + record.file_size > size:
                raise ValueError(f"record {shown(record.filename)}: {record.file_size} bytes at {start} are more than the file has")
            if record.filename.endswith("/byteorder"):
                source.seek(start)
                if source.read(min(record.file_size, 16)) != sys.byteorder.encode():
                    raise ValueError(f"expected numbers in {sys.byteorder}-endian order")
            found[start] = record.file_size
    return found


@dataclass(frozen=True, kw_only=True)
class _Held(Stored):
    """A tensor of an old file, in memory from when the first is read until it is released."""

    name: str
    reader: _Old

    def read(self) -> Tensor:
        return self.reader.tensors[self.name]

    def release(self) -> None:
        self.reader.tensors.pop(self.name, None)


class _Old:
    def __init__(self, file: Path) -> None:
        self.file = file

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        try:
            return _tensors(_unpickled(self.file, map_location="cpu"))
        except ValueError as error:
            raise ValueError(f"{self.file}: {error}") from None


def _old(file: Path, size: int) -> dict[str, Stored]:
    from torch._subclasses.fake_tensor import FakeTensorMode

    log = logging.getLogger("torch._subclasses.fake_tensor")  # which writes what it also raises
    silent, log.disabled = log.disabled, True
    try:
        with FakeTensorMode():  # tensors without memory
            tensors = _tensors(_unpickled(file))
    finally:
        log.disabled = silent
    storages = {id(storage): storage.nbytes() for storage in (tensor.untyped_storage() for tensor in tensors.values())}
    if sum(storages.values()) > size:
        raise ValueError(f"its tensors are larger than the file of {size} bytes")
    reader = _Old(file)
    return {
        name: _Held(dtype=str(tensor.dtype).removeprefix("torch."), shape=tuple(tensor.shape), name=name, reader=reader)
        for name, tensor in tensors.items()
    }
