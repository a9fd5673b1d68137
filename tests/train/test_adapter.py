"""Runs that train an adapter: what they keep, write, refuse, and that they go on bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from recipes import plain, recipe
from runs import Killed, assert_same, killed_at, outcome, quiet, stopped_and_resumed
from safetensors.torch import load_file

from triform import config, hub
from triform.planner import adapters, memory
from triform.planner.parameters import parameters
from triform.train import read_recipe, run
from triform.train.outlook import setting_of

ADAPTER = {"rank": 2, "alpha": 4, "dropout": 0.1}


@pytest.fixture(scope="module")
def bases(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models to begin from, by objective."""
    found = {}
    for kind in ("Causal", "SequenceToSequence", "Masked"):
        folder = tmp_path_factory.mktemp(kind)
        run(recipe(kind, data, steps=3), folder, report=quiet)
        found[kind] = folder / "model"
    return found


def adapted(kind: str, data: Path, base: Path, adapter: dict[str, Any] | None = None, **train: Any) -> dict[str, Any]:
    """A recipe of the objective on an adapter of a model."""
    settings = plain(kind, data, start=str(base), adapter=ADAPTER | (adapter or {}), **train)
    settings["tokenizer"] = {"path": str(base)}
    return settings


@pytest.mark.parametrize(
    ("kind", "adapter", "train"),
    [
        ("Causal", {}, {}),
        ("Causal", {"kind": "dora", "quantize": "nf4"}, {"ema": 0.9, "precision": "bf16"}),
        ("SequenceToSequence", {"kind": "dora", "targets": ["query", "value"]}, {"recompute": "full"}),
        ("Masked", {"quantize": "nf4"}, {"recompute": "selective"}),
        ("Classification", {}, {}),
    ],
)
def test_a_run_goes_on_bit_for_bit(
    kind: str, adapter: dict[str, Any], train: dict[str, Any], data: Path, bases: dict[str, Path], tmp_path: Path
) -> None:
    made = read_recipe(adapted(kind, data, bases.get(kind, bases["Masked"]), adapter, **train))
    run(made, tmp_path / "whole", report=quiet)
    stopped_and_resumed(made, tmp_path / "stopped", [1, 3])
    whole = outcome(tmp_path / "whole")
    assert_same(whole, outcome(tmp_path / "stopped"))
    head = kind == "Classification"
    assert all(".adapter.0." in name or (head and name.startswith("head.")) for name in whole["weights"])
    assert {name.partition("/")[2] for name in whole["optimizer"]} == whole["weights"].keys()
    assert any(bool(tensor.any()) for name, tensor in whole["weights"].items() if name.endswith("lora_b"))


def test_what_a_run_leaves_is_an_adapter_that_loads_merged(data: Path, bases: dict[str, Path], tmp_path: Path) -> None:
    made = read_recipe(adapted("Causal", data, bases["Causal"], rate=0.01))
    found = run(made, tmp_path, report=quiet)
    base = hub.load(bases["Causal"])[0]
    assert found.parameters == parameters(base.config).total + (found.trained or 0)
    assert found.trained == sum(tensor.numel() for tensor in load_file(tmp_path / "model" / "adapter_model.safetensors").values())
    model, tokenizer = hub.load(tmp_path / "model")
    assert tokenizer is not None
    assert tokenizer.fingerprint == hub.Checkpoint.open(bases["Causal"]).tokenizer().fingerprint  # type: ignore[union-attr]
    ids = torch.arange(10)[None]
    hub.load_adapter(base, tmp_path / "model")
    assert torch.allclose(model(ids).logits, base(ids).logits, atol=1e-6)
    assert not torch.allclose(model(ids).logits, hub.load(bases["Causal"])[0](ids).logits, atol=1e-5)
    hub.save(model, tokenizer, tmp_path / "merged")
    assert torch.equal(hub.load(tmp_path / "merged")[0](ids).logits, model(ids).logits)


def test_a_new_head_goes_along(data: Path, bases: dict[str, Path], tmp_path: Path) -> None:
    made = read_recipe(adapted("Classification", data, bases["Masked"]))
    run(made, tmp_path, report=quiet)
    model = hub.load(tmp_path / "model")[0]
    assert isinstance(model.config.head, config.Classify)
    assert hub.task(tmp_path / "model")["labels"] == ["negative", "positive"]
    last = sorted((tmp_path / "checkpoints").iterdir())[-1]
    stored = load_file(tmp_path / "model" / "adapter_model.safetensors")
    assert torch.equal(model.head.out.weight, stored["base_model.model.head.out.weight"])
    assert last.name == "step-00000004"


def test_another_base_is_refused_on_resume(data: Path, bases: dict[str, Path], tmp_path: Path) -> None:
    base = tmp_path / "base"
    model, tokenizer = hub.load(bases["Causal"])
    hub.save(model, tokenizer, base)
    made = read_recipe(adapted("Causal", data, base))
    with pytest.raises(Killed):
        run(made, tmp_path / "run", report=killed_at(3))
    with torch.no_grad():
        model.decoder.input.token.weight.add_(1)
    hub.save(model, tokenizer, base)
    with pytest.raises(ValueError, match=r"train\.start is not the model this run began with"):
        run(made, tmp_path / "run", resume=True, report=quiet)


@pytest.mark.parametrize(
    ("train", "told"),
    [
        ({"adapter": {"rank": 2}}, "adapter: expected train.start beside it"),
        ({"adapter": {"rank": 0}, "start": "x"}, "adapter.rank: expected at least 1, got 0"),
        ({"adapter": {"ranks": 1}, "start": "x"}, "did you mean 'rank'"),
        ({"adapter": {"targets": "query"}, "start": "x"}, "adapter.targets: expected a list or 'all', got 'query'"),
        ({"adapter": {"kind": "loha"}, "start": "x"}, "adapter.kind: expected 'lora' or 'dora'"),
        ({"adapter": {}, "start": "x", "precision": "fp8"}, "adapter: expected a precision other than fp8"),
    ],
)
def test_recipes_that_cannot_be(train: dict[str, Any], told: str, data: Path) -> None:
    with pytest.raises(ValueError, match=told):
        recipe("Causal", data, **train)


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("name", ["Causal", "SequenceToSequence"])
def test_the_planner_counts_what_is_trained(name: str, kind: str, data: Path, bases: dict[str, Path], tmp_path: Path) -> None:
    made = read_recipe(adapted(name, data, bases[name], {"kind": kind, "targets": ["query", "up"]}, steps=1))
    found = run(made, tmp_path, report=quiet)
    spec = hub.read_spec(bases[name])
    assert made.train.adapter is not None
    assert found.trained == sum(torch.Size(shape).numel() for shape in adapters.trained(spec, made.train.adapter).values())
    setting = setting_of(made, spec)
    held = memory.training(spec, setting).parts
    assert held["optimizer"] < 9 * found.trained + 100
    assert held["gradients"] <= 4 * found.trained
    full = memory.training(spec, setting_of(recipe(name, data, precision=setting.precision), spec)).parts
    assert held["optimizer"] < full["optimizer"] / 2
    plan = json.loads((tmp_path / "plan.json").read_text("utf-8"))
    assert plan["setting"]["adapter"]["rank"] == 2
