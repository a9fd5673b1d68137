"""Checkpoints that are damaged, that find no room, that are written in the background, and which of them are kept."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from recipes import plain, recipe
from runs import Killed, killed_at, quiet
from safetensors.torch import load_file, save_file

from triform.train import Recipe, TrainRecipe, checkpoint, run
from triform.train.checkpoint import Checkpoints, checkpoints, verify

NO_ROOM = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def stopped(data: Path, tmp_path: Path) -> tuple[Recipe, Path]:
    """A recipe and the folder of a run of it, killed after checkpoints at steps 2 and 4."""
    made = recipe("Causal", data, ema=0.9)
    with pytest.raises(Killed):
        run(made, tmp_path / "run", report=killed_at(5))
    return made, tmp_path / "run"


# Damage


def _flip(name: str) -> Any:
    def harm(folder: Path) -> None:
        held = bytearray((folder / name).read_bytes())
        held[len(held) // 2] ^= 1
        (folder / name).write_bytes(held)

    return harm


def _cut(name: str) -> Any:
    def harm(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:-7])

    return harm


def _lose(name: str) -> Any:
    return lambda folder: (folder / name).unlink()


FILES = ["model.safetensors", "optimizer.safetensors", "average.safetensors", "state.json", "SHA256SUMS"]
HARMS = [(harm, name) for harm in (_flip, _cut, _lose) for name in FILES]


@pytest.mark.parametrize(("harm", "name"), HARMS)
def test_damage_is_found_and_the_checkpoint_before_serves(
    harm: Any, name: str, stopped: tuple[Recipe, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, folder = stopped
    harm(name)(folder / "checkpoints" / "step-00000004")
    rows: list[dict[str, Any]] = []
    capsys.readouterr()
    assert run(made, folder, resume=True, report=rows.append).finished
    assert [row["step"] for row in rows] == [3, 4, 5, 6]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "step-00000004: damaged" in lines[0]
    assert "going on from step-00000002" in lines[0]
    run(made, tmp_path / "whole", report=quiet)
    ours, theirs = (load_file(place / "model" / "model.safetensors") for place in (folder, tmp_path / "whole"))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    verify(folder / "checkpoints" / "step-00000004")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint."""
    writer = made(tmp_path_factory.mktemp("written"))
    parts = {name: {"w": torch.arange(3.0)} for name in FILES[:3]}
    writer.save(parts, {"step": 1})
    return writer.folder / "step-00000001"


