"""The energy that a run takes, measured where the machine has counters for it."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_RAPL = Path("/sys/class/powercap")
_SECONDS_A_READING = 5


@dataclass
class Energy:
    """What was measured: kWh, None where that cannot be, and how, or why not. Both are set when the measuring ends."""

    kwh: float | None = None
    reason: str = ""


@contextmanager
def meter() -> Iterator[Energy]:
    """Measure the energy of what runs inside, by codecarbon without a network; gives what is filled in at the end.

    Only counters count, the processor's (RAPL) and NVIDIA's (NVML): where codecarbon would guess a power, nothing is
    claimed. Never fails what it measures.
    """
    energy = Energy()
    tracker, found = _start(energy)
    try:
        yield energy
    finally:
        if tracker is not None:
            _stop(tracker, found, energy)


def counters() -> dict[str, str]:
    """The energy counters that this process may read: "cpu" and "gpu", and what each is."""
    found = {}
    if any(os.access(file, os.R_OK) for file in _RAPL.glob("intel-rapl:*/energy_uj")):
        found["cpu"] = "the processor's RAPL counter"
    if shutil.which("nvidia-smi") is not None:
        found["gpu"] = "NVIDIA's NVML counter"
    return found


def _start(energy: Energy) -> tuple[Any, dict[str, str]]:
    found = counters()
    if not found:
        energy.reason = "not measured: this machine has no energy counter that may be read (RAPL, NVML)"
        return None, found
    try:
        from codecarbon import OfflineEmissionsTracker
    except ImportError:
        energy.reason = 'not measured: codecarbon is not installed; pip install "triform[energy]"'
        return None, found
    logging.getLogger("codecarbon").setLevel(logging.CRITICAL)  # before `log_level` is heard it has spoken
    try:
        tracker = OfflineEmissionsTracker(
            country_iso_code="USA",  # needed, for the CO2 that is not used here
            measure_power_secs=_SECONDS_A_READING, save_to_file=False, log_level="critical", allow_multiple_runs=True,
        )  # fmt: skip
        tracker.start()
        if not any(getattr(part, "_mode", "") == "intel_rapl" for part in tracker._hardware):
            found.pop("cpu", None)  # it guesses the processor's power
        if not found:
            tracker.stop()
            energy.reason = "not measured: codecarbon cannot use this processor's counter"
            return None, found
    except Exception as error:  # whatever goes wrong in it, the run goes on
        energy.reason = f"not measured: codecarbon said {error}"
        return None, found
    return tracker, found


def _stop(tracker: Any, found: dict[str, str], energy: Energy) -> None:
    try:
        tracker.stop()
        data = tracker.final_emissions_data
        energy.kwh = sum(float(getattr(data, f"{part}_energy")) for part in found)
        energy.reason = f"measured by {' and '.join(found.values())}"
    except Exception as error:
        energy.reason = f"not measured: codecarbon said {error}"
