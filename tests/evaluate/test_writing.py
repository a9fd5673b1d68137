"""Tasks whose answers are written: BLEU and chrF are sacrebleu's, ROUGE knows Chinese, and numbers are found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
from generate.conftest import LINES, built, decoder_only, encoder_decoder, tokenizer_of
from rouge_score.rouge_scorer import RougeScorer

from triform.evaluate import writing
from triform.evaluate.task import Judged, Settings

WRITTEN = ["话说天下大势，分久必合", "滚滚长江水", "The quick brown fox jumps", "青山在"]
WANTED = ["话说天下大势，合久必分。", "滚滚长江东逝水。", "A quick brown fox jumped", "青山依旧在，几度夕阳红。"]


@pytest.mark.parametrize("tokenize", ["zh", "13a"])
def test_bleu_and_chrf_of_a_corpus_are_sacrebleus(tokenize: str) -> None:
    bleu = writing._corpus("bleu", sacrebleu.BLEU(tokenize=tokenize), WRITTEN, WANTED)
    wanted = sacrebleu.corpus_bleu(WRITTEN, [WANTED], tokenize=tokenize).score
    assert bleu.value == pytest.approx(wanted, abs=1e-9)
    assert bleu.part([0, 1]).value != pytest.approx(wanted, abs=1e-3)
    chrf = writing._corpus("chrf", sacrebleu.CHRF(), WRITTEN, WANTED)
    assert chrf.value == pytest.approx(sacrebleu.corpus_chrf(WRITTEN, [WANTED]).score, abs=1e-9)
    found = chrf.estimate()
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high


def test_rouge_cuts_chinese_into_characters() -> None:
    scorer = RougeScorer(["rouge1", "rougeL"], tokenizer=writing.Words())
    score = scorer.score("青山依旧在 Brown fox", "青山在，brown")
    assert score["rouge1"].recall == pytest.approx(4 / 7)
    assert score["rougeL"].precision == 1.0
    assert RougeScorer(["rouge1"]).score("青山依旧在", "青山在")["rouge1"].recall == 0.0


@pytest.mark.parametrize(
    ("text", "marked", "last"),
    [("so 3 + 4 = 7\n#### 7", "7", "7"), ("#### 1,234.", "1234", "1234"), ("it is $12", None, "12"), ("#### -5 or 6", "-5", "6")],
)
def test_numbers_are_found(text: str, marked: str | None, last: str | None) -> None:
    assert writing.marked_number(text) == marked
    assert writing.last_number(text) == last


def lines(file: Path, *rows: Any) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return file


def judged(encodes: bool) -> Judged:
    tokenizer = tokenizer_of("byte-bpe")
    return Judged(built((encoder_decoder if encodes else decoder_only)(tokenizer.vocab_size)), tokenizer)


@pytest.mark.parametrize("encodes", [True, False])
def test_translations_and_summaries_are_written_and_measured(encodes: bool, tmp_path: Path) -> None:
    rows = [{"source": a, "target": b, "text": a, "summary": b} for a, b in zip(LINES, reversed(LINES), strict=True)]
    place, settings = lines(tmp_path / "t.jsonl", *rows), Settings(max_new_tokens=8, prompt="译：{text}\n")
    translated = writing.translation(judged(encodes), place, settings)
    assert translated.setting["tokenize"] == "zh"
    own = [item["written"] for item in translated.items]
    assert translated.metrics[0].value == pytest.approx(sacrebleu.corpus_bleu(own, [[*reversed(LINES)]], tokenize="zh").score, abs=1e-9)
    summed = writing.summarisation(judged(encodes), place, settings)
    assert [item["written"] for item in summed.items] == own
    assert [metric.name for metric in summed.metrics] == ["rouge1", "rouge2", "rougeL"]


def test_sums_are_asked_after_worked_examples(tmp_path: Path, monkeypatch: Any) -> None:
    asked: list[str] = []

    def answers(judged: Judged, prompts: list[str], *_: Any, **__: Any) -> list[str]:
        asked.extend(prompts)
        return [" 1 + 1 = 2\n#### 2", " It is 5", " none"]

    monkeypatch.setattr(writing, "written", answers)
    lines(tmp_path / "train.jsonl", {"question": "E?", "answer": "easy\n#### 1"})
    lines(tmp_path / "test.jsonl", *({"question": f"Q{i}?", "answer": f"#### {i}"} for i in (2, 5, 7)))
    result = writing.gsm8k(judged(False), tmp_path, Settings())
    assert asked[0] == "Question: E?\nAnswer: easy\n#### 1\n\nQuestion: Q2?\nAnswer:"
    assert [metric.rows[:, 0].tolist() for metric in result.metrics] == [[1, 0, 0], [1, 1, 0]]
    assert result.setting["shots"] == 1
    with pytest.raises(ValueError, match="expected 3 worked examples"):
        writing.gsm8k(judged(False), tmp_path, Settings(shots=3))
    lines(tmp_path / "test.jsonl", {"question": "Q?", "answer": "2"})
    with pytest.raises(ValueError, match=r"test\.jsonl:1: expected an answer that ends in"):
        writing.gsm8k(judged(False), tmp_path, Settings())


@pytest.mark.parametrize(
    ("text", "answer", "same", "inside"),
    [
        (" 画蛇添足。", "画蛇添足", True, True),
        ("这是“画蛇添足”。", "画蛇添足", False, True),
        ("１２３", "123", True, True),
        ("The  Fox!", "the fox", True, True),
        ("57 + 1 = 58", "58", False, True),
        ("158", "58", False, False),
        ("-5", "5", False, False),
        ("1,000", "1000", False, True),
        ("", "a", False, False),
    ],
)
def test_answers_are_compared_plainly(text: str, answer: str, same: bool, inside: bool) -> None:
    assert (writing.plain(text) == writing.plain(answer)) == same
    assert writing.holds(text, answer) == inside


SHAPES = [
    {"question": "1+1=", "answer": "2"},
    {"messages": [{"role": "user", "content": "1+1="}, {"role": "assistant", "content": "2"}]},
    {"instruction": "1+1=", "output": "2"},
    {"question": "1+1=", "answers": ["2", "two"]},
]


@pytest.mark.parametrize("shape", SHAPES, ids=["question", "messages", "alpaca", "answers"])
@pytest.mark.parametrize("chat", [False, True])
def test_questions_of_any_shape_are_asked_and_compared(shape: Any, chat: bool, tmp_path: Path, monkeypatch: Any) -> None:
    asked: list[Any] = []

    def answers(judged: Judged, prompts: list[Any], *_: Any, **__: Any) -> list[str]:
        asked.extend(prompts)
        return [" 2.", "It is 2", "3"]

    monkeypatch.setattr(writing, "written", answers)
    result = writing.exact(judged(False), lines(tmp_path / "q.jsonl", shape, shape, shape), Settings(chat=chat, prompt="Q {text}"))
    assert asked[0] == (({"role": "user", "content": "1+1="},) if chat else "Q 1+1=")
    assert [metric.rows[:, 0].tolist() for metric in result.metrics] == [[1, 0, 0], [1, 1, 0]]


@pytest.mark.parametrize("encodes", [True, False])
def test_a_model_answers_questions(encodes: bool, tmp_path: Path) -> None:
    place = lines(tmp_path / "q.jsonl", SHAPES[0], {"question": "春", "answer": "江"})
    result = writing.exact(judged(encodes), place, Settings(max_new_tokens=4))
    assert [item["text"] for item in result.items] == ["1+1=", "春"]
    assert result.metrics[0].value in (0, 0.5, 1)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"question": "1+1="}, "expected an answer"),
        ({"question": "1+1=", "answers": []}, "several in 'answers'"),
        ({"messages": [{"role": "user", "content": str(i)} for i in range(2)] + [{"role": "assistant", "content": "2"}]}, "--chat"),
    ],
)
def test_a_question_that_is_none_is_told_with_its_line(row: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"q\.jsonl:2: .*{says}"):
        writing.exact(judged(False), lines(tmp_path / "q.jsonl", SHAPES[0], row), Settings())


def test_a_prompt_has_a_place_for_the_text() -> None:
    with pytest.raises(ValueError, match="prompt: expected"):
        Settings(prompt="translate")
