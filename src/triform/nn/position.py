"""Where tokens are: added at the input, turned into queries and keys, or biasing scores.

Shapes: B batch (or 1, when all rows agree), T queries, S keys, H heads.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triform import config

from . import fused
from .norm import at_least_float


def sinusoids(positions: Tensor, width: int, base: float = 10_000.0, interleaved: bool = True) -> Tensor:
    """Sines and cosines, (..., width), by turns or all sines first, for positions (...) (Vaswani et al. 2017, section 3.5).

    The result is fp32. Angles have fp64 where the device does: in fp32, those of position 1000 are off by 1e-5.
    """
    dtype = torch.float32 if positions.device.type == "mps" else torch.float64
    frequencies = base ** (-torch.arange(0, width, 2, device=positions.device, dtype=dtype) / width)
    angles = positions[..., None] * frequencies
    return torch.stack((angles.sin(), angles.cos()), dim=-1 if interleaved else -2).flatten(-2).float()


class InputPosition(nn.Module):
    """Vectors (B, T, width) to add to the tokens' at positions (B, T)."""

    def __init__(self, spec: config.Learned | config.Sinusoidal, width: int) -> None:
        super().__init__()
        self.spec, self.width = spec, width
        if isinstance(spec, config.Learned):
            self.weight = nn.Parameter(torch.empty(spec.length + spec.offset, width))

    def forward(self, positions: Tensor) -> Tensor:
        if isinstance(self.spec, config.Learned):
            return F.embedding(positions + self.spec.offset, self.weight)
        return sinusoids(positions, self.width, self.spec.base, self.spec.interleaved)


# Rotary


def inverse_frequencies(rotary: config.Rotary, width: int, device: torch.device | None = None) -> tuple[Tensor, float]:
    """The angle (width / 2,) that each pair turns per token, and the factor on cosine and sine."""
    plain = rotary.theta ** (-torch.arange(0, width, 2, dtype=torch.float, device=device) / width)
    match rotary.scaling:
        case config.Linear(factor=factor):
            return plain / factor, 1.0
        case config.Llama3(factor=factor, low=low, high=high, original_length=length):
            turns = length * plain / (2 * math.pi)
            keep = ((turns - low) / (high - low)).clamp(0, 1)
            return plain * (keep + (1 - keep) / factor), 1.0
        case config.Yarn(factor=factor) as yarn:
            keep = _yarn_keep(yarn, rotary.theta, width, device)
            return plain * (keep + (1 - keep) / factor), yarn.magnitude
        case _:
            return plain, 1.0


def _yarn_keep(yarn: config.Yarn, theta: float, width: int, device: torch.device | None) -> Tensor:
    """1 for pairs that turn often enough to be kept, 0 for those to interpolate (Peng et al. 2023, section 3.2)."""

    def pair(turns: float) -> float:
        return width * math.log(yarn.original_length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = max(math.floor(pair(yarn.fast)), 0), min(math.ceil(pair(yarn.slow)), width - 1)
    ramp = (torch.arange(width // 2, device=device) - first) / max(last - first, 1e-3)
    return 1 - ramp.clamp(0, 1)


Rotation = tuple[Tensor, Tensor]


def rotation(rotary: config.Rotary, positions: Tensor, width: int) -> Rotation:
    """Cosine and sine for `rotate`, each (B, 1, T, width), for positions (B, T); the sine of the first half is negated."""
    frequencies, magnitude = inverse_frequencies(rotary, width, positions.device)
    angles = positions[:, None, :, None] * frequencies
    cos, sin = angles.cos() * magnitude, angles.sin() * magnitude
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(x: Tensor, turn: Rotation) -> Tensor:
    """Turn the pairs (i, i + half) of the last dimension of x (B, H, T, width), in fp32 or better."""
    if fused.fits(x):
        return fused.rotate(x, *turn)
    (cos, sin), wide = turn, at_least_float(x)
    return (wide * cos).addcmul(wide.roll(x.shape[-1] // 2, dims=-1), sin).type_as(x)


# Score biases


class BucketedBias(nn.Module):
    """T5's learned bias (B, H, T, S) for distances (B, T, S), key minus query (Raffel et al. 2020, section 2.1)."""

    def __init__(self, spec: config.Bucketed, heads: int, both_ways: bool) -> None:
        super().__init__()
        self.spec, self.both_ways = spec, both_ways
        self.weight = nn.Parameter(torch.empty(spec.buckets, heads))

    def bucket(self, distance: Tensor) -> Tensor:
        """Near distances get a bucket each; far ones share, more the farther they are."""
        count = self.spec.buckets
        start = torch.zeros_like(distance)
        if self.both_ways:
            count //= 2
            start = (distance > 0) * count
            distance = distance.abs()
        else:
            distance = -distance.clamp(max=0)
        exact = count // 2
        growth = torch.log(distance.clamp(min=1) / exact) / math.log(self.spec.max_distance / exact)
        far = (exact + (growth * (count - exact)).long()).clamp(max=count - 1)
        return start + torch.where(distance < exact, distance, far)

    def forward(self, distance: Tensor) -> Tensor:
        return F.embedding(self.bucket(distance), self.weight).permute(0, 3, 1, 2)


class AlibiBias(nn.Module):
    """-slope * |distance|, (B, H, T, S), with a geometric row of slopes (Press et al. 2022, section 3)."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        power = 2 ** math.floor(math.log2(heads))
        self.slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
        self.slopes += [2 ** (-4 * (2 * i + 1) / power) for i in range(heads - power)]

    def forward(self, distance: Tensor) -> Tensor:
        slopes = torch.tensor(self.slopes, device=distance.device)
        return -distance.abs()[:, None] * slopes[:, None, None]
