"""fp16 with a scaled loss. No CPU is fast at it, but a tiny model's numbers are the same there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from recipes import recipe
from runs import assert_same, outcome, quiet, stopped_and_resumed

from triform.train import run
from triform.train.loop import Trainer
from triform.train.scaling import LossScale


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the CPU compute in fp16."""
    monkeypatch.setattr("triform.train.loop.check_precision", lambda *a: None)


def test_the_cpu_is_refused_before_anything_is_read(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train\.precision: fp16 needs a GPU; .* 1 GFLOP/s"):
        run(recipe("Causal", data, precision="fp16"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def gradients(trainer: Trainer, scale: float) -> dict[str, torch.Tensor]:
    assert trainer.scaling is not None
    trainer.scaling.memory["scale"] = scale
    batches = trainer.train.step(0)
    trainer.model.zero_grad()
    torch.manual_seed(0)
    trainer._backward(batches, sum(batch.tokens for batch in batches))
    trainer.scaling.unscale(trainer.model.parameters())
    return {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}


def test_scaling_keeps_what_fp16_would_lose(data: Path, tmp_path: Path, allowed: None) -> None:
    """Against fp32 the gradients are within 2 %; scaled down to where fp16 has no numbers left, most is lost."""
    plain = Trainer(recipe("Causal", data, precision="fp32"), tmp_path / "plain", progress=False)
    plain.scaling = LossScale()
    half = Trainer(recipe("Causal", data, precision="fp16"), tmp_path / "half", progress=False)
    wanted = gradients(plain, 1.0)

    def off(scale: float) -> float:
        found = gradients(half, scale)
        return float(torch.stack([(found[n] - wanted[n]).norm() / wanted[n].norm().clamp(min=1e-4) for n in wanted]).max())

    assert off(2.0**10) < 0.02
    assert off(2.0**-20) > 0.3


def test_an_overflow_halves_the_scale_and_leaves_the_step_out(data: Path, tmp_path: Path, allowed: None) -> None:
    trainer = Trainer(recipe("Causal", data, precision="fp16"), tmp_path / "run", progress=False)
    assert trainer.scaling is not None
    trainer.scaling.memory["scale"] = 2.0**40
    before = [p.detach().clone() for p in trainer.model.parameters()]
    row = trainer.take(0, trainer.train.step(0))
    assert "overflowed" in row["skipped"]
    assert trainer.scaling.factor == 2.0**39
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
    trainer.scaling.memory["scale"] = 2.0**10
    assert "skipped" not in trainer.take(0, trainer.train.step(0))
    assert not all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


def test_the_scale_doubles_after_long_and_has_a_floor() -> None:
    scale = LossScale()
    for _ in range(1999):
        scale.went_well()
    assert scale.factor == 2.0**16
    scale.went_well()
    assert scale.factor == 2.0**17
    assert all(scale.overflowed() for _ in range(17))
    assert not scale.overflowed()
    assert scale.factor == 1


@pytest.mark.parametrize("guard", [None, {"spike": None}])
def test_it_goes_on_bit_for_bit(guard: Any, data: Path, tmp_path: Path, allowed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a scale so high that the first steps overflow, and that rises again."""
    monkeypatch.setattr("triform.train.scaling._PATIENCE", 2)
    begin = LossScale.__init__

    def high(self: LossScale) -> None:
        begin(self)
        self.memory["scale"] = 2.0**24

    monkeypatch.setattr(LossScale, "__init__", high)
    made = recipe("Causal", data, precision="fp16", steps=14, guard=guard)
    run(made, tmp_path / "whole", report=quiet)
    stopped_and_resumed(made, tmp_path / "stopped", [1, 5, 9])
    whole = outcome(tmp_path / "whole")
    assert_same(whole, outcome(tmp_path / "stopped"))
    assert 1 < whole["state"]["scaling"]["scale"] < 2.0**24
