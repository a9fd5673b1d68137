"""Token classification: words' labels at their tokens, and what is said of labels that do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from collating import batch, samples
from hypothesis import given
from hypothesis import strategies as st

from triform import config
from triform.nn import IGNORE
from triform.objectives import TokenClassification, build_objective
from triform.text import Tokenizer

NAMES = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
ROW = {"tokens": ["汉朝", "自", "高祖", "斩", "白蛇", "而", "起义"], "labels": ["B-LOC", "O", "B-PER", "O", "O", "O", "O"]}


def shown(tokenizer: Tokenizer, made, row: int = 0) -> list[tuple[str, str]]:
    """Each token that is scored, with its label."""
    pairs = zip(made.inputs[row].tolist(), made.labels[row].tolist(), strict=True)
    return [(tokenizer.decode([i]), NAMES[label]) for i, label in pairs if label != IGNORE]


def test_a_word_of_several_tokens_has_its_label_at_each(every_character: Tokenizer, tmp_path: Path) -> None:
    made = batch(*samples(TokenClassification(labels=NAMES), every_character, [ROW], tmp_path))
    assert shown(every_character, made) == [
        ("汉", "B-LOC"), ("朝", "I-LOC"), ("自", "O"), ("高", "B-PER"), ("祖", "I-PER"), *((c, "O") for c in "斩白蛇而起义"),
    ]  # fmt: skip
    first = batch(*samples(TokenClassification(labels=NAMES, first=True), every_character, [ROW], tmp_path / "first"))
    assert shown(every_character, first) == [("汉", "B-LOC"), ("自", "O"), ("高", "B-PER"), *((c, "O") for c in "斩白而起")]
    assert torch.equal(first.inputs, made.inputs)


@pytest.mark.parametrize("length", [5, 8, 32])
def test_long_texts_are_read_in_several_rows_and_nothing_is_lost(length: int, tokenizer: Tokenizer, tmp_path: Path) -> None:
    row = {"tokens": ROW["tokens"] * 4, "tags": [NAMES.index(label) for label in ROW["labels"]] * 4}
    made = batch(*samples(TokenClassification(labels=NAMES, length=length), tokenizer, [row], tmp_path))
    whole = batch(*samples(TokenClassification(labels=NAMES, length=256), tokenizer, [row], tmp_path / "whole"))
    assert made.inputs.shape[1] <= length
    assert [one for i in range(len(made.inputs)) for one in shown(tokenizer, made, i)] == shown(tokenizer, whole)
    assert whole.labels[0, 0] == whole.labels[0, -1] == IGNORE  # what stands around it
    assert whole.count == whole.inputs.shape[1] - 2


@given(words=st.lists(st.text("天下大势 the cat\n分久必合", min_size=1, max_size=4), min_size=1, max_size=8))
def test_any_words_have_as_many_beginnings_as_the_tokenizer_sees(words: list[str]) -> None:
    from collating import trained

    for kind in ("all characters", "bpe", "wordpiece"):
        objective = build_objective(TokenClassification(labels=("O", "B-X", "I-X")), trained(kind))
        made = objective.encode([{"tokens": words, "labels": ["B-X"] * len(words)}])
        beginnings = sum(one == 2 for columns in made for one in columns["label"])
        assert beginnings <= len(words)
        assert all(set(columns["label"]) <= {0, 2, 3} for columns in made)
        if kind == "all characters":
            assert beginnings == sum(bool(word.strip()) for word in words)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"labels": ["O"]}, "no field 'tokens'"),
        ({"tokens": ["a"]}, "no field 'labels'"),
        ({"tokens": "汉朝", "labels": ["O", "O"]}, "expected a list of words, none of them empty, in 'tokens'"),
        ({"tokens": ["汉", ""], "labels": ["O", "O"]}, "none of them empty"),
        ({"tokens": ["汉", "朝"], "labels": ["O"]}, "expected 2 labels in 'labels', one for each word, got 1"),
        ({"tokens": ["汉"], "labels": ["B-ORG"]}, "label 'B-ORG': expected one of O, B-PER.*; add it to objective.labels"),
        ({"tokens": ["汉"], "labels": [9]}, "label '9'"),
        ({"tokens": ["汉", "朝"], "labels": ["O", "I-PER"]}, "I-PER follows O; in IOB2 B-PER begins"),
        ({"tokens": ["汉", "朝"], "labels": ["B-LOC", "I-PER"]}, "I-PER follows B-LOC"),
        ({"tokens": ["汉"], "labels": ["I-PER"]}, "I-PER follows the beginning"),
    ],
)
def test_rows_that_do_not_fit(row, message, every_character: Tokenizer) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        build_objective(TokenClassification(labels=NAMES), every_character).encode([row])
    assert "\n" not in str(caught.value)


def test_settings_and_models_that_do_not_fit(every_character: Tokenizer) -> None:
    with pytest.raises(ValueError, match="expected I-PER beside what begins so"):
        TokenClassification(labels=("O", "B-PER"))
    objective = build_objective(TokenClassification(labels=NAMES), every_character)
    objective.check(tiny.encoder(head=config.ClassifyTokens(labels=5)))
    with pytest.raises(ValueError, match="expected a head of 5 labels, got 4"):
        objective.check(tiny.encoder(head=config.ClassifyTokens(labels=4)))
    with pytest.raises(ValueError, match="expected a ClassifyTokens head, got LanguageModel"):
        objective.check(tiny.encoder())


def test_the_loss_is_the_mean_over_scored_tokens() -> None:
    model = tiny.build(tiny.encoder(head=config.ClassifyTokens(labels=5)))
    from collating import trained

    objective = build_objective(TokenClassification(labels=NAMES), trained("all characters"))
    ids = tiny.ids(2, 6)
    labels = torch.tensor([[IGNORE, 1, 2, 0, 0, IGNORE], [IGNORE, 3, 4, 0, IGNORE, IGNORE]])
    from triform.objectives import Batch

    made = Batch(ids, labels)
    wanted = torch.nn.functional.cross_entropy(model(ids).logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE)
    got = objective.loss(model, made)
    assert abs(float(got.total.detach()) / made.count - float(wanted.detach())) < 1e-6
    assert got.metrics["accuracy"] == float((model(ids).logits.argmax(-1) == labels).sum())
