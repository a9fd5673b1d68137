"""FLOPs from the configuration are those that torch counts."""

import pytest
import strategies
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from triform import config, nn
from triform.nn import fused
from triform.planner import flops
from triform.planner.setting import Recompute

TOLERANCE = 0.01  # the counter leaves out nothing we count; the claim is 1 %


def inputs_of(stack: config.Stack, length: int) -> torch.Tensor:
    if isinstance(stack.input, config.Patches):
        return torch.randn(1, stack.input.channels, stack.input.image, stack.input.image)
    return torch.randint(stack.input.vocab_size, (1, length))


def answer(model: config.Model, length: int, target_length: int, *, training: bool = False) -> torch.Tensor:
    """The sum of all that a model with random weights says of random input."""
    module = nn.build(model, seed=0).train(training)
    if isinstance(model, config.DualEncoder):
        inputs, target = inputs_of(model.text, length), inputs_of(model.image, length)
    else:
        inputs = inputs_of(model.encoder or model.last, length)
        target = inputs_of(model.decoder, target_length) if model.decoder and model.encoder else None
    out = module(inputs, target=target)
    return sum((t.sum() for t in (out.logits, out.sentence_logits) if t is not None), out.hidden.sum())


def counted(model: config.Model, length: int, target_length: int) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        answer(model, length, target_length)
    return counter.get_total_flops()


def counted_in_training(model: config.Model, length: int, target_length: int, how: Recompute = "none") -> int:
    """Attention's scores, which the CPU works out again where sequences are short, and in place, are counted once, as elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "attends", lambda *_: False)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), nn.recomputing(how):
            answer(model, length, target_length).backward()
    return counter.get_total_flops()


FORMS = {
    "encoder-only": strategies.transformers(("encoder-only",)),
    "decoder-only": strategies.transformers(("decoder-only",)),
    "encoder-decoder": strategies.transformers(("encoder-decoder",)),
    "dual-encoder": strategies.dual_encoders(),
}


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=4, deadline=None)
@given(st.data(), st.integers(2, 16), st.integers(2, 16))
def test_as_many_as_torch_counts(form: str, data: st.DataObject, length: int, target_length: int) -> None:
    model = data.draw(FORMS[form])
    assert flops.forward(model, length, target_length) == pytest.approx(counted(model, length, target_length), rel=TOLERANCE)


@pytest.mark.parametrize("how", ["none", "full"])
@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=3, deadline=None)
@given(st.data(), st.integers(2, 16), st.integers(2, 16))
def test_a_step_as_torch_counts_it(form: str, how: Recompute, data: st.DataObject, length: int, target_length: int) -> None:
    model = data.draw(FORMS[form])
    expected = pytest.approx(counted_in_training(model, length, target_length, how), rel=TOLERANCE)
    assert flops.training(model, length, target_length, recompute=how) == expected


def test_a_step_without_what_is_recomputed_is_another() -> None:
    model = config.resolve("t5-small", ["encoder.width=32", "decoder.width=32", "encoder.depth=2", "decoder.depth=2"])
    assert flops.training(model, 12, 9) != pytest.approx(counted_in_training(model, 12, 9, "full"), rel=10 * TOLERANCE)


@pytest.mark.parametrize(("name", "again"), [("llama-3.2-1b", False), ("t5-small", True)])
def test_selective_recompute_repeats_attention_only_where_no_kernel_is_fused(name: str, again: bool) -> None:
    """torch's counter passes over the CPU's fused kernel, so only the repeated products show."""
    stacks = ("encoder", "decoder") if name == "t5-small" else ("decoder",)
    small = ("depth=2", "width=64", "input.vocab_size=64", "pattern[0].feed_forward.hidden=64")
    model = config.resolve(name, [f"{side}.{field}" for side in stacks for field in small])
    counts = {}
    for how in ("none", "selective"):
        with FlopCounterMode(display=False) as counter, nn.recomputing(how):
            answer(model, 24, 16, training=True).backward()
        counts[how] = counter.get_total_flops()
    assert counts["selective"] - counts["none"] == flops.recomputed(model, 24, 16, "selective")
    assert (flops.recomputed(model, 24, 16, "selective") > 0) == again


@pytest.mark.parametrize(
    "override", ["decoder.pattern[0].feed_forward.hidden=100", "decoder.depth=3", "decoder.input.vocab_size=90", "decoder.width=40"]
)
def test_another_model_has_other_counts(override: str) -> None:
    small = ["decoder.depth=2", "decoder.width=32", "decoder.pattern[0].attention.heads=4", "decoder.pattern[0].feed_forward.hidden=64"]
    model = config.resolve("gpt2", [*small, "decoder.input.vocab_size=64"])
    other = config.resolve(model, [override])
    assert flops.forward(model, 12) == pytest.approx(counted(model, 12, 12), rel=TOLERANCE)
    assert flops.forward(other, 12) != pytest.approx(counted(model, 12, 12), rel=TOLERANCE)


def test_large_models_cost_about_two_flops_a_parameter_and_token() -> None:
    assert flops.forward(config.preset("llama-7b"), 1) / (2 * 6.607e9) == pytest.approx(1, rel=0.01)


def test_a_head_on_fewer_positions() -> None:
    bert = config.resolve("bert-base", ["head={kind: LanguageModel, transform: gelu}"])
    spared = flops.forward(bert, 100) - flops.forward(bert, 100, scored=15)
    assert spared == 85 * 2 * 768 * (30522 + 768)
