"""`triform train`: what it prints, its exit codes, and what it leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from recipes import plain, write_data

from triform.cli import run


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny recipe's file in the working folder."""
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path)
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(plain("Causal", tmp_path), allow_unicode=True), encoding="utf-8")
    return file


def test_train_prints_where_the_model_is(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "tiny.yaml", "train.steps=3"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("3 steps, ")
    assert out.endswith("the model is in runs/tiny/model\n")
    lines = [line for line in err.splitlines() if not line.startswith("warning: ")]  # of the doctor
    first, second = lines[-4:-2] if "measuring" in err else lines[:2]
    assert first.startswith("plan: ")
    assert second.startswith("step 1/3  loss ")
    assert Path("runs/tiny/model/model.safetensors").exists()


def test_json_and_resume(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "tiny.yaml", "train.steps=3", "--out", "here", "--json"]
    assert run(command) == 0
    first = json.loads(capsys.readouterr().out)
    assert (first["finished"], first["steps"], first["folder"]) == (True, 3, "here")
    assert run([*command, "--resume"]) == 0
    assert json.loads(capsys.readouterr().out) == first


def test_a_rate_is_found_and_no_run_is_left(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name for path in recipe.parent.iterdir()}
    assert run(["train", "tiny.yaml", "--find-rate", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["plot"] == "runs/tiny-rates.svg"
    assert len(found["rates"]) == len(found["losses"]) > 10
    assert {path.name for path in recipe.parent.iterdir()} == before | {"runs"}
    assert [path.name for path in Path("runs").iterdir()] == ["tiny-rates.svg"]
    assert run(["train", "tiny.yaml", "--find-rate", "--out", "here"]) == 0
    assert capsys.readouterr().out.startswith(f"train.rate={found['rate']:g} ")
    assert Path("here-rates.svg").read_text(encoding="utf-8").lstrip().startswith("<?xml")


def test_interrupted(recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from triform.train import loop

    def fit(self: Any, report: Any) -> bool:
        return False

    monkeypatch.setattr(loop.Trainer, "fit", fit)
    assert run(["train", "tiny.yaml", "objective={kind: Causal, length: 12}"]) == 130
    again = "triform train tiny.yaml 'objective={kind: Causal, length: 12}' --out runs/tiny --resume"
    assert capsys.readouterr().out == f"stopped after step 0; go on with: {again}\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere.yaml"], "nowhere.yaml: expected a recipe file, found none"),
        (["tiny.yaml", "train.stepz=3"], "train.stepz: expected one of"),
        (["tiny.yaml", "data.source=nowhere.txt"], "nowhere.txt: no such file"),
        (["tiny.yaml", "tokenizer.vocab_size=9999"], "larger than this text allows"),
        (["tiny.yaml", "model.decoder.width=15"], "heads: expected a divisor of the width 15"),
        (["tiny.yaml", "objective.length=64"], "objective.length: expected rows of at most the 32 learned positions"),
        (["tiny.yaml", "--steps=3"], "No such option"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    arguments: list[str], says: str, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(recipe.parent.iterdir())
    assert run(["train", *arguments]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("triform: ")
    assert says in err
    assert err.count("\n") == 1
    assert sorted(recipe.parent.iterdir()) == before


def test_a_folder_with_another_run(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "tiny.yaml", "train.steps=2"]) == 0
    kept = Path("runs/tiny/metrics.jsonl").read_bytes()
    capsys.readouterr()
    for more in ([], ["train.steps=5", "--resume"]):
        assert run(["train", "tiny.yaml", "train.steps=2", *more][: 3 if not more else None]) == 2
        assert "holds a run" in capsys.readouterr().err
    assert Path("runs/tiny/metrics.jsonl").read_bytes() == kept


def test_help_loads_no_torch() -> None:
    code = "import sys; from triform.cli import run; run(['train', '--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"COLUMNS": "100"}, check=True)
    assert "triform train examples/storyteller.yaml" in done.stdout
    assert "--resume" in done.stdout
