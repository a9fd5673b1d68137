"""Positions against their papers' formulas, written here one number at a time."""

from __future__ import annotations

import math
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from triform import config
from triform.nn.position import AlibiBias, BucketedBias, inverse_frequencies, rotate, rotation, sinusoids


def test_sinusoids() -> None:
    """PE(pos, 2i) = sin(pos / 10000^(2i / d)), PE(pos, 2i + 1) the cosine (Vaswani et al. 2017)."""
    got = sinusoids(torch.arange(50), 12)
    wanted = [[(math.sin, math.cos)[i % 2](p / 10_000 ** ((i // 2 * 2) / 12)) for i in range(12)] for p in range(50)]
    tiny.assert_close(got, torch.tensor(wanted), 1e-5)


WIDTH, THETA = 16, 500.0


def plain(pair: int) -> float:
    return float(THETA ** (-2 * pair / WIDTH))


def llama3(pair: int) -> float:
    """As in Meta's `apply_scaling`: by wavelength, factor 8, low 1, high 4, of 64 tokens."""
    frequency = plain(pair)
    wavelength = 2 * math.pi / frequency
    if wavelength < 64 / 4:
        return frequency
    if wavelength > 64 / 1:
        return frequency / 8
    smooth = (64 / wavelength - 1) / (4 - 1)
    return (1 - smooth) * frequency / 8 + smooth * frequency


def yarn(pair: int) -> float:
    """Peng et al. 2023, equations 17 to 20, with the ramp over pairs as in their code; factor 4, of 64 tokens."""

    def pair_that_turns(times: float) -> float:
        return WIDTH * math.log(64 / (times * 2 * math.pi)) / (2 * math.log(THETA))

    low, high = max(math.floor(pair_that_turns(32)), 0), min(math.ceil(pair_that_turns(1)), WIDTH - 1)
    ramp = min(1.0, max(0.0, (pair - low) / (high - low)))
    return plain(pair) / 4 * ramp + plain(pair) * (1 - ramp)


SCALINGS: dict[str, tuple[Any, Any, float]] = {
    "plain": (None, plain, 1.0),
    "linear": (config.Linear(factor=3.0), lambda pair: plain(pair) / 3, 1.0),
    "llama3": (config.Llama3(factor=8.0, low=1.0, high=4.0, original_length=64), llama3, 1.0),
    "yarn": (config.Yarn(factor=4.0, original_length=64), yarn, 0.1 * math.log(4) + 1),
    "yarn with a factor": (config.Yarn(factor=4.0, original_length=64, attention_factor=1.25), yarn, 1.25),
}


@pytest.mark.parametrize("name", SCALINGS)
def test_rotary(name: str) -> None:
    """Each pair (i, i + half) is a complex number, turned by position times its frequency (Su et al. 2021)."""
    scaling, frequency, magnitude = SCALINGS[name]
    rotary = config.Rotary(theta=THETA, scaling=scaling)
    positions, half = [0, 1, 7, 90], WIDTH // 2
    x = torch.randn(1, 2, len(positions), WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wanted = torch.empty_like(x)
    for t, position in enumerate(positions):
        for i in range(half):
            turned = torch.complex(x[..., t, i], x[..., t, i + half]) * magnitude * complex(
                math.cos(position * frequency(i)), math.sin(position * frequency(i))
            )
            wanted[..., t, i], wanted[..., t, i + half] = turned.real, turned.imag
    tiny.assert_close(rotate(x, rotation(rotary, torch.tensor([positions]), WIDTH)), wanted, 2e-5)
    others = [other for other in SCALINGS if SCALINGS[other][1] is not frequency]
    for other in others:
        assert not torch.allclose(inverse_frequencies(rotary, WIDTH)[0][-1], torch.tensor(SCALINGS[other][1](half - 1)), rtol=1e-3)


def test_rotated_scores_depend_on_the_distance_alone() -> None:
    rotary = config.Rotary(theta=THETA)
    query, key = (torch.randn(1, 1, 1, WIDTH, generator=torch.Generator().manual_seed(i)) for i in range(2))

    def score(at: int, to: int) -> Tensor:
        turned = [rotate(x, rotation(rotary, torch.tensor([[p]]), WIDTH)) for x, p in ((query, at), (key, to))]
        return (turned[0] * turned[1]).sum()

    tiny.assert_close(score(9, 4), score(25, 20), 1e-5)
    with pytest.raises(AssertionError):
        tiny.assert_close(score(9, 4), score(9, 5), 1e-5)


@pytest.mark.parametrize(
    ("heads", "slopes"),
    [
        (1, [2**-8]),
        (4, [2**-2, 2**-4, 2**-6, 2**-8]),
        (8, [2**-1, 2**-2, 2**-3, 2**-4, 2**-5, 2**-6, 2**-7, 2**-8]),
        (3, [2**-4, 2**-8, 2**-2]),
        (6, [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]),
    ],
)
def test_alibi(heads: int, slopes: list[float]) -> None:
    """A geometric row that starts at its ratio, 2^(-8 / n); other counts add every other slope of the next power (Press et al. 2022)."""
    distance = torch.arange(5)[None, None, :] - torch.arange(5)[None, :, None]
    wanted = torch.tensor([[[-slope * abs(s - t) for s in range(5)] for t in range(5)] for slope in slopes])[None]
    tiny.assert_close(AlibiBias(heads)(distance), wanted, 1e-6)


def t5_bucket(distance: int, both_ways: bool, buckets: int, most: int) -> int:
    """Raffel et al. 2020, section 2.1, after Mesh TensorFlow's `_relative_position_bucket`."""
    start, n = 0, -distance
    if both_ways:
        buckets //= 2
        start, n = (buckets if n < 0 else 0), abs(n)
    n = max(n, 0)
    exact = buckets // 2
    if n < exact:
        return start + n
    return start + min(exact + int(math.log(n / exact) / math.log(most / exact) * (buckets - exact)), buckets - 1)


@pytest.mark.parametrize("both_ways", [False, True])
@pytest.mark.parametrize(("buckets", "most"), [(32, 128), (8, 20), (4, 8)])
def test_buckets(both_ways: bool, buckets: int, most: int) -> None:
    bias = BucketedBias(config.Bucketed(buckets=buckets, max_distance=most), heads=2, both_ways=both_ways)
    torch.nn.init.normal_(bias.weight)
    distance = torch.arange(-200, 201)[None, None]
    wanted = [t5_bucket(int(d), both_ways, buckets, most) for d in distance[0, 0]]
    got = bias.bucket(distance)[0, 0].tolist()
    assert got == wanted
    tiny.assert_close(bias(distance)[0, 1, 0], bias.weight[got, 1], 0)
    assert bias.bucket(-distance)[0, 0].tolist() != got


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("position", tiny.POSITIONS)
def test_a_model_keeps_its_dtype(position: str, dtype: torch.dtype) -> None:
    for spec in (tiny.decoder(position, qk_norm=config.RMSNorm()), tiny.encoder(position)):
        out = tiny.build(spec, dtype)(tiny.ids(2, 5))
        assert out.hidden.dtype == out.logits.dtype == dtype


def test_norms_and_experts_keep_the_digits_of_fp64() -> None:
    stack = tiny.stack(tiny.attention("rotary", qk_norm=config.RMSNorm()), norm=config.RMSNorm(unit_offset=True), feed_forward=tiny.EXPERTS)
    model = tiny.build(config.Transformer(decoder=stack), torch.float64)
    model.decoder.input, saved = None, model.decoder.input
    x = torch.randn(1, 4, tiny.WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    try:
        moved = (model(x + 1e-10).hidden - model(x).hidden).abs().max()
    finally:
        model.decoder.input = saved
    assert 1e-13 < moved.item() < 1e-7
