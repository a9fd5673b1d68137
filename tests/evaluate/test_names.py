"""Entities that models tag: read as seqeval reads them, and counted whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import recipes
import yaml
from generate.conftest import built, encoder_only, tokenizer_of

from triform import config
from triform.evaluate.names import entities, ner
from triform.evaluate.task import Judged, Settings
from triform.generate import tag
from triform.train import read_recipe
from triform.train.prepare import splits

TEXTS = ["话说天下大势", "青山依旧在", "惯看秋月春风", "房间很干净", "是非成败转头空", "一壶浊酒喜相逢"]


@pytest.mark.parametrize(
    ("labels", "wanted"),  # as seqeval 1.2 gives them
    [
        ("B-A I-A O B-B", [("A", 0, 2), ("B", 3, 4)]),
        ("I-A I-A O", [("A", 0, 2)]),
        ("B-A B-A I-A", [("A", 0, 1), ("A", 1, 3)]),
        ("B-A I-B I-B", [("A", 0, 1), ("B", 1, 3)]),
        ("O O", []),
        ("I-A B-A I-B O I-B", [("A", 0, 1), ("A", 1, 2), ("B", 2, 3), ("B", 4, 5)]),
        ("B-X-Y I-X-Y", [("X-Y", 0, 2)]),
    ],
)
def test_entities_are_whole(labels: str, wanted: list[Any]) -> None:
    assert entities(labels.split()) == wanted


def tagger() -> Judged:
    tokenizer = tokenizer_of("characters")
    model = built(encoder_only(tokenizer.vocab_size, config.ClassifyTokens(labels=4), learned=64))
    return Judged(model, tokenizer, {"labels": ["O", "B-人", "I-人", "B-地"]})


def test_names_are_measured_whole(tmp_path: Path) -> None:
    judged = tagger()
    named = tag(judged.model, judged.tokenizer, TEXTS, judged.task["labels"])
    assert any(named)
    rows, total = [], 0
    for number, (text, own) in enumerate(zip(TEXTS, named, strict=True)):
        marks = ["O"] * len(text)
        for one in own[1:] if number == 0 else own:
            marks[one.start : one.end] = [f"B-{one.label}"] + [f"I-{one.label}"] * (one.end - one.start - 1)
            total += 1
        rows.append("".join(f"{character}\t{mark}\n" for character, mark in zip(text, marks, strict=True)))
    (tmp_path / "names.bio").write_text("\n".join(rows), "utf-8")
    values = {metric.name: metric.value for metric in ner(judged, tmp_path / "names.bio", Settings()).metrics}
    assert named[0], "one entity is left out of the truth, so that precision is not 1"
    assert values["recall"] == 1.0
    assert values["precision"] == pytest.approx(total / (total + 1))
    assert values["f1"] == pytest.approx(2 * total / (2 * total + 1))


def test_of_a_recipe_the_sentences_that_it_holds_out_are_measured(tmp_path: Path) -> None:
    recipes.write_data(tmp_path)
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipes.plain("TokenClassification", tmp_path)), "utf-8")
    held = splits(read_recipe(file).data)[1]
    assert held is not None
    result = ner(tagger(), file, Settings())
    assert [item["text"] for item in result.items] == ["".join(row["tokens"]) for row in held]
    assert 0 < len(result.items) < len(recipes.LINES)


@pytest.mark.parametrize(
    ("name", "written", "says"),
    [
        ("t.bio", "曹 B-人\n操\n", "t.bio:2: expected a token and its label"),
        ("t.bio", "曹 B-人\n\n操 X\n", "t.bio:3: expected labels such as O"),
        ("t.jsonl", json.dumps({"tokens": ["曹", "操"], "labels": ["O"]}), "t.jsonl:1: expected 2 labels"),
        ("t.jsonl", json.dumps({"tokens": [], "labels": []}), "t.jsonl:1: expected a list of texts in 'tokens'"),
    ],
)
def test_bad_labels_are_told(name: str, written: str, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(written, "utf-8")
    with pytest.raises(ValueError, match="--skip-bad") as error:
        ner(tagger(), tmp_path / name, Settings())
    assert says in str(error.value)