@settings(max_examples=300, deadline=None)
@given(name=st.sampled_from(FILES), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@example(name="SHA256SUMS", place=0.9999, bit=0)  # a line's end that is still one for `str.splitlines`
def test_any_bit_and_any_cut_is_found(name: str, place: float, bit: int, written: Path) -> None:
    verify(written)
    file = written / name
    held = file.read_bytes()
    at = int(place * len(held))
    try:
        for harmed in (held[:at] + bytes([held[at] ^ 1 << bit]) + held[at + 1 :], held[:at]):
            file.write_bytes(harmed)
            with pytest.raises(ValueError, match="damaged"):
                verify(written)
    finally:
        file.write_bytes(held)


def test_without_a_whole_checkpoint_a_run_does_not_begin_anew_unasked(stopped: tuple[Recipe, Path]) -> None:
    made, folder = stopped
    for path in checkpoints(folder / "checkpoints"):
        _flip("model.safetensors")(path)
    with pytest.raises(ValueError, match=r"step-00000004: damaged .* no older one is whole; delete") as caught:
        run(made, folder, resume=True, report=quiet)
    assert "\n" not in str(caught.value)
    assert [path.name for path in checkpoints(folder / "checkpoints")] == ["step-00000002", "step-00000004"]


def _rewrite(name: str, change: Any) -> Any:
    """Change the tensors of a file and its sum, as a program would that wrote another model's."""

    def harm(folder: Path) -> None:
        tensors = load_file(folder / name)
        change(tensors)
        save_file(tensors, folder / name)
        lines = [line.split("  ")[1] for line in (folder / "SHA256SUMS").read_text().splitlines()]
        sums = "".join(f"{hashlib.sha256((folder / line).read_bytes()).hexdigest()}  {line}\n" for line in lines)
        (folder / "SHA256SUMS").write_text(sums)

    return harm


MOMENT = "exp_avg/decoder.input.token.weight"


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (_rewrite("model.safetensors", lambda tensors: tensors.pop(next(iter(tensors)))), "lacks decoder"),
        (_rewrite("optimizer.safetensors", lambda tensors: tensors.pop(MOMENT)), f"lacks {MOMENT}"),
        (_rewrite("optimizer.safetensors", lambda tensors: tensors.update({"exp_avg/no": torch.zeros(1)})), "also has exp_avg/no"),
        (_rewrite("optimizer.safetensors", lambda tensors: tensors.update({MOMENT: torch.zeros(3)})), r"of \(3,\), expected \(120, 16\)"),
        (_rewrite("optimizer.safetensors", lambda tensors: tensors.update({MOMENT: tensors[MOMENT].double()})), "expected torch.float32"),
    ],
)  # fmt: skip
def test_a_checkpoint_of_another_model_or_optimizer_is_refused(harm: Any, says: str, stopped: tuple[Recipe, Path]) -> None:
    made, folder = stopped
    harm(folder / "checkpoints" / "step-00000004")
    with pytest.raises(ValueError, match=says) as caught:
        run(made, folder, resume=True, report=quiet)
    assert "\n" not in str(caught.value)
    assert "step-00000004" in str(caught.value)


def test_the_sums_are_those_of_sha256sum(stopped: tuple[Recipe, Path]) -> None:
    folder = stopped[1] / "checkpoints" / "step-00000004"
    assert subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder, check=False).returncode == 0
    assert {line.split("  ")[1] for line in (folder / "SHA256SUMS").read_text().splitlines()} == set(FILES[:-1])


# A full disk


def test_a_full_disk_leaves_the_last_checkpoint_and_the_run_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plainly, folder = checkpoint.write, tmp_path / "run"

    def full(file: Path, *rest: Any) -> None:
        if "step-00000004" in file.parent.name:
            file.write_bytes(b"as much as there was room for")
            raise NO_ROOM
        plainly(file, *rest)

    monkeypatch.setattr(checkpoint, "write", full)
    made = recipe("Causal", data, steps=8)
    with pytest.raises(Killed):
        run(made, folder, report=killed_at(5))
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-00000002"]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "a checkpoint could not be written (No space left on device); the newest there is is of step 2" in lines[0]
    assert run(made, folder, resume=True, report=quiet).finished
    assert [path.name for path in checkpoints(folder / "checkpoints")] == ["step-00000002", "step-00000006"]


