"""A calibration takes the loop's own steps, times what a run does, and is found again."""

from __future__ import annotations

import itertools
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import recipes
import torch

from triform import config
from triform.objectives.on_policy import longest_rows
from triform.planner import calibration, machine
from triform.planner.calibration import Calibration
from triform.planner.hardware import Card, Fleet
from triform.planner.setting import Setting
from triform.train import calibrate as module
from triform.train.calibrate import calibrate
from triform.train.loop import Trainer
from triform.train.outlook import setting_of
from triform.train.step import Steps

FORMS = {"decoder-only": ("decoder",), "encoder-only": ("encoder",), "encoder-decoder": ("encoder", "decoder")}
SETTING = Setting(batch=2, sequence=12, target=8, accumulate=2, precision="fp32")
PEAK = 1e9


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIFORM_CACHE", str(tmp_path / "cache"))
    card = Card(name="x", kind="cpu", peak={"fp32": PEAK, "bf16": PEAK}, memory=2**30, bandwidth=1e9)
    monkeypatch.setattr(module, "measure", lambda: Fleet(count=1, card=card))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time passes by a tenth of a second at every look at the clock, whatever the machine is busy with."""
    ticks = itertools.count()
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(ticks) / 10)


def model(form: str, **fields: Any) -> config.Model:
    return config.resolve(recipes.model(*FORMS[form], **fields))


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("form", FORMS)
def test_a_model_with_a_setting(form: str) -> None:
    spec = model(form)
    found = calibrate(spec, SETTING, seconds=2)
    assert found.step_seconds == pytest.approx(0.1)
    tokens = 2 * 2 * (12 + 8 if form == "encoder-decoder" else 12)
    assert found.step_tokens == tokens
    assert found.step_flops == pytest.approx(2 * 2 * 3 * module.flops.forward(spec, 12, 8), rel=1e-9)
    assert found.utilisation == pytest.approx(found.step_flops / 0.1 / PEAK)
    assert (found.validation_seconds, found.checkpoint_seconds, found.spread) == (0.0, 0.0, pytest.approx(0, abs=1e-9))
    assert calibration.recall(spec, SETTING) == found
    assert calibration.recall(spec, replace(SETTING, device="cpu", attention="eager")) == found
    for other in (replace(SETTING, batch=3), replace(SETTING, optimizer="muon"), replace(SETTING, recompute="full")):
        assert calibration.recall(spec, other) is None
    assert calibration.recall(model(form, width=24), SETTING) is None


def test_what_is_not_scored_and_what_is_made_again_counts() -> None:
    spec = model("encoder-only")
    plain, few, again = (
        calibrate(spec, replace(SETTING, **change), seconds=1).step_flops for change in ({}, {"scored": 3}, {"recompute": "full"})
    )
    assert few < plain < again


def test_a_classifier() -> None:
    spec = config.resolve(recipes.model("encoder", head={"kind": "Classify", "labels": 3, "pool": "mean"}))
    assert calibrate(spec, SETTING, seconds=1).utilisation > 0


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("kind", recipes.OBJECTIVES)
def test_a_recipe_is_timed_on_its_own_batches(kind: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipes.recipe(kind, data, steps=40)
    taken: list[int] = []
    take = Steps.take
    monkeypatch.setattr(Steps, "take", lambda self, step, batches: taken.append(step) or take(self, step, batches))
    said: list[float] = []
    together = getattr(recipe.objective, "updates", 1)
    found = calibrate(recipe, seconds=4 * together, folder=tmp_path / "run", report=said.append)
    assert found.steps >= 3
    looks = 1 if kind not in ("PPO", "GRPO") else 2 + 1 / together  # at the clock: of a step, its share in a rollout, and the rollout
    assert found.step_seconds == pytest.approx(0.1 * looks, rel=1e-6)
    assert all(after == before + 1 for before, after in pairwise(taken) if after % together)
    assert found.validation_seconds > 0
    assert found.checkpoint_seconds > 0
    assert said[-1] == 1.0
    assert said == sorted(said)
    # Steps from everywhere in the run: every quarter of it has a fifth of them or more, of those in blocks an eighth.
    quarters = [sum(step // 10 == quarter for step in taken) for quarter in range(4)]
    assert min(quarters) >= len(taken) // (5 if together == 1 else 8)
    trainer = Trainer(recipe, tmp_path / "run", progress=False)  # what was prepared is used again
    setting = setting_of(recipe, trainer.spec)
    assert calibration.recall(trainer.spec, setting) == found
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    read = "decoder" if trainer.spec.form == "decoder-only" else "encoder"
    assert setting.sequence == longest_rows(recipe.objective, trainer.spec.form)[read][1]


def test_a_step_of_the_loop_and_of_a_calibration_are_the_same(data: Path, tmp_path: Path) -> None:
    """The control: the steps that are timed change the weights exactly as the run's do, and another step does not."""
    runs = [Trainer(recipes.recipe("Causal", data), tmp_path / name, progress=False) for name in "abc"]
    for run in runs:
        run.peak = PEAK
    runs[0]._step(0)
    runs[1].take(0, runs[1].train.step(0))
    runs[2].take(1, runs[2].train.step(1))
    weights = [torch.cat([p.detach().flatten() for p in run.model.parameters()]) for run in runs]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_sample_of_long_steps_is_corrected() -> None:
    """Steps of 1 s and 100 FLOPs and of 3 s and 300, the long ones timed too often: the run's mean is between, as its FLOPs are."""
    sizes = [(300.0, 30), (300.0, 30), (300.0, 30), (100.0, 10)]
    more = [(100.0, 10)] * 6 + [(300.0, 30)] * 2
    mean, (work, tokens) = module._corrected([3.0, 3.0, 3.0, 1.0], sizes, iter(more), 1e9)
    assert work == pytest.approx((3 * 300 + 100 + 6 * 100 + 2 * 300) / 12)
    assert (mean, tokens) == (pytest.approx(work / 100), pytest.approx(work / 10))
    assert mean < 2.5 - 0.5  # the sample's own mean is 2.5
    alike = module._corrected([3.0, 1.0], [(100.0, 10)] * 2, iter(more), 1e9)
    assert alike == (2.0, (100.0, 10.0))


