"""AdamW whose moments take a byte each (Dettmers et al. 2022)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 256  # numbers that share a scale
SMALLEST = 4096  # numbers, below which a tensor's moments stay in fp32
_AT_ONCE = {"cpu": 1 << 18}  # numbers that are widened at a time, a multiple of BLOCK, few enough for a processor's caches
_AT_ONCE_ELSEWHERE = 1 << 24
_DROPPED = 14  # low bits of an fp32 that do not matter to which of 256 values is nearest


@lru_cache(maxsize=None)
def dynamic_map(signed: bool) -> Tensor:
    """The 256 numbers from -1 or 0 to 1 that a byte stands for, ascending: dynamic tree quantization (Dettmers 2015).

    Seven decades share the bytes; the larger the decade, the more steps it has. Without a sign there are twice as many.
    """
    values = [0.0, 1.0]
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2 ** (6 - decade + (not signed)) + 1, dtype=torch.float64)
        steps = ((edges[:-1] + edges[1:]) / 2 * 10.0**-decade).tolist()
        values += steps + ([-step for step in steps] if signed else [])
    return torch.tensor(sorted(values), dtype=torch.float32)


@lru_cache(maxsize=None)
def _tables(signed: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """The number of each byte, and the byte of each fp32 from -1 to 1, found by the fp32's upper bits."""
    numbers = dynamic_map(signed)
    upper = torch.arange(1 << (32 - _DROPPED), dtype=torch.int64)
    bits = (upper << _DROPPED) + (1 << (_DROPPED - 1))
    middles = (bits - ((bits >> 31) << 32)).to(torch.int32).view(torch.float32).nan_to_num(1.0).clamp(float(numbers[0]), 1.0)
    codes = torch.bucketize(middles, (numbers[1:] + numbers[:-1]) / 2)
    if not signed:
        # A second moment that became 0 would give a step without bound.
        codes = codes.clamp(min=1)
        codes[0] = 0
    return numbers.to(device), codes.to(torch.uint8).to(device)


def quantize(x: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """Bytes (N,) and scales (blocks,) in fp32, the largest magnitude of each BLOCK, of numbers x (N,) in fp32."""
    count = len(x)
    blocks = F.pad(x, (0, -count % BLOCK)).view(-1, BLOCK)
    scale = blocks.abs().amax(1)
    shares = blocks / scale.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    upper = (shares.view(torch.int32) >> _DROPPED).bitwise_and_((1 << (32 - _DROPPED)) - 1)
    return _tables(signed, x.device)[1].index_select(0, upper.flatten())[:count], scale


def dequantize(codes: Tensor, scale: Tensor, signed: bool) -> Tensor:
    """Numbers (N,) in fp32 of what `quantize` gave."""
    count = len(codes)
    numbers = _tables(signed, codes.device)[0].index_select(0, codes.int())
    return (F.pad(numbers, (0, -count % BLOCK)).view(-1, BLOCK) * scale[:, None]).flatten()[:count]


class AdamW8bit(torch.optim.Optimizer):
    """AdamW (Loshchilov & Hutter 2019) with both moments in blocks of bytes; those of small tensors stay in fp32.

    Moments are widened a slice at a time, so that they are never all in fp32.
    """

    def __init__(self, params: Iterable[Any], lr: float, betas: tuple[float, float], eps: float = 1e-8, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @staticmethod
    def kinds(parameter: Tensor) -> dict[str, tuple[torch.Size, torch.dtype]]:
        """Shape and dtype of each part of a parameter's state, all of which begins with zeros."""
        out = {"step": (torch.Size(), torch.float32)}
        small = parameter.numel() < SMALLEST
        for name in ("exp_avg", "exp_avg_sq"):
            out[name] = parameter.shape, torch.float32 if small else torch.uint8
            if not small:
                out[f"{name}_scale"] = torch.Size((-(-parameter.numel() // BLOCK),)), torch.float32
        return out

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step over the parameters that have a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            for name, (shape, dtype) in self.kinds(parameter).items():
                state[name] = torch.zeros(shape, dtype=dtype, device="cpu" if name == "step" else parameter.device)
        state["step"] += 1
        values, gradient = parameter.view(-1), parameter.grad.reshape(-1)  # type: ignore[union-attr]
        size = _AT_ONCE.get(parameter.device.type, _AT_ONCE_ELSEWHERE)
        for first in range(0, len(values), size):
            part = slice(first, first + size)
            self._update_part(values[part], gradient[part].float(), state, group, part)

    def _update_part(self, values: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any], part: slice) -> None:
        beta1, beta2 = group["betas"]
        step = float(state["step"])
        mean = self._widened("exp_avg", state, part).lerp_(gradient, 1 - beta1)
        square = self._widened("exp_avg_sq", state, part).mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        self._narrowed("exp_avg", mean, state, part)
        self._narrowed("exp_avg_sq", square, state, part)
        values.mul_(1 - group["lr"] * group["weight_decay"])
        root = square.sqrt().div_((1 - beta2**step) ** 0.5).add_(group["eps"])
        values.addcdiv_(mean, root, value=-group["lr"] / (1 - beta1**step))

    @staticmethod
    def _widened(name: str, state: dict[str, Tensor], part: slice) -> Tensor:
        values = state[name].view(-1)[part]
        if f"{name}_scale" not in state:
            return values
        blocks = slice(part.start // BLOCK, part.stop // BLOCK)
        return dequantize(values, state[f"{name}_scale"][blocks], signed=name == "exp_avg")

    @staticmethod
    def _narrowed(name: str, values: Tensor, state: dict[str, Tensor], part: slice) -> None:
        if f"{name}_scale" not in state:
            return
        codes, scale = quantize(values, signed=name == "exp_avg")
        state[name].view(-1)[part] = codes
        state[f"{name}_scale"][part.start // BLOCK : part.start // BLOCK + len(scale)] = scale