def test_where_the_metrics_find_no_room_the_run_stops_in_one_line(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, folder = recipe("Causal", data), tmp_path / "run"

    def full(self: Any, row: dict[str, Any]) -> None:
        if row["step"] == 5:
            raise NO_ROOM

    monkeypatch.setattr("triform.train.loop.Metrics.write", full)
    with pytest.raises(ValueError, match=r"stopped at step 5 \(.*No space left.*newest checkpoint is of step 4; go on with --resume"):
        run(made, folder, report=quiet)
    monkeypatch.undo()
    assert run(made, folder, resume=True, report=quiet).finished


SCRIPT = "import sys; from triform.cli import run; sys.exit(run(sys.argv[1:]))"


@pytest.mark.slow
def test_a_file_that_the_system_cuts_off_leaves_what_was_there(data: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk: the optimizer's file does not fit, the metrics do."""
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(plain("Causal", data, steps=8)), encoding="utf-8")
    command = [sys.executable, "-c", SCRIPT, "train", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run")]

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    settings: dict[str, Any] = {"capture_output": True, "text": True, "check": False, "env": os.environ | {"OMP_NUM_THREADS": "1"}}
    done = subprocess.run(command, preexec_fn=limited, **settings)
    assert "a checkpoint could not be written (File too large); there is none yet" in done.stderr
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
    again = subprocess.run([*command, "--resume"], **settings)
    assert again.returncode == 0, again.stderr


# In the background


def made(tmp_path: Path, **settings: Any) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints", TrainRecipe(steps=100, **{"checkpoint_every": 1} | settings))


def test_the_snapshot_is_of_the_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What changes while the thread writes is not in the checkpoint, and the next waits for it."""
    go_on, plainly = threading.Event(), checkpoint.write
    monkeypatch.setattr(checkpoint, "write", lambda *rest: (go_on.wait(30), plainly(*rest)))
    weight, state = torch.zeros(8), {"step": 1}
    writer = made(tmp_path)
    writer.save({"model.safetensors": {"w": weight}}, state, background=True)
    assert not checkpoints(writer.folder)
    weight += 1
    state["step"] = 7
    threading.Timer(0.05, go_on.set).start()
    writer.save({"model.safetensors": {"w": weight}}, {"step": 2}, background=True)
    assert [path.name for path in checkpoints(writer.folder)][:1] == ["step-00000001"]
    writer.wait()
    held = [float(load_file(path / "model.safetensors")["w"].sum()) for path in checkpoints(writer.folder)]
    assert held == [0, 8]
    assert json.loads((writer.folder / "step-00000001" / "state.json").read_text()) == {"step": 1}


def test_other_failures_are_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "write", lambda *rest: 1 / 0)
    writer = made(tmp_path)
    writer.save({"model.safetensors": {}}, {"step": 1}, background=True)
    with pytest.raises(ZeroDivisionError):
        writer.wait()
    writer.wait()


def test_a_run_that_is_killed_waits_for_its_checkpoint(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plainly = checkpoint.write
    monkeypatch.setattr(checkpoint, "write", lambda *rest: (time.sleep(0.05), plainly(*rest)))
    with pytest.raises(Killed):
        run(recipe("Causal", data, steps=9), tmp_path / "run", report=killed_at(3))
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000002"]
    assert threading.active_count() == 1 or all(thread.name != "checkpoint" for thread in threading.enumerate())


# Which are kept


def kept(tmp_path: Path, steps: dict[int, float | None], **settings: Any) -> list[int]:
    writer = made(tmp_path, **settings)
    for step, loss in steps.items():
        writer.save({"model.safetensors": {}}, {"step": step, "validated": None if loss is None else [step, loss]})
    return [int(path.name[5:]) for path in checkpoints(writer.folder)]


@pytest.mark.parametrize(
    ("losses", "wanted"),
    [
        ([None] * 5, [4, 5]),
        ([3.0, 1.0, 2.0, 2.5, 2.6], [2, 4, 5]),
        ([3.0, 2.0, 1.0, 0.5, 0.4], [4, 5]),
        ([3.0, float("nan"), 1.0, 2.5, 2.6], [3, 4, 5]),
    ],
)
def test_the_newest_and_the_best_are_kept(losses: list[float | None], wanted: list[int], tmp_path: Path) -> None:
    assert kept(tmp_path, dict(enumerate(losses, 1)), keep=2) == wanted


def test_a_loss_of_an_earlier_step_makes_no_checkpoint_the_best(tmp_path: Path) -> None:
    writer = made(tmp_path, keep=1)
    for step in range(1, 5):
        writer.save({"model.safetensors": {}}, {"step": step, "validated": [1, 0.1]})
    assert [int(path.name[5:]) for path in checkpoints(writer.folder)] == [1, 4]


def test_one_that_a_signal_asked_for_takes_no_regular_ones_place(tmp_path: Path) -> None:
    assert kept(tmp_path, dict.fromkeys((10, 20, 30, 37)), keep=2, checkpoint_every=10) == [20, 30, 37]
    assert kept(tmp_path, {40: None}, keep=2, checkpoint_every=10) == [30, 40]
