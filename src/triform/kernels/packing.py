"""Weights in the layouts that the kernels read (`source/products.h`), and GGUF's blocks.

Shapes: N outputs (rows), K inputs (columns), G blocks of 32 inputs.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .native import BF16, F32, Q4, Q8, Matrix

Kind = Literal["fp32", "bf16", "int8", "int4"]
KINDS: dict[Kind, int] = {"fp32": F32, "bf16": BF16, "int8": Q8, "int4": Q4}
BLOCK = 32  # weights that share a scale
BLOCK_BYTES: dict[Kind, int] = {"int8": 34, "int4": 18}  # of a block of GGUF's Q8_0 and Q4_0
_LANES = 16
_CHUNK = 1 << 22  # weights that are packed at once
_HUGE = 2 << 20  # bytes of a large page


@dataclass(frozen=True)
class Packed:
    """A matrix (rows, columns) in panels of 16 rows: `data` (panels, bytes of a panel), uint8."""

    data: Tensor
    kind: Kind
    rows: int
    columns: int

    def matrix(self, bias: Tensor | None = None) -> Matrix:
        """What the native library takes; `bias` (rows,) in fp32 and both tensors have to stay alive."""
        return Matrix(
            data=self.data.data_ptr(), bias=None if bias is None else bias.data_ptr(), bytes=self.data.numel(),
            kind=KINDS[self.kind], rows=self.rows, columns=self.columns,
        )  # fmt: skip


class Arena:
    """Memory for the weights of a whole model in one piece, so that the system can back it with large pages."""

    def __init__(self, size: int) -> None:
        room = mmap.mmap(-1, size + _HUGE)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            room.madvise(mmap.MADV_HUGEPAGE)
        whole = torch.frombuffer(room, dtype=torch.uint8)
        self._free = whole[-whole.data_ptr() % _HUGE :]

    def take(self, size: int) -> Tensor:
        """The next `size` bytes, (size,) uint8, a multiple of 64."""
        assert size % 64 == 0
        assert size <= len(self._free)
        taken, self._free = self._free[:size], self._free[size:]
        return taken


def packed_bytes(rows: int, columns: int, kind: Kind) -> int:
    """What a matrix takes in memory."""
    return -(-rows // _LANES) * _panel_bytes(columns, kind)


def _panel_bytes(columns: int, kind: Kind) -> int:
    groups = -(-columns // BLOCK)
    size = {"fp32": columns * 4, "bf16": -(-columns // 2) * 4, "int8": groups * 34, "int4": groups * 18}[kind] * _LANES
    return -(-size // 64) * 64


def pack(weight: Tensor, kind: Kind, arena: Arena | None = None) -> Packed:
    """A matrix (N, K) of any floating type in panels; int8 and int4 are quantized as `quantize` does."""
    rows, columns = weight.shape
    step = max(_LANES, _CHUNK // columns // _LANES * _LANES)
    data = _room(rows, columns, kind, arena)
    for first in range(0, rows, step):
        part = weight.detach()[first : first + step].float()
        panels = data[first // _LANES : -(-(first + len(part)) // _LANES)]
        if kind in BLOCK_BYTES:
            _pack_blocks(quantize(part, kind), kind, panels)
        else:
            _pack_numbers(part, kind, panels)
    return Packed(data, kind, rows, columns)


def pack_blocks(blocks: Tensor, columns: int, kind: Kind, arena: Arena | None = None) -> Packed:
    """A matrix in GGUF's blocks, (N, G * 34) of Q8_0 or (N, G * 18) of Q4_0, uint8, in panels: the very same values."""
    rows, expected = len(blocks), -(-columns // BLOCK) * BLOCK_BYTES[kind]
    if blocks.dtype != torch.uint8 or blocks.ndim != 2 or blocks.shape[1] != expected:
        raise ValueError(f"expected {expected} bytes a row for {columns} columns in {kind}, got {tuple(blocks.shape)} of {blocks.dtype}")
    data = _room(rows, columns, kind, arena)
    step = max(_LANES, _CHUNK // columns // _LANES * _LANES)
    for first in range(0, rows, step):
        part = blocks[first : first + step]
        _pack_blocks(part.view(len(part), -1, BLOCK_BYTES[kind]), kind, data[first // _LANES : -(-(first + len(part)) // _LANES)])
    return Packed(data, kind, rows, columns)


def _room(rows: int, columns: int, kind: Kind, arena: Arena | None) -> Tensor:
    size = packed_bytes(rows, columns, kind)
    found = torch.empty(size, dtype=torch.uint8) if arena is None else arena.take(size)
    return found.view(-1, _panel_bytes(columns, kind))


def _pack_numbers(weight: Tensor, kind: Kind, panels: Tensor) -> None:
    rows, columns = weight.shape
    pair = 2 if kind == "bf16" else 1
    full = F.pad(weight, (0, -columns % pair, 0, -rows % _LANES)).to(torch.bfloat16 if kind == "bf16" else torch.float32)
    ordered = full.view(len(panels), _LANES, -1, pair).transpose(1, 2).contiguous()
    panels.copy_(ordered.view(torch.uint8).view(len(panels), -1))


def _pack_blocks(blocks: Tensor, kind: Kind, panels: Tensor) -> None:
    """blocks (N, G, bytes of a block) to panels: the numbers of all blocks, four columns of 16 rows at a time, then all scales."""
    blocks = F.pad(blocks, (0, 0, 0, 0, 0, -len(blocks) % _LANES))
    groups = blocks.shape[1]
    numbers = blocks[:, :, 2:] ^ (0x80 if kind == "int8" else 0)
    ordered = numbers.reshape(len(panels), _LANES, groups, -1, 4).permute(0, 2, 3, 1, 4).reshape(len(panels), -1)
    scales = blocks[:, :, :2].view(len(panels), _LANES, groups, 2).transpose(1, 2).reshape(len(panels), -1)
    end = ordered.shape[1] + scales.shape[1]
    panels[:, : ordered.shape[1]], panels[:, ordered.shape[1] : end], panels[:, end:] = ordered, scales, 0


def quantize(weight: Tensor, kind: Kind) -> Tensor:
    """A matrix (N, K) in fp32 as GGUF's blocks of Q8_0 (int8) or Q4_0 (int4), (N, G, 34 or 18), uint8.

    The values are those that llama.cpp gives: a scale in fp16 for 32 numbers, such that the one of greatest magnitude is at the
    end of the range. A last block is filled with zeros.
    """
    parts = F.pad(weight, (0, -weight.shape[1] % BLOCK)).view(len(weight), -1, BLOCK)
    if kind == "int8":
        scale = parts.abs().amax(-1, keepdim=True) / 127
        inverse = torch.where(scale == 0, 0, 1 / scale)
        scaled = parts * inverse
        numbers = (scaled.sign() * (scaled.abs() + 0.5).floor()).to(torch.int8).view(torch.uint8)
    else:
        most = parts.gather(-1, parts.abs().argmax(-1, keepdim=True))
        scale = most / -8
        inverse = torch.where(scale == 0, 0, 1 / scale)
        nibbles = (parts * inverse + 8.5).clamp(0, 15).to(torch.uint8)
        numbers = nibbles[..., : BLOCK // 2] | nibbles[..., BLOCK // 2 :] << 4
    return torch.cat((scale.half().view(torch.uint8), numbers), dim=-1)


def unpack(packed: Packed, first: int = 0, last: int | None = None) -> Tensor:
    """Rows [first, last) of the matrix, (rows, K) in fp32."""
    last = packed.rows if last is None else last
    panels = packed.data[first // _LANES : -(-last // _LANES)]
    rows, columns = len(panels) * _LANES, packed.columns
    if packed.kind in ("fp32", "bf16"):
        wide = packed.kind == "fp32"
        pair = 1 if wide else 2
        numbers = panels.view(torch.float32 if wide else torch.bfloat16).view(len(panels), -1, _LANES, pair)
        whole = numbers.transpose(1, 2).reshape(rows, -1)[:, :columns].float()
    else:
        whole = _unpack_blocks(panels, packed.kind, -(-columns // BLOCK))[:, :columns]
    start = first % _LANES
    return whole[start : start + last - first]


def _unpack_blocks(panels: Tensor, kind: Kind, groups: int) -> Tensor:
    size = (BLOCK_BYTES[kind] - 2) * _LANES * groups
    numbers = panels[:, :size].reshape(len(panels), groups, -1, _LANES, 4).permute(0, 3, 1, 2, 4).reshape(len(panels), _LANES, groups, -1)
    scales = panels[:, size : size + 2 * _LANES * groups].contiguous().view(torch.float16)
    scales = scales.view(len(panels), groups, _LANES, 1).transpose(1, 2)
    if kind == "int8":
        values = numbers.float() - 128
    else:
        values = torch.cat((numbers & 15, numbers >> 4), dim=-1).float() - 8
    return (values * scales.float()).reshape(len(panels) * _LANES, -1)
