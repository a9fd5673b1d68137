"""Preferences: what language models find more probable, and reward models better."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from generate.conftest import LINES, built, decoder_only, encoder_decoder, encoder_only, tokenizer_of

from triform import config
from triform.evaluate.preferences import preference
from triform.evaluate.task import Judged, Settings
from triform.objectives.reward_model import reward_row
from triform.text.framing import opening, source


def rows(file: Path, *more: Any) -> Path:
    found = [{"prompt": line[:4], "chosen": line[4:9], "rejected": line[9:12]} for line in LINES if len(line) > 12]
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in [*found, *more]), "utf-8")
    return file


def judged(form: str) -> Judged:
    tokenizer = tokenizer_of("wordpiece" if form == "encoder-only" else "byte-bpe")
    made = {"decoder-only": decoder_only, "encoder-decoder": encoder_decoder}.get(form)
    if made is None:
        return Judged(built(encoder_only(tokenizer.vocab_size, config.Classify(labels=1), learned=64)), tokenizer, {"length": 48})
    return Judged(built(made(tokenizer.vocab_size)), tokenizer)


def by_hand(own: Judged, prompt: str, answer: str) -> float:
    """The log-probability of an answer and what ends it, after the prompt as text."""
    text, ids = own.tokenizer, [*own.tokenizer.encode(answer), own.tokenizer.eos]
    asked = text.encode(prompt)
    with torch.no_grad():
        if own.model.config.form == "encoder-decoder":
            read = torch.tensor([source(text, asked)])
            scores = own.model(read, None, torch.tensor([[text.bos, *ids[:-1]]])).logits[0]
        else:
            before = [*opening(text), *asked]
            scores = own.model(torch.tensor([[*before, *ids[:-1]]])).logits[0, len(before) - 1 :]
    return float(scores.log_softmax(-1)[torch.arange(len(ids)), torch.tensor(ids)].sum())


@pytest.mark.parametrize("form", ["decoder-only", "encoder-decoder"])
def test_the_more_probable_answer_is_preferred(form: str, tmp_path: Path) -> None:
    own = judged(form)
    result = preference(own, rows(tmp_path / "p.jsonl"), Settings())
    assert [metric.name for metric in result.metrics] == ["accuracy", "accuracy_normalised", "margin"]
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text("utf-8").splitlines()]
    for item, row in zip(result.items, lines, strict=True):
        chosen, rejected = (by_hand(own, row["prompt"], row[name]) for name in ("chosen", "rejected"))
        assert [item["chosen"], item["rejected"]] == pytest.approx([chosen, rejected], abs=1e-4)
        assert item["right"] == (chosen > rejected)
        assert abs(chosen - rejected) > 1e-2
    assert result.metrics[2].value == pytest.approx(np.mean([item["chosen"] - item["rejected"] for item in result.items]))


def test_a_prompt_that_is_too_long_loses_its_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = judged("decoder-only")
    whole = preference(own, rows(tmp_path / "p.jsonl"), Settings(limit=1)).items[0]
    monkeypatch.setattr(own.tokenizer, "length", 200)
    assert preference(own, tmp_path / "p.jsonl", Settings(limit=1)).items[0] == whole
    monkeypatch.setattr(own.tokenizer, "length", 16)
    assert preference(own, tmp_path / "p.jsonl", Settings(limit=1)).items[0]["chosen"] != pytest.approx(whole["chosen"], abs=1e-3)


def test_a_reward_model_prefers_by_its_reward(tmp_path: Path) -> None:
    own = judged("encoder-only")
    result = preference(own, rows(tmp_path / "p.jsonl"), Settings())
    assert [metric.name for metric in result.metrics] == ["accuracy", "margin"]
    line = json.loads((tmp_path / "p.jsonl").read_text("utf-8").splitlines()[0])
    prompt, answer = ({"role": role, "content": line[name]} for role, name in (("user", "prompt"), ("assistant", "chosen")))
    ids, _ = reward_row(own.tokenizer, [prompt], [answer], 48)
    with torch.no_grad():
        score = float(own.model(torch.tensor([ids])).logits[0, 0])
    assert result.items[0]["chosen"] == pytest.approx(score, abs=1e-5)
    assert result.items[0]["rejected"] != pytest.approx(score, abs=1e-3)


@pytest.mark.parametrize("form", ["decoder-only", "encoder-only"])
def test_a_row_that_is_none_is_told_with_its_line(form: str, tmp_path: Path) -> None:
    file = rows(tmp_path / "p.jsonl", {"prompt": "a", "chosen": "b", "rejected": "b"})
    with pytest.raises(ValueError, match=r"p\.jsonl:\d+: 'chosen' and 'rejected' are the same"):
        preference(judged(form), file, Settings())
    assert preference(judged(form), file, Settings(skip_bad=True)).bad == 1


def test_a_classifier_of_several_labels_is_none() -> None:
    tokenizer = tokenizer_of("wordpiece")
    model = built(encoder_only(tokenizer.vocab_size, config.Classify(labels=3), learned=64))
    with pytest.raises(ValueError, match="expected a language model, or a reward model"):
        preference(Judged(model, tokenizer), Path(__file__), Settings())
