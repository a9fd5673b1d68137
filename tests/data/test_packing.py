import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triform.data.packing import pack, rows_of


@given(data=st.data(), capacity=st.integers(1, 40))
def test_every_document_is_packed_once_and_no_bin_overflows(data, capacity):
    lengths = data.draw(st.lists(st.integers(1, capacity), max_size=60))
    found = pack(lengths, capacity)
    bins = [b.tolist() for b in found]
    assert found.sums(np.array(lengths, np.int64)).tolist() == [sum(lengths[i] for i in b) for b in bins]
    assert sorted(i for b in bins for i in b) == list(range(len(lengths)))
    assert all(0 < sum(lengths[i] for i in b) <= capacity for b in bins)
    assert [b.tolist() for b in pack(np.array(lengths, np.int64), capacity)] == bins
    for later, second in enumerate(bins):  # otherwise its first document had gone into an earlier bin
        assert all(sum(lengths[i] for i in first) + lengths[second[0]] > capacity for first in bins[:later])


def test_best_fit_takes_the_fullest_bin_that_has_room():
    def packed(*lengths: int) -> list[list[int]]:
        return [b.tolist() for b in pack(lengths, 10)]

    assert packed(6, 5, 4, 3) == [[0, 2], [1, 3]]
    assert packed(7, 6, 3) == [[0, 2], [1]]
    assert packed() == []


@pytest.mark.parametrize("lengths", [[3, 11], [0], [-1]])
def test_documents_that_cannot_be_packed_are_refused(lengths):
    with pytest.raises(ValueError, match="1 to 10"):
        pack(lengths, 10)


@given(lengths=st.lists(st.integers(0, 12), min_size=1, max_size=20), length=st.integers(1, 15))
def test_rows_hold_every_token_once_and_tell_documents_apart(lengths, length):
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    owner = np.repeat(np.arange(len(lengths)), lengths)
    rows = rows_of(offsets, length)
    tokens = [i for row in rows for i in range(row.start, row.stop)]
    assert tokens == list(range(offsets[-1]))
    for number, row in enumerate(rows):
        size = row.stop - row.start
        assert size == length or (number == len(rows) - 1 and 0 < size < length)
        assert row.documents.shape == row.positions.shape == (size,)
        own = owner[row.start : row.stop]
        assert row.documents[0] == 0
        # equal numbers exactly where the document is the same
        assert np.array_equal(row.documents[:, None] == row.documents[None], own[:, None] == own[None])
        assert np.array_equal(np.diff(row.documents), (np.diff(own) > 0).astype(int))
        for document in set(row.documents.tolist()):
            places = row.positions[row.documents == document]
            assert np.array_equal(places, np.arange(len(places)))
    assert len(rows_of(offsets, length, drop_last=True)) == offsets[-1] // length


@pytest.mark.parametrize(("offsets", "length"), [([0], 4), ([1, 3], 4), ([0, 3, 2], 4), ([0, 3], 0)])
def test_bad_offsets_are_refused(offsets, length):
    with pytest.raises(ValueError, match=r"offsets must|length of 1"):
        rows_of(offsets, length)
    with pytest.raises(IndexError):
        rows_of([0, 3], 2)[2]
