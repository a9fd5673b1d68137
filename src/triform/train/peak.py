"""How fast this machine multiplies matrices, measured once in a process."""

from __future__ import annotations

import os
import time
from functools import lru_cache

import torch


@lru_cache(maxsize=None)
def matmul_peak(precision: str, device: str = "cpu", side: int = 1024, seconds: float = 0.15) -> float:
    """FLOP/s of a square product in fp32 or bf16: the best of the runs, two or more, that fit into `seconds`."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a = torch.randn(side, side, device=device).to(dtype)
    b = torch.randn(side, side, device=device).to(dtype)
    best, end = float("inf"), time.perf_counter() + seconds
    for run in range(1_000_000):
        start = time.perf_counter()
        torch.mm(a, b)
        if device != "cpu":
            torch.cuda.synchronize()
        now = time.perf_counter()
        if run:  # the first one warms up
            best = min(best, now - start)
            if now >= end:
                break
    return 2 * side**3 / best


def choose_precision(wanted: str, device: str = "cpu") -> str:
    """fp32 or bf16 as wanted; for auto, bf16 where it multiplies at least 1.5 times as fast as fp32."""
    if wanted != "auto":
        return wanted
    return "bf16" if matmul_peak("bf16", device) > 1.5 * matmul_peak("fp32", device) else "fp32"


def memory(device: str = "cpu") -> int | None:
    """The bytes of memory that the machine, or its accelerator, has; None where the system does not tell."""
    if device != "cpu":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
