"""Figures over items, how sure they are, and whether two models differ.

A figure is a function of sums over items (right answers, nats and tokens, n-grams matched and proposed), so that every one is
resampled and compared in the same way.

Shapes: N items, C sums, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

_Z = 1.959963984540054  # of the normal distribution's middle 95 %
RESAMPLES = 1000
_CHUNK = 2**22  # weights that are drawn at a time
Method = Literal["Wilson", "bootstrap", "standard error"]
Test = Literal["McNemar", "paired bootstrap", "standard errors"]
Array = np.ndarray[Any, Any]


def mean(sums: Array, count: int) -> Array:
    """The mean over items, of the first of the sums (..., C)."""
    found: Array = sums[..., 0] / count
    return found


@dataclass(frozen=True)
class Estimate:
    """A figure and the ends of its 95 % interval, None where a single item leaves nothing to resample."""

    value: float
    low: float | None
    high: float | None
    method: Method


@dataclass(frozen=True)
class Metric:
    """A figure of a task.

    rows: (N, C), what each item adds to the sums. of: the figure of sums (..., C) over a number of items.
    share: items are right (1) or wrong (0), so that the interval is Wilson's and the test McNemar's.
    higher_is_better: False for perplexity and what is like it.
    error: the standard error, NaN where it is not known, of a figure that was measured elsewhere and is no function of sums
        (`Metric.given`).
    """

    name: str
    rows: Array
    of: Callable[[Array, int], Array] = mean
    share: bool = False
    higher_is_better: bool = True
    error: float | None = None

    @classmethod
    def given(cls, name: str, value: float, error: float, items: int, *, higher_is_better: bool = True) -> Metric:
        """A figure over a number of items that was measured elsewhere, with its standard error."""
        return cls(name, np.zeros((items, 1)), lambda sums, _: np.full(sums.shape[:-1], value), False, higher_is_better, error)

    @classmethod
    def right(cls, name: str, answers: Sequence[bool]) -> Metric:
        """The share of items that are right."""
        return cls(name, np.asarray(answers, dtype=np.float64)[:, None], share=True)

    @classmethod
    def average(cls, name: str, values: Sequence[float], *, higher_is_better: bool = True) -> Metric:
        """The mean of a number of each item."""
        return cls(name, np.asarray(values, dtype=np.float64)[:, None], higher_is_better=higher_is_better)

    def part(self, items: Sequence[int]) -> Metric:
        """The figure over some of the items."""
        return Metric(self.name, self.rows[list(items)], self.of, self.share, self.higher_is_better)

    @property
    def value(self) -> float:
        """The figure over all items."""
        return float(self.of(self.rows.sum(0), len(self.rows)))

    def estimate(self, seed: int = 0) -> Estimate:
        """The figure with its interval: Wilson's for shares, the normal one of a standard error, else a bootstrap's over items."""
        count = len(self.rows)
        if self.error is not None:
            half = _Z * self.error
            low, high = (None, None) if math.isnan(half) else (self.value - half, self.value + half)
            return Estimate(self.value, low, high, "standard error")
        if self.share:
            return Estimate(self.value, *wilson(int(self.rows.sum()), count), "Wilson")
        if count < 2:
            return Estimate(self.value, None, None, "bootstrap")
        found = np.concatenate([self.of(weights @ self.rows, count) for weights in _resamples(count, seed)])
        ends = np.percentile(found, (2.5, 97.5))
        return Estimate(self.value, float(ends[0]), float(ends[1]), "bootstrap")


def _resamples(count: int, seed: int) -> Iterator[Array]:
    """How often each item is in each resample, (R, N), some resamples at a time."""
    generator = np.random.default_rng(seed)
    step = max(1, _CHUNK // count)
    for start in range(0, RESAMPLES, step):
        rows = min(step, RESAMPLES - start)
        drawn = generator.integers(0, count, (rows, count)) + np.arange(rows)[:, None] * count
        yield np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count).astype(np.float64)


def wilson(right: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927): within 0 and 1, and honest where all or none are right."""
    share, extra = right / count, _Z**2 / count
    middle = (share + extra / 2) / (1 + extra)
    half = _Z / (1 + extra) * math.sqrt(share * (1 - share) / count + extra / (4 * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact two-sided p-value of two models being equally often right (McNemar 1947), by the binomial distribution.

    only_first, only_second: how many items one of them alone has right.
    """
    count, fewer = only_first + only_second, min(only_first, only_second)
    total, term = 0, 1
    for chosen in range(fewer + 1):
        total += term
        term = term * (count - chosen) // (chosen + 1)
    return min(1.0, 2 * total / (1 << count))


@dataclass(frozen=True)
class Difference:
    """Of two models on the same items: the second's figure less the first's, its 95 % interval, and the p-value of no difference.

    test: "McNemar" (exact, for what is right or wrong) or "paired bootstrap"; the interval is a paired bootstrap's for both.
        "standard errors" where nothing more is known: the normal test as of other items, which errs on the side of no difference.
    """

    value: float
    low: float | None
    high: float | None
    p: float | None
    test: Test


def compare(first: Metric, second: Metric, seed: int = 0) -> Difference:
    """What two models' figures differ by, item by item. Raises ValueError for figures of different items."""
    count = len(first.rows)
    if first.name != second.name or len(second.rows) != count:
        got = f"{first.name} of {count:,} and {second.name} of {len(second.rows):,}"
        raise ValueError(f"expected the same figure of the same items to compare, got {got}")
    value = second.value - first.value
    if first.error is not None and second.error is not None:
        error = math.hypot(first.error, second.error)
        if not error > 0:
            return Difference(value, None, None, None, "standard errors")
        return Difference(value, value - _Z * error, value + _Z * error, math.erfc(abs(value) / error / math.sqrt(2)), "standard errors")
    test: Test = "McNemar" if first.share else "paired bootstrap"
    low = high = p = None
    if count > 1:
        pairs = [(weights @ first.rows, weights @ second.rows) for weights in _resamples(count, seed)]
        found = np.concatenate([second.of(b, count) - first.of(a, count) for a, b in pairs])
        low, high = map(float, np.percentile(found, (2.5, 97.5)))
        tail = min((found <= 0).sum(), (found >= 0).sum())
        p = min(1.0, 2 * (float(tail) + 1) / (len(found) + 1))
    if first.share:
        a, b = first.rows[:, 0] > 0, second.rows[:, 0] > 0
        p = mcnemar(int((a & ~b).sum()), int((b & ~a).sum()))
    return Difference(value, low, high, p, test)
