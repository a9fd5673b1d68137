"""This machine is measured once, in figures of the right size, and remembered."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from triform.planner import machine
from triform.planner.hardware import hardware


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRIFORM_CACHE", str(tmp_path))
    monkeypatch.setattr(machine, "_SECONDS", 0.02)
    return tmp_path


def test_the_machine_is_measured_once_and_remembered(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    first = machine.measure(say=said.append)
    assert len(said) == 1
    assert 1e8 < first.card.peak["fp32"] < 1e16
    assert 1e8 < first.card.bandwidth < 1e14
    assert first.card.memory == machine.total_memory("cuda:0" if first.card.kind == "gpu" else "cpu")
    monkeypatch.setattr(machine, "_measure", lambda: pytest.fail("measured again"))
    assert hardware("this") == first
    monkeypatch.setattr(machine, "_measure", lambda: first)
    machine.measure(fresh=True, say=said.append)
    assert len(said) == 2


def test_a_damaged_file_of_the_cache_is_measured_again(cache: Path) -> None:
    (cache / "machine").mkdir()
    (cache / "machine" / f"{machine.fingerprint()}.json").write_text("{", encoding="utf-8")
    said: list[str] = []
    machine.measure(say=said.append)
    assert said


def test_another_number_of_threads_is_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    found = set()
    for count in ("1", "2", "1"):
        monkeypatch.setenv("OMP_NUM_THREADS", count)
        machine.fingerprint.cache_clear()
        found.add(machine.fingerprint())
    machine.fingerprint.cache_clear()
    assert len(found) == 2


def test_what_is_remembered_is_found_without_torch(cache: Path) -> None:
    machine.measure()
    code = "import sys; from triform.planner.hardware import hardware; print(hardware('this').card.kind, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True, check=True)
    assert done.stdout.split()[1] == "False"


def test_twice_the_work_takes_longer() -> None:
    """The control of the peak: a product is timed, not guessed, so that the rate of a tiny one is far from that of a large one."""
    assert machine.matmul_peak("fp32", "cpu", 512, 0.05) > 1.5 * machine.matmul_peak("fp32", "cpu", 8, 0.0)
