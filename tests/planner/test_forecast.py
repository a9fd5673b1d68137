"""The plan: worked cases, what it says of every preset, and what it refuses."""

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import triform
from triform import config
from triform.planner import Plan, Setting, hardware, memory
from triform.planner import parameters as count_parameters
from triform.planner.forecast import find
from triform.planner.page import page


def test_the_worked_case() -> None:
    """120M parameters on 1.2B tokens at the A100's peak of 312 TFLOP/s: 8.64e17 FLOPs and 2,769 s."""
    plan = triform.plan("120M", tokens="1.2B", hardware="A100")
    assert isinstance(plan, Plan)
    assert plan.parameters.total == plan.parameters.active == 120_000_000
    assert plan.flops.rule_of_thumb == 8.64e17
    assert plan.time.ideal_seconds == pytest.approx(8.64e17 / 312e12)
    assert round(plan.time.ideal_seconds) == 2769
    assert plan.time.expected_seconds == pytest.approx(plan.flops.exact / (312e12 * plan.time.utilisation))
    assert 0.1 < plan.time.utilisation < 0.6
    assert any("stands for it" in note for note in plan.notes)


def test_gpt3_and_chinchilla() -> None:
    """Brown et al. 2020, table D.1: 3.14e23 for 174.6B parameters, which is 3.15e23 for 175B; Chinchilla: 70B on 1.4T."""
    assert triform.plan("175B", tokens="300B").flops.rule_of_thumb == 3.15e23
    assert triform.plan("174.6B", tokens="300B").flops.rule_of_thumb == pytest.approx(3.14e23, rel=0.002)
    chinchilla = triform.plan("70B", tokens="1.4T", hardware="1024xA100-80G")
    assert chinchilla.flops.rule_of_thumb == pytest.approx(5.88e23)
    assert chinchilla.data is not None
    assert chinchilla.data.distance.tokens_a_parameter == 20


def test_weights_in_bf16_and_what_needs_more_than_one_card() -> None:
    assert triform.plan("t5-11b", batch=1, sequence=512).memory.inference.parts["weights"] == 2 * 11_307_321_344
    llama = triform.plan("llama-7b", batch=1, sequence=512, hardware="A100-80G")
    assert not llama.memory.fits
    assert llama.memory.training.total > 80 * 2**30
    assert triform.plan("gpt2", batch=1, sequence=512).memory.fits


@pytest.mark.parametrize("name", config.presets())
def test_every_preset_has_a_plan(name: str) -> None:
    model = config.preset(name)
    most = [s.input.position.length for s in (getattr(model, side, None) for side in ("encoder", "decoder", "text")) if s
            and isinstance(s.input, config.Tokens) and isinstance(s.input.position, config.Learned)]  # fmt: skip
    plan = triform.plan(name, batch=2, sequence=min([256, *most]))
    data = json.loads(json.dumps(plan.to_dict()))
    count = count_parameters(model)
    assert (data["parameters"]["total"], data["parameters"]["active"]) == (count.total, count.active)
    assert sum(data["parameters"]["parts"].values()) == count.total
    assert sum(data["flops"]["parts"].values()) == pytest.approx(data["flops"]["exact"])
    for kind in ("training", "inference"):
        assert data["memory"][kind]["total"] == sum(data["memory"][kind]["parts"].values())
    assert 0 < data["time"]["ideal_seconds"] < 10 * data["time"]["expected_seconds"]
    assert all(str(line) for line in plan.lines())
    assert all(line.source or line.formula for line in plan.lines())


