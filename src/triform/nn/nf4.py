"""Matrices in 4 bits: NormalFloat with scales in 8 bits (QLoRA, Dettmers et al. 2023, section 3).

Numbers in blocks of 64 are divided by the block's largest magnitude and rounded to the nearest of 16 values, such that
normally distributed numbers use all of them equally often. The blocks' magnitudes are kept as 8-bit differences from their mean,
in groups of 256 with one scale each: 4.127 bits a number in all.

Shapes: M outputs, K inputs of a layer.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .products import Products, chosen, narrowed

BLOCK = 64  # numbers that share a scale
GROUP = 256  # scales that share one
_PARTS = ("codes", "scales", "ranges", "mean")
_STEP = 1 << 20  # numbers that are rounded at once
# Quantiles of the normal distribution at the middle of 8 equal shares below and 9 above zero, zero among both, divided by
# the largest (appendix E).
_VALUES = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


@lru_cache(maxsize=8)
def _pairs(device: torch.device) -> Tensor:
    """The two numbers of each byte, (256, 2): the first in its upper half."""
    values = torch.tensor(_VALUES, device=device)
    return torch.stack((values.repeat_interleave(16), values.repeat(16)), dim=1)


def quantize(weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A matrix of any floating type as (codes, scales, ranges, mean).

    codes (numbers / 2,) uint8, two in a byte; scales (blocks,) int8; ranges (groups,) and mean () in fp32. A last block is
    filled with zeros.
    """
    flat, values = weight.detach().reshape(-1), torch.tensor(_VALUES, device=weight.device)
    borders = (values[1:] + values[:-1]) / 2
    codes, largest = [], []
    for part in torch.split(flat, _STEP):
        blocks = nn.functional.pad(part.float(), (0, -len(part) % BLOCK)).view(-1, BLOCK)
        most = blocks.abs().amax(1)
        found = torch.bucketize(blocks / most.clamp_min(torch.finfo(torch.float32).tiny)[:, None], borders).to(torch.uint8).flatten()
        codes.append(found[::2] << 4 | found[1::2])
        largest.append(most)
    most = torch.cat(largest)
    mean = most.mean()
    groups = nn.functional.pad(most - mean, (0, -len(most) % GROUP)).view(-1, GROUP)
    ranges = groups.abs().amax(1) / 127
    scales = (groups / ranges.clamp_min(torch.finfo(torch.float32).tiny)[:, None]).round().to(torch.int8).flatten()[: len(most)]
    return torch.cat(codes), scales, ranges, mean


def dequantize(codes: Tensor, scales: Tensor, ranges: Tensor, mean: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The matrix of this shape that `quantize` has rounded, in a type."""
    wide = nn.functional.pad(scales, (0, -len(scales) % GROUP)).view(-1, GROUP) * ranges[:, None]
    most = wide.flatten()[: len(scales)] + mean
    pairs = _pairs(codes.device).to(dtype).index_select(0, codes.int())
    numbers = pairs.view(-1, BLOCK).mul_(most.to(dtype)[:, None]).flatten()
    return numbers[: shape[0] * shape[1]].view(shape)


class _Product(torch.autograd.Function):
    """Keeps nothing for the backward pass: the matrix is made again there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: NF4Linear, dtype: torch.dtype, how: Products) -> Tensor:
        ctx.layer, ctx.dtype, ctx.how = layer, x.dtype, how
        with torch.autocast(x.device.type, enabled=False):
            bias = None if layer.bias is None else layer.bias.to(dtype)
            return how.linear(x.to(dtype), layer.dequantized(dtype), bias)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows = gradient.reshape(-1, gradient.shape[-1])
        by_x = ctx.how.multiply(rows, ctx.layer.dequantized(rows.dtype))
        return by_x.view(*gradient.shape[:-1], -1).to(ctx.dtype), None, None, None


class NF4Linear(nn.Module):
    """y = x W^T + b with W in 4 bits, which is not trained; gradients go through to x."""

    codes: Tensor
    scales: Tensor
    ranges: Tensor
    mean: Tensor

    def __init__(self, outputs: int, inputs: int, bias: Tensor | None = None) -> None:
        """A layer whose matrix is still to be stored."""
        super().__init__()
        self.out_features, self.in_features = outputs, inputs
        for name in _PARTS:
            self.register_buffer(name, torch.empty(0))
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    @torch.no_grad()
    def store(self, weight: Tensor) -> NF4Linear:
        """Keep a matrix (M, K), rounded."""
        assert weight.shape == (self.out_features, self.in_features)
        for name, tensor in zip(_PARTS, quantize(weight), strict=True):
            setattr(self, name, tensor)
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> nn.Module:
        """The numbers of the blocks keep their types; `to` moves them to a device."""
        device = fn(torch.empty(0, device=self.codes.device)).device
        for name, tensor in list(self._buffers.items()):
            self._buffers[name] = None if tensor is None else tensor.to(device)
        if self.bias is not None:
            self.bias = nn.Parameter(fn(self.bias), requires_grad=False)
        for child in self.children():
            child._apply(fn)  # type: ignore[no-untyped-call]
        return self

    def dequantized(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The matrix (M, K)."""
        return dequantize(self.codes, self.scales, self.ranges, self.mean, (self.out_features, self.in_features), dtype)

    def plain(self) -> nn.Linear:
        """A layer of torch's own with the numbers that this one stands for, and all that hangs on it."""
        layer = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        layer.weight = nn.Parameter(self.dequantized(), requires_grad=False)
        if self.bias is not None:
            layer.bias = self.bias
        for name, child in self.named_children():
            layer.add_module(name, child)
        layer._forward_hooks = self._forward_hooks
        return layer.train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., K) to (..., M), in x's type or autocast's."""
        found: Tensor = _Product.apply(x, self, narrowed(x.device.type, x.dtype), chosen())  # type: ignore[no-untyped-call]
        return found

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, kind=nf4"


def quantize_layers(model: nn.Module) -> int:
    """Exchange the linear layers of a model's blocks for such in 4 bits, one at a time and in place; returns how many.

    Experts stay as they are, and so do routers, the token tables and the heads. Those of a model on meta still await their matrices.
    """
    names = [name for name, module in model.named_modules()
             if type(module) is nn.Linear and ".layers." in name and not name.endswith(".router")]  # fmt: skip
    for name in names:
        layer: Any = model.get_submodule(name)
        place = NF4Linear(layer.out_features, layer.in_features, layer.bias)
        _put(model, name, place if layer.weight.is_meta else place.store(layer.weight))
    return len(names)


def unpack_layers(model: nn.Module) -> None:
    """Exchange a model's layers in 4 bits for torch's own, one at a time and in place."""
    for name in [name for name, module in model.named_modules() if isinstance(module, NF4Linear)]:
        layer: Any = model.get_submodule(name)
        _put(model, name, layer.plain())


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    place, _, last = name.rpartition(".")
    setattr(model.get_submodule(place), last, module)
