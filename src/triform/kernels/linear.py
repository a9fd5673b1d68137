"""Linear layers and token tables over packed weights.

Shapes: N outputs, K inputs.
"""

from __future__ import annotations

from ctypes import byref

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .native import library
from .packing import BLOCK, Packed, unpack

_TILE = 1 << 22  # weights that are unpacked at once where there is no native library


class PackedLinear(nn.Module):
    """y = x W^T + b over packed weights, for evaluation only.

    For int8 and int4 the input is rounded to 8 bits in blocks of 32, as llama.cpp does; for bf16 to bf16. Sums are in fp32. A row's
    result does not depend on the other rows.
    """

    data: Tensor
    bias: Tensor | None

    def __init__(self, packed: Packed, bias: Tensor | None = None) -> None:
        super().__init__()
        self.kind, self.in_features, self.out_features = packed.kind, packed.columns, packed.rows
        self.register_buffer("data", packed.data)
        self.register_buffer("bias", None if bias is None else bias.detach().float().contiguous())

    @property
    def packed(self) -> Packed:
        """The weights."""
        return Packed(self.data, self.kind, self.out_features, self.in_features)

    def _apply(self, fn: object, recurse: bool = True) -> nn.Module:
        """Packed weights have one form and one place: `to` leaves them alone."""
        return self

    def forward(self, x: Tensor) -> Tensor:
        """x (..., K) to (..., N), in x's type."""
        if x.shape[-1] != self.in_features:
            raise ValueError(f"expected inputs of {self.in_features} numbers, got {x.shape[-1]}")
        return product(self.packed, x, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, kind={self.kind}"


class PackedEmbedding(nn.Module):
    """Tokens' vectors from packed weights, which the output layer may share."""

    data: Tensor

    def __init__(self, packed: Packed, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.kind, self.num_embeddings, self.embedding_dim, self.dtype = packed.kind, packed.rows, packed.columns, dtype
        self.register_buffer("data", packed.data)

    @property
    def packed(self) -> Packed:
        """The weights."""
        return Packed(self.data, self.kind, self.num_embeddings, self.embedding_dim)

    @property
    def weight(self) -> Tensor:
        """The packed bytes; `unpack` makes numbers of them."""
        return self.data

    def _apply(self, fn: object, recurse: bool = True) -> nn.Module:
        return self

    def forward(self, ids: Tensor) -> Tensor:
        """ids (...) to vectors (..., width)."""
        flat = ids.reshape(-1).contiguous()
        out = torch.empty(len(flat), self.embedding_dim)
        native = library()
        if native is not None:
            native.done(native.rows(byref(self.packed.matrix()), flat.data_ptr(), len(flat), out.data_ptr(), torch.get_num_threads()))
        else:
            for row, token in enumerate(flat.tolist()):
                out[row] = unpack(self.packed, token, token + 1)[0]
        return out.view(*ids.shape, -1).to(self.dtype)


def product(packed: Packed, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., K) times the packed matrix (N, K) transposed, plus `bias` (N,) in fp32: (..., N), in x's type."""
    rows = x.detach().reshape(-1, packed.columns).float().contiguous()
    native = library()
    if native is None or not len(rows):
        return plain_product(packed, rows, bias).to(x.dtype).view(*x.shape[:-1], packed.rows)
    out = torch.empty(len(rows), packed.rows)
    matrix = packed.matrix(bias)
    room = torch.empty(native.product_workspace(byref(matrix), len(rows)), dtype=torch.uint8)
    threads = torch.get_num_threads()
    native.done(native.product(byref(matrix), rows.data_ptr(), len(rows), out.data_ptr(), room.data_ptr(), room.numel(), threads))
    return out.to(x.dtype).view(*x.shape[:-1], packed.rows)


def plain_product(packed: Packed, rows: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same by torch, for rows (R, K) in fp32, a tile of the weights at a time."""
    rounded = rounded_input(rows, packed)
    step = max(16, _TILE // packed.columns // 16 * 16)
    parts = [F.linear(rounded, unpack(packed, first, min(first + step, packed.rows))) for first in range(0, packed.rows, step)]
    out = torch.cat(parts, dim=-1)
    return out if bias is None else out + bias


def rounded_input(rows: Tensor, packed: Packed) -> Tensor:
    """Inputs (R, K) as the kernels round them for a kind of weights."""
    if packed.kind == "fp32":
        return rows
    if packed.kind == "bf16":
        return rows.bfloat16().float()
    blocks = F.pad(rows, (0, -rows.shape[1] % BLOCK)).view(len(rows), -1, BLOCK)
    most = blocks.abs().amax(-1, keepdim=True)
    numbers = (blocks * torch.where(most == 0, 0, 127 / most)).round()
    return (numbers * (most / 127)).view(len(rows), -1)[:, : rows.shape[1]]
