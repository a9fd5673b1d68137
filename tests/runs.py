"""Runs that are stopped, and what is left of runs, for tests of training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from triform.train import Recipe, read_metrics, run

TIMINGS = {"seconds", "rollout_seconds", "tokens_per_second", "peak_share", "memory", "peak_memory"}


class Killed(BaseException):
    """What stops a run."""


def quiet(row: dict[str, Any]) -> None:
    """A report that says nothing."""


def killed_at(step: int) -> Any:
    """A report that stops the run after a step."""

    def report(row: dict[str, Any]) -> None:
        if row["step"] == step:
            raise Killed

    return report


def outcome(folder: Path) -> dict[str, Any]:
    """What a run leaves: weights or those of an adapter, the last checkpoint with the optimizer's state, metrics but for the timings."""
    last = sorted((folder / "checkpoints").iterdir())[-1]
    state = json.loads((last / "state.json").read_text("utf-8"))
    without = {k: v for k, v in state.items() if k not in ("seconds", "last")}
    without["last"] = {k: v for k, v in state["last"].items() if k not in TIMINGS}
    return {
        "model": load_file(*(folder / "model").glob("*model.safetensors")),
        "weights": load_file(last / "model.safetensors"),
        "optimizer": load_file(last / "optimizer.safetensors"),
        "average": load_file(last / "average.safetensors") if (last / "average.safetensors").exists() else {},
        "state": without,
        "metrics": [{k: v for k, v in row.items() if k not in TIMINGS} for row in read_metrics(folder / "metrics.jsonl")],
    }


def assert_same(left: dict[str, Any], right: dict[str, Any]) -> None:
    """Assert that two outcomes are equal to the last bit."""
    for part in ("model", "weights", "optimizer", "average"):
        assert left[part].keys() == right[part].keys()
        assert all(torch.equal(left[part][name], right[part][name]) for name in left[part]), part
    assert left["state"] == right["state"]
    assert left["metrics"] == right["metrics"]


def stopped_and_resumed(made: Recipe, folder: Path, steps: list[int]) -> None:
    """A run that is stopped after these steps, one after another, and goes on to its end."""
    for step in steps:
        with pytest.raises(Killed):
            run(made, folder, resume=True, report=killed_at(step))
    assert run(made, folder, resume=True, report=quiet).finished
