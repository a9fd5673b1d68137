"""Figures of classifiers, against scikit-learn's and by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from generate.conftest import built, encoder_only, tokenizer_of
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import f1_score

from triform import config
from triform.evaluate.classes import _chosen, confusion_plot, macro_f1, micro_f1, outcomes, pearson
from triform.evaluate.classes import classification as measure
from triform.evaluate.task import Judged, Settings
from triform.generate import classify

LABELS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30)


@settings(deadline=None)
@given(LABELS)
def test_macro_f1_is_scikit_learns(pairs: list[tuple[int, int]]) -> None:
    gold, chosen = zip(*pairs, strict=True)
    wanted = f1_score(gold, chosen, average="macro", zero_division=0)
    rows = outcomes(_chosen(gold, 4), _chosen(chosen, 4))
    assert float(macro_f1(rows.sum(0), len(rows))) == pytest.approx(wanted, abs=1e-12)


def test_macro_f1_sees_a_mistake() -> None:
    rows = outcomes(_chosen([0, 0, 1, 1], 2), _chosen([0, 0, 1, 0], 2))
    assert float(macro_f1(rows.sum(0), 4)) == pytest.approx((0.8 + 2 / 3) / 2)
    assert float(macro_f1(np.stack([rows.sum(0), rows[:2].sum(0)]), 4)[1]) == 1.0


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


@settings(deadline=None)
@given(arrays(bool, (2, 9, 3)))
def test_f1_of_several_labels_is_scikit_learns(pairs: Any) -> None:
    gold, chosen = pairs
    sums = outcomes(gold, chosen).sum(0)
    assert float(micro_f1(sums, 9)) == pytest.approx(f1_score(gold, chosen, average="micro", zero_division=0), abs=1e-12)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=2, max_size=20))
def test_correlation_is_numpys(pairs: list[tuple[int, int]]) -> None:
    a, b = np.array(pairs, dtype=float).T
    found = float(pearson(np.stack([a, b, a * a, b * b, a * b], 1).sum(0), len(a)))
    wanted = np.corrcoef(a, b)[0, 1] if a.std() and b.std() else 0
    assert found == pytest.approx(wanted, abs=1e-9)
    assert -1 - 1e-9 <= found <= 1 + 1e-9


def lines(file: Path, *rows: Any) -> Path:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return file


def test_several_labels_are_measured(tmp_path: Path) -> None:
    one = classifier()
    judged = Judged(one.model, one.tokenizer, one.task | {"problem_type": "multi_label_classification"})
    found = classify(judged.model, judged.tokenizer, TEXTS, judged.task["labels"], problem="multi_label_classification")
    chosen = [[name for name, score in each.scores.items() if score > 0.5] for each in found]
    wrong = [name for name in judged.task["labels"] if name not in chosen[-1]]
    gold: list[Any] = [",".join(own) for own in chosen[:2]] + chosen[2:-1] + [wrong]
    rows = [{"text": text, "label": own} for text, own in zip(TEXTS, gold, strict=True)]
    result = measure(judged, lines(tmp_path / "t.jsonl", *rows), Settings())
    assert [metric.name for metric in result.metrics] == ["all_right", "micro_f1", "macro_f1"]
    assert result.metrics[0].value == pytest.approx(5 / 6)
    assert 0 < result.metrics[1].value < 1
    assert "confusion" not in result.details
    with pytest.raises(ValueError, match=r"t\.jsonl:1: expected a list of labels"):
        measure(judged, lines(tmp_path / "t.jsonl", {"text": "好", "label": 3}), Settings())


@pytest.mark.parametrize("labels", [1, 2])
def test_numbers_are_measured(labels: int, tmp_path: Path) -> None:
    tokenizer = tokenizer_of("wordpiece")
    model = built(encoder_only(tokenizer.vocab_size, config.Classify(labels=labels), learned=64))
    names = ["分", "度"][:labels]
    judged = Judged(model, tokenizer, {"labels": names, "problem_type": "regression"})
    found = np.array([list(one.scores.values()) for one in classify(model, tokenizer, TEXTS, names, problem="regression")])
    gold = [(2 * own + 1).tolist() for own in found]
    rows = [{"text": text, "label": own if labels > 1 else own[0]} for text, own in zip(TEXTS, gold, strict=True)]
    values = {one.name: one.value for one in measure(judged, lines(tmp_path / "t.jsonl", *rows), Settings()).metrics}
    for number, name in enumerate(names):
        end = f" {name}" if labels > 1 else ""
        assert values[f"pearson{end}"] == pytest.approx(1, abs=1e-6)
        assert values[f"absolute_error{end}"] == pytest.approx(abs(found[:, number] + 1).mean(), abs=1e-6)
        assert values[f"squared_error{end}"] == pytest.approx(((found[:, number] + 1) ** 2).mean(), abs=1e-6)
    with pytest.raises(ValueError, match=r"t\.jsonl:1: expected . finite numbers"):
        measure(judged, lines(tmp_path / "t.jsonl", {"text": "好", "label": "much"}), Settings())
