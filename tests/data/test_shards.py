import json
import os
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triform.data.shards import Shards, fingerprint, prepare, write_shards

PAIRS = [{"source": [1, 2, 3], "target": [4]}, {"source": [], "target": [5, 6]}, {"source": [7], "target": []}]


def write(folder, rows=PAIRS, **options):
    return write_shards(iter(rows), folder, **{"vocab_size": 10, "fingerprint": "a"} | options)


@settings(max_examples=25, deadline=None)
@given(documents=st.lists(st.lists(st.integers(0, 99_999), max_size=9), min_size=1, max_size=9), large=st.booleans())
def test_what_is_written_is_read(tmp_path_factory, documents, large):
    size = 100_000 if large else 2**16
    documents = [[token % size for token in document] for document in documents]
    shards = write(tmp_path_factory.mktemp("shards") / "set", [{"text": d} for d in documents], vocab_size=size)
    assert [shards[i]["text"].tolist() for i in range(len(shards))] == documents
    column = shards.column("text")
    assert column.tokens.dtype == (np.uint32 if large else np.uint16)
    assert column.offsets.dtype == np.int64
    assert column.lengths.tolist() == [len(d) for d in documents]
    assert column.tokens.tolist() == [token for document in documents for token in document]


def test_columns_slices_labels_and_other_processes(tmp_path):
    shards = write(tmp_path / "set", [{"text": np.array([1, 2]), "label": 1}, {"text": [3], "label": 0}])
    assert shards.columns == ("text", "label")
    assert [int(row["label"][0]) for row in shards[:]] == [1, 0]
    assert shards[-1]["text"].tolist() == [3]
    assert isinstance(shards.column("text").tokens, np.memmap)
    again = pickle.loads(pickle.dumps(shards))
    assert again[0]["text"].tolist() == [1, 2]
    with pytest.raises(IndexError):
        shards[2]
    with pytest.raises(ValueError, match="no column 'source'"):
        shards.column("source")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no documents"),
        ([{"text": [1, 10]}], "the id 10, outside of 0 to 9"),
        ([{"text": [-1]}], "the id -1"),
        ([{"text": [0.5]}], "list of token ids"),
        ([{"text": [1]}, {"other": [1]}], "expected text"),
        ([{"../text": [1]}], "cannot name a column"),
    ],
)
def test_bad_rows_are_refused_and_nothing_is_left(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "set", rows)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_rewrite_keeps_the_old_set_and_a_good_one_replaces_it(tmp_path):
    write(tmp_path / "set")

    def broken():
        yield {"text": [1]}
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        write(tmp_path / "set", broken())
    assert Shards.open(tmp_path / "set", verify=True).columns == ("source", "target")
    write(tmp_path / "set", [{"text": [1]}])
    assert Shards.open(tmp_path / "set", verify=True).columns == ("text",)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_folder_of_something_else_is_not_written_over(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="something else than token shards"):
        write(tmp_path)
    with pytest.raises(ValueError, match="no token shards here"):
        Shards.open(tmp_path)


@pytest.mark.parametrize("file", ["source.tokens", "target.offsets"])
def test_cut_altered_and_missing_files_are_noticed(tmp_path, file):
    write(tmp_path / "set")
    path = tmp_path / "set" / file
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:] if file.endswith("tokens") else data)
    if file.endswith("tokens"):
        Shards.open(tmp_path / "set")
        with pytest.raises(ValueError, match="altered since"):
            Shards.open(tmp_path / "set", verify=True)
    path.write_bytes(data[:-1])
    with pytest.raises(ValueError, match="bytes were written; delete the folder"):
        Shards.open(tmp_path / "set")
    path.unlink()
    with pytest.raises(ValueError, match="missing"):
        Shards.open(tmp_path / "set")


@pytest.mark.parametrize("change", [{"format": 9}, {"columns": {"../x": {"dtype": "<u2"}}}, {"columns": {"x": {"dtype": "O"}}}, None])
def test_a_strange_manifest_is_one_clear_error(tmp_path, change):
    write(tmp_path / "set")
    file = tmp_path / "set" / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change) if change else "[1]")
    with pytest.raises(ValueError, match=r"format 9|not a manifest"):
        Shards.open(tmp_path / "set")


def test_shards_are_reused_until_something_they_depend_on_changes(tmp_path):
    calls = []

    def encode(batch):
        calls.append(len(batch))
        return [{"text": [ord(c) % 10 for c in row["text"]]} for row in batch]

    def run(**parts):
        rows = ({"text": "天" * n} for n in range(5))
        return prepare(rows, encode, tmp_path / "set", parts, vocab_size=10, batch_size=2)

    first = run(tokenizer="a", text="b")
    assert (calls, len(first)) == ([2, 2, 1], 5)
    written = os.stat(tmp_path / "set" / "manifest.json").st_mtime_ns
    assert run(text="b", tokenizer="a").fingerprint == first.fingerprint
    assert os.stat(tmp_path / "set" / "manifest.json").st_mtime_ns == written
    assert calls == [2, 2, 1]
    assert run(tokenizer="a", text="c").fingerprint != first.fingerprint
    assert len(calls) == 6
    (tmp_path / "set" / "text.tokens").write_bytes(b"")
    assert len(run(tokenizer="a", text="c")[4]["text"]) == 4


def test_fingerprints_do_not_depend_on_the_order_of_their_parts():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1}) != fingerprint({"a": 1, "b": 3})
