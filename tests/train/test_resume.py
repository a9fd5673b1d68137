"""A run that is stopped and goes on ends where an undisturbed one ends, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
import yaml
from recipes import OBJECTIVES, plain, recipe
from runs import Killed, assert_same, killed_at, outcome, quiet, stopped_and_resumed

from triform.train import Recipe, TrainRecipe, read_metrics, read_recipe, run

OPTIMIZERS = get_args(get_type_hints(TrainRecipe)["optimizer"])


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_each_objective_goes_on_bit_for_bit(kind: str, data: Path, tmp_path: Path) -> None:
    made = recipe(kind, data)
    run(made, tmp_path / "whole", report=quiet)
    stopped_and_resumed(made, tmp_path / "stopped", [3])
    assert_same(outcome(tmp_path / "whole"), outcome(tmp_path / "stopped"))


@pytest.mark.parametrize(
    ("optimizer", "precision"), [(name, "fp32") for name in OPTIMIZERS] + [("adamw", "bf16"), ("muon", "bf16")]
)
def test_other_settings_go_on_bit_for_bit(optimizer: str, precision: str, data: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"optimizer": optimizer, "precision": precision, "export": "best", "steps": 5}
    made = recipe("SequenceToSequence", data, bucket=2, accumulate=2, background=precision == "fp32", **settings)
    run(made, tmp_path / "whole", report=quiet)
    # before any checkpoint, on one, and after one; twice in the same place
    stopped_and_resumed(made, tmp_path / "stopped", [1, 2, 3, 3, 5])
    assert_same(outcome(tmp_path / "whole"), outcome(tmp_path / "stopped"))


def test_averages_go_on_bit_for_bit(data: Path, tmp_path: Path) -> None:
    made = recipe("Causal", data, ema=0.9)
    run(made, tmp_path / "whole", report=quiet)
    stopped_and_resumed(made, tmp_path / "stopped", [1, 3])
    whole, stopped = outcome(tmp_path / "whole"), outcome(tmp_path / "stopped")
    assert_same(whole, stopped)
    assert whole["average"].keys() == whole["weights"].keys()
    assert not all(torch.equal(whole["average"][name], whole["weights"][name]) for name in whole["average"])


@pytest.mark.parametrize("how", ["selective", "full"])
def test_recomputing_changes_no_bit_of_a_run(how: str, data: Path, tmp_path: Path) -> None:
    run(recipe("SpanCorruption", data), tmp_path / "whole", report=quiet)
    stopped_and_resumed(recipe("SpanCorruption", data, recompute=how), tmp_path / "stopped", [3])
    assert_same(outcome(tmp_path / "whole"), outcome(tmp_path / "stopped"))


def test_the_comparison_sees_another_seed_and_another_order(data: Path, tmp_path: Path) -> None:
    run(recipe("Causal", data), tmp_path / "a", report=quiet)
    run(recipe("Causal", data, seed=1), tmp_path / "b", report=quiet)
    with pytest.raises(AssertionError):
        assert_same(outcome(tmp_path / "a"), outcome(tmp_path / "b"))


def test_a_half_written_checkpoint_and_other_leftovers_are_swept_away(data: Path, tmp_path: Path) -> None:
    made = recipe("Causal", data)
    run(made, tmp_path / "whole", report=quiet)
    folder = tmp_path / "stopped"
    with pytest.raises(Killed):
        run(made, folder, report=killed_at(5))
    half = folder / "checkpoints" / ".step-00000006.tmp"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    (folder / "data" / ".train.abc").mkdir()
    (folder / ".result.json.1.tmp").write_text("{", encoding="utf-8")
    assert run(made, folder, resume=True, report=quiet).finished
    assert not list(folder.rglob(".*"))
    assert_same(outcome(tmp_path / "whole"), outcome(folder))


def test_metrics_cut_in_the_middle_of_a_line_are_mended(data: Path, tmp_path: Path) -> None:
    made = recipe("Causal", data)
    run(made, tmp_path / "whole", report=quiet)
    folder = tmp_path / "stopped"
    with pytest.raises(Killed):
        run(made, folder, report=killed_at(5))
    file = folder / "metrics.jsonl"
    file.write_bytes(file.read_bytes()[:-20])
    assert run(made, folder, resume=True, report=quiet).finished
    assert [json.loads(line)["step"] for line in file.read_text("utf-8").splitlines()] == [1, 2, 2, 3, 4, 4, 5, 6, 6]
    assert_same(outcome(tmp_path / "whole"), outcome(folder))


def test_a_finished_run_is_left_as_it_is(data: Path, tmp_path: Path) -> None:
    made, folder = recipe("Causal", data), tmp_path / "run"
    result = run(made, folder, report=quiet)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    rows: list[dict[str, Any]] = []
    assert run(made, folder, resume=True, report=rows.append) == result
    assert not rows
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    moved = folder.rename(tmp_path / "moved")
    assert asdict(run(made, moved, resume=True)) == asdict(result) | {"folder": str(moved)}


def test_only_the_newest_checkpoints_are_kept(data: Path, tmp_path: Path) -> None:
    run(recipe("Causal", data, checkpoint_every=1, validate_every=9, keep=2), tmp_path / "run", report=quiet)
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["step-00000004", "step-00000005"]


@pytest.fixture
def stopped(data: Path, tmp_path: Path) -> tuple[Recipe, Path]:
    """A recipe and the folder of a run of it, killed after a checkpoint at step 4."""
    made = recipe("Causal", data)
    with pytest.raises(Killed):
        run(made, tmp_path / "run", report=killed_at(5))
    return made, tmp_path / "run"


def test_another_recipe_does_not_go_on_with_a_run(stopped: tuple[Recipe, Path], data: Path) -> None:
    _, folder = stopped
    before = (folder / "metrics.jsonl").read_bytes()
    for resume in (False, True):
        with pytest.raises(ValueError, match="holds a run"):
            run(recipe("Causal", data, rate=0.5), folder, resume=resume)
    assert (folder / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("what", ["text", "model", "tokenizer"])
def test_a_run_does_not_go_on_with_what_has_changed_under_it(what: str, data: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes((data / "lines.txt").read_bytes())
    run(recipe("Causal", data, steps=1), tmp_path / "first", report=quiet)
    settings = plain("Causal", data)
    settings["data"]["source"] = str(text)
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(settings["model"]), encoding="utf-8")
    settings["model"] = str(tmp_path / "model.yaml")
    settings["tokenizer"] = {"path": str(tmp_path / "first" / "tokenizer")}
    made, folder = read_recipe(settings), tmp_path / "run"
    with pytest.raises(Killed):
        run(made, folder, report=killed_at(3))
    if what == "text":
        text.write_text(text.read_text("utf-8") + "又见一人。\n", encoding="utf-8")
    elif what == "model":
        file = tmp_path / "model.yaml"
        file.write_text(file.read_text("utf-8").replace("dropout: 0.1", "dropout: 0.2"), encoding="utf-8")
    else:
        file = tmp_path / "first" / "tokenizer" / "tokenizer.json"
        file.write_text(file.read_text("utf-8").replace("[MASK]", "[HIDE]"), encoding="utf-8")
    with pytest.raises(ValueError, match=f"the {what}.* this run beg"):
        run(made, folder, resume=True, report=quiet)


@pytest.mark.parametrize("more", [0, 1])
def test_another_number_of_threads_is_told(more: int, stopped: tuple[Recipe, Path], capsys: pytest.CaptureFixture[str]) -> None:
    made, folder = stopped
    before = torch.get_num_threads()
    capsys.readouterr()
    try:
        torch.set_num_threads(before + more)
        assert run(made, folder, resume=True, report=quiet).finished
    finally:
        torch.set_num_threads(before)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == more
    assert all(f"begun with {before} threads and going on with {before + 1}" in line for line in lines)


SCRIPT = "import sys; from triform.cli import run; sys.exit(run(sys.argv[1:]))"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_process_goes_on_bit_for_bit(number: signal.Signals, data: Path, tmp_path: Path) -> None:
    settings = plain("Causal", data, steps=500, checkpoint_every=50, validate_every=500, keep=2)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    command = [sys.executable, "-c", SCRIPT, "train", str(tmp_path / "recipe.yaml"), "--resume", "--out"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(tmp_path / "whole")], check=True, env=environment, capture_output=True)
    process = subprocess.Popen([*command, str(tmp_path / "stopped")], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    metrics = tmp_path / "stopped" / "metrics.jsonl"
    end = time.monotonic() + 600
    while (not metrics.exists() or metrics.read_bytes().count(b"\n") < 80) and time.monotonic() < end:
        time.sleep(0.005)
    process.send_signal(number)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 130)
    if number != signal.SIGKILL:
        assert "go on with: triform train" in output.decode()
    assert 80 <= len(read_metrics(metrics)) < 500
    subprocess.run([*command, str(tmp_path / "stopped")], check=True, env=environment, capture_output=True)
    assert_same(outcome(tmp_path / "whole"), outcome(tmp_path / "stopped"))
