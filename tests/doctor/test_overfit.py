"""Ten examples learnt by heart, and the loss before the first step."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from recipes import plain, write_data

from triform.doctor.findings import Examination, Finding
from triform.doctor.loss import check_loss
from triform.doctor.overfit import STEPS, check_overfit, few, fit, lowest_loss
from triform.doctor.subject import Subject
from triform.nn import IGNORE, Layout
from triform.objectives import Batch, Loss
from triform.train import read_recipe, run
from triform.train.loop import Trainer
from triform.train.prepare import prepare, text_fingerprint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("overfit")
    write_data(made)
    return made


def begun(made: dict[str, Any], place: Path) -> tuple[Subject, Trainer]:
    """A recipe's subject, and its trainer before the first step."""
    recipe = read_recipe(made)
    prepared = prepare(recipe, place, text_fingerprint(recipe.data), progress=False)
    trainer = Trainer(replace(recipe, train=replace(recipe.train, linear="torch", compile=False)), place, progress=False, prepared=prepared)
    spec = recipe.architecture(prepared.objective.vocab_size)
    return Subject(recipe, spec, prepared.objective, prepared.train, prepared.validation, source=trainer.train), trainer


def wide(kind: str, folder: Path, rate: float) -> dict[str, Any]:
    """A recipe whose model has room for ten examples."""
    made = plain(kind, folder, rate=rate, batch=10)
    for stack in ("encoder", "decoder"):
        if stack in made["model"]:
            made["model"][stack]["width"] = 64
    return made


@pytest.mark.parametrize("kind", ["Causal", "SequenceToSequence", "Classification", "Masked"])
def test_ten_examples_are_learnt_and_the_weights_given_back(kind: str, folder: Path, tmp_path: Path) -> None:
    subject, trainer = begun(wide(kind, folder, 1e-2), tmp_path)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    found = check_overfit(subject, trainer)
    assert found.severity == "fine", found.line
    assert len(few(subject, trainer).inputs) == 10
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())


def test_a_rate_too_low_is_told_from_a_loss_that_cannot_fall(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = wide("Classification", folder, 2e-5)
    subject, trainer = begun(made, tmp_path)
    found = check_overfit(subject, trainer, steps=150)
    assert found.severity == "warning"
    assert "train.rate=2e-05 is too low: with 0.0002" in found.advice

    monkeypatch.setattr(subject.objective, "loss", lambda model, batch: _deaf(model, batch))
    found = check_overfit(subject, trainer, steps=5)
    assert found.severity == "error"
    assert "does not reach the weights" in found.advice
    assert len(found.figures["tried"]) == 3


def _deaf(model: Any, batch: Batch) -> Loss:
    """A loss that the weights change nothing of."""
    return Loss(0 * model(batch.inputs, batch.mask).logits.sum() + float(len(batch.labels)))


def test_equal_examples_with_different_labels(folder: Path, tmp_path: Path) -> None:
    made = wide("Classification", folder, 1e-2)
    torn = folder / "torn.jsonl"
    torn.write_text("".join(f'{{"text": "一样的话", "label": "{label}"}}\n' for label in ("negative", "positive") * 12), encoding="utf-8")
    made["data"] = {"source": str(torn), "validation": 0}
    made["tokenizer"] = {"kind": "characters", "vocab_size": 11}
    found = check_overfit(*begun(made, tmp_path))
    assert (found.severity, found.says) == ("error", "equal examples among the first 10 have different labels")


def test_what_no_model_can_know() -> None:
    text = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5]])
    labels = torch.tensor([[2, 3, 4, IGNORE], [2, 3, 5, IGNORE]])
    one_of_three = 2 * math.log(2) / 6
    assert math.isclose(lowest_loss(Batch(text, labels), looks_back=True), one_of_three)
    assert lowest_loss(Batch(text, labels), looks_back=False) == 0  # the whole row decides
    documents = Layout(documents=torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1]]))
    assert math.isclose(lowest_loss(Batch(text, labels, layout=documents), looks_back=True), one_of_three)
    differs = torch.tensor([[1, 9, 3, 4], [1, 2, 3, 5]])
    assert lowest_loss(Batch(differs, labels), looks_back=True) == 0  # one goes on with 2, the other with 9
    apart = torch.tensor([[7, 2, 3, 4], [1, 2, 3, 5]])
    assert lowest_loss(Batch(apart, labels), looks_back=True) == 0
    assert lowest_loss(Batch(apart, labels, layout=documents), looks_back=True) > 0  # but not within its document
    both = Batch(text[:, :2], labels, target=torch.tensor([[0, 2, 3, 4], [0, 2, 3, 5]]))
    assert math.isclose(lowest_loss(both, looks_back=True), one_of_three)
    assert lowest_loss(Batch(torch.tensor([[1, 2], [1, 3]]), labels, target=both.target), looks_back=True) == 0


