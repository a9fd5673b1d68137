"""Memory that is given back and taken again a moment later, without asking the system for it each time."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of glibc's malloc.h
_DEFAULTS = {_TRIM_THRESHOLD: 128 * 1024, _MMAP_MAX: 65_536}
_KEEPING = {_TRIM_THRESHOLD: 2**31 - 1, _MMAP_MAX: 0}


@contextmanager
def keeping_memory() -> Iterator[None]:
    """What is freed in this context stays with the process until its end, for the next step.

    glibc takes every large block from the system and gives it back when it is freed; a training step takes some 8 bytes a
    parameter so, and the system clears each page again: up to a fifth of the step's time. Without glibc nothing is done.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    for option, value in _KEEPING.items():
        libc.mallopt(option, value)
    try:
        yield
    finally:
        for option, value in _DEFAULTS.items():
            libc.mallopt(option, value)
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL(None)
    except (OSError, TypeError):
        return None
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
