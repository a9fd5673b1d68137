"""The average of the weights: what it is, and who uses it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from recipes import recipe
from runs import quiet
from safetensors.torch import load_file

from triform import hub
from triform.train import read_metrics, run
from triform.train.average import Average
from triform.train.loop import Trainer


def test_it_follows_the_weights_by_the_formula() -> None:
    model = torch.nn.Linear(3, 2)
    average = Average(model, 0.8)
    wanted = {name: p.detach().clone() for name, p in model.named_parameters()}
    for step in range(60):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn(parameter.shape)
        average.update(step)
        keep = min(0.8, (1 + step) / (10 + step))
        wanted = {name: keep * wanted[name] + (1 - keep) * p.detach() for name, p in model.named_parameters()}
    for name, value in wanted.items():
        assert torch.allclose(average.values[name], value, rtol=0, atol=1e-5)
    assert not torch.allclose(average.values["weight"], model.weight, atol=0.1)


def test_the_weights_come_back_after_use() -> None:
    model = torch.nn.Linear(3, 2)
    average = Average(model, 0.5)
    with torch.no_grad():
        model.weight += 1
    weights, averages = model.weight.detach().clone(), average.values["weight"].clone()

    def fail() -> None:
        with average.used():
            assert torch.equal(model.weight, averages)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.equal(model.weight, weights)
    assert torch.equal(average.values["weight"], averages)


def test_one_of_another_model_is_refused() -> None:
    average = Average(torch.nn.Linear(3, 2), 0.5)
    with pytest.raises(ValueError, match="differ in bias"):
        average.load({"weight": torch.zeros(2, 3)})
    with pytest.raises(ValueError, match=r"weight of \(3, 2\), expected \(2, 3\)"):
        average.load({"weight": torch.zeros(3, 2), "bias": torch.zeros(2)})


@pytest.mark.parametrize("export", ["last", "best"])
def test_validation_and_the_exported_model_use_it(export: str, data: Path, tmp_path: Path) -> None:
    made, folder = recipe("Causal", data, ema=0.9, export=export, checkpoint_every=1, validate_every=5, rate=0.05), tmp_path / "run"
    run(made, folder, report=quiet)
    rows = {row["step"]: row["validation_loss"] for row in read_metrics(folder / "metrics.jsonl") if "validation_loss" in row}
    trainer = Trainer(made, folder, progress=False)
    assert trainer.state["step"] == trainer.settings.steps - 1 == 5
    assert trainer.validation is not None
    assert trainer.evaluate(trainer.validation.once(None))["loss"] == rows[5]
    average, trainer.average = trainer.average, None
    assert trainer.evaluate(trainer.validation.once(None))["loss"] != rows[5]
    exported, _ = hub.load(folder / "model")
    trainer.model.load_state_dict(exported.state_dict())
    best = min(rows, key=lambda step: rows[step]) if export == "best" else 6
    assert trainer.evaluate(trainer.validation.once(None))["loss"] == rows[best]
    assert average is not None
    assert load_file(folder / "checkpoints" / "step-00000005" / "average.safetensors").keys() == average.values.keys()
