"""Dropout that does not wait for random numbers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Dropout(nn.Module):
    """Zeroes each element with probability `p` while training and scales the rest (Srivastava et al. 2014).

    On the CPU it draws 16 bits an element, four elements a number, which is several times
    as fast as torch's own draw of a number each; p is met to 1/65,536.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if not x.is_cpu:
            return F.dropout(x, self.p)
        cut = min(round(self.p * 65_536), 65_535)
        numbers = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        kept = numbers.view(torch.int16)[: x.numel()].view(x.shape) >= cut - 32_768
        return x * kept * (65_536 / (65_536 - cut))

    def extra_repr(self) -> str:
        return f"p={self.p}"
