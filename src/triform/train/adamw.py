"""AdamW on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from triform.kernels import training as native


class AdamW(torch.optim.AdamW):
    """torch's AdamW, which reads and writes each number once, where there is the native library.

    A gradient may be narrower than its parameter: it is widened for the moment. `scale` is what gradients are multiplied with.
    """

    scale = 1.0

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step over the parameters that have a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        mean, square, betas = state["exp_avg"], state["exp_avg_sq"], group["betas"]
        if parameter.dtype == torch.float32 and parameter.is_contiguous() and native.serves(parameter, gradient, mean, square):
            state["step"] += 1
            native.adamw(parameter, gradient, (mean, square), group, step=float(state["step"]), scale=self.scale)
            return
        wide = gradient.to(parameter.dtype)
        adamw(
            [parameter], [wide if self.scale == 1 else wide * self.scale], [mean], [square], [], [state["step"]], fused=True, amsgrad=False,
            beta1=betas[0], beta2=betas[1], lr=group["lr"], weight_decay=group["weight_decay"], eps=group["eps"], maximize=False,
        )  # fmt: skip
