"""Times of known computations, and the default utilisation beside what published runs reached."""

import math

import pytest

from triform import config
from triform.planner import flops, parameters
from triform.planner import time as timing
from triform.planner.hardware import Card, Fleet, hardware


def test_120m_on_an_a100() -> None:
    """C = 6 x 120M x 1.2B = 8.64e17, at 312 TFLOP/s 2,769 s, about 46 minutes."""
    flops = 6 * 120e6 * 1.2e9
    assert flops == pytest.approx(8.64e17, rel=1e-12)
    found = timing.estimate(flops, hardware("A100"), "bf16", width=768)
    assert found.ideal_seconds == pytest.approx(2769, abs=0.5)
    assert found.utilisation == 0.25
    assert found.expected_seconds == pytest.approx(4 * found.ideal_seconds)
    assert timing.estimate(flops, hardware("4xA100"), "bf16").ideal_seconds == pytest.approx(2769 / 4, abs=0.5)


def test_gpt_3() -> None:
    """6PD with 175B is 3.15e23; the paper's table D.1 says 3.14e23, for it counts 174.6B parameters."""
    rounded, counted = 6 * 175e9 * 300e9, 6 * 174.6e9 * 300e9
    assert rounded == pytest.approx(3.15e23, rel=1e-12)
    assert counted == pytest.approx(3.14e23, rel=1e-3)
    exact = parameters(config.preset("gpt3-175b")).total
    assert exact == pytest.approx(174.6e9, rel=2e-3)
    seconds = timing.estimate(3.14e23, hardware("1000xV100"), "fp16", width=12288).ideal_seconds
    assert seconds / 86400 == pytest.approx(3.14e23 / 125e15 / 86400, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "parameters", "tokens", "cards", "seconds", "width"),
    [
        # The published time of a run; the forecast is a default for plain PyTorch, so up to half as long again is right.
        ("nanoGPT 124M, 4 days", 124e6, 300e9, "8xA100-40G", 4 * 86400, 768),
        ("LLaMA 7B, 82,432 GPU hours", 6.7e9, 1.0e12, "1xA100-80G", 82432 * 3600, 4096),
        ("LLaMA 65B, 1,022,362 GPU hours", 65.2e9, 1.4e12, "1xA100-80G", 1022362 * 3600, 8192),
        ("Llama 3.1 405B, 30.84M GPU hours", 405e9, 15.6e12, "1xH100", 30.84e6 * 3600, 16384),
    ],
)
def test_published_runs_took_about_as_long(name: str, parameters: float, tokens: float, cards: str, seconds: float, width: int) -> None:
    found = timing.estimate(6 * parameters * tokens, hardware(cards), "bf16", width=width)
    assert 0.65 < found.expected_seconds / seconds < 1.5, name
    assert found.ideal_seconds < 0.6 * seconds  # the control: nothing runs at its peak


def test_default_utilisation_falls_with_the_card_and_rises_with_the_width() -> None:
    for row, other in zip(timing.SHARES, timing.SHARES[1:], strict=False):
        assert all(a <= b for a, b in zip(row, other, strict=True))
    assert timing.default_utilisation(hardware("H100"), "bf16", 256)[0] < timing.default_utilisation(hardware("RTX 3090"), "bf16", 256)[0]
    assert "width of 256 at 989" in timing.default_utilisation(hardware("H100"), "bf16", 256)[1]


def test_a_measured_utilisation_takes_the_place_of_the_default() -> None:
    found = timing.estimate(1e15, hardware("A100"), "bf16", width=768, measured=(0.5, "measured here"))
    assert (found.utilisation, found.reason) == (0.5, "measured here")
    assert found.lines[1].source == "measured here"


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_nonsense_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="flops: expected a number above 0"):
        timing.estimate(bad, hardware("A100"), "bf16")
    with pytest.raises(ValueError, match="utilisation: expected"):
        timing.estimate(1e15, hardware("A100"), "bf16", measured=(bad, ""))


def test_a_token_is_bound_by_memory_until_the_batch_is_large() -> None:
    model = config.preset("llama-7b")
    weights = 2.0 * parameters(model).total
    one, token = flops.forward(model, 1024), flops.forward(model, 1)
    fleet = hardware("A100-80G")

    def speed(batch: int) -> timing.Speed:
        return timing.generation(fleet, "bf16", prompt_flops=one, token_flops=token, weights=weights, cache=0.0, batch=batch, width=4096)

    assert speed(1).bound == "memory"
    assert speed(1).step_seconds == pytest.approx(weights / (2039e9 * timing.BANDWIDTH_SHARE), rel=1e-9)  # 11 ms
    assert 60 < speed(1).tokens_per_second < 2039e9 / weights
    assert speed(4096).bound == "compute"
    assert speed(64).tokens_per_second == pytest.approx(64 * speed(1).tokens_per_second)
    assert speed(2).prefill_seconds == pytest.approx(2 * speed(1).prefill_seconds)


@pytest.mark.parametrize("name", ["gpt2", "llama-3-8b", "mixtral-8x7b", "t5-base", "chatlm-mini-chinese"])
def test_a_step_of_generation_reads_each_weight_once_that_a_token_is_multiplied_with(name: str) -> None:
    model, fleet = config.preset(name), hardware("A100-80G")
    found = timing.answers(model, fleet, prompt=64, context=32)
    assert found is not None
    assert found.bound == "memory"
    put_in = found.lines[1].numbers
    tied = isinstance(model, config.Transformer) and isinstance(model.head, config.LanguageModel) and model.head.tied
    counted = parameters(model)
    if model.form == "decoder-only":  # without the norms and biases, which are no products
        table = 0 if tied else model.last.width * model.last.input.vocab_size
        assert float(put_in["weights"]) / 2 == pytest.approx(counted.active - table, rel=0.01)
    else:
        assert 0.3 * counted.total < float(put_in["weights"]) / 2 < 0.75 * counted.total  # no encoder
    longer = timing.answers(model, fleet, prompt=64, context=512)
    assert longer is not None
    assert longer.step_seconds > found.step_seconds
    assert timing.answers(model, fleet, prompt=64, context=32, dtype="int4").step_seconds < 0.5 * found.step_seconds  # type: ignore[union-attr]


def test_judges_generate_nothing() -> None:
    for name in ("bert-base", "vit-base-patch16-224", "clip-vit-base-patch32"):
        assert timing.answers(config.preset(name), hardware("A100-80G"), prompt=64, context=64) is None


def test_a_longer_cache_slows_every_token() -> None:
    card = Card(name="x", kind="gpu", peak={"bf16": 1e14}, memory=2**34, bandwidth=1e12)
    fleet = Fleet(count=1, card=card)

    def step(cache: float, batch: int) -> float:
        found = timing.generation(fleet, "bf16", prompt_flops=1e12, token_flops=1e9, weights=1e9, cache=cache, batch=batch)
        return found.step_seconds

    assert step(1e9, 4) == pytest.approx(5 * step(0, 4))
    with pytest.raises(ValueError, match="batch: expected at least 1"):
        step(0, 0)
