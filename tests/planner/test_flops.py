"""FLOPs from the configuration are those that torch counts."""

import pytest
import strategies
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from triform import config, nn
from triform.planner import flops

TOLERANCE = 0.01  # the counter leaves out nothing we count; the claim is 1 %


def inputs_of(stack: config.Stack, length: int) -> torch.Tensor:
    if isinstance(stack.input, config.Patches):
        return torch.randn(1, stack.input.channels, stack.input.image, stack.input.image)
    return torch.randint(stack.input.vocab_size, (1, length))


def counted(model: config.Model, length: int, target_length: int) -> int:
    module = nn.build(model, seed=0).eval()
    if isinstance(model, config.DualEncoder):
        inputs, target = inputs_of(model.text, length), inputs_of(model.image, length)
    else:
        inputs = inputs_of(model.encoder or model.last, length)
        target = inputs_of(model.decoder, target_length) if model.decoder and model.encoder else None
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        module(inputs, target=target)
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
