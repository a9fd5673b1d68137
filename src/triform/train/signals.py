"""Signals that end a run: what is done is saved first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def stop_flag() -> Iterator[threading.Event]:
    """Set by SIGINT or SIGTERM, so that a step ends and a checkpoint is written; a second signal stops at once."""
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def handler(number: int, _: Any) -> None:
        if flag.is_set():
            raise KeyboardInterrupt
        flag.set()

    old = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, previous in old.items():
            signal.signal(number, previous)
