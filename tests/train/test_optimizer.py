"""Optimizers against those of torch and transformers, and what their state takes."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from recipes import model
from torch import Tensor
from transformers.optimization import Adafactor

from triform.nn import build
from triform.train import TrainRecipe
from triform.train.adamw8bit import BLOCK, SMALLEST, AdamW8bit, dequantize, dynamic_map, quantize
from triform.train.optimizer import Optimizer


def module() -> Any:
    """A model with matrices above and below the size that adamw8bit leaves in fp32."""
    return build(model("decoder", width=64, feed_forward={"kind": "FeedForward", "hidden": 80}), seed=0)


def set_gradients(made: Any, step: int) -> None:
    """Noisy gradients of very different sizes, some rows without any."""
    generator = torch.Generator().manual_seed(step)
    for i, parameter in enumerate(made.parameters()):
        parameter.grad = torch.randn(parameter.shape, generator=generator) * 10.0 ** (i % 5 - 3) + 0.1 * parameter.detach()
        if parameter.ndim == 2:
            parameter.grad[1] = 0


def trained(recipe: TrainRecipe, steps: int = 20) -> Any:
    made = module()
    optimizer = Optimizer(made, recipe)
    for step in range(steps):
        set_gradients(made, step)
        optimizer.step(1.0)
    return made


def trained_by(optimizer: Any, made: Any, steps: int = 20) -> Any:
    for step in range(steps):
        set_gradients(made, step)
        optimizer.step()
    return made


def apart(left: Any, right: Any) -> float:
    """The largest difference of two models, in shares of how far training went from the start."""
    start = dict(module().named_parameters())
    others = dict(right.named_parameters())
    return max(float((p - others[n]).detach().norm() / (others[n] - start[n]).detach().norm()) for n, p in left.named_parameters())


def test_sgd_is_torchs() -> None:
    ours = trained(TrainRecipe(steps=1, optimizer="sgd", rate=0.1, betas=(0.8, 0.95), weight_decay=0.0))
    theirs = module()
    trained_by(torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.8), theirs)
    assert apart(ours, theirs) < 1e-5
    other = module()
    trained_by(torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.7), other)
    assert apart(ours, other) > 0.05


def test_adafactor_is_that_of_transformers() -> None:
    """Theirs adds 1e-30 to squares where torch's clamps, and takes means in another order: 1e-4 of the way in 20 steps."""
    ours = trained(TrainRecipe(steps=1, optimizer="adafactor", rate=0.01, weight_decay=0.0))
    theirs = module()
    trained_by(Adafactor(theirs.parameters(), lr=0.01, scale_parameter=True, relative_step=False, warmup_init=False), theirs)
    assert apart(ours, theirs) < 1e-4
    plain = module()
    trained_by(Adafactor(plain.parameters(), lr=0.01, scale_parameter=True, relative_step=False, clip_threshold=0.5), plain)
    assert apart(ours, plain) > 0.05


def test_adafactors_rate_falls_with_the_root_of_the_step() -> None:
    """A rate above 1 / sqrt(step) is cut to it (Shazeer & Stern 2018, section 8)."""
    high, higher = (trained(TrainRecipe(steps=1, optimizer="adafactor", rate=rate, weight_decay=0.0)) for rate in (1.0, 2.0))
    assert apart(high, higher) == 0
    assert apart(high, trained(TrainRecipe(steps=1, optimizer="adafactor", rate=0.1, weight_decay=0.0))) > 0.05


def test_adamw8bit_stays_near_adamw() -> None:
    """After 20 steps within 5 % of the way; a map with even steps, which rounds small moments to nothing, is farther off."""
    settings: dict[str, Any] = {"steps": 1, "rate": 1e-3, "weight_decay": 0.1}
    ours, theirs = trained(TrainRecipe(optimizer="adamw8bit", **settings)), trained(TrainRecipe(**settings))
    assert 0 < apart(ours, theirs) < 0.05
    small = [name for name, p in ours.named_parameters() if p.numel() < SMALLEST]
    others = dict(theirs.named_parameters())
    assert len(small) > 5
    assert all(torch.allclose(p, others[n], rtol=0, atol=1e-7) for n, p in ours.named_parameters() if n in small)


