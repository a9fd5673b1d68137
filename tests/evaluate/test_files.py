"""Where the data of tasks may lie: plain and packed files, tables of columns, and what a recipe holds out."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import recipes
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from triform.data.sources import open_source
from triform.data.split import split
from triform.evaluate.files import BadLine, Line, read, records, text_of
from triform.evaluate.task import fingerprint

ROWS = [{"text": "话说天下大势", "label": "good"}, {"text": "a,b\n\"c\"", "label": "bad"}]


def write(file: Path, kind: str) -> Path:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), file)
    elif kind == "jsonl.gz":
        file.write_bytes(gzip.compress(lines.encode()))
    elif kind == "csv.gz":
        file.write_bytes(gzip.compress('text,label\n话说天下大势,good\n"a,b\n""c""",bad\n'.encode()))
    else:
        file.write_text(lines if kind == "jsonl" else json.dumps(ROWS), "utf-8")
    return file


@pytest.mark.parametrize("kind", ["jsonl", "json", "jsonl.gz", "csv.gz", "parquet"])
def test_rows_are_the_same_in_any_file(kind: str, tmp_path: Path) -> None:
    found = list(records(write(tmp_path / f"a.{kind}", kind)))
    assert [dict(one.fields) for one in found if isinstance(one, Line)] == ROWS


def recipe(folder: Path, **data: Any) -> Path:
    recipes.write_data(folder)
    plain = recipes.plain("Classification", folder)
    plain["data"] |= data
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(plain), "utf-8")
    return file


def test_of_a_recipe_the_rows_that_it_holds_out_are_taken(tmp_path: Path) -> None:
    file = recipe(tmp_path)
    found = [one for one in records(file) if isinstance(one, Line)]
    parts = split(open_source(tmp_path / "reviews.jsonl", text=None), validation=0.2, seed=0)
    assert parts.validation is not None
    assert [one.fields for one in found] == list(parts.validation)
    assert 0 < len(found) < 24
    assert str(found[0].error("no")).startswith(f"{tmp_path / 'reviews.jsonl'}")
    with pytest.raises(ValueError, match="holds out none"):
        list(records(recipe(tmp_path, validation=0)))


def test_a_recipes_fingerprint_is_that_of_its_data(tmp_path: Path) -> None:
    file = recipe(tmp_path)
    before = fingerprint([file])
    file.write_text(file.read_text("utf-8").replace("steps: 6", "steps: 7"), "utf-8")
    assert fingerprint([file]) == before
    with (tmp_path / "reviews.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"text": "新", "label": "positive"}) + "\n")
    assert fingerprint([file]) != before


def test_other_bytes_are_told_with_their_line(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"{}\n\xff\n")
    with pytest.raises(ValueError, match=r"a\.jsonl:2: expected text in UTF-8"):
        text_of(file)


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=80))
def test_whatever_a_file_holds_each_line_is_a_record_or_told(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    file = tmp_path_factory.mktemp("any") / "a.jsonl"
    file.write_text(text, "utf-8", errors="replace", newline="")
    found = list(records(file))
    assert len(found) == sum(bool(line.strip()) for line in text_of(file).split("\n"))
    kept, bad = read(iter(found), lambda line: line.fields, skip_bad=True)
    assert bad == sum(isinstance(one, BadLine) for one in found)
    assert len(kept) + bad == len(found)
