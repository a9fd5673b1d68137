"""Prepared models: the native pass against the modules, over every family that generates, in every precision."""

from __future__ import annotations

from copy import deepcopy
from functools import lru_cache
from typing import Any

import pytest
import torch
from parity.test_generation import BOTH, DECODERS, batch, free, loaded, ours
from torch import Tensor

from triform.generate.prepared import Precision, Stepper, prepare
from triform.generate.runner import Runner
from triform.generate.slots import Slots

EXPERTS = ["mixtral", "mixtral-windows", "qwen3-experts", "qwen3-experts-windows", "switch"]
COVERED = [name for name in DECODERS + BOTH if name not in EXPERTS]
QUANTIZED = ["llama", "gemma3", "gpt2", "t5", "bart"]
# Relative to the largest score. fp32: a hundred layers' sums in another order, which T5's large activations stretch. For int8 and int4 both
# sides round the same numbers, and agree as long as no rounding is a near tie. bf16: the native pass rounds the products' inputs alone,
# the modules every step.
TOLERANCE: dict[Precision, float] = {"fp32": 1e-4, "bf16": 0.5, "int8": 2e-2, "int4": 2e-2}


@lru_cache(maxsize=None)
def prepared(name: str, precision: Precision) -> Any:
    return prepare(deepcopy(loaded(name)), precision)


def scores(model: Any, name: str, pieces: list[int], *, native: bool = True, other: int = 0) -> Tensor:
    """Scores after each piece of the first prompt in slot 1; with `other`, slot 2 reads a token of another in the same passes."""
    with torch.inference_mode():
        like = torch.zeros(1, dtype=next(model.parameters()).dtype)
        runner = Runner(model, Slots(model.config, 3, 32, 16, like))
        if not native:
            runner.stepper = None
        ids = batch(name)[0][0].tolist()
        if model.encoder is not None:
            runner.encode([(1, ids[:7]), (2, ids[3:])])
        made, at = [], 0
        for count in pieces:
            work = [(1, ids[at : at + count])] + ([(2, [other])] if other else [])
            made.append(runner.read(work, [at == 0, False][: len(work)])[0])
            at += count
        return torch.stack(made).float()


def difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", COVERED)
def test_tokens_are_the_references(name: str) -> None:
    model = prepared(name, "fp32")
    assert Stepper.of(model) is not None
    assert ours(name, [], model=model) == free(name)


@pytest.mark.parametrize("name", EXPERTS)
def test_experts_stay_with_the_modules(name: str) -> None:
    model = prepared(name, "fp32")
    assert Stepper.of(model) is None
    assert ours(name, [], model=model) == free(name)


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("name", COVERED)
def test_the_native_pass_is_the_modules(name: str, precision: Precision) -> None:
    model, pieces = prepared(name, precision), [5, 1, 1, 4]
    found, expected = scores(model, name, pieces), scores(model, name, pieces, native=False)
    assert difference(found, expected) < TOLERANCE[precision]
    if precision != "bf16":
        other = prepared(name, "int4" if precision == "int8" else "int8")
        assert difference(scores(other, name, pieces), expected) > TOLERANCE[precision], "another precision would have passed"


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("name", QUANTIZED)
def test_a_row_does_not_depend_on_its_company(name: str, precision: Precision) -> None:
    """Bit for bit: in one pass, in pieces, and beside another slot."""
    model = prepared(name, precision)
    whole = scores(model, name, [11])[-1]
    assert torch.equal(scores(model, name, [4, 7])[-1], whole)
    assert torch.equal(scores(model, name, [1] * 11)[-1], whole)
    assert torch.equal(scores(model, name, [1] * 11, other=9)[-1], whole)
    assert not torch.equal(scores(model, name, [10])[-1], whole)


@pytest.mark.parametrize("name", QUANTIZED)
def test_better_precision_is_nearer(name: str) -> None:
    """Each is what it says it is."""
    expected = scores(loaded(name), name, [11])
    off = {precision: difference(scores(prepared(name, precision), name, [11]), expected) for precision in TOLERANCE}
    assert off["fp32"] < 1e-4
    assert off["fp32"] < off["bf16"]
    assert off["int8"] < off["int4"]
