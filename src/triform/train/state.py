"""Who is at work in a run's folder. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".run.lock"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Nobody else runs in the folder while the block does. Raises ValueError when somebody does.

    The system lets go of the lock when the process ends, however that comes about; the file that stays behind means nothing.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=1)
    except Timeout:
        raise ValueError(f"{folder}: a run is going on here; wait for it, stop it, or choose another folder with --out") from None
    try:
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)
        lock.release()


def is_running(folder: Path) -> bool:
    """Whether a process runs in the folder. One on another machine is seen where the file system shares its locks."""
    if not (folder / LOCK).exists():
        return False
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:  # not ours to lock
        return False
    lock.release()
    return False
