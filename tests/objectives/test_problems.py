"""Classification of several labels a text, and of numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from collating import batch, samples
from recipes import LINES

from triform import config
from triform.objectives import Classification, build_objective
from triform.text import Tokenizer

MULTI, NUMBERS = "multi_label_classification", "regression"
LABELS = ("战", "政", "天")


def test_several_labels_or_none(every_character: Tokenizer, tmp_path: Path) -> None:
    rows = [{"text": line, "label": label} for line, label in zip(LINES, (["战", "天"], [], "政, 天", "", ["政"]), strict=False)]
    made = batch(*samples(Classification(labels=LABELS, problem=MULTI), every_character, rows, tmp_path))
    assert made.labels.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 1], [0, 0, 0], [0, 1, 0]]
    assert made.count == 15


def test_numbers_come_through_shards_exactly(every_character: Tokenizer, tmp_path: Path) -> None:
    values = [[-100.0, 3.25], [1e-30, -0.1], [0, 2**30]]
    rows = [{"text": line, "label": value} for line, value in zip(LINES, values, strict=False)]
    made = batch(*samples(Classification(labels=("甲", "乙"), problem=NUMBERS), every_character, rows, tmp_path))
    assert torch.equal(made.labels, torch.tensor(values, dtype=torch.float32))
    assert made.count == 6  # -100 is a number like any other
    row = {"text": "汉", "label": "2.5"}
    one = batch(*samples(Classification(labels=("分",), problem=NUMBERS), every_character, [row], tmp_path / "b"))
    assert one.labels.tolist() == [[2.5]]


@pytest.mark.parametrize("problem", [MULTI, NUMBERS])
def test_losses_and_figures(problem: str, every_character: Tokenizer, tmp_path: Path) -> None:
    model = tiny.build(tiny.encoder("rotary", head=config.Classify(labels=3, pool="mean")))
    label = ["战", "天"] if problem == MULTI else [0.5, -2, 1]
    row = {"text": LINES[0], "label": label}
    objective, found = samples(Classification(labels=LABELS, problem=problem), every_character, [row], tmp_path)
    objective.check(model.config)
    made = batch(objective, found)
    made.inputs = made.inputs.remainder(tiny.VOCAB)
    scores = model(made.inputs).logits
    loss = objective.loss(model, made)
    if problem == MULTI:
        chances = scores.sigmoid()
        wanted = -(made.labels * chances.log() + (1 - made.labels) * (1 - chances).log()).mean()
        assert loss.metrics == {"accuracy": float(((chances > 0.5) == made.labels.bool()).sum())}
    else:
        wanted = (scores - made.labels).square().mean()
        assert abs(loss.metrics["absolute_error"] - float((scores - made.labels).detach().abs().sum())) < 1e-5
    assert abs(float(loss.total.detach()) / made.count - float(wanted.detach())) < 1e-5
    assert objective.task() == {"objective": "Classification", "labels": list(LABELS), "length": 256, "problem_type": problem}
    assert tuple(loss.metrics) == objective.metric_names


@pytest.mark.parametrize(
    ("problem", "label", "message"),
    [
        (MULTI, ["水"], "label '水': expected one of 战, 政, 天; add it to objective.labels"),
        (MULTI, 3, "expected a list of labels in 'label', got 3"),
        (NUMBERS, "许多", "expected a number in 'label', got '许多'"),
        (NUMBERS, [1, 2], "expected 3 finite numbers in 'label'"),
        (NUMBERS, [1, 2, float("nan")], "expected 3 finite numbers"),
        (NUMBERS, {"a": 1}, "expected a number in 'label'"),
    ],
)
def test_labels_that_do_not_fit(problem: str, label: object, message: str, every_character: Tokenizer) -> None:
    with pytest.raises(ValueError, match=message):
        build_objective(Classification(labels=LABELS, problem=problem), every_character).encode([{"text": "汉", "label": label}])


def test_one_label_alone_is_no_choice() -> None:
    with pytest.raises(ValueError, match="expected at least two different names"):
        Classification(labels=("分",))
    Classification(labels=("分",), problem=NUMBERS)
