"""Compiled blocks train as plain ones do, and a run goes on with what it began with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from recipes import recipe
from runs import assert_same, outcome, quiet, stopped_and_resumed

from triform.nn import compiler
from triform.nn.compiler import choose_compile
from triform.train import run
from triform.train.checkpoint import read_state
from triform.train.loop import Trainer


@pytest.fixture(autouse=True)
def without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are taken and gone through as they are, which takes no compiler's minute."""
    plainly = torch.compile
    monkeypatch.setattr(torch, "compile", lambda call: plainly(call, backend="aot_eager"))
    torch._dynamo.reset()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gradients_are_those_of_plain_blocks(precision: Any, data: Path, tmp_path: Path) -> None:
    found = []
    for wanted in (False, True):
        made = Trainer(recipe("Causal", data, precision=precision, compile=wanted), tmp_path / str(wanted), progress=False)
        losses, norm = made.gradients(0, made.train.step(0))
        found.append((losses["loss"], norm))
        assert (made.compiled is not None) == wanted
        if made.compiled is not None:
            assert all(block._compiled_call_impl is None for block in made.compiled.blocks)
    tolerance = 1e-5 if precision == "fp32" else 2e-2
    assert found[0] == pytest.approx(found[1], rel=tolerance)
    assert found[0][0] != pytest.approx(found[0][0] + 3 * tolerance * found[0][0], rel=tolerance)


def test_a_run_goes_on_bit_for_bit(data: Path, tmp_path: Path) -> None:
    made = recipe("Causal", data, compile=True, precision="fp32")
    run(made, tmp_path / "whole", report=quiet)
    stopped_and_resumed(made, tmp_path / "stopped", [3])
    assert_same(outcome(tmp_path / "whole"), outcome(tmp_path / "stopped"))
    newest = sorted((tmp_path / "whole" / "checkpoints").glob("[!.]*"))[-1]
    assert read_state(newest)["compiled"] is True


def test_what_auto_and_a_missing_compiler_come_to(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    assert not choose_compile("auto", "cpu", said.append)
    assert not choose_compile(False, "cuda", said.append)
    monkeypatch.setattr(compiler, "_lacking", lambda device: None)
    assert choose_compile("auto", "cuda", said.append)
    assert choose_compile(True, "cpu", said.append)
    monkeypatch.setattr(compiler, "_lacking", lambda device: "C++ compiler")
    assert not choose_compile("auto", "cuda", said.append)
    assert said == []
    assert not choose_compile(True, "cpu", said.append)
    assert said == ["train.compile: there is no C++ compiler here; the run goes on without compiling"]
