"""Files of minimal pairs and of exams: what is asked, what is right, and what is said of a bad line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from generate.conftest import built, decoder_only, tokenizer_of

from triform.evaluate.likelihood import log_likelihoods
from triform.evaluate.run import Asked, compare_results, evaluate
from triform.evaluate.task import Judged, Result, Settings


def judged(seed: int = 0) -> Judged:
    tokenizer = tokenizer_of("byte-bpe")
    return Judged(built(decoder_only(tokenizer.vocab_size), seed), tokenizer)


def measured(task: str, seed: int = 0, **settings: Any) -> Result:
    (found,) = evaluate(judged(seed), [task], Settings(**settings))
    return found


def lines(file: Path, *rows: Any) -> Path:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return file


def pairs(folder: Path) -> Path:
    """Two files of minimal pairs."""
    for name, words in (("agreement", ("runs", "run")), ("anaphor", ("he", "himself"))):
        texts = [[f"The {who} {word}" for word in words] for who in ("fox", "dog", "cat")]
        rows = [{"sentence_good": good, "sentence_bad": bad, "UID": name} for good, bad in texts]
        lines(folder / f"{name}.jsonl", *rows)
    return folder


def test_of_a_minimal_pair_the_more_probable_one_is_chosen(tmp_path: Path) -> None:
    result = measured(f"blimp={pairs(tmp_path)}")
    assert {part: len(items) for part, items in result.parts().items()} == {"agreement": 3, "anaphor": 3}
    for item in result.items:
        own = judged()
        first, second = log_likelihoods(own.model, own.tokenizer, [("", option) for option in item["options"]])
        assert item["right"] == (first.log_prob > second.log_prob)
    assert len({item["right"] for item in result.items}) == 2, "the test would not see a mistake"
    assert result.metrics[0].value == sum(item["right"] for item in result.items) / 6


def test_normalised_accuracy_divides_by_characters(tmp_path: Path) -> None:
    rows = [{"question": f"{i}:", "choices": ["鑫", "the quick brown fox jumps"], "answer": "B"} for i in range(4)]
    result = measured(f"choice={lines(tmp_path / 'q.jsonl', *rows)}")
    plain, normalised = result.metrics
    assert (plain.name, normalised.name) == ("accuracy", "accuracy_normalised")
    for number, item in enumerate(result.items):
        short, long = item["log_probs"]
        assert plain.rows[number, 0] == (long > short)
        assert normalised.rows[number, 0] == (long / 25 > short / 1)
    assert plain.value != normalised.value


@pytest.mark.parametrize("answer", [1, "1", "B", "风"])
def test_an_answer_is_a_number_a_letter_or_a_text(answer: Any, tmp_path: Path) -> None:
    (item,) = measured(f"choice={lines(tmp_path / 'q.jsonl', {'ctx': '春', 'endings': ['江', '风'], 'label': answer})}").items
    assert item["answer"] == 1
    assert item["options"] == ["江", "风"]


def test_arc_is_read_and_latin_answers_follow_a_blank(tmp_path: Path) -> None:
    row = {"question": "Who?", "choices": {"text": ["a fox", "a dog"], "label": ["1", "2"]}, "answerKey": "2"}
    (item,) = measured(f"choice={lines(tmp_path / 'q.jsonl', row)}").items
    assert (item["answer"], item["options"]) == (1, [" a fox", " a dog"])


EXAMS = {
    "mmlu": ("test/anatomy_test.csv", "dev/anatomy_dev.csv", "", "{q},one,two,three,4,{a}\n"),
    "cmmlu": ("test/anatomy.csv", "dev/anatomy.csv", ",Question,A,B,C,D,Answer\n", "0,{q},one,two,three,4,{a}\n"),
    "ceval": ("val/law_val.csv", "dev/law_dev.csv", "id,question,A,B,C,D,answer\n", "0,{q},one,two,three,4,{a}\n"),
}


def exam(kind: str, folder: Path) -> Path:
    test, dev, head, row = EXAMS[kind]
    for name, rows in ((test, [("Q1", "A"), ('"Q2, long"', "D")]), (dev, [("E1", "B"), ("E2", "C"), ("E3", "A")])):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text(head + "".join(row.format(q=q, a=a) for q, a in rows), "utf-8")
    return folder


@pytest.mark.parametrize(
    ("kind", "head", "cue"),
    [
        ("mmlu", "The following are multiple choice questions (with answers) about anatomy.", "Answer:"),
        ("cmmlu", "以下是关于解剖学的单项选择题，请直接给出正确答案的选项。", "答案："),
        ("ceval", "以下是中国关于法学的单项选择题，请选出其中的正确答案。", "答案："),
    ],
)
def test_an_exam_is_asked_as_the_harness_asks_it(kind: str, head: str, cue: str, tmp_path: Path) -> None:
    result = measured(f"{kind}={exam(kind, tmp_path)}", shots=2)
    own = "A. one\nB. two\nC. three\nD. 4\n" + cue
    first, second = result.items
    assert first["question"] == f"{head}\n\nE1\n{own} B\n\nE2\n{own} C\n\nQ1\n{own}"
    assert second["question"].endswith(f"Q2, long\n{own}")
    assert first["options"] == [" A", " B", " C", " D"]
    assert [item["answer"] for item in result.items] == [0, 3]
    assert [item["part"] for item in result.items] == ["law" if kind == "ceval" else "anatomy"] * 2
    assert result.setting == {"shots": 2}
    with pytest.raises(ValueError, match="expected 4 worked examples beside it"):
        measured(f"{kind}={tmp_path}", shots=4)


def test_an_exam_without_worked_examples_says_so(tmp_path: Path) -> None:
    folder = exam("mmlu", tmp_path)
    (folder / "dev/anatomy_dev.csv").unlink()
    result = measured(f"mmlu={folder}")
    assert result.setting == {"shots": 0}
    assert "no worked examples" in result.notes[0]


@pytest.mark.parametrize(
    ("kind", "written", "says"),
    [
        ("blimp", '{"sentence_good": "a", "sentence_bad": "b"}\n{"sentence_good": "a"}\n', "t.jsonl:2: expected 'sentence_bad'"),
        ("blimp", '{"sentence_good": "a", "sentence_bad": 3}\n', "t.jsonl:1: expected text in 'sentence_bad', got int '3'"),
        ("blimp", "\nnothing\n", "t.jsonl:2: expected a JSON object, got 'nothing'"),
        ("blimp", "[1]\n", "t.jsonl:1: expected a JSON object, got list"),
        ("choice", '{"question": "a", "choices": ["b"], "answer": 0}\n', "t.jsonl:1: expected at least two texts"),
        ("choice", '{"question": "a", "choices": ["b", "c"], "answer": 2}\n', "t.jsonl:1: expected in 'answer' the number"),
        ("choice", '{"question": "a", "choices": ["b", "c"], "answer": true}\n', "t.jsonl:1: expected in 'answer' the number"),
    ],
)
def test_a_bad_line_is_told_with_its_place_and_may_be_skipped(kind: str, written: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text(written, "utf-8")
    with pytest.raises(ValueError, match="--skip-bad") as error:
        measured(f"{kind}={file}")
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    fine = {"sentence_good": "a", "sentence_bad": "b", "question": "a", "choices": ["b", "c"], "answer": 0}
    file.write_text(written + json.dumps(fine) + "\n", "utf-8")
    result = measured(f"{kind}={file}", skip_bad=True)
    assert result.bad == 1


def test_a_table_with_a_row_too_short_is_told_by_its_line(tmp_path: Path) -> None:
    file = tmp_path / "law_test.csv"
    file.write_text('"Q\n1",a,b,c,d,A\nQ2,a,b,c,A\n', "utf-8")
    with pytest.raises(ValueError, match=r"law_test\.csv:3: expected 6 columns, got 5"):
        measured(f"mmlu={file}")


def test_two_models_are_compared_pair_by_pair(tmp_path: Path) -> None:
    first, second = (measured(f"blimp={pairs(tmp_path)}", seed) for seed in (0, 3))
    found = compare_results(first, second)
    assert found.differences["accuracy"].value == pytest.approx(second.metrics[0].value - first.metrics[0].value)
    assert set(found.parts) == {"agreement", "anaphor"}
    lines(tmp_path / "more.jsonl", {"sentence_good": "a", "sentence_bad": "b"})
    with pytest.raises(ValueError, match="same data"):
        compare_results(first, measured(f"blimp={tmp_path}"))


@pytest.mark.parametrize("written", ["blimp", "nothing=x", "blimp=", "blimp=nowhere"])
def test_a_task_is_a_kind_and_a_place(written: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        Asked.parse(written)
