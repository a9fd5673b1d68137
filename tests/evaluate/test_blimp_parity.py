"""A real model's choices between minimal pairs are transformers' on the same weights: each one, and so every accuracy, exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from minimal_pairs import PAIRS_EACH, PHENOMENA, write
from real_models import transformers_model

from triform import hub
from triform.evaluate import Judged, evaluate
from triform.evaluate.likelihood import beginning


def log_prob(model: Any, ids: list[int]) -> float:
    with torch.inference_mode():
        scores = model(torch.tensor([ids[:-1]])).logits[0].float().log_softmax(-1)
    return float(scores.gather(1, torch.tensor(ids[1:])[:, None]).double().sum())


@pytest.mark.slow
def test_a_real_model_chooses_as_in_transformers(tmp_path: Path) -> None:
    place = hub.locate("smollm2-135m-instruct")
    model, tokenizer = hub.load(place)
    assert tokenizer is not None
    assert write(tmp_path) == PAIRS_EACH * len(PHENOMENA)
    (result,) = evaluate(Judged(model, tokenizer), [f"blimp={tmp_path}"])
    theirs = transformers_model(place if place.is_file() else next(place.rglob("*.gguf")))
    start = beginning(tokenizer)
    theirs_right: dict[str, list[bool]] = {}
    for item in result.items:
        good, bad = (log_prob(theirs, [*start, *tokenizer.encode(option)]) for option in item["options"])
        assert item["log_probs"] == pytest.approx([good, bad], abs=2e-3)  # nats, of sums of some tens, other kernels
        theirs_right.setdefault(item["part"], []).append(good >= bad)
    metric, ours = result.metrics[0], result.parts()
    assert set(ours) == set(PHENOMENA)
    accuracies = {part: metric.part(items).value for part, items in ours.items()}
    assert accuracies == {part: sum(right) / len(right) for part, right in theirs_right.items()}
    assert 0.5 < metric.value < 1, "a model that is always or never right would not tell a mistake"
    assert len(set(accuracies.values())) > 1
