"""Normalisation over the width."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triform import config


def at_least_float(x: Tensor) -> Tensor:
    """x in fp32, or in fp64 where it is so already."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


class RMSNorm(nn.Module):
    """x / rms(x) * weight, computed in fp32 or better; the scale is `1 + weight` with a unit offset (Gemma)."""

    def __init__(self, spec: config.RMSNorm, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        wide, weight = at_least_float(x), at_least_float(self.weight)
        return F.rms_norm(wide, x.shape[-1:], weight + 1 if self.spec.unit_offset else weight, self.spec.eps).type_as(x)


def build_norm(spec: config.Norm | None, width: int) -> nn.Module:
    """The module of a norm's specification; None gives the identity."""
    if spec is None:
        return nn.Identity()
    if isinstance(spec, config.RMSNorm):
        return RMSNorm(spec, width)
    return nn.LayerNorm(width, spec.eps, bias=spec.bias)
