"""The commands of constrained, proposed and few-shot text, and of the models that judge parts of texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from triform import config, hub
from triform.cli import run

from .conftest import built, decoder_only, encoder_decoder, encoder_only, tokenizer_of


@pytest.fixture(scope="module")
def folders(tmp_path_factory: Any) -> dict[str, str]:
    root: Path = tmp_path_factory.mktemp("models")
    tokenizer = tokenizer_of("byte-bpe")
    size = tokenizer.vocab_size
    models = {
        "story": (decoder_only(size), None),
        "pairs": (encoder_decoder(size), None),
        "names": (encoder_only(size, config.ClassifyTokens(labels=3)), {"labels": ["O", "B-人", "I-人"]}),
        "reader": (encoder_only(size, config.AnswerSpan(), learned=64), None),
        "several": (encoder_only(size, config.Classify(labels=2)), {"labels": ["甲", "乙"], "problem_type": "multi_label_classification"}),
        "number": (encoder_only(size, config.Classify(labels=1)), {"labels": ["价"], "problem_type": "regression"}),
    }
    for name, (spec, task) in models.items():
        hub.save(built(spec), tokenizer, root / name, task)
    (root / "examples.jsonl").write_text('{"input": "很好", "output": "正"}\n{"input": "太吵", "output": "负"}\n', "utf-8")
    (root / "passage.txt").write_text("话说天下大势，分久必合，合久必分。" * 9, "utf-8")
    (root / "schema.json").write_text('{"enum": ["天下", 3]}', "utf-8")
    return {name: str(root / name) for name in [*models, "examples.jsonl", "passage.txt", "schema.json"]}


def answered(capsys: Any, *arguments: str) -> str:
    assert run(list(arguments)) == 0
    found: str = capsys.readouterr().out
    return found


@pytest.mark.parametrize("model", ["story", "pairs"])
def test_generate_keeps_to_a_form(model: str, folders: dict[str, str], capsys: Any) -> None:
    def text(*options: str) -> str:
        (row,) = json.loads(answered(capsys, "generate", folders[model], "话说", "--json", *options))
        found: str = row["text"]
        return found

    assert text("--choice", "天下", "--choice", "大势") in ("天下", "大势")
    assert text("--regex", "[0-9]{3}", "--seed", "1").isdigit()
    schema = Path(folders["schema.json"])
    jsonschema_rs.validate(json.loads(schema.read_text("utf-8")), json.loads(text("--json-schema", str(schema))))
    assert json.loads(text("--json-schema", '{"const": true}')) is True


def test_generate_with_proposals_prints_the_same_and_how_many_were_taken(folders: dict[str, str], capsys: Any) -> None:
    plain = answered(capsys, "generate", folders["story"], "话说", "--max-new-tokens", "20")
    for options in (["--draft", folders["story"]], ["--lookup", "4"]):
        assert run(["generate", folders["story"], "话说", "--max-new-tokens", "20", *options]) == 0
        out, err = capsys.readouterr()
        assert out == plain
        assert "proposed tokens were taken" in err
    (row,) = json.loads(answered(capsys, "generate", folders["story"], "话说", "--lookup", "4", "--json"))
    assert row["speculation"].keys() == {"passes", "proposed", "accepted"}


def test_generate_answers_by_examples(folders: dict[str, str], capsys: Any) -> None:
    options = ["--examples", folders["examples.jsonl"], "--system", "判断情感。", "--choice", "正", "--choice", "负"]
    rows = json.loads(answered(capsys, "generate", folders["story"], "干净", "脏", *options, "--json"))
    assert [row["answer"] in ("正", "负") for row in rows] == [True, True]
    shown = answered(capsys, "generate", folders["story"], "干净", "脏", *options)
    assert shown == "".join(row["answer"] + "\n" for row in rows)


def test_tag_tells_parts_and_their_characters(folders: dict[str, str], capsys: Any) -> None:
    text = "话说天下大势，分久必合，合久必分。" * 4  # more tokens than the model has positions
    (row,) = json.loads(answered(capsys, "tag", folders["names"], text, "--json"))
    assert row["entities"]
    assert {one["label"] for one in row["entities"]} == {"人"}
    assert all(text[one["start"] : one["end"]] == one["text"] for one in row["entities"])
    first = row["entities"][0]
    assert answered(capsys, "tag", folders["names"], text).startswith(f"人\t{first['score']:.3f}\t{first['start']}-{first['end']}\t")


def test_answer_tells_the_best_spans(folders: dict[str, str], capsys: Any) -> None:
    passage = Path(folders["passage.txt"]).read_text("utf-8")
    options = ["--passage", folders["passage.txt"], "--top", "3", "--overlap", "8"]
    (row,) = json.loads(answered(capsys, "answer", folders["reader"], "谁？", *options, "--json"))
    assert len(row["answers"]) == 3
    assert all(passage[one["start"] : one["end"]] == one["text"] for one in row["answers"])
    assert [one["score"] for one in row["answers"]] == sorted((one["score"] for one in row["answers"]), reverse=True)
    assert answered(capsys, "answer", folders["reader"], "谁？", *options).splitlines()[0].startswith(f"{row['answers'][0]['score']:.3f}\t")


def test_classify_of_several_labels_and_of_numbers(folders: dict[str, str], capsys: Any) -> None:
    (row,) = json.loads(answered(capsys, "classify", folders["several"], "天下", "--json"))
    assert sum(row["scores"].values()) != pytest.approx(1, abs=1e-3)
    shown = answered(capsys, "classify", folders["several"], "天下")
    likely = [f"{name}={score:.3f}" for name, score in row["scores"].items() if score >= 0.5]
    assert shown == " ".join(likely) + "\t天下\n"
    (row,) = json.loads(answered(capsys, "classify", folders["number"], "天下", "--json"))
    assert answered(capsys, "classify", folders["number"], "天下") == f"价={row['score']:.3f}\t天下\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["generate", "story", "x", "--regex", "a", "--choice", "b"], "at most one of"),
        (["generate", "story", "x", "--regex", "(a"], "the constraint cannot be kept to"),
        (["generate", "story", "x", "--json-schema", "{"], "expected JSON"),
        (["generate", "story", "x", "--json-schema", "nowhere.json"], "nowhere.json"),
        (["generate", "story", "x", "--draft", "pairs"], "expected two of one form"),
        (["generate", "story", "x", "--lookup", "0"], "tokens: expected at least 1"),
        (["generate", "story", "x", "--lookup", "2", "--num-beams", "2"], "expected no `search`"),
        (["generate", "story", "x", "--examples", "passage.txt"], "expected on each line"),
        (["tag", "story", "x"], "`triform generate` fits it"),
        (["tag", "reader", "x"], "`triform answer` fits it"),
        (["classify", "names", "x"], "`triform tag` fits it"),
        (["answer", "reader", "谁" * 90, "--passage", "passage.txt"], "leaves no room for a passage"),
        (["answer", "reader", "x", "--passage", "passage.txt", "--top", "0"], "top: expected at least 1"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_mistakes_get_one_line(arguments: list[str], expected: str, folders: dict[str, str], capsys: Any) -> None:
    assert run([folders.get(word, word) if at else word for at, word in enumerate(arguments)]) == 2
    out, err = capsys.readouterr()
    assert expected in err
    assert err.count("\n") == 1
    assert not out
