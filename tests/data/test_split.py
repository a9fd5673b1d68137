import pytest
from hypothesis import given
from hypothesis import strategies as st

from triform.data.split import split

ROWS = [{"text": f"document {i}"} for i in range(2000)]


def test_shares_are_met_parts_are_whole_and_the_same_each_time():
    parts = split(ROWS, validation=0.1, test=0.05, seed=1)
    lists = [list(part) for part in parts]
    assert sorted(row["text"] for part in lists for row in part) == sorted(row["text"] for row in ROWS)
    assert 150 < len(lists[1]) < 250  # 200 expected, standard deviation 13
    assert 60 < len(lists[2]) < 140
    assert [list(part) for part in parts] == lists == [list(part) for part in split(iter(ROWS), validation=0.1, test=0.05, seed=1)]
    assert list(split(ROWS, validation=0.1, seed=2).validation) != lists[1]


def test_adding_documents_moves_none_of_a_share():
    before = list(split(ROWS[:1000], validation=0.1).validation)
    assert [row for row in split(ROWS, validation=0.1).validation if row in ROWS[:1000]] == before


@given(st.integers(1, 20), st.integers(0, 20), st.integers(0, 99))
def test_numbers_are_met_exactly(validation, test, seed):
    parts = split(ROWS[:60], validation=validation, test=test, seed=seed)
    assert len(list(parts.validation)) == validation
    assert len(list(parts.test or ())) == test
    assert len(list(parts.train)) == 60 - validation - test


def test_equal_documents_fall_on_one_side():
    parts = split([*ROWS, *reversed(ROWS)], validation=0.3)
    assert not {row["text"] for row in parts.train} & {row["text"] for row in parts.validation}


def test_the_tail_is_held_out_in_order():
    parts = split(ROWS[:20], tail=3, test=2)
    assert list(parts.validation) == ROWS[17:20]
    assert list(parts.test) == ROWS[15:17]
    assert list(parts.train) == ROWS[:15]
    assert split(ROWS, tail=3).test is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": 1.5}, "no share"),
        ({"validation": -1}, "must not be negative"),
        ({"validation": 0.6, "test": 0.5}, "leave nothing"),
        ({"validation": 20}, "too few to hold out"),
        ({"tail": 20}, "too few to hold out"),
        ({"tail": 2, "test": 0.1}, "whole number"),
    ],
)
def test_impossible_splits_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        split(ROWS[:20], **options)


def test_an_empty_part_says_so():
    with pytest.raises(ValueError, match="the validation part is empty"):
        list(split(ROWS[:1], validation=1e-9).validation)
