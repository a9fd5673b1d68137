"""Which precision a run computes in."""

from __future__ import annotations

from triform.planner.machine import matmul_peak


def choose_precision(wanted: str, device: str = "cpu") -> str:
    """fp32 or bf16 as wanted; for auto, bf16 where it multiplies at least 1.5 times as fast as fp32."""
    if wanted != "auto":
        return wanted
    return "bf16" if matmul_peak("bf16", device) > 1.5 * matmul_peak("fp32", device) else "fp32"
