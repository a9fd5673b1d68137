"""Trackers are told what `metrics.jsonl` holds, and none of them can stop a run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from recipes import recipe
from runs import Killed, killed_at, quiet
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from triform.train import read_metrics, run


class Service(ModuleType):
    """A stand-in for wandb or trackio, with their `init`, and runs that remember what they are told."""

    def __init__(self, name: str, fails: str | None = None) -> None:
        super().__init__(name)
        self.fails, self.begun, self.told, self.ended = fails, list[dict[str, Any]](), list[tuple[int | None, dict[str, Any]]](), 0

    def init(self, **settings: Any) -> Any:
        print("a service that talks")
        if self.fails == "init":
            raise RuntimeError("no\nlogin")
        self.begun.append(settings)
        return SimpleNamespace(log=self.log, define_metric=lambda *a, **k: None, finish=self.finish)

    def log(self, row: dict[str, Any], step: int | None = None) -> None:
        if self.fails == "log" and len(self.told) == 2:
            raise ConnectionError("gone")
        self.told.append((step, row))

    def finish(self) -> None:
        self.ended += 1


def service(monkeypatch: pytest.MonkeyPatch, name: str, fails: str | None = None) -> Service:
    made = Service(name, fails)
    monkeypatch.setitem(sys.modules, name, made)
    return made


def test_tensorboard_has_every_figure(data: Path, tmp_path: Path) -> None:
    run(recipe("Causal", data, steps=4, track=["tensorboard"]), tmp_path / "run", report=quiet)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    for name in ("loss", "validation_loss", "gradient_norm", "memory"):
        wanted = [(row["step"], row[name]) for row in rows if name in row]
        assert wanted
        assert [(e.step, pytest.approx(e.value, rel=1e-6)) for e in events.Scalars(name)] == wanted


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_service_is_told_every_row_and_knows_a_run_that_goes_on(
    name: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told, made = service(monkeypatch, name), recipe("Causal", data, steps=4, track=[name])
    with pytest.raises(Killed):
        run(made, tmp_path / "run", report=killed_at(3))
    run(made, tmp_path / "run", resume=True, report=quiet)
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    steps = [row["step"] if step is None else step for step, row in told.told]
    assert steps == [1, 2, 2, 3, 3, 4, 4]
    assert [row.get("loss") for _, row in told.told[-3:]] == [row.get("loss") for row in rows[-3:]]
    first, again = told.begun
    assert first["name"] == again["name"] == json.loads((tmp_path / "run" / "track.json").read_text("utf-8"))["id"]
    assert first["project"] == "triform"
    assert first["resume"] == "allow"
    assert first["config"]["train"]["steps"] == 4
    assert told.ended == 2
    assert not capsys.readouterr().out  # standard output is the command's
    run(made, tmp_path / "other", report=quiet)
    assert told.begun[-1]["name"] != first["name"]


def test_one_that_is_not_installed_or_cannot_begin_is_refused_in_one_line(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, module in (("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb"), ("trackio", "trackio")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ValueError, match=rf'{name} is not installed; pip install "triform\[{name}\]"'):
            run(recipe("Causal", data, track=[name]), tmp_path / "without")
    assert not (tmp_path / "without").exists()
    service(monkeypatch, "wandb", "init")
    with pytest.raises(ValueError, match=r"train\.track: wandb cannot begin \(no login\); WANDB_MODE=offline"):
        run(recipe("Causal", data, track=["wandb"]), tmp_path / "run", report=quiet)
    monkeypatch.setitem(sys.modules, "wandb", Service("wandb"))
    assert run(recipe("Causal", data, track=["wandb"]), tmp_path / "run", resume=True, report=quiet).finished


def test_one_that_fails_is_told_of_and_the_run_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = service(monkeypatch, "wandb", "log")
    assert run(recipe("Causal", data, track=["wandb"]), tmp_path / "run", report=quiet).finished
    assert len(told.told) == 2
    assert "wandb failed (gone); the run goes on without it" in capsys.readouterr().err
    assert [row["step"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in row] == [1, 2, 3, 4, 5, 6]
