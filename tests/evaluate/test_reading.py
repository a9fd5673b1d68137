"""Reading comprehension: the rules of SQuAD and CMRC, their files, and what is wrong in them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from generate.conftest import LINES, built, decoder_only, encoder_only, tokenizer_of

from triform import config
from triform.evaluate.reading import _squad_words, cmrc, cmrc_pieces, f1, run_f1, squad
from triform.evaluate.task import Judged, Settings


@pytest.mark.parametrize(
    ("text", "pieces"),
    [("《光荣》和ω-Force", ["光", "荣", "和", "ωforce"]), ("1998年", ["1998", "年"]), ("U.军", ["u", ".", "军"]), ("，。", [])],
)
def test_chinese_is_cut_into_characters_and_words(text: str, pieces: list[str]) -> None:
    assert cmrc_pieces(text) == pieces


@pytest.mark.parametrize(
    ("mine", "wanted", "score"),
    [("光荣和他", "光荣", 2 * 2 / 6), ("光荣", "光荣", 1.0), ("荣光", "光荣", 0.5), ("他", "光荣", 0.0), ("", "", 1.0), ("", "光", 0.0)],
)
def test_f1_of_cmrc_is_by_the_longest_run(mine: str, wanted: str, score: float) -> None:
    assert run_f1(cmrc_pieces(mine), cmrc_pieces(wanted)) == pytest.approx(score)


@pytest.mark.parametrize(
    ("mine", "wanted", "score"),
    [("the Cat, sat", "a cat sat", 1.0), ("cat sat down", "cat sat", 0.8), ("sat cat", "cat sat", 1.0), ("dog", "cat", 0.0)],
)
def test_f1_of_squad_is_by_words(mine: str, wanted: str, score: float) -> None:
    assert f1(Counter(_squad_words(mine)), Counter(_squad_words(wanted))) == pytest.approx(score)


def file(folder: Path, *questions: Any, context: Any = LINES[2]) -> Path:
    found = folder / "dev.json"
    found.write_text(json.dumps({"data": [{"paragraphs": [{"context": context, "qas": list(questions)}]}]}), "utf-8")
    return found


def question(text: str, **more: Any) -> dict[str, Any]:
    return {"id": "Q", "question": "何在？", "answers": [{"text": text, "answer_start": 0}], **more}


def reader() -> Judged:
    tokenizer = tokenizer_of("wordpiece")
    return Judged(built(encoder_only(tokenizer.vocab_size, config.AnswerSpan(), learned=64)), tokenizer)


def test_a_reader_is_measured(tmp_path: Path) -> None:
    place = file(tmp_path, question("青山"))
    chosen = cmrc(reader(), place, Settings()).items[0]["chosen"]
    assert chosen in LINES[2]
    other = "，" if chosen != "，" else "青"
    result = cmrc(reader(), file(tmp_path, question(chosen), question(other)), Settings())
    assert {metric.name: metric.rows[:, 0].tolist() for metric in result.metrics}["exact_match"] == [1.0, 0.0]
    assert result.metrics[1].rows[0, 0] == 1.0
    assert result.notes == []
    absent = cmrc(reader(), file(tmp_path, question("东京"), question("青山")), Settings())
    assert absent.notes == ["1 of 2 questions have an answer that does not stand in the passage"]


def test_a_language_model_writes_answers(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("byte-bpe")
    judged = Judged(built(decoder_only(tokenizer.vocab_size)), tokenizer)
    place = file(tmp_path, question("青山"), {"question": "x", "answers": [], "is_impossible": True})
    result = squad(judged, place, Settings(max_new_tokens=4))
    assert len(result.items) == 2
    assert all("\n" not in item["chosen"] for item in result.items)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (question(""), "expected answers with text, got an empty one"),
        ({"id": "Q", "question": "何在？", "answers": []}, "expected at least one answer"),
        ({"id": "Q", "answers": []}, "expected a 'question' and 'answers'"),
    ],
)
def test_a_bad_question_is_told_and_may_be_skipped(bad: Any, says: str, tmp_path: Path) -> None:
    place = file(tmp_path, question("青山"), bad)
    with pytest.raises(ValueError, match=r"dev\.json: paragraph 1, question Q: ") as error:
        cmrc(reader(), place, Settings())
    assert says in str(error.value)
    assert cmrc(reader(), place, Settings(skip_bad=True)).bad == 1


@pytest.mark.parametrize("written", ["nothing", "[]", '{"data": 3}', '{"data": [{"paragraphs": [{"context": 3}]}]}'])
def test_what_is_no_such_file_is_told(written: str, tmp_path: Path) -> None:
    (tmp_path / "dev.json").write_text(written, "utf-8")
    with pytest.raises(ValueError, match=r"dev\.json: .*expected"):
        cmrc(reader(), tmp_path / "dev.json", Settings())
