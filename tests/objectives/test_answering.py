"""Extractive question answering: where the answer stands in each window, and answers that do not stand there."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from collating import batch, samples, trained
from hypothesis import given
from hypothesis import strategies as st
from recipes import LINES

from triform import config
from triform.objectives import QuestionAnswering, build_objective
from triform.text import Tokenizer

PASSAGE = "".join(LINES[:6])
QUESTION = "天下大势如何？"


def row(text: str, start: int | None = None, **more) -> dict:
    place = PASSAGE.index(text) if start is None else start
    return {"question": QUESTION, "context": PASSAGE, "answers": {"text": [text], "answer_start": [place]}} | more


@pytest.mark.parametrize("text", ["分久必合", "汉朝自高祖斩白蛇而起义", "。"])
def test_the_labels_are_the_tokens_of_the_answer(text: str, every_character: Tokenizer, tmp_path: Path) -> None:
    made = batch(*samples(QuestionAnswering(), every_character, [row(text)], tmp_path))
    (first, last), ids = made.labels[0].tolist(), made.inputs[0].tolist()
    assert every_character.decode(ids[first : last + 1]).replace(" ", "") == text
    assert made.inputs.shape[0] == 1
    parts = made.layout.segments[0].tolist()
    question = len(every_character.encode(QUESTION))
    assert parts[: question + 2] == [0] * (question + 2)
    assert set(parts[question + 2 :]) == {1}


def test_shapes_of_answers(every_character: Tokenizer) -> None:
    objective = build_objective(QuestionAnswering(), every_character)
    whole = row("分久必合")
    expected = objective.encode([whole])
    start = PASSAGE.index("分久必合")
    several = {"text": ["分久必合", "合久必分"], "answer_start": [start, start + 5]}
    for answers in ([{"text": "分久必合", "answer_start": start}], several, "分久必合", ["分久必合"], {"text": "分久必合"}):
        assert objective.encode([whole | {"answers": answers}]) == expected
    none = objective.encode([whole | {"answers": {"text": [], "answer_start": []}}])
    assert none[0]["span"] == [0, 0]
    assert none == objective.encode([{"question": QUESTION, "context": PASSAGE}])


@pytest.mark.parametrize("kind", ["all characters", "bpe", "wordpiece"])
@pytest.mark.parametrize(("length", "overlap"), [(24, 0), (32, 8), (64, 16)])
def test_long_passages_are_read_in_windows(kind: str, length: int, overlap: int, tmp_path: Path) -> None:
    tokenizer = trained(kind)
    answer = "楚、汉分争，又并入于汉。"
    found, all_of = samples(QuestionAnswering(length=length, overlap=overlap), tokenizer, [row(answer)], tmp_path)
    made = batch(found, all_of)
    assert len(all_of) > 1
    assert made.inputs.shape[1] <= length
    whole = tokenizer.encode(answer)
    seen = 0
    for ids, (first, last) in zip(made.inputs.tolist(), made.labels.tolist(), strict=True):
        if first:
            seen += 1
            assert tokenizer.decode(ids[first : last + 1]).replace(" ", "") == answer.replace(" ", "")
        else:
            assert last == 0
    assert seen >= (1 if overlap >= len(whole) else 0)
    assert seen < len(all_of)


@given(start=st.integers(0, len(PASSAGE) - 1), size=st.integers(1, 12))
def test_any_span_is_found_again(start: int, size: int) -> None:
    text = PASSAGE[start : start + size]
    for kind in ("all characters", "bpe"):
        tokenizer = trained(kind)
        made = build_objective(QuestionAnswering(length=512), tokenizer).encode([row(text, start)])
        first, last = made[0]["span"]
        assert text in tokenizer.decode(made[0]["text"][first : last + 1]).replace(" ", "").replace("\ufffd", "") or kind == "bpe"
        frame = made[0]["text"]
        assert 0 < first <= last < len(frame)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_padding_costs_nothing(smoothing: float, every_character: Tokenizer, tmp_path: Path) -> None:
    """A short row costs as much beside a long one as alone, smoothing or not; control: with its padding read, it costs something else."""
    model = tiny.build(tiny.encoder("rotary", head=config.AnswerSpan())).double()
    short = {"question": "谁？", "context": LINES[0], "answers": "分久必合"}
    objective, found = samples(QuestionAnswering(), every_character, [short, row("分久必合")], tmp_path)

    def cost(*chosen: int, mask: bool = True) -> float:
        made = objective.collate([found[i] for i in chosen], [(0,)] * len(chosen))
        made.inputs = made.inputs.remainder(tiny.VOCAB)
        made.mask = made.mask if mask else None
        return float(objective.loss(model, made, smoothing=smoothing).total.detach())

    assert abs(cost(0, 1) - cost(0) - cost(1)) < 1e-10
    assert abs(cost(0, 1, mask=False) - cost(0) - cost(1)) > 1e-2


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row("分久必合", 3), "the answer '分久必合' does not stand at character 3 of the passage, but '下大势，'"),
        (row("分久必合", 10_000), "does not stand at character 10000 of the passage, but nothing"),
        (row("分久必合", -1), "does not stand at character -1"),
        (row("分久必合") | {"answers": "曹操"}, "the answer '曹操' does not stand in the passage"),
        (row("分久必合") | {"answers": {"text": [""], "answer_start": [0]}}, "is empty"),
        (row("分久必合") | {"answers": {"text": ["分"], "answer_start": [0, 1]}}, "as many places"),
        (row("分久必合") | {"answers": 3}, "expected a text, and a whole number where it starts"),
        (row("分久必合") | {"context": " "}, "the passage in 'context' is empty"),
        ({"question": QUESTION, "answers": "a"}, "no field 'context' for the passage"),
        ({"context": PASSAGE, "answers": "a"}, "no field 'question' for the question"),
        (row("分久必合", question="天下" * 300), "leaves no room for a passage; raise objective.length"),
    ],
)
def test_rows_that_do_not_fit(bad: dict, message: str, every_character: Tokenizer) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        build_objective(QuestionAnswering(), every_character).encode([bad])
    assert "\n" not in str(caught.value)


def test_models_that_do_not_fit(every_character: Tokenizer) -> None:
    objective = build_objective(QuestionAnswering(), every_character)
    objective.check(tiny.encoder(head=config.AnswerSpan()))
    with pytest.raises(ValueError, match="expected an AnswerSpan head, got LanguageModel"):
        objective.check(tiny.encoder())
    with pytest.raises(ValueError, match="overlap: expected 0 or more tokens, and fewer than a row's 64, got 64"):
        QuestionAnswering(length=64, overlap=64)
