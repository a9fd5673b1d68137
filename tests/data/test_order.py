import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triform.data.order import Order


@given(count=st.integers(1, 60), seed=st.integers(0, 2**40), epoch=st.integers(0, 50))
def test_every_epoch_is_a_permutation(count, seed, epoch):
    order = Order(count, seed)
    assert sorted(order.indices(epoch * count, count)) == list(range(count))


@given(count=st.integers(1, 30), start=st.integers(0, 200), n=st.integers(0, 100))
def test_starting_anywhere_equals_coming_from_the_beginning(count, start, n):
    whole = Order(count, 3).indices(0, start + n)
    order = Order(count, 3)
    assert np.array_equal(order.indices(start, n), whole[start:])
    assert [order.index(start + i) for i in range(min(n, 5))] == list(whole[start : start + min(n, 5)])


def test_epochs_and_seeds_differ_and_the_order_is_the_same_for_ever():
    order = Order(50, 1)
    assert not np.array_equal(order.indices(0, 50), order.indices(50, 50))
    assert not np.array_equal(order.indices(0, 50), Order(50, 2).indices(0, 50))
    assert Order(10, 0).indices(0, 20).tolist() == [1, 3, 5, 0, 6, 2, 8, 4, 9, 7, 8, 1, 3, 4, 2, 6, 5, 9, 7, 0]


def test_without_shuffling_samples_come_as_they_are():
    assert Order(4, 9, shuffle=False).indices(2, 7).tolist() == [2, 3, 0, 1, 2, 3, 0]


def test_impossible_orders_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        Order(0)
    with pytest.raises(ValueError, match="count from 0"):
        Order(3).index(-1)
    with pytest.raises(ValueError, match="count from 0"):
        Order(3).indices(-1, 2)
