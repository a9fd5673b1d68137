"""Programs that a model wrote, run apart: a process with limits, an empty folder, no network.

It keeps programs from doing harm by accident. It is no wall against one that means to: for models that are not trusted, run
Triform itself in a container or a virtual machine.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

_RUNNER = Path(__file__).with_name("confined.py")
_PATIENCE = 5  # times the processor time, by the clock: for a program that sleeps, on a machine that is busy
_ANSWER = 2**14  # bytes
SECONDS, MEMORY = 3.0, 2**30  # as HumanEval's own runner has the time


class Outcome(NamedTuple):
    """Whether a program came to its end, and how else it ended."""

    passed: bool
    told: str


def check_platform() -> None:
    """Raise ValueError where programs cannot be run under limits."""
    if os.name != "posix":
        raise ValueError(f"programs are run under limits on Linux and macOS, and this is {sys.platform}; use one of them, or WSL")


def run_programs(
    programs: Sequence[str], *, seconds: float = SECONDS, memory: int = MEMORY, on_program: Callable[[int], None] | None = None
) -> list[Outcome]:
    """Run Python programs, each by itself, as many at a time as there are processors.

    seconds: of processor time; by the clock five times as long. memory: bytes of address space, where the platform limits it.
    on_program: called with how many are done. Raises ValueError on Windows.
    """
    check_platform()
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = []
        for outcome in pool.map(lambda program: run_program(program, seconds=seconds, memory=memory), programs):
            found.append(outcome)
            if on_program is not None:
                on_program(len(found))
    return found


def run_program(program: str, *, seconds: float = SECONDS, memory: int = MEMORY) -> Outcome:
    """Run one Python program; see `run_programs`."""
    whole, key = math.ceil(seconds), secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="triform-program-", ignore_cleanup_errors=True) as folder:
        environment = {"PATH": os.defpath, "LANG": "C.UTF-8", "HOME": folder, "TMPDIR": folder, "PYTHONHASHSEED": "0"}
        environment |= {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "VECLIB_MAXIMUM")}
        process = subprocess.Popen(
            [sys.executable, "-P", "-s", "-B", str(_RUNNER)], cwd=folder, env=environment, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        late = threading.Event()

        def end() -> None:
            late.set()
            _kill(process)

        timer = threading.Timer(_PATIENCE * whole, end)
        timer.start()
        try:
            written = _ask(process, {"program": program, "key": key, "seconds": whole, "memory": memory})
        finally:
            timer.cancel()
            timer.join()
            _kill(process)
            process.wait()
    told = _told(written, key)
    if told is not None:
        return Outcome(told == "passed", told)
    if late.is_set() or process.returncode == -signal.SIGXCPU:
        return Outcome(False, f"ran longer than {whole} s")
    return Outcome(False, "ended before its tests did")


def _ask(process: subprocess.Popen[bytes], asked: dict[str, Any]) -> bytes:
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdout, suppress(BrokenPipeError):
        with process.stdin:
            process.stdin.write(json.dumps(asked).encode())
        return process.stdout.read(_ANSWER)
    return b""


def _told(written: bytes, key: str) -> str | None:
    """The outcome in what a process wrote; None where it does not bear the key."""
    try:
        found = json.loads(written)
        return str(found["told"]) if found["key"] == key else None
    except (ValueError, RecursionError, KeyError, TypeError):
        return None


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):  # it ended by itself
        os.killpg(process.pid, signal.SIGKILL)