SETTINGS = st.fixed_dictionaries(
    {"batch": st.integers(1, 8), "sequence": st.sampled_from([64, 128, 512]), "accumulate": st.integers(1, 3)},
    optional={"optimizer": st.sampled_from(["adamw", "sgd", "adamw8bit"]), "recompute": st.sampled_from(["none", "full"])},
)


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(["gpt2", "bert-base", "t5-small", "mixtral-8x7b"]), SETTINGS, st.integers(1, 8))
def test_steps_times_tokens_of_a_step_are_the_tokens(name: str, how: dict[str, int], cards: int) -> None:
    plan = triform.plan(name, tokens="1B", hardware=f"{cards}xH100", **how)
    lengths = how["sequence"] * (2 if plan.model.form == "encoder-decoder" else 1)
    assert plan.steps * how["batch"] * how["accumulate"] * cards * lengths == pytest.approx(1e9, rel=0.01)
    assert plan.memory.training.total == memory.training(plan.model, Setting(**how)).total


def test_several_cards_are_faster_not_roomier() -> None:
    one, eight = (triform.plan("gpt2", tokens="1B", hardware=name) for name in ("A100-80G", "8xA100-80G"))
    assert eight.time.ideal_seconds == pytest.approx(one.time.ideal_seconds / 8)
    assert eight.memory.training.total == one.memory.training.total
    assert eight.steps == pytest.approx(one.steps / 8, rel=0.01)


def test_repeated_text_costs_loss() -> None:
    fresh, again = (triform.plan("gpt2", tokens="10B", corpus=corpus) for corpus in (None, "200M"))
    assert fresh.data is not None
    assert again.data is not None
    assert again.data.repetition is not None
    assert again.data.repetition.epochs == 50
    assert again.data.loss.low > fresh.data.loss.low


@pytest.mark.parametrize(
    ("model", "how", "message"),
    [
        ("gpt2", {"tokens": 0}, "tokens: expected"),
        ("gpt2", {"tokens": "-1B"}, "tokens: expected"),
        ("gpt2", {"tokens": "lots"}, "a number such as 1.2B"),
        ("gpt2", {"batch": -4}, "batch: expected a whole number of at least 1"),
        ("gpt2", {"hardware": "A1000"}, "did you mean A100"),
        ("gpt2", {"hardware": "0xA100"}, "whole number of cards"),
        ("gpt2", {"precision": "fp4"}, "precision: expected one of fp32, bf16, fp16"),
        ("gpt2", {"hardware": "V100"}, "has no bf16; choose one of"),
        ("gpt2", {"region": "atlantis"}, "no grid is named"),
        ("gpt2", {"price": -1}, "price: expected"),
        ("gpt2", {"sequence": 4096}, "1,024 learned positions"),
        ("gpt2", {"target": 64}, "only an encoder-decoder has a target"),
        ("gpt2", {"utilisation": 0}, "utilisation: expected"),
        ("gpt2", {"corpus": 0}, "corpus: expected"),
        ("vit-base-patch16-224", {"corpus": "1B"}, "leave it out"),
        ("gpt22", {}, "gpt2"),
        ("0M", {}, "size: expected"),
        ("9000T", {}, "parameters was expected"),
    ],
)
def test_nonsense_is_refused_in_a_line(model: str, how: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        triform.plan(model, **how)
    assert "\n" not in str(caught.value)


def test_a_configuration_of_ones_own_and_a_fleet() -> None:
    model = config.resolve("gpt2", ["decoder.depth=3"])
    assert find(model) == ("decoder-only", model, None)
    assert triform.plan(model, hardware=hardware("H100")).model == model


def test_no_torch_is_imported() -> None:
    code = "import sys, triform; triform.plan('llama-3-8b', batch=1).to_dict(); assert 'torch' not in sys.modules, 'torch'"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == ""


def test_the_page_shows_the_figures_and_keeps_names_harmless() -> None:
    from dataclasses import replace

    plan = replace(triform.plan("gpt2", tokens="1B"), name="<script>alert(1)</script>")
    text = page(plan)
    assert "<script>" not in text
    assert f"{plan.flops.exact:.3g} FLOP" in text
    for part, size in plan.memory.training.parts.items():
        assert not size or f"<span>{part.replace('_', ' ')}</span>" in text
    assert "http-equiv" not in text
    assert "src=" not in text
