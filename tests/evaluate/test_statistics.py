"""Intervals and tests of significance, against SciPy's and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from triform.evaluate.statistics import Metric, compare, mcnemar, wilson


@settings(deadline=None)
@given(st.integers(1, 400).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count))))
def test_wilson_is_scipys(case: tuple[int, int]) -> None:
    wanted = binomtest(*case).proportion_ci(method="wilson")
    assert wilson(*case) == pytest.approx((wanted.low, wanted.high), abs=1e-9)


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_is_the_exact_binomial_test(first: int, second: int) -> None:
    wanted = 1.0 if first + second == 0 else binomtest(first, first + second).pvalue
    assert mcnemar(first, second) == pytest.approx(wanted, abs=1e-9)


def test_the_tests_tell_numbers_apart() -> None:
    assert wilson(30, 40) != pytest.approx(wilson(31, 40), abs=1e-3)
    assert mcnemar(3, 12) != pytest.approx(mcnemar(3, 13), abs=1e-3)


def test_a_bootstrap_interval_is_as_wide_as_theory_has_it_and_the_same_with_the_same_seed() -> None:
    values = np.random.default_rng(0).normal(5, 2, 400)
    found = Metric.average("x", values.tolist()).estimate()
    assert found.low is not None
    assert found.high is not None
    wanted = 2 * 1.96 * values.std() / 20
    assert found.value == pytest.approx(values.mean(), abs=1e-12)
    assert found.high - found.low == pytest.approx(wanted, rel=0.12)
    assert found.high - found.low != pytest.approx(wanted / 2, rel=0.12)
    assert found == Metric.average("x", values.tolist()).estimate()
    assert found != Metric.average("x", values.tolist()).estimate(seed=1)


def test_one_item_has_no_bootstrap_interval_but_a_share_has_one() -> None:
    assert Metric.average("x", [3.0]).estimate().low is None
    assert Metric.right("x", [True]).estimate().low == pytest.approx(wilson(1, 1)[0])


def test_a_difference_is_found_where_there_is_one() -> None:
    generator = np.random.default_rng(1)
    base, noise = generator.normal(0, 5, 200), generator.normal(0, 1, 200)
    first = Metric.average("x", base.tolist())
    found = compare(first, Metric.average("x", (base + noise + 0.5).tolist()))
    none = compare(first, Metric.average("x", (base + noise - noise.mean()).tolist()))
    assert found.p is not None
    assert none.p is not None
    assert found.p < 0.01 < 0.5 < none.p  # pairing takes the items' own spread out
    assert found.low is not None
    assert found.low > 0


def test_right_and_wrong_are_compared_by_mcnemar() -> None:
    first, second = [True] * 50 + [False] * 50, [True] * 50 + [True] * 10 + [False] * 40
    found = compare(Metric.right("accuracy", first), Metric.right("accuracy", second))
    assert found.test == "McNemar"
    assert found.value == pytest.approx(0.1)
    assert found.p == pytest.approx(2 / 2**10)


def test_other_items_are_not_compared() -> None:
    with pytest.raises(ValueError, match="same items"):
        compare(Metric.right("accuracy", [True]), Metric.right("accuracy", [True, False]))
