"""`triform doctor`: what it prints, and its exit codes; and what `triform train` says first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from recipes import plain, write_data

from triform.cli import run


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny recipe's file in the working folder, with nothing wrong in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("triform.train.loop.plot_curves", lambda folder: folder)
    write_data(tmp_path)
    data = plain("Causal", tmp_path) | {"tokenizer": {"kind": "bpe", "vocab_size": 560}}
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(data, allow_unicode=True), encoding="utf-8")
    return file


def test_a_healthy_recipe(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(recipe.parent.rglob("*"))
    assert run(["doctor", "tiny.yaml"]) == 0
    out, err = capsys.readouterr()
    assert out.endswith("nothing wrong found in tiny.yaml\n")
    assert "✓" in out
    assert "✗" not in out
    assert "\x1b" not in out  # no colour in a pipe
    assert err == ""
    assert sorted(recipe.parent.rglob("*")) == before


def test_errors_end_with_1_and_mistakes_with_2(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "tiny.yaml", "train.rate=3"]) == 1
    out = capsys.readouterr().out
    assert "✗  learning rate" in out
    assert "→ set train.rate=" in out
    assert out.endswith("1 error in tiny.yaml\n")
    assert run(["doctor", "tiny.yaml", "train.warmup=9"]) == 0
    assert capsys.readouterr().out.endswith("1 warning in tiny.yaml\n")
    for words, says in (
        (["tiny.yaml", "train.raet=3"], "train.raet"),
        (["nowhere.yaml"], "expected a recipe file, found none"),
        (["no-such-folder/model", "--overfit"], "go with a recipe"),
        ([str(recipe.parent)], "expected a model's folder"),
    ):
        assert run(["doctor", *words]) == 2
        assert says in capsys.readouterr().err


def test_json(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "tiny.yaml", "train.rate=3", "--against", "lines.txt", "--rows", "9", "--json"]) == 1
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["name"], found["error"] > 0) == ("recipe", "tiny.yaml", True)
    by_name = {each["check"]: each for each in found["findings"]}
    assert by_name["learning rate"]["severity"] == "error"
    assert by_name["contamination"]["figures"]["share"] > 0


def test_overfit_and_the_model_that_comes_of_the_run(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "tiny.yaml", "train.rate=1e-2", "model.decoder.width=64", "objective.length=8", "--overfit", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {each["check"]: each["severity"] for each in found["findings"]}["overfit"] == "fine"
    assert run(["train", "tiny.yaml", "train.rate=1e-2"]) == 0
    capsys.readouterr()
    assert run(["doctor", "runs/tiny/model", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "model"


def test_training_says_first_what_may_spoil_it(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "tiny.yaml"]) == 0
    assert "warning:" not in capsys.readouterr().err
    assert run(["train", "tiny.yaml", "train.rate=2e-9", "--out", "slow", "--json"]) == 0
    out, err = capsys.readouterr()
    warnings = [line for line in err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert "learning rate: train.rate is 2e-09" in warnings[0]
    assert json.loads(out)["finished"]
    assert run(["train", "tiny.yaml", "train.rate=2e-9", "--out", "slow", "--resume"]) == 0
    assert "learning rate" not in capsys.readouterr().err  # it was said when the run began
