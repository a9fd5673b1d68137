"""Normalisation over the width."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triform import config


class RMSNorm(nn.Module):
    """x / rms(x) * weight, computed in fp32; the scale is `1 + weight` with a unit offset (Gemma)."""

    def __init__(self, spec: config.RMSNorm, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.float() + 1 if self.spec.unit_offset else self.weight.float()
        return F.rms_norm(x.float(), x.shape[-1:], weight, self.spec.eps).type_as(x)


def build_norm(spec: config.Norm | None, width: int) -> nn.Module:
    """The module of a norm's specification; None gives the identity."""
    if spec is None:
        return nn.Identity()
    if isinstance(spec, config.RMSNorm):
        return RMSNorm(spec, width)
    return nn.LayerNorm(width, spec.eps, bias=spec.bias)
