"""The order of samples in training: which sample comes at which place, computed and not remembered."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


class Order:
    """Which of `count` samples comes at global position k = 0, 1, 2, …: every epoch is a fresh permutation of all of them.

    The permutation of an epoch comes from (seed, epoch) alone, so that a run that is resumed, and each of several
    processes, computes the same order. Memory: 8 bytes a sample for the one epoch that was asked for last.
    """

    def __init__(self, count: int, seed: int = 0, shuffle: bool = True) -> None:
        if count < 1:
            raise ValueError(f"there are {count} samples to put in order; at least one is needed")
        self.count = count
        self.seed = seed
        self.shuffle = shuffle
        self._epoch = -1
        self._permutation: NDArray[np.int64] = np.empty(0, np.int64)

    def permutation(self, epoch: int) -> NDArray[np.int64]:
        """The samples of one epoch in order, (count,)."""
        if epoch != self._epoch:
            self._permutation = self._drawn(epoch) if self.shuffle else np.arange(self.count)
            self._epoch = epoch
        return self._permutation

    def _drawn(self, epoch: int) -> NDArray[np.int64]:
        # Numpy promises that the raw numbers of Philox stay the same in all versions; of `permutation` it does not.
        key = hashlib.blake2b(f"{self.seed} {epoch}".encode(), digest_size=16).digest()
        numbers = np.random.Philox(key=int.from_bytes(key, "big")).random_raw(self.count)
        return np.argsort(numbers, kind="stable")

    def index(self, k: int) -> int:
        """The sample at global position k."""
        if k < 0:
            raise ValueError(f"positions count from 0; there is none before, such as {k}")
        epoch, place = divmod(k, self.count)
        return int(self.permutation(epoch)[place])

    def indices(self, start: int, n: int) -> NDArray[np.int64]:
        """The samples at global positions start, …, start + n - 1, across epochs where need be: (n,)."""
        if start < 0 or n < 0:
            raise ValueError(f"positions count from 0, so start={start}, n={n} names none")
        parts = [np.empty(0, np.int64)]
        while n:
            epoch, place = divmod(start, self.count)
            part = self.permutation(epoch)[place : place + n]
            parts.append(part)
            start, n = start + len(part), n - len(part)
        return np.concatenate(parts)
