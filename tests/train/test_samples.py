"""What a model makes of prompts while it learns is on record, and changes nothing of what it learns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from recipes import plain, recipe
from runs import Killed, assert_same, killed_at, outcome, quiet

from triform import hub
from triform.generate import Sampling, generate
from triform.train import read_recipe, run
from triform.train.find_rate import find_rate
from triform.train.samples import shown

PROMPTS = {
    "Causal": ["汉朝", "黑气十"], "Prefix": ["汉朝", "黑气十"], "SequenceToSequence": ["大蛇"], "SpanCorruption": ["大蛇"],
    "Masked": ["大[MASK]蛇"], "Classification": ["很好", "太差"],
}  # fmt: skip


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text("utf-8").splitlines()]


def sampled(kind: str, data: Path, **train: Any) -> Any:
    settings = {"prompts": PROMPTS[kind], "every": 2, "max_new_tokens": 4}
    return recipe(kind, data, steps=5, samples=settings, **train)


@pytest.mark.parametrize("kind", PROMPTS)
def test_every_form_says_what_it_can(kind: str, data: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    run(sampled(kind, data), tmp_path / "run", report=lambda row: lines.extend([row["sample"]] if "sample" in row else []))
    found = rows(tmp_path / "run")
    assert [(row["step"], row["prompt"]) for row in found] == [(step, text) for step in (2, 4, 5) for text in PROMPTS[kind]]
    assert lines == [shown(row) for row in found[:: len(PROMPTS[kind])]]
    assert all(line.startswith(f"step {step}: ") and "\n" not in line for line, step in zip(lines, (2, 4, 5), strict=True))
    for row in found:
        if kind == "Classification":
            assert row["label"] in ("negative", "positive")
            assert 0.5 <= row["score"] <= 1
        elif kind == "Masked":
            assert row["text"][0] == "大"
            assert row["text"][-1] == "蛇"
            assert len(row["masks"][0]) == 3
        else:
            assert isinstance(row["text"], str)


def test_the_last_sample_is_the_saved_models(data: Path, tmp_path: Path) -> None:
    run(sampled("Causal", data, ema=0.9, rate=0.01), tmp_path / "run", report=quiet)
    model, tokenizer = hub.load(tmp_path / "run" / "model")
    assert tokenizer is not None
    how = Sampling(max_new_tokens=4, temperature=0.8, top_p=0.95, seed=0)
    said = [one.text for one in generate(model, tokenizer, PROMPTS["Causal"], how)]
    assert [row["text"] for row in rows(tmp_path / "run")[-2:]] == said
    first = [row["text"] for row in rows(tmp_path / "run")[:2]]
    assert first != said  # control: the model of step 2 says something else


@pytest.mark.parametrize("kind", ["Causal", "Masked"])
def test_they_disturb_no_bit_and_are_written_once(kind: str, data: Path, tmp_path: Path) -> None:
    run(recipe(kind, data, steps=5), tmp_path / "without", report=quiet)
    made = sampled(kind, data)
    run(made, tmp_path / "whole", report=quiet)
    with pytest.raises(Killed):
        run(made, tmp_path / "stopped", report=killed_at(5))
    with (tmp_path / "stopped" / "samples.jsonl").open("a", encoding="utf-8") as out:
        out.write('{"step": 5, "pro')
    run(made, tmp_path / "stopped", resume=True, report=quiet)
    assert_same(outcome(tmp_path / "without"), outcome(tmp_path / "whole"))
    assert_same(outcome(tmp_path / "without"), outcome(tmp_path / "stopped"))
    assert rows(tmp_path / "whole") == rows(tmp_path / "stopped")


def test_what_cannot_be_said_is_refused_at_the_start(data: Path, tmp_path: Path) -> None:
    cases = [
        ("Masked", ["大蛇"], r"train\.samples\.prompts: text 1 has no \[MASK\]"),
        ("Causal", ["蛇" * 60], r"train\.samples\.prompts: a prompt has 6\d tokens and the model has 32"),
        ("ImageClassification", ["大蛇"], r"train\.samples: this model is one of pictures"),
        ("Contrastive", ["大蛇"], r"train\.samples: this model is one of pictures"),
    ]
    for kind, prompts, says in cases:
        with pytest.raises(ValueError, match=says) as caught:
            run(read_recipe(plain(kind, data, samples={"prompts": prompts})), tmp_path / "run")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "run").exists()
    for wrong in ({"prompts": []}, {"prompts": ["a"], "every": 0}, {"prompts": ["a"], "top_p": 0}, {"prompts": ["a"], "temperature": -1}):
        with pytest.raises(ValueError, match=r"train\.samples\.(prompts|every|top_p|temperature): expected"):
            read_recipe(plain("Causal", data, samples=wrong))


def test_a_sample_that_fails_is_put_on_record(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from triform.train import loop

    trainer = loop.Trainer(sampled("Causal", data), tmp_path / "run", progress=False)
    assert trainer.samples is not None
    with torch.no_grad():
        trainer.model.decoder.input.token.weight.fill_(float("nan"))
    (first, _) = trainer.samples.draw(2)
    assert "not finite" in first["failed"]
    assert "not finite" in shown(first)


def test_looking_for_a_rate_draws_none(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triform.train.loop.Samples", lambda *a: pytest.fail("drawn"))
    assert find_rate(sampled("Causal", data), steps=20).rate > 0
