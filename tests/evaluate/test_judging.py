"""Figures of classifiers and taggers, against scikit-learn's and by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from generate.conftest import built, encoder_only, tokenizer_of
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from triform import config
from triform.evaluate.judging import _outcomes, confusion_plot, entities, macro_f1, ner
from triform.evaluate.judging import classification as measure
from triform.evaluate.task import Judged, Settings
from triform.generate import classify, tag

LABELS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30)


@settings(deadline=None)
@given(LABELS)
def test_macro_f1_is_scikit_learns(pairs: list[tuple[int, int]]) -> None:
    gold, chosen = zip(*pairs, strict=True)
    wanted = f1_score(gold, chosen, average="macro", zero_division=0)
    rows = _outcomes(gold, chosen, 4)
    assert float(macro_f1(rows.sum(0), len(rows))) == pytest.approx(wanted, abs=1e-12)


def test_macro_f1_sees_a_mistake() -> None:
    rows = _outcomes([0, 0, 1, 1], [0, 0, 1, 0], 2)
    assert float(macro_f1(rows.sum(0), 4)) == pytest.approx((0.8 + 2 / 3) / 2)
    assert float(macro_f1(np.stack([rows.sum(0), rows[:2].sum(0)]), 4)[1]) == 1.0


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


def classifier() -> Judged:
    tokenizer = tokenizer_of("wordpiece")
    model = built(encoder_only(tokenizer.vocab_size, config.Classify(labels=3), learned=64))
    return Judged(model, tokenizer, {"labels": ["坏", "中", "好"]})


TEXTS = ["话说天下大势", "青山依旧在", "惯看秋月春风", "房间很干净", "是非成败转头空", "一壶浊酒喜相逢"]


def test_a_classifier_is_measured(tmp_path: Path) -> None:
    judged = classifier()
    found = [one.label for one in classify(judged.model, judged.tokenizer, TEXTS, judged.task["labels"])]
    other = {"坏": "中", "中": "好", "好": "坏"}
    gold = [label if place % 3 else other[label] for place, label in enumerate(found)]  # two of six are wrong
    written = "label,text\n" + "".join(f"{label},{text}\n" for label, text in zip(gold, TEXTS, strict=True))
    (tmp_path / "reviews.csv").write_text(written, "utf-8")
    result = measure(judged, tmp_path / "reviews.csv", Settings())
    assert result.metrics[0].value == pytest.approx(4 / 6)
    assert result.metrics[1].value == pytest.approx(f1_score(gold, found, average="macro", zero_division=0))
    counts = np.array(result.details["confusion"]["counts"])
    assert (counts.sum(), np.trace(counts)) == (6, 4)
    confusion_plot(result, tmp_path / "confusion.svg")
    drawn = (tmp_path / "confusion.svg").read_text("utf-8")
    assert all(label in drawn for label in judged.task["labels"])


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"text": "好", "label": "none"}', "expected a label of the model's (坏, 中, 好), got 'none'"),
        ('{"text": "好", "label": 3}', "expected a label of the model's"),
        ('{"text": "好"}', "expected 'label'"),
        ('{"text": " ", "label": 1}', "expected text in 'text'"),
    ],
)
def test_a_label_never_seen_is_told(line: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text('{"text": "好", "label": 2}\n' + line + "\n", "utf-8")
    with pytest.raises(ValueError, match=r"t\.jsonl:2") as error:
        measure(classifier(), file, Settings())
    assert says in str(error.value)
    assert measure(classifier(), file, Settings(skip_bad=True)).bad == 1


def test_names_are_measured_whole(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("characters")
    labels = ["O", "B-人", "I-人", "B-地"]
    model = built(encoder_only(tokenizer.vocab_size, config.ClassifyTokens(labels=4), learned=64))
    judged = Judged(model, tokenizer, {"labels": labels})
    named = tag(model, tokenizer, TEXTS, labels)
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
        ner(classifier(), tmp_path / name, Settings())
    assert says in str(error.value)
