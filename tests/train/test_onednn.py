"""Linear layers through oneDNN give what torch's own give, to rounding."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from recipes import recipe
from runs import assert_same, outcome, quiet, stopped_and_resumed

from triform import nn
from triform.nn import products
from triform.nn.products import Products, training_products
from triform.train import onednn, run
from triform.train.checkpoint import read_state
from triform.train.onednn import check_onednn, choose_linear

through_onednn = partial(training_products, Products(onednn=True))


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """For products of any size."""
    monkeypatch.setattr(products, "_LEAST", 0)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with each product of oneDNN's."""
    plainly, found = products._onednn, list[int]()
    monkeypatch.setattr(products, "_onednn", lambda *arguments: (found.append(1), plainly(*arguments))[1])
    return found


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 64), (2, 7, 64)])
def test_values_and_gradients(shape: tuple[int, ...], bias: bool, always: None, counted: list[int]) -> None:
    """Against fp64 it is off by no more than 2e-6 of the largest number; TF32 or bf16 would be off by 1e-3."""
    layer, x = torch.nn.Linear(64, 96, bias=bias), torch.randn(*shape, requires_grad=True)
    exact = torch.nn.functional.linear(x.double(), layer.weight.double(), None if layer.bias is None else layer.bias.double())
    inputs = [x, *layer.parameters()]
    wanted = [exact, *torch.autograd.grad(exact.sin().sum(), inputs)]
    with through_onednn():
        y = layer(x)
    got = [y, *torch.autograd.grad(y.sin().sum(), inputs)]
    assert len(counted) == 3
    for ours, theirs in zip(got, wanted, strict=True):
        assert ours.shape == theirs.shape
        assert float((ours - theirs).detach().abs().max()) < 2e-6 * max(1.0, float(theirs.detach().abs().max()))


@pytest.mark.parametrize("case", ["autocast", "fp64", "small", "not wanted"])
def test_what_is_left_to_torch(case: str, counted: list[int]) -> None:
    size = 8 if case == "small" else 1024
    dtype = torch.float64 if case == "fp64" else torch.float32
    layer, x = torch.nn.Linear(size, size, dtype=dtype), torch.randn(4, size, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"), training_products(Products(onednn=case != "not wanted")):
        layer(x)
    assert not counted
    with through_onednn():
        torch.nn.Linear(1024, 1024)(torch.randn(4, 1024))
    assert len(counted) == 1


@pytest.mark.parametrize("how", ["selective", "full"])
def test_recomputing_changes_no_bit(how: Any, always: None, counted: list[int]) -> None:
    model = nn.build({"kind": "Transformer", "decoder": _stack(), "head": {"kind": "LanguageModel"}}, seed=0).train()
    found, products = [], []
    for said in ("none", how):
        torch.manual_seed(0)
        before = len(counted)
        with through_onednn(), nn.recomputing(said, through_onednn):
            loss = model(torch.arange(20)[None]).logits.sin().sum()
        loss.backward()
        products.append(len(counted) - before)
        found.append({name: p.grad.clone() for name, p in model.named_parameters()})
        model.zero_grad()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert products[1] > products[0]


def _stack() -> dict[str, Any]:
    block = {"attention": {"heads": 2, "mask": "causal"}, "feed_forward": {"kind": "FeedForward", "hidden": 64}, "dropout": 0.1}
    return {"width": 32, "depth": 2, "input": {"kind": "Tokens", "vocab_size": 32}, "pattern": [block]}


def test_a_run_goes_on_bit_for_bit(data: Path, tmp_path: Path, always: None, counted: list[int]) -> None:
    made = recipe("SpanCorruption", data, linear="onednn", recompute="selective")
    run(made, tmp_path / "whole", report=quiet)
    assert counted
    stopped_and_resumed(made, tmp_path / "stopped", [3])
    assert_same(outcome(tmp_path / "whole"), outcome(tmp_path / "stopped"))


def test_where_there_is_no_such_product_the_recipe_is_refused(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_onednn()
    monkeypatch.setattr(products, "_onednn", lambda x, weight, bias: x @ weight.T)
    with pytest.raises(ValueError, match=r"train\.linear: this torch has no working oneDNN product; choose torch"):
        run(recipe("Causal", data, linear="onednn"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("gain", "chosen"), [(1.5, "onednn"), (1.0, "torch")])
def test_auto_takes_what_was_measured_to_be_faster_and_a_run_keeps_it(
    gain: float, chosen: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onednn, "_gain", lambda: gain)
    assert choose_linear("auto") == chosen
    assert choose_linear("auto", precision="bf16") == choose_linear("auto", "cuda") == "torch"
    made = recipe("Causal", data, linear="auto", precision="fp32")
    run(made, tmp_path / "whole", report=quiet)
    newest = sorted((tmp_path / "whole" / "checkpoints").glob("[!.]*"))[-1]
    assert read_state(newest)["linear"] == chosen


def test_the_measurement_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "cache_folder", lambda: tmp_path)
    gain = onednn._gain.__wrapped__()
    assert 0.05 < gain < 50
    monkeypatch.setattr(onednn, "_measured", lambda: 0.0)
    assert onednn._gain.__wrapped__() == gain