def test_a_run_is_its_steps_validations_and_checkpoints() -> None:
    found = Calibration(
        step_seconds=0.5, step_flops=1.0, step_tokens=1.0, utilisation=0.1, validation_seconds=2.0, checkpoint_seconds=3.0,
        steps=9, spread=0.0, precision="fp32", day="2026-01-01",
    )  # fmt: skip
    assert found.run_seconds(100) == 50
    assert found.run_seconds(100, validate_every=30) == 50 + 4 * 2  # at 30, 60, 90 and the end
    assert found.run_seconds(90, validate_every=30) == 45 + 3 * 2
    assert found.run_seconds(100, checkpoint_every=50) == 50 + 3  # none at the end
    assert "9 steps of 0.5 s" in found.reason
    with pytest.raises(ValueError, match="steps: expected at least 1"):
        found.run_seconds(0)


def test_a_forecast_is_about_what_the_run_takes(data: Path, tmp_path: Path) -> None:
    """Roughly, for the machine may be busy; benchmarks/time.py holds it to a tenth on a quiet one."""
    recipe = recipes.recipe("Causal", data, steps=60, validate_every=20, checkpoint_every=60)
    found = calibrate(recipe, seconds=1)
    trainer = Trainer(recipe, tmp_path / "run", progress=False)
    trainer.fit(lambda row: None)
    assert found.run_seconds(60, validate_every=20) == pytest.approx(trainer.state["seconds"], rel=0.8)
    assert found.run_seconds(6) < 0.4 * trainer.state["seconds"]


@pytest.mark.parametrize(
    ("spec", "setting", "seconds", "said"),
    [
        (lambda: model("decoder-only"), SETTING, 0.5, "seconds: expected at least 1"),
        (lambda: model("decoder-only"), None, 1, "expected a setting"),
        (lambda: model("decoder-only"), replace(SETTING, precision="fp16"), 1, "precision: expected fp32 or bf16"),
        (lambda: config.preset("vit-base-patch16-224"), SETTING, 1, "expected a model of text"),
    ],
)
def test_nonsense_is_refused(spec: Any, setting: Setting | None, seconds: float, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        calibrate(spec(), setting, seconds=seconds)


def test_the_key_holds_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = model("decoder-only")
    calibrate(spec, SETTING, seconds=1)
    assert calibration.recall(spec, SETTING) is not None
    monkeypatch.setattr(calibration, "fingerprint", lambda: "another")
    assert calibration.recall(spec, SETTING) is None
    assert machine.fingerprint() != "another"
