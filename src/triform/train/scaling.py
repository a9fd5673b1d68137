"""Scaling the loss so that small gradients are not lost in fp16 (Micikevicius et al. 2018, section 3.2)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

_PATIENCE = 2000  # steps without overflow, after which the scale doubles


class LossScale:
    """A factor on the loss that halves when a gradient overflows, and doubles after long without one.

    It is a power of two, so that dividing the gradients by it changes nothing but their exponents. `memory` belongs into
    the checkpoint.
    """

    def __init__(self) -> None:
        self.memory: dict[str, Any] = {"scale": 2.0**16, "good": 0}

    @property
    def factor(self) -> float:
        """What the loss is to be multiplied by."""
        return float(self.memory["scale"])

    def unscale(self, parameters: Iterable[Tensor]) -> None:
        """Divide the gradients by the factor."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, 1 / self.factor)

    def overflowed(self) -> bool:
        """Take note of an overflow; False when the scale is as low as it can be."""
        lower = self.factor > 1
        self.memory |= {"scale": max(1.0, self.factor / 2), "good": 0}
        return lower

    def went_well(self) -> None:
        """Take note of a step without overflow."""
        self.memory["good"] += 1
        if self.memory["good"] == _PATIENCE:
            self.memory |= {"scale": self.factor * 2, "good": 0}
