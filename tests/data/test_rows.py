"""Rows know where they come from, and bad ones are reported, counted and left out only if asked."""

from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path

import pytest

from triform.data.cleaning import Clean
from triform.data.mixture import Mixture
from triform.data.normalize import Normalized
from triform.data.pipeline import prepare
from triform.data.rows import BadRows, Row, place_of
from triform.data.sources import open_source
from triform.data.split import split
from triform.data.transform import Transformed

GOOD = '{"text": "好的。"}\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Five lines, of which the second is no JSON, the third no object and the fourth no UTF-8."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD.encode() + b"{nothing\n[1]\n\xff\xfe\n" + GOOD.encode())
    return path


def test_bad_lines_are_left_out_and_counted_once_if_asked(file: Path) -> None:
    bad = BadRows(skip=True)
    source = open_source(file, bad=bad)
    for _ in range(2):
        assert [row["text"] for row in source] == ["好的。"] * 2
    assert len(bad) == 3
    assert list(bad.reasons) == [f"{file}, line {number}" for number in (2, 3, 4)]
    assert bad.first.startswith(f"{file}, line 2: not JSON")
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 2: not JSON"):
        list(open_source(file))


def test_a_table_goes_on_after_a_line_with_too_many_fields(tmp_path: Path) -> None:
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"text,label\na,1\nb,2,3\nc,4\n"))
    bad = BadRows(skip=True)
    rows = list(open_source(tmp_path / "a.csv.gz", bad=bad))
    assert rows == [{"text": "a", "label": "1"}, {"text": "c", "label": "4"}]
    assert "3 fields, but the first line names 2" in bad.first


def test_a_row_keeps_its_place_through_all_that_is_done_to_it(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"第{i}行。 又一句。"}) + "\n" for i in range(6)), "utf-8")
    rows = Mixture([(Normalized(open_source(path), Clean().normalize, ("text",)), 2.5)])
    made = list(Transformed(split(rows, validation=0.3).train, ["spaces", "sentences"]))
    assert made
    for row in made:
        number = int(place_of(row).rsplit(" ", 1)[1])
        assert row["text"].startswith((f"第{number - 1}行", "又一句"))
    kept = prepare([str(path)], tmp_path / "clean", Clean(filter=None, deduplicate=None), progress=False)
    assert str(place_of(next(iter(kept.parts()[0])))).endswith("000-00000.jsonl, line 1")
    again = pickle.loads(pickle.dumps(made[0]))
    assert (again, again.place) == (made[0], made[0].place)


def test_cleaning_leaves_bad_rows_out_too(file: Path, tmp_path: Path) -> None:
    bad = BadRows(skip=True)
    assert prepare([str(file)], tmp_path / "clean", Clean(deduplicate=None, filter=None), progress=False, bad=bad).manifest["kept"] == 2
    assert len(bad) == 3
    with pytest.raises(ValueError, match="line 2: not JSON"):
        prepare([str(file)], tmp_path / "other", progress=False)


def test_rows_that_are_taken_together_are_told_apart_where_one_is_bad() -> None:
    def make(rows):
        if any(row["x"] < 0 for row in rows):
            raise ValueError("x is negative")
        return [row["x"] * 2 for row in rows]

    rows = [Row({"x": x}, f"f, line {i}") for i, x in enumerate((1, -1, 3), 1)]
    bad = BadRows(skip=True)
    assert bad.made(rows, make) == [2, 6]
    assert bad.reasons == {"f, line 2": "x is negative"}
    with pytest.raises(ValueError, match=r"^f, line 2: x is negative; do"):
        BadRows(advice="; do").made(rows, make)


def test_they_are_listed_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    bad = BadRows(skip=True, file=file)
    assert not file.exists()
    bad.add(ValueError("空"), "f, line 2")
    assert json.loads(file.read_text("utf-8")) == {"place": "f, line 2", "reason": "空"}
    with file.open("a") as stream:
        stream.write('{"place": "f, li')  # by a process that was killed
    again = BadRows(skip=True, file=file)
    for line in (2, 5):
        again.add(ValueError("空"), f"f, line {line}")
    assert [json.loads(line)["place"] for line in file.read_text("utf-8").splitlines()] == ["f, line 2", "f, line 5"]


def test_too_many_are_an_error_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triform.data.rows.MOST_BAD", 2)
    bad = BadRows(skip=True)
    for number in (1, 2, 2):
        bad.add(ValueError("x"), f"line {number}")
    with pytest.raises(ValueError, match="more than 2 bad rows, so these data are of another kind; the first: line 1: x"):
        bad.add(ValueError("x"), "line 3")


SQUAD = {"data": [{"paragraphs": [{"context": "天下大势", "qas": [{"question": "何？", "answers": []}, 3]}, {"context": "x"}]}]}


def test_json_files_are_lists_of_objects_or_as_squad_has_it(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"text": "a"}, 3]), "utf-8")
    (tmp_path / "b.json").write_text(json.dumps(SQUAD), "utf-8")
    bad = BadRows(skip=True)
    assert list(open_source(tmp_path / "a.json", bad=bad)) == [{"text": "a"}]
    assert list(open_source(tmp_path / "b.json", text=None, bad=bad)) == [{"question": "何？", "answers": [], "context": "天下大势"}]
    assert [place.rsplit("/", 1)[1] for place in bad.reasons] == [
        "a.json, entry 2", "b.json, entry 1, paragraph 1, question 2", "b.json, entry 1, paragraph 2",
    ]  # fmt: skip
    for content, message in (("{}", "expected a list of objects, not dict"), ("[", "not JSON")):
        (tmp_path / "c.json").write_text(content, "utf-8")
        with pytest.raises(ValueError, match=message):
            list(open_source(tmp_path / "c.json"))
    with pytest.raises(ValueError, match=r"no file in this folder is one of \.txt"):  # settings of something else lie in folders
        open_source(tmp_path)
