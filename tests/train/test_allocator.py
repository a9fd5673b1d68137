"""Memory is kept while a run lasts, and given back after it."""

from __future__ import annotations

import resource

import psutil
import pytest
import torch

from triform.train import allocator
from triform.train.allocator import keeping_memory

SIZE = 64 << 20


def faults(times: int = 8) -> int:
    """Pages asked of the system while large tensors come and go."""
    torch.ones(SIZE // 4)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones(SIZE // 4)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_large_tensors_come_from_what_was_freed_and_go_back_in_the_end() -> None:
    process = psutil.Process()
    plain = faults()
    with keeping_memory():
        kept = faults()
        inside = process.memory_info().rss
    if allocator._glibc() is None:
        assert kept < 2 * plain
        return
    # Something small may have settled in the place of the first that was freed.
    assert kept < plain / 4
    assert inside - process.memory_info().rss > 0.8 * SIZE


def test_without_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "_glibc", lambda: None)
    with keeping_memory():
        assert torch.ones(3).sum() == 3
