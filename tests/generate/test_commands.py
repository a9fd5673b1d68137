from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

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
        "story": decoder_only(size),
        "pairs": encoder_decoder(size),
        "masked": encoder_only(size),
        "judge": encoder_only(size, config.Classify(labels=2)),
    }
    for name, spec in models.items():
        hub.save(built(spec), tokenizer, root / name, {"labels": ["坏", "好"], "length": 12} if name == "judge" else None)
    hub.save(built(models["story"]), None, root / "bare")
    return {name: str(root / name) for name in [*models, "bare"]}


def answered(capsys: Any, *arguments: str) -> str:
    assert run(list(arguments)) == 0
    found: str = capsys.readouterr().out
    return found


def test_generate_streams_what_it_reports(folders: dict[str, str], capsys: Any) -> None:
    options = ["--max-new-tokens", "20", "--seed", "3", "--top-p", "0.9"]
    shown = answered(capsys, "generate", folders["story"], "话说", *options)
    (row,) = json.loads(answered(capsys, "generate", folders["story"], "话说", *options, "--json"))
    assert shown == f"话说{row['text']}\n"
    assert row["prompt"] == "话说"
    assert len(row["ids"]) == len(row["log_probs"]) == 20
    assert row["finish_reason"] == "length"


def test_generate_reads_prompts_from_standard_input(folders: dict[str, str], capsys: Any, monkeypatch: Any) -> None:
    def give(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    give("话说\n白发\n".encode())
    rows = json.loads(answered(capsys, "generate", folders["pairs"], "-", "--max-new-tokens", "4", "--json"))
    assert [row["prompt"] for row in rows] == ["话说", "白发"]
    give("话说\n白发\n".encode())
    assert answered(capsys, "generate", folders["pairs"], "-", "--max-new-tokens", "4") == "".join(row["text"] + "\n" for row in rows)
    give(b"\xff\xfe")
    assert run(["generate", folders["pairs"], "-"]) == 2
    assert "UTF-8" in capsys.readouterr().err
    give(b"")
    assert run(["generate", folders["pairs"], "-"]) == 2


def test_many_prompts_answer_as_one_call_does(folders: dict[str, str], capsys: Any) -> None:
    prompts = [f"话说{i}" for i in range(40)]
    rows = json.loads(answered(capsys, "generate", folders["story"], *prompts, "--max-new-tokens", "3", "--seed", "1", "--json"))
    (alone,) = json.loads(answered(capsys, "generate", folders["story"], prompts[37], "--max-new-tokens", "3", "--seed", "38", "--json"))
    assert rows[37]["ids"] == alone["ids"]


def test_greedy_unless_something_asks_for_chance(folders: dict[str, str], capsys: Any) -> None:
    plain = answered(capsys, "generate", folders["story"], "话说")
    assert answered(capsys, "generate", folders["story"], "话说") == plain
    assert answered(capsys, "generate", folders["story"], "话说", "--temperature", "0", "--seed", "1") == plain
    assert answered(capsys, "generate", folders["story"], "话说", "--seed", "1") != plain


def test_beams_are_printed_as_they_are_told(folders: dict[str, str], capsys: Any) -> None:
    options = ["--num-beams", "4", "--num-return-sequences", "2", "--max-new-tokens", "8", "--length-penalty", "0.5"]
    options += ["--early-stopping", "true"]
    rows = json.loads(answered(capsys, "generate", folders["pairs"], "话说", "白发", *options, "--json"))
    assert [row["prompt"] for row in rows] == ["话说", "话说", "白发", "白发"]
    assert rows[0]["score"] > rows[1]["score"] > -1e6
    assert answered(capsys, "generate", folders["pairs"], "话说", "白发", *options) == "".join(row["text"] + "\n" for row in rows)
    best = answered(capsys, "generate", folders["pairs"], "话说", *options[:2], *options[4:])
    assert best == rows[0]["text"] + "\n"


def test_each_search_and_option_has_its_effect(folders: dict[str, str], capsys: Any) -> None:
    def ids(*options: str) -> tuple[int, ...]:
        (row,) = json.loads(answered(capsys, "generate", folders["story"], "话说", "--max-new-tokens", "12", *options, "--json"))
        return tuple(row["ids"])

    usual = ids()
    assert ids("--search", "greedy") == usual
    assert ids("--search", "contrastive") == ids("--penalty-alpha", "0.5", "--top-k", "50")
    assert ids("--search", "contrastive", "--penalty-alpha", "0") == usual
    assert ids("--search", "beam", "--seed", "1") == ids("--search", "beam", "--num-beams", "5", "--seed", "1")
    named = ["--temperature", "0.98", "--top-k", "50", "--top-p", "0.8", "--no-repeat-ngram", "4"]
    assert ids("--search", "sampling", "--seed", "1") == ids(*named, "--seed", "1")
    assert ids("--search", "sampling", "--seed", "1", "--temperature", "3") != ids("--search", "sampling", "--seed", "1")
    changes = [
        ["--logit-bias", f"{usual[0]}=-inf"], ["--num-beams", "3", "--logit-bias", f"{usual[1]}=-inf"], ["--penalty-alpha", "0.7"],
        ["--repetition-penalty", "3"], ["--presence-penalty", "9"], ["--frequency-penalty", "9"], ["--no-repeat-ngram", "1"],
        ["--typical-p", "0.2", "--seed", "1"],
    ]  # fmt: skip
    assert all(ids(*change) != usual for change in changes)
    (row,) = json.loads(answered(capsys, "generate", folders["story"], "话说", "--top-log-probs", "2", "--max-new-tokens", "3", "--json"))
    assert [top[0][0] for top in row["tops"]] == row["ids"]


def test_bad_words_are_not_written(folders: dict[str, str], capsys: Any) -> None:
    usual = answered(capsys, "generate", folders["story"], "话说").removeprefix("话说")
    word = usual.strip()[:1]
    assert word not in answered(capsys, "generate", folders["story"], "话说", "--bad-word", word).removeprefix("话说")


def test_fill_shows_the_text_and_the_candidates(folders: dict[str, str], capsys: Any) -> None:
    (row,) = json.loads(answered(capsys, "fill", folders["masked"], "天下[MASK]势", "--top", "3", "--json"))
    lines = answered(capsys, "fill", folders["masked"], "天下[MASK]势", "--top", "3").splitlines()
    assert lines[0] == row["text"]
    assert len(row["masks"][0]) == 3
    assert f"{row['masks'][0][0]['probability']:.1%}" in lines[1]


def test_classify_uses_the_labels_saved_with_the_model(folders: dict[str, str], capsys: Any) -> None:
    rows = json.loads(answered(capsys, "classify", folders["judge"], "好", "话" * 30, "--json"))
    assert [set(row["scores"]) for row in rows] == [{"坏", "好"}] * 2
    assert run(["classify", folders["judge"], "好", "话" * 30]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == f"{rows[0]['label']}\t{rows[0]['score']:.3f}\t好"
    assert err == "triform: 1 of 2 texts are longer than 12 tokens and were cut to that\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["generate", "masked", "话"], "`triform fill` fits it"),
        (["generate", "judge", "话"], "`triform classify` fits it"),
        (["fill", "story", "[MASK]"], "`triform generate` fits it"),
        (["classify", "pairs", "话"], "`triform generate` fits it"),
        (["generate", "bare", "话"], "tokenizer.json"),
        (["generate", "story", "话", "--temperature", "-1"], "temperature: expected"),
        (["generate", "story", "话", "--max-new-tokens", "0"], "max_new_tokens: expected"),
        (["generate", "nowhere", "话"], "expected"),
        (["generate", "story", "话", "--length-penalty", "1"], "--length-penalty: expected --num-beams"),
        (["generate", "story", "话", "--search", "sampling", "--num-beams", "2"], "--num-beams: expected beams"),
        (["generate", "story", "话", "--search", "beam", "--penalty-alpha", "0.5"], "--penalty-alpha: expected contrastive"),
        (["generate", "story", "话", "--num-beams", "2", "--num-return-sequences", "3"], "num_return_sequences: expected"),
        (["generate", "story", "话", "--logit-bias", "x=1"], "--logit-bias: expected"),
        (["generate", "story", "话", "--logit-bias", "99999=1"], "logit_bias: expected ids below"),
        (["generate", "story", "话", "--top-log-probs", "2"], "--top-log-probs: expected --json"),
        (["fill", "masked", "话"], "no [MASK]"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_get_one_line(arguments: list[str], expected: str, folders: dict[str, str], capsys: Any) -> None:
    command, folder, *rest = arguments
    assert run([command, folders.get(folder, folder), *rest]) == 2
    out, err = capsys.readouterr()
    assert expected in err
    assert err.count("\n") == 1
    assert not out
