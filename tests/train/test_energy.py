"""Energy is what counters say, or nothing with the reason; and measuring never fails what it measures."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from triform.train import energy


class Tracker:
    """codecarbon's, as far as it is used."""

    fails: str = ""
    mode: str = "intel_rapl"

    def __init__(self, **options: Any) -> None:
        assert options["save_to_file"] is False
        self._hardware = [SimpleNamespace(_mode=self.mode), SimpleNamespace()]
        self.final_emissions_data = SimpleNamespace(cpu_energy=0.25, gpu_energy=1.5, ram_energy=9.0)

    def start(self) -> None:
        if self.fails == "start":
            raise RuntimeError("no start")

    def stop(self) -> None:
        if self.fails == "stop":
            raise RuntimeError("no stop")


@pytest.fixture
def counters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with a RAPL counter and no NVIDIA card, and codecarbon."""
    (tmp_path / "intel-rapl:0").mkdir()
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("1\n", encoding="utf-8")
    monkeypatch.setattr(energy, "_RAPL", tmp_path)
    monkeypatch.setattr(energy.shutil, "which", lambda name: None)
    module = ModuleType("codecarbon")
    module.OfflineEmissionsTracker = Tracker  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "codecarbon", module)
    monkeypatch.setattr(Tracker, "fails", "")
    return tmp_path


def test_only_what_a_counter_counted(counters: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with energy.meter() as found:
        assert found.kwh is None
    assert found.kwh == 0.25  # memory is a guess of codecarbon's and does not count, nor does a card that is not there
    assert found.reason == "measured by the processor's RAPL counter"
    monkeypatch.setattr(energy.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    with energy.meter() as found:
        pass
    assert found.kwh == 1.75


@pytest.mark.usefixtures("counters")
def test_without_counters_or_codecarbon_the_reason_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "codecarbon", None)
    with energy.meter() as found:
        pass
    assert found.kwh is None
    assert 'pip install "triform[energy]"' in found.reason
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    with energy.meter() as found:
        pass
    assert (found.kwh, "no energy counter" in found.reason) == (None, True)


@pytest.mark.usefixtures("counters")
def test_a_guess_of_codecarbon_s_is_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tracker, "mode", "constant")
    with energy.meter() as found:
        pass
    assert (found.kwh, "cannot use this processor's counter" in found.reason) == (None, True)
    monkeypatch.setattr(energy.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    with energy.meter() as found:
        pass
    assert (found.kwh, found.reason) == (1.5, "measured by NVIDIA's NVML counter")


@pytest.mark.usefixtures("counters")
@pytest.mark.parametrize("when", ["start", "stop"])
def test_a_failure_of_codecarbon_is_a_reason(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tracker, "fails", when)
    with energy.meter() as found:
        done = True
    assert done
    assert (found.kwh, found.reason) == (None, f"not measured: codecarbon said no {when}")


@pytest.mark.usefixtures("counters")
def test_a_failure_of_the_run_is_the_run_s() -> None:
    with pytest.raises(ZeroDivisionError), energy.meter() as found:
        _ = 1 / 0
    assert found.kwh == 0.25