def test_what_is_tried_stays_within_its_steps(folder: Path, tmp_path: Path) -> None:
    subject, trainer = begun(wide("Causal", folder, 1e-9), tmp_path)
    seen: list[tuple[int, int]] = []
    found = fit(trainer, few(subject, trainer), 0.1, steps=5, report=lambda done, total: seen.append((done, total)))
    assert (found.steps, found.learnt, len(seen), seen[-1]) == (5, False, 6, (5, 5))
    assert STEPS >= 100


@contextmanager
def _without_weights(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs that begin from a model do not get its weights."""
    with monkeypatch.context() as patch:
        patch.setattr("triform.hub.Checkpoint.begin", lambda self, model: None)
        yield


def test_the_loss_of_a_model_that_begins_from_another(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triform.train.loop.plot_curves", lambda place: place)
    first = wide("Causal", folder, 1e-2) | {"tokenizer": {"kind": "characters", "vocab_size": 80}}
    first["train"]["steps"] = 60
    run(read_recipe(first), tmp_path / "first", report=lambda row: None)
    base = str(tmp_path / "first" / "model")
    second = wide("Causal", folder, 1e-3) | {"tokenizer": {"path": base}}
    second["train"]["start"] = base
    subject, trainer = begun(second, tmp_path / "second")
    (found,) = check_loss(subject, trainer)
    assert found.severity == "fine", found.line
    assert math.isclose(found.figures["loss"], found.figures["base"], rel_tol=1e-5)
    assert found.figures["loss"] < 0.95 * found.figures["knowing_nothing"]
    with _without_weights(monkeypatch):
        subject, trainer = begun(second, tmp_path / "third")
    (found,) = check_loss(subject, trainer)
    assert found.severity == "error"
    assert "did not arrive" in found.advice


def test_numbers_that_are_none_are_told_in_json() -> None:
    found = Finding("loss", "error", "it is nan", figures={"loss": math.nan, "tried": [{"after": math.inf}, 1.5]})
    told = Examination("recipe", "a.yaml", (found,)).to_dict()
    assert json.loads(json.dumps(told, allow_nan=False))["findings"][0]["figures"] == {"loss": "nan", "tried": [{"after": "inf"}, 1.5]}


def test_a_loss_that_is_no_number_or_too_good(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject, trainer = begun(wide("Causal", folder, 1e-3), tmp_path)
    (found,) = check_loss(subject, trainer)
    assert found.severity == "fine"
    assert abs(found.figures["loss"] - math.log(120)) < 0.5
    monkeypatch.setattr(subject.objective, "uniform_loss", lambda model, batch: 9.0)
    (found,) = check_loss(subject, trainer)
    assert found.severity == "error"
    assert "labels not shifted" in found.advice
    with torch.no_grad():
        next(trainer.model.parameters())[:] = math.nan
    (found,) = check_loss(subject, trainer)
    assert (found.severity, found.says) == ("error", "it is nan")
