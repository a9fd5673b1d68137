"""Steps that would spoil a run: left out, put on record, and after several in a row the weights go back."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from recipes import recipe
from runs import assert_same, outcome, quiet, stopped_and_resumed
from safetensors.torch import load_file

from triform.objectives import Batch, Loss, Objective
from triform.train import Recipe, run
from triform.train.guard import Watch, fresh
from triform.train.loop import Trainer
from triform.train.recipe import Guard

GUARD = {"spike": None, "roll_back_after": 3}


def made(data: Path, steps: int = 12, **guard: Any) -> Recipe:
    return recipe("Causal", data, steps=steps, batch=1, validate_every=4, guard=GUARD | guard)


def inject(
    monkeypatch: pytest.MonkeyPatch, recipe: Recipe, folder: Path, steps: Sequence[int], *, factor: float = math.nan
) -> Trainer:
    """Multiply the loss of the batches of these steps, counted from 1, by a factor."""
    trainer = Trainer(recipe, folder, progress=False)
    bad = [batch.inputs for step in steps for batch in trainer.train.step(step - 1)]
    plainly = Objective.loss

    def loss(self: Objective, model: Any, batch: Batch, **settings: Any) -> Loss:
        found = plainly(self, model, batch, **settings)
        if model.training and any(torch.equal(batch.inputs, inputs) for inputs in bad):
            found.total = found.total * factor
        return found

    monkeypatch.setattr(Objective, "loss", loss)
    return trainer


def skipped(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "skipped.jsonl").read_text(encoding="utf-8").splitlines()]


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / f"step-{step:08d}" / "model.safetensors")


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left)


def test_a_batch_that_gives_no_number_is_left_out_and_put_on_record(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, folder = recipe("Causal", data, batch=1, checkpoint_every=1, ema=0.9, guard=GUARD), tmp_path / "run"
    trainer = inject(monkeypatch, wanted, tmp_path / "probe", [4])
    result = run(wanted, folder, report=quiet)
    assert result.finished
    assert math.isfinite(result.loss or math.nan)
    (row,) = skipped(folder)
    assert (row["step"], row["why"], row["back_to"]) == (4, "the loss is nan", None)
    assert row["samples"] == trainer.train.indices(3).tolist()
    assert row["texts"] == [trainer.tokenizer.decode(trainer.train.step(3)[0].inputs[0].tolist())]
    assert len(row["texts"][0]) > 8
    for file in ("model.safetensors", "optimizer.safetensors", "average.safetensors"):
        before, after, later = (load_file(folder / "checkpoints" / f"step-{n:08d}" / file) for n in (3, 4, 5))
        assert same(before, after)
        assert not same(after, later)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "rate" in line and "loss" not in line] == [4]
    assert "NaN" not in (folder / "metrics.jsonl").read_text()


def test_without_a_guard_the_run_stops(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = recipe("Causal", data, batch=1)
    inject(monkeypatch, wanted, tmp_path / "probe", [4])
    with pytest.raises(ValueError, match=r"the loss is nan .* at step 4, .*train\.guard"):
        run(wanted, tmp_path / "run", report=quiet)


def test_several_in_a_row_go_back_and_on_with_the_data_after_them(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints are at even steps. Steps 7 to 9 are bad, so the weights of step 6 are taken up, and step 10 goes on from them."""
    wanted, folder = made(data), tmp_path / "run"
    inject(monkeypatch, wanted, tmp_path / "probe", [7, 8, 9])
    assert run(wanted, folder, report=quiet).finished
    assert [(row["step"], row["back_to"]) for row in skipped(folder)] == [(7, None), (8, None), (9, 6)]
    assert same(weights(folder, 6), weights(folder, 8))
    assert not same(weights(folder, 8), weights(folder, 10))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "rate" in line] == list(range(1, 13))


def test_the_weights_of_the_checkpoint_are_those_taken_up(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step 7 was still good: going back gives it up."""
    wanted, folder = made(data), tmp_path / "run"
    inject(monkeypatch, wanted, tmp_path / "probe", [8, 9, 10])
    assert run(wanted, folder, report=quiet).finished
    assert [row["back_to"] for row in skipped(folder)] == [None, None, 6]
    assert not same(weights(folder, 6), weights(folder, 8))
    assert same(weights(folder, 6), weights(folder, 10))


@pytest.mark.parametrize("stops", [[3], [7], [8], [9], [10], [5, 8, 9, 11]])
def test_it_goes_on_bit_for_bit_wherever_it_is_killed(
    stops: list[int], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = made(data, spike=3.0, window=4)
    inject(monkeypatch, wanted, tmp_path / "probe", [7, 8, 9])
    run(wanted, tmp_path / "whole", report=quiet)
    stopped_and_resumed(wanted, tmp_path / "stopped", stops)
    assert_same(outcome(tmp_path / "whole"), outcome(tmp_path / "stopped"))
    assert skipped(tmp_path / "whole") == skipped(tmp_path / "stopped")
    assert len(skipped(tmp_path / "whole")) >= 3


@pytest.mark.parametrize(
    ("bad", "says"),
    [([1, 2, 3], "there is no checkpoint of before"), (list(range(5, 12)), "going back to step-00000004 did not help")],
)
def test_where_going_back_does_not_help_the_run_stops(
    bad: list[int], says: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = made(data)
    inject(monkeypatch, wanted, tmp_path / "probe", bad)
    with pytest.raises(ValueError, match=says) as caught:
        run(wanted, tmp_path / "run", report=quiet)
    assert "\n" not in str(caught.value)


def test_a_spike_is_left_out(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, folder = made(data, spike=8.0, window=4), tmp_path / "run"
    inject(monkeypatch, wanted, tmp_path / "probe", [9], factor=100.0)
    run(wanted, folder, report=quiet)
    (row,) = skipped(folder)
    assert row["step"] == 9
    assert "above" in row["why"]


def test_what_counts_as_a_spike() -> None:
    watch = Watch(Guard(spike=3.0, window=8), fresh())
    noisy = [2.0, 2.2, 1.8, 2.1, 1.9]
    assert [watch.judge(step, loss, 1.0 + loss / 10) for step, loss in enumerate(noisy)] == [None] * 5
    assert watch.judge(9, 2.4, 1.2) is None
    assert "the loss is 3, above" in str(watch.judge(9, 3.0, 1.2))
    assert "gradient's norm is 9, above" in str(watch.judge(9, 2.0, 9.0))
    assert watch.judge(9, math.inf, 1.0) == "the loss is inf"
    assert watch.judge(9, 2.0, math.nan) == "the gradient's norm is nan"
    assert watch.memory["bad"] == 4
    assert watch.goes_back()
    assert watch.judge(9, 2.0, 1.2) is None
    assert (watch.memory["bad"], watch.goes_back()) == (0, False)
    assert len(watch.memory["losses"]) == 7
    early = Watch(Guard(spike=3.0, window=8), fresh())
    assert [early.judge(0, loss, 1.0) for loss in (2.0, 2.0, 2.0, 50.0)] == [None] * 4
    never = Watch(Guard(spike=None, window=2), fresh())
    assert [never.judge(0, loss, 1.0) for loss in (2.0, 2.1, 2.0, 50.0)] == [None] * 4
