"""Normalisation over the width."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triform import config

from . import fused
from .products import narrowed


def at_least_float(x: Tensor) -> Tensor:
    """x in fp32, or in fp64 where it is so already."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _given(x: Tensor, narrow: bool) -> torch.dtype:
    """The dtype of a norm's result: x's own, or, where only products read it, the one in which autocast makes them."""
    return narrowed(x.device.type, x.dtype) if narrow else x.dtype


class RMSNorm(nn.Module):
    """x / rms(x) * weight, computed in fp32 or better; the scale is `1 + weight` with a unit offset (Gemma)."""

    def __init__(self, spec: config.RMSNorm, width: int, narrow: bool = False) -> None:
        super().__init__()
        self.spec, self.narrow = spec, narrow
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        if fused.fits(x):
            return fused.rms_norm(x, self.weight, self.spec.eps, float(self.spec.unit_offset), _given(x, self.narrow))
        wide, weight = at_least_float(x), at_least_float(self.weight)
        return F.rms_norm(wide, x.shape[-1:], weight + 1 if self.spec.unit_offset else weight, self.spec.eps).type_as(x)


class LayerNorm(nn.LayerNorm):
    """torch's, with less kept for the backward pass while training on a CPU."""

    def __init__(self, spec: config.LayerNorm, width: int, narrow: bool = False) -> None:
        super().__init__(width, spec.eps, bias=spec.bias)
        self.narrow = narrow

    def forward(self, x: Tensor) -> Tensor:
        if fused.fits(x) and self.weight.dtype == at_least_float(x).dtype:
            return fused.layer_norm(x, self.weight, self.bias, self.eps, _given(x, self.narrow))
        return super().forward(x)


def build_norm(spec: config.Norm | None, width: int, narrow: bool = False) -> nn.Module:
    """The module of a norm's specification; None gives the identity. narrow: only products of weights read what it gives."""
    if spec is None:
        return nn.Identity()
    return RMSNorm(spec, width, narrow) if isinstance(spec, config.RMSNorm) else LayerNorm(spec, width, narrow)
