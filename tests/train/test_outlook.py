"""The plan of a run: said before it begins, a reason to refuse it, and held against what it took."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from recipes import recipe, write_data

from triform.planner import Setting, memory, parameters
from triform.train import run
from triform.train.outlook import announce, outlook, setting_of


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_data(tmp_path)
    return tmp_path


def test_a_run_s_plan_and_what_it_took(data: Path, tmp_path: Path) -> None:
    made, folder = recipe("Causal", data), tmp_path / "run"
    result = run(made, folder, report=lambda row: None)
    plan, rows = (json.loads((folder / name).read_text(encoding="utf-8")) for name in ("plan.json", "forecast.json"))
    assert plan["parameters"]["total"] == result.parameters
    assert plan["steps"] == result.steps == made.train.steps
    assert plan["flops"]["exact"] == pytest.approx(result.flops, rel=0.3)  # the last rows of the text are short
    assert rows["seconds"]["measured"] == result.seconds
    assert rows["seconds"]["forecast"] == plan["time"]["expected_seconds"] > 0
    assert rows["memory"]["forecast"] == plan["memory"]["training"]["total"]
    assert rows["energy_kwh"]["measured"] is not None or "not measured" in rows["energy_kwh"]["measured_is"]


@pytest.mark.parametrize("kind", ["Causal", "Masked", "SpanCorruption", "SequenceToSequence", "Classification"])
def test_the_setting_is_the_recipe_s(kind: str, data: Path) -> None:
    made = recipe(kind, data)
    how = setting_of(made)
    assert isinstance(how, Setting)
    assert (how.batch, how.accumulate, how.optimizer) == (made.train.batch, made.train.accumulate, made.train.optimizer)
    assert how.sequence <= 4 * getattr(made.objective, "length", how.sequence)
    assert (how.target is not None) == (made.architecture().form == "encoder-decoder")
    found = outlook(made, made.architecture(), "fp32")
    assert found.steps == made.train.steps
    assert announce(found).startswith("plan: ")
    assert "\n" not in announce(found)


def test_what_cannot_fit_is_refused_unless_forced(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipe("Causal", data)
    needed = memory.training(made.architecture(), setting_of(made)).total
    assert needed > 16 * parameters(made.architecture()).total
    monkeypatch.setattr("triform.train.loop.total_memory", lambda device: needed - 1)
    with pytest.raises(ValueError, match=r"a step of this recipe takes .* --force") as caught:
        run(made, tmp_path / "refused", report=lambda row: None)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "refused").exists()
    assert run(made, tmp_path / "forced", force=True, report=lambda row: None).finished
    monkeypatch.setattr("triform.train.loop.total_memory", lambda device: needed)
    assert run(made, tmp_path / "fits", report=lambda row: None).finished


def test_the_plan_counts_the_answers_that_a_run_writes(data: Path) -> None:
    made = recipe("GRPO", data)
    several = [replace(made, objective=replace(made.objective, max_new_tokens=tokens)) for tokens in (1, 8)]
    short, long = (outlook(each, each.architecture(), "fp32") for each in several)
    said = long.time.lines[-1]
    assert said.name == "time of the answers"
    assert said.numbers["rollouts"] == made.train.steps / 3  # three passes over each
    assert "to write and score answers of 8 tokens" in announce(long)
    assert said.numbers["writing"] > 1.9 * short.time.lines[-1].numbers["writing"]
    assert long.time.expected_seconds > said.value
    assert long.to_dict()["time"]["expected_seconds"] == long.time.expected_seconds
    assert "time of the answers" not in {line.name for line in outlook(recipe("DPO", data), made.architecture(), "fp32").time.lines}
