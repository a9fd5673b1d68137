"""`triform eval`: the table, JSON, the history beside the model, pictures, two models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from generate.conftest import LINES, built, decoder_only, tokenizer_of

from triform import hub
from triform.cli import run


@pytest.fixture
def place(tmp_path: Path) -> Path:
    tokenizer = tokenizer_of("byte-bpe")
    for seed in (0, 1):
        hub.save(built(decoder_only(tokenizer.vocab_size), seed), tokenizer, tmp_path / f"story{seed}")
    (tmp_path / "valid.txt").write_text("".join(LINES), "utf-8")
    rows = [{"sentence_good": f"The {who} run", "sentence_bad": f"The {who} runs"} for who in ("fox", "dog", "cat")]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return tmp_path


def called(place: Path, *arguments: str) -> int:
    tasks = ("--tasks", f"perplexity={place / 'valid.txt'}", "--tasks", f"blimp={place / 'pairs.jsonl'}")
    return run(["eval", str(place / "story0"), *arguments, *tasks, "--window", "16"])


def test_figures_are_printed_kept_and_drawn(place: Path, capsys: Any) -> None:
    assert called(place) == 0
    table = capsys.readouterr().out
    assert all(word in table for word in ("valid", "bits per byte", "Wilson", "bootstrap", "pairs", "window 16, stride 8"))
    assert called(place, "--json", "--plot", str(place / "p.svg"), "--items", str(place / "i.jsonl")) == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    first, second = model["results"]
    assert first["metrics"]["perplexity"]["low"] < first["metrics"]["perplexity"]["value"] < first["metrics"]["perplexity"]["high"]
    assert second["metrics"]["accuracy"]["method"] == "Wilson"
    kept = [json.loads(line) for line in (place / "story0/evaluations.jsonl").read_text("utf-8").splitlines()]
    assert [row["task"] for row in kept] == ["valid", "pairs"] * 2
    assert kept[2]["metrics"] == kept[0]["metrics"] == first["metrics"]
    assert "valid: perplexity" in (place / "p.svg").read_text("utf-8")
    assert len((place / "i.jsonl").read_text("utf-8").splitlines()) == 3


def test_two_models_are_compared(place: Path, capsys: Any) -> None:
    assert called(place, str(place / "story1"), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    values = [model["results"][0]["metrics"]["perplexity"]["value"] for model in found["models"]]
    own = found["comparisons"][0]["differences"]["perplexity"]
    assert own["value"] == pytest.approx(values[1] - values[0])
    assert own["test"] == "paired bootstrap"
    assert found["comparisons"][1]["differences"]["accuracy"]["test"] == "McNemar"
    assert called(place, str(place / "story1"), "--plot", str(place / "p.svg")) == 0
    assert "the second less the first" in capsys.readouterr().out
    drawn = (place / "p.svg").read_text("utf-8")
    assert "story0" in drawn
    assert "story1" in drawn


def test_a_torn_history_is_gone_on_with(place: Path, capsys: Any) -> None:
    (place / "story0/evaluations.jsonl").write_text('{"time": "2026-01-01", "mod', "utf-8")
    assert called(place, "--plot", str(place / "p.svg")) == 0
    lines = (place / "story0/evaluations.jsonl").read_text("utf-8").splitlines()
    assert len(lines) == 3
    assert json.loads(lines[1])["task"] == "valid"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--plot", "figures.txt"), "end in .svg"),
        (("--confusion", "c.svg"), "expected a task classification"),
        (("story1", "story2"), "one model, or two"),
        (("--stride", "17"), "stride: expected at most the window's 16"),
        (("--limit", "0"), "limit: expected at least 1"),
        (("--tasks", "nothing=x"), "expected KIND=PATH"),
    ],
)
def test_mistakes_get_one_line(arguments: tuple[str, ...], says: str, place: Path, capsys: Any) -> None:
    assert called(place, *arguments) == 2
    told = capsys.readouterr().err.strip()
    assert says in told
    assert "\n" not in told
