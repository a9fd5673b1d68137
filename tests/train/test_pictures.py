"""Recipes of pictures, from their data to a saved model that says what the trained one said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from recipes import plain, recipe
from runs import quiet

from triform import hub
from triform.train import read_recipe, run
from triform.train.loop import Trainer


@pytest.mark.parametrize("kind", ["ImageClassification", "Contrastive"])
def test_a_saved_model_is_the_trained_one(kind: str, data: Path, tmp_path: Path) -> None:
    made = recipe(kind, data)
    result = run(made, tmp_path / "run", report=quiet)
    assert result.finished
    assert result.validation_accuracy is not None
    trainer = Trainer(made, tmp_path / "run", progress=False)
    model, tokenizer = hub.load(tmp_path / "run" / "model")
    assert (tokenizer is None) == (kind == "ImageClassification")
    trainer.model.load_state_dict(model.state_dict())
    assert trainer.validation is not None
    again = trainer.evaluate(trainer.validation.once(None))
    assert again["loss"] == pytest.approx(result.validation_loss, rel=1e-6)
    fresh = Trainer(made, tmp_path / "fresh", progress=False)
    assert fresh.validation is not None
    assert fresh.evaluate(fresh.validation.once(None))["loss"] != pytest.approx(result.validation_loss, rel=1e-6)
    task = json.loads((tmp_path / "run" / "model" / "task.json").read_text("utf-8"))
    assert (task["objective"], task["image_size"], task["image_mean"]) == (kind, 6, [0.5])


def test_the_vocabulary_of_a_text_tower_is_the_tokenizers(data: Path, tmp_path: Path) -> None:
    trainer = Trainer(recipe("Contrastive", data), tmp_path / "run", progress=False)
    assert trainer.model.text.input.token.weight.shape[0] == trainer.tokenizer.vocab_size == 40


def test_a_model_of_pictures_has_no_tokenizer_to_train(data: Path, tmp_path: Path) -> None:
    trainer = Trainer(recipe("ImageClassification", data), tmp_path / "run", progress=False)
    assert trainer.objective.vocab_size is None
    assert not (tmp_path / "run" / "tokenizer").exists()


def test_bad_steps_of_pictures_are_put_on_record(data: Path, tmp_path: Path) -> None:
    settings = plain("ImageClassification", data, guard={}, steps=3)
    made = read_recipe(settings)
    trainer = Trainer(made, tmp_path / "run", progress=False)
    trainer.peak = 1e9
    with torch.no_grad():
        trainer.model.head.out.weight.fill_(float("nan"))
    trainer._step(0)
    row = json.loads((tmp_path / "run" / "skipped.jsonl").read_text("utf-8"))
    assert row["texts"] == []
    assert len(row["samples"]) == 3
