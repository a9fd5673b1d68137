"""Which precision a run computes in."""

from __future__ import annotations

from triform.planner.machine import matmul_peak, measure

from .fp8 import check_fp8


def choose_precision(wanted: str, device: str = "cpu") -> str:
    """The one wanted; for auto, bf16 where it multiplies at least 1.5 times as fast as fp32."""
    if wanted != "auto":
        return wanted
    return "bf16" if peak("bf16", device) > 1.5 * peak("fp32", device) else "fp32"


def peak(precision: str, device: str = "cpu") -> float:
    """FLOP/s of a large product on this machine, as it was measured once; measured here where the processor only emulates it."""
    found = measure().card.peak.get(precision)
    return matmul_peak(precision, device) if found is None else found


def check_precision(wanted: str, device: str = "cpu") -> None:
    """Refuse what a device cannot reasonably compute in."""
    if wanted == "fp16" and device == "cpu":
        raise ValueError("train.precision: fp16 needs a GPU; a CPU multiplies it at some 1 GFLOP/s; choose bf16, fp32 or auto")
    if wanted == "fp8":
        check_fp8(device)
