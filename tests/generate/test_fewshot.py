from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from triform.generate import Sampling, generate
from triform.generate.constrained import OneOf
from triform.generate.fewshot import Example, FewShot

from .conftest import built, decoder_only, tokenizer_of

PAIRS = ({"input": "nice room", "output": "good"}, ("too loud", "bad"), Example("ok", "good"))


def test_a_prompt_ends_where_the_answer_begins() -> None:
    task = FewShot(PAIRS[:2], "Judge.")  # type: ignore[arg-type]
    assert task.prompt("cold") == "Judge.\n\nInput: nice room\nOutput: good\n\nInput: too loud\nOutput: bad\n\nInput: cold\nOutput:"


def test_chinese_examples_have_chinese_names() -> None:
    assert FewShot((("很好", "正"),), "判断情感。").prompt("太吵") == "判断情感。\n\n输入：很好\n输出：正\n\n输入：太吵\n输出："  # type: ignore[arg-type]


def test_examples_as_turns_of_a_conversation() -> None:
    turns = FewShot(PAIRS, "Judge.").conversation("cold")  # type: ignore[arg-type]
    assert [turn["role"] for turn in turns] == ["system", *["user", "assistant"] * 3, "user"]
    assert turns[-1]["content"] == "cold"


@pytest.mark.parametrize(
    ("outputs", "stop", "text", "answer"),
    [
        (("good", "bad"), "\n", " bad\n\nInput: more", "bad"),
        (("a\nb", "c"), "\n\n", " a\nb\n\nInput: more", "a\nb"),
        (("a\n\nb", "c"), "\n\nInput:", " a\n\nb\n\nInput: more", "a\n\nb"),
        (('{"a": 1}', "[2]"), "\n", ' {"a": 3}\nInput', {"a": 3}),
        (('{"a": 1}', "[2]"), "\n", " nothing", None),
    ],
)
def test_answers_are_parsed(outputs: tuple[str, str], stop: str, text: str, answer: Any) -> None:
    task = FewShot(tuple(Example("x", output) for output in outputs))
    assert task.sampling().stop == (stop,)
    assert task.parse(text) == answer


def test_closed_answers_are_the_examples_outputs() -> None:
    task = FewShot(PAIRS)  # type: ignore[arg-type]
    assert task.sampling(closed=True).constraint == OneOf((" good", " bad"))
    assert task.sampling(closed=True, chat=True).constraint == OneOf(("good", "bad"))
    assert task.sampling(Sampling(constraint=OneOf(("x",)))).constraint == OneOf((" x",))
    tokenizer = tokenizer_of("byte-bpe")
    model = built(decoder_only(tokenizer.vocab_size))
    found = generate(model, tokenizer, [task.prompt(text) for text in ("cold", "warm")], task.sampling(closed=True))
    assert {task.parse(one.text) for one in found} <= {"good", "bad"}


def test_examples_come_from_files(tmp_path: Path) -> None:
    lines, table = tmp_path / "a.jsonl", tmp_path / "b.tsv"
    lines.write_text('{"input": "nice room", "output": "good"}\n\n["too loud", {"stars": 1}]\n', "utf-8")
    table.write_text("nice room\tgood\ntoo loud\tbad\n", "utf-8")
    assert FewShot.read(lines, "Judge.").examples == (Example("nice room", "good"), Example("too loud", '{"stars": 1}'))
    assert FewShot.read(table).examples == (Example("nice room", "good"), Example("too loud", "bad"))


@pytest.mark.parametrize("written", ["", "good", '{"input": "x"}', '{"input": "x", "output": " "}', "[" * 100_000, '{"input": 1}'])
def test_files_of_something_else_are_refused(written: str, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(written, "utf-8")
    with pytest.raises(ValueError, match=r"a\.jsonl: .*expected on each line") as caught:
        FewShot.read(file)
    assert "\n" not in str(caught.value)
