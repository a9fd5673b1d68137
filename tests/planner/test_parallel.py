"""Layouts over many devices: what they hold, send and wait for."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import triform
from triform import config
from triform.planner import Setting, hardware, memory, parameters
from triform.planner.parallel import Layout, check, layouts, read_layout, shard, share

SETTING = Setting(batch=2, sequence=512, accumulate=4)


def test_a_layout_in_words() -> None:
    assert read_layout("dp=4,tp=2,pp=1", 8) == Layout(data=4, tensor=2, pipeline=1)
    assert read_layout("tp=2, zero=3", 16) == Layout(data=8, tensor=2, zero=3)
    assert read_layout(str(Layout(data=2, tensor=2, pipeline=2, zero=1)), 8) == Layout(data=2, tensor=2, pipeline=2, zero=1)


@pytest.mark.parametrize(
    ("text", "devices", "message"),
    [
        ("dp=3,tp=2", 8, "is 6, and the hardware has 8"),
        ("dp=0,tp=8", 8, "of 1 or more"),
        ("dp=8,dp=1", 8, "each once"),
        ("ep=8", 8, "expected dp="),
        ("dp=8,zero=4", 8, "zero=0 to zero=3"),
        ("dp=-8", 8, "of 1 or more"),
    ],
)
def test_layouts_without_sense(text: str, devices: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_layout(text, devices)


@pytest.mark.parametrize(
    ("name", "layout", "message"),
    [
        ("llama-7b", Layout(tensor=3), "does not divide 32 heads; take one of 1, 2, 4, 8"),
        ("llama-7b", Layout(tensor=16), "leaves a machine"),
        ("llama-7b", Layout(pipeline=64), "more stages than the 32 layers"),
        ("t5-small", Layout(pipeline=2), "encoder-decoder are not planned"),
        ("clip-vit-base-patch32", Layout(tensor=2), "by dp alone"),
    ],
)
def test_layouts_that_do_not_divide_the_model(name: str, layout: Layout, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(config.preset(name), layout)


@pytest.mark.parametrize("name", ["llama-7b", "llama-3-8b", "bert-large", "t5-3b", "mixtral-8x7b", "qwen3-8b"])
@pytest.mark.parametrize("tensor", [2, 4, 8])
def test_shards_together_are_the_model(name: str, tensor: int) -> None:
    """All but norms, biases of outputs, routers and position tables, poolers is shared out; those are on every device."""
    model = config.preset(name)
    assert isinstance(model, config.Transformer)
    whole, part = parameters(model), parameters(shard(model, tensor)).total
    assert whole.total <= part * tensor <= whole.total * 1.05
    assert shard(model, 1) == model


def test_the_first_layer_of_replicas_is_the_plain_plan() -> None:
    model, fleet = config.preset("gpt2"), hardware("A100-80G")
    held = share(model, SETTING, Layout(), fleet)
    assert held.memory == memory.training(model, replace(SETTING, accumulate=2)).parts
    assert held.bubble == 0
    assert sum(held.communication.values()) == 0


def test_zero_splits_what_it_says() -> None:
    """Rajbhandari et al. 2020, figure 1: each stage splits one more of states, gradients and weights."""
    model, fleet = config.preset("llama-7b"), hardware("8xA100-80G")
    rows = [share(model, SETTING, Layout(data=8, zero=zero), fleet) for zero in (0, 1, 2, 3)]  # type: ignore[arg-type]
    totals = [row.total for row in rows]
    assert totals == sorted(totals, reverse=True)
    assert rows[1].memory["optimizer"] == pytest.approx(rows[0].memory["optimizer"] / 8, rel=1e-6)
    assert rows[1].memory["weights"] == rows[0].memory["weights"]
    assert rows[3].memory["weights"] == pytest.approx(rows[0].memory["weights"] / 8, rel=1e-6)
    assert rows[3].memory["activations"] == rows[0].memory["activations"]


def test_what_is_sent() -> None:
    """A ring's sum of 4-byte gradients sends 2 (d - 1) / d of them; tensor parallelism four sums a layer (Narayanan et al. 2021)."""
    model, fleet = config.preset("llama-7b"), hardware("8xA100-80G")
    count = parameters(model).total
    assert share(model, SETTING, Layout(data=8), fleet).communication["data"] == pytest.approx(2 * 7 / 8 * 4 * count)
    row = 2 * 512 * 4096 * 2
    sent = share(model, SETTING, Layout(tensor=8), fleet).communication
    assert sent["tensor"] == pytest.approx(SETTING.accumulate * 32 * 4 * 2 * 7 / 8 * row)
    assert sent["data"] == sent["pipeline"] == 0
    assert share(model, SETTING, Layout(pipeline=8), fleet).communication["pipeline"] == SETTING.accumulate * 2 * row


def test_the_bubble() -> None:
    model, fleet = config.preset("llama-7b"), hardware("8xA100-80G")
    assert share(model, SETTING, Layout(pipeline=8), fleet).bubble == pytest.approx(7 / 11)
    more = replace(SETTING, accumulate=64)
    assert share(model, more, Layout(pipeline=8), fleet).bubble == pytest.approx(7 / 71)


@settings(max_examples=6, deadline=None)
@given(st.sampled_from(["gpt2-medium", "llama-3.2-1b", "t5-base"]), st.sampled_from([2, 8, 16]), st.sampled_from([1, 4]))
def test_the_best_few_fit_and_read_the_same(name: str, devices: int, batch: int) -> None:
    setting = Setting(batch=batch, sequence=512, accumulate=2)
    found = layouts(config.preset(name), setting, hardware(f"{devices}xA100-40G"))
    assert [one.step_seconds for one in found] == sorted(one.step_seconds for one in found)
    for one in found:
        assert one.layout.devices == devices
        assert one.setting.batch * one.setting.accumulate * one.layout.data == batch * 2 * devices
        assert one.total <= 40 * 2**30


def test_what_no_layout_holds() -> None:
    with pytest.raises(ValueError, match="no layout of 2xT4 holds"):
        layouts(config.preset("llama-3-70b"), replace(SETTING, precision="fp16"), hardware("2xT4"))


def test_a_plan_with_a_layout() -> None:
    alone = triform.plan("llama-7b", hardware="8xA100-80G", batch=2, sequence=512, tokens="1B")
    shared = triform.plan("llama-7b", hardware="8xA100-80G", batch=2, sequence=512, tokens="1B", parallel="dp=4,tp=2,zero=1")
    best = triform.plan("llama-7b", hardware="8xA100-80G", batch=2, sequence=512, tokens="1B", parallel="auto")
    assert not alone.memory.fits
    assert shared.memory.fits
    assert shared.steps == pytest.approx(2 * alone.steps, rel=0.01)
    assert best.time.expected_seconds == pytest.approx(best.layouts[0].step_seconds * best.steps)
    assert best.time.expected_seconds <= shared.time.expected_seconds
    assert best.to_dict()["layouts"][0]["memory"]["total"] == best.memory.training.total