def test_even_steps_would_be_farther_off(monkeypatch: pytest.MonkeyPatch) -> None:
    from triform.train import adamw8bit

    def even(signed: bool) -> Tensor:
        return torch.linspace(-1.0 if signed else 0.0, 1.0, 256)

    monkeypatch.setattr(adamw8bit, "dynamic_map", even)
    monkeypatch.setattr(adamw8bit, "_tables", lru_cache(adamw8bit._tables.__wrapped__))
    settings: dict[str, Any] = {"steps": 1, "rate": 1e-3, "weight_decay": 0.1}
    assert apart(trained(TrainRecipe(optimizer="adamw8bit", **settings)), trained(TrainRecipe(**settings))) > 0.05


@pytest.mark.parametrize("signed", [True, False])
def test_the_map_has_256_numbers_in_seven_decades(signed: bool) -> None:
    numbers = dynamic_map(signed)
    assert len(numbers.unique()) == 256
    assert (numbers[1:] > numbers[:-1]).all()
    assert {0.0, 1.0} <= set(numbers.tolist())
    assert (numbers[0] < -0.99) if signed else (numbers[0] == 0)
    assert 1e-7 < float(numbers[numbers > 0].min()) < 1e-6


@given(st.integers(1, 3 * BLOCK), st.integers(0, 10_000), st.sampled_from([1e-20, 1e-3, 1.0, 1e10]), st.booleans())
def test_a_number_becomes_the_nearest_there_is(count: int, seed: int, size: float, signed: bool) -> None:
    """The nearest but for a five-hundredth of the number, as only its upper bits are looked at."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, generator=generator) * size * 10 ** (-6 * torch.rand(count, generator=generator))
    x = x if signed else x.square().clamp(max=3e38)
    x[torch.rand(count, generator=generator) < 0.1] = 0
    codes, scale = quantize(x, signed)
    found = dequantize(codes, scale, signed)
    assert codes.dtype == torch.uint8
    assert scale.shape == (-(-count // BLOCK),)
    for block in range(len(scale)):
        part = slice(block * BLOCK, (block + 1) * BLOCK)
        there = dynamic_map(signed)[None] * scale[block]
        if not signed:
            there = there[:, 1:]  # 0 is for 0 alone
        nearest = (x[part, None] - there).abs().amin(1)
        off = (x[part] - found[part]).abs()
        assert (off[x[part] != 0] <= (nearest * 1.0001 + x[part].abs() / 500 + 1e-38)[x[part] != 0]).all()
        assert (found[part][x[part] == 0] == 0).all()


def test_a_small_second_moment_beside_a_large_one_takes_no_wild_step() -> None:
    """A square a billionth of its block's largest would be rounded to 0, and the step divided by nothing."""
    parameter = torch.nn.Parameter(torch.zeros(SMALLEST))
    optimizer = AdamW8bit([parameter], lr=1.0, betas=(0.9, 0.95))
    parameter.grad = torch.full((SMALLEST,), 1e-5)
    parameter.grad[::BLOCK] = 1.0
    for _ in range(3):
        optimizer.step()
    assert float(parameter.detach().abs().max()) < 3.1


@pytest.mark.parametrize(
    ("optimizer", "bytes_a_parameter"), [("adamw", 8.0), ("sgd", 4.0), ("adamw8bit", 2 + 8 / BLOCK), ("adafactor", 8 / 64), ("muon", 4.0)]
)
def test_what_the_state_of_a_large_matrix_takes(optimizer: Any, bytes_a_parameter: float) -> None:
    made = module()
    parts = Optimizer(made, TrainRecipe(steps=1, optimizer=optimizer))
    set_gradients(made, 0)
    parts.step(1.0)
    name, parameter = next((n, p) for n, p in made.named_parameters() if n.endswith("attention.body.query.weight"))
    held = sum(t.nbytes for n, t in parts.state().items() if n.endswith(name) and not n.startswith("step/"))
    assert parameter.shape == (64, 64)
    assert held / parameter.numel() == pytest.approx(bytes_a_parameter)


def test_adamw8bit_goes_through_parameters_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trained(TrainRecipe(steps=1, optimizer="adamw8bit"), steps=3)
    monkeypatch.setattr("triform.train.adamw8bit._AT_ONCE", {"cpu": 4 * BLOCK})
    sliced = trained(TrainRecipe(steps=1, optimizer="adamw8bit"), steps=3)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), sliced.parameters(), strict=True))
