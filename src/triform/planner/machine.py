"""What this machine can do: measured once, then remembered. torch is imported when something is measured."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import date
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triform.config.files import cache_folder, replacing

from .hardware import Card, Fleet, Kind, card

if TYPE_CHECKING:
    import torch

_WATTS_A_CORE = 12.0
_POWER_SOURCE = "Green Algorithms' default of 12 W a core (Lannelongue et al. 2021, https://doi.org/10.1002/advs.202100707), not measured"
_SECONDS = 0.6  # for each figure
_HOPELESS = 0.05  # of the fp32 rate: a precision that is only emulated


def measure(*, fresh: bool = False, say: Callable[[str], None] | None = None) -> Fleet:
    """This machine: matmul peak by precision, memory bandwidth and memory, measured in a few seconds.

    The result is kept in the cache folder for this processor, these CUDA devices, this version of torch and this
    number of threads; `fresh` measures again. `say` is told when measuring begins; None: standard error, where
    that is a terminal. With CUDA devices it is those that count, as many as are like the first.
    """
    file = cache_folder() / "machine" / f"{fingerprint()}.json"
    if not fresh:
        found = read_json(file)
        if found is not None:
            return Fleet(count=found["count"], card=Card(**found["card"]))
    (say or _tell)("measuring this machine's matrix products and memory, once, for about three seconds")
    fleet = _measure()
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        temporary.write_text(json.dumps(asdict(fleet), indent=2) + "\n", encoding="utf-8")
    return fleet


def read_json(file: Path) -> Any:
    """What a file of the cache holds; None where there is none, or it is damaged."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


@lru_cache(maxsize=1)
def fingerprint() -> str:
    """A name for this machine as it is used: its processor, CUDA devices, torch and number of threads. Imports no torch."""
    facts = [processor(), *_cuda_names(), version("torch"), str(threads())]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


def threads() -> int:
    """Threads that torch computes with: OMP_NUM_THREADS, or as many as there are processors for this process."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdecimal() and int(wanted) > 0:
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@lru_cache(maxsize=1)
def processor() -> str:
    """The processor's name."""
    if sys.platform == "darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def total_memory(device: str = "cpu") -> int:
    """The bytes of memory that this process may have: the machine's or its container's, or the accelerator's."""
    if device != "cpu":
        import torch

        return int(torch.cuda.get_device_properties(device).total_memory)
    import psutil

    total = int(psutil.virtual_memory().total)
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8").strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdecimal() else total


@lru_cache(maxsize=None)
def matmul_peak(precision: str, device: str = "cpu", side: int | None = None, seconds: float = 0.15) -> float:
    """FLOP/s of a square product in fp32, bf16, fp16 or fp8 (e4m3): the best of the runs, two or more, that fit into `seconds`.

    side: None for 1,024 on a processor and 8,192 on an accelerator, which a smaller product does not fill.
    """
    import torch

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.float8_e4m3fn}[precision]
    side = side or (1024 if device == "cpu" else 8192)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    if precision == "fp8":
        one = torch.ones((), device=device)
        scaled = partial(torch._scaled_mm, a, b.T, one, one, out_dtype=torch.bfloat16, use_fast_accum=True)
        return 2 * side**3 / _best(scaled, device, seconds)
    return 2 * side**3 / _best(lambda: torch.mm(a, b), device, seconds)


def memory_bandwidth(device: str = "cpu", size: int = 2**28, seconds: float = _SECONDS) -> float:
    """B/s of reading an array of `size` bytes, which no cache holds, with all threads."""
    import torch

    array = torch.ones(size // 4, device=device)
    return size / _best(lambda: torch.sum(array), device, seconds)


def _best(run: Callable[[], torch.Tensor], device: str, seconds: float) -> float:
    """Seconds of the fastest run but the first, which warms up."""
    best, end = float("inf"), time.perf_counter() + seconds
    for number in range(1_000_000):
        start = time.perf_counter()
        run()
        if device != "cpu":
            import torch

            torch.cuda.synchronize(device)
        now = time.perf_counter()
        if number:
            best = min(best, now - start)
            if now >= end:
                break
    return best


def _measure() -> Fleet:
    import torch

    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    device = "cuda:0" if devices else "cpu"
    count = devices.count(devices[0]) if devices else 1
    kind: Kind = "gpu" if devices else "cpu"
    name = devices[0] if devices else f"{processor()}, {threads()} thread{'s' if threads() > 1 else ''}"
    peak = {"fp32": matmul_peak("fp32", device, None, _SECONDS)}
    for precision in ("bf16", "fp16"):
        # A small product tells whether the precision is only emulated; a large one could then take minutes.
        if matmul_peak(precision, device, 256, 0.0) > _HOPELESS * peak["fp32"]:
            peak[precision] = matmul_peak(precision, device, None, _SECONDS)
    if devices and torch.cuda.get_device_capability(device) >= (8, 9):
        peak["fp8"] = matmul_peak("fp8", device, None, _SECONDS)
    measured = f"measured on {date.today().isoformat()} with torch {version('torch')}"
    sources = dict.fromkeys(("peak", "memory", "bandwidth"), measured)
    power, link, price = _listed(name) if devices else (_WATTS_A_CORE * threads(), None, None)
    sources |= {"power": "the catalogue's figure for this card"} if devices else {"power": _POWER_SOURCE}
    made = Card(
        name=name, kind=kind, peak=peak, memory=total_memory(device), bandwidth=memory_bandwidth(device),
        power=power, link=link, price=price, sources=sources,
    )  # fmt: skip
    return Fleet(count=count, card=made)


def _listed(name: str) -> tuple[float | None, float | None, float | None]:
    """Power, link and price of a card that the catalogue has; None for another."""
    try:
        found = card(name)
    except ValueError:
        return None, None, None
    return found.power, found.link, found.price


def _cuda_names() -> list[str]:
    if shutil.which("nvidia-smi") is None or os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return []
    return [*_output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").splitlines(), os.environ.get("CUDA_VISIBLE_DEVICES", "all")]


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _tell(text: str) -> None:
    if sys.stderr.isatty():
        print(f"{text} ...", file=sys.stderr, flush=True)
