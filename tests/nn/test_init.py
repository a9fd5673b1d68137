"""How weights start, by role."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import strategies
import tiny
import torch
from hypothesis import given, settings
from torch import Tensor

from triform import config, nn

WIDTH, HEADS, HIDDEN, DEPTH, VOCAB = 256, 4, 640, 2, 2000


def model(init: config.Init, form: str = "decoder", **fields: Any) -> dict[str, Tensor]:
    """The named tensors of a model wide enough for statistics."""
    feed_forward = fields.pop("feed_forward", config.FeedForward(hidden=HIDDEN, gated=True))
    inputs = config.Tokens(vocab_size=VOCAB, position=config.Learned(length=512), segments=2)
    attention = config.Attention(heads=HEADS, head_width=96, position=config.Bucketed(buckets=32))
    block = config.Block(attention=attention, feed_forward=feed_forward, norm=config.RMSNorm())
    stack = config.Stack(width=WIDTH, depth=DEPTH, input=inputs, pattern=(block,), norm=config.LayerNorm())
    spec = config.Transformer(encoder=stack, head=config.LanguageModel(tied=False, bias="learned"), init=init)
    built = nn.build(spec, seed=1)
    return dict(built.named_parameters())


def check_deviation(tensor: Tensor, wanted: float, tolerance: float = 0.05) -> None:
    """Assert a mean near zero and a standard deviation near `wanted`."""
    assert float(tensor.detach().std()) == pytest.approx(wanted, rel=tolerance)
    assert abs(float(tensor.detach().mean())) < 4 * wanted / tensor.numel() ** 0.5


def layer(found: dict[str, Tensor], name: str) -> Tensor:
    return found[f"encoder.layers.1.{name}.weight"]


INNER = HEADS * 96
NAMES = {
    "query": "attention.body.query",
    "key": "attention.body.key",
    "value": "attention.body.value",
    "out": "attention.body.out",
    "gate": "feed_forward.body.gate",
    "up": "feed_forward.body.up",
    "down": "feed_forward.body.down",
}


def check_norms_and_biases(found: dict[str, Tensor]) -> None:
    """Norms start at one and biases at zero, whatever the scheme."""
    for name, tensor in found.items():
        if "norm" in name and name.endswith("weight"):
            assert tensor.eq(1).all(), name
        elif name.endswith("bias"):
            assert tensor.eq(0).all(), name


@pytest.mark.parametrize("std", [0.02, 0.1])
def test_normal_as_bert_does(std: float) -> None:
    found = model(config.Init(std=std))
    for name in NAMES.values():
        check_deviation(layer(found, name), std)
    for name in ("encoder.input.token.weight", "encoder.input.position.weight", "head.weight"):
        check_deviation(found[name], std)
    check_deviation(found["encoder.biases.0.weight"], std, 0.25)
    check_norms_and_biases(found)
    with pytest.raises(AssertionError):
        check_deviation(found["head.weight"], 1.1 * std)


def test_residual_layers_as_gpt2_does() -> None:
    found = model(config.Init(scale_residuals=True))
    for role, name in NAMES.items():
        check_deviation(layer(found, name), 0.02 / (2 * DEPTH) ** 0.5 if role in ("out", "down") else 0.02)
    check_norms_and_biases(found)


def test_t5() -> None:
    """By fan-in, the query by that of the scores too; tables from N(0, 1) (Mesh TensorFlow)."""
    found = model(config.Init(scheme="t5"))
    wanted = {"query": (WIDTH * 96) ** -0.5, "key": WIDTH**-0.5, "value": WIDTH**-0.5, "out": INNER**-0.5}
    wanted |= {"gate": WIDTH**-0.5, "up": WIDTH**-0.5, "down": HIDDEN**-0.5}
    for role, name in NAMES.items():
        check_deviation(layer(found, name), wanted[role])
    check_deviation(found["encoder.input.token.weight"], 1.0)
    check_deviation(found["head.weight"], 1.0)
    check_deviation(found["encoder.biases.0.weight"], WIDTH**-0.5, 0.25)
    check_norms_and_biases(found)


def test_xavier() -> None:
    """Uniform within sqrt(6 / (fan-in + fan-out)) (Glorot and Bengio 2010)."""
    found = model(config.Init(scheme="xavier"))
    for name in NAMES.values():
        weight = layer(found, name)
        bound = (6 / sum(weight.shape)) ** 0.5
        assert 0.99 * bound < float(weight.detach().abs().max()) <= bound
        check_deviation(weight, bound / 3**0.5)
    check_deviation(found["encoder.input.token.weight"], WIDTH**-0.5)
    check_norms_and_biases(found)


def test_experts_start_as_a_feed_forward_does() -> None:
    experts = config.Experts(expert=config.FeedForward(hidden=HIDDEN), count=3, shared=config.FeedForward(hidden=64))
    for init, up, down in (
        (config.Init(scheme="t5"), WIDTH**-0.5, HIDDEN**-0.5),
        (config.Init(scale_residuals=True), 0.02, 0.02 / (2 * DEPTH) ** 0.5),
    ):
        found = model(init, feed_forward=experts)
        check_deviation(found["encoder.layers.0.feed_forward.body.up"], up)
        check_deviation(found["encoder.layers.0.feed_forward.body.down"], down)
        check_norms_and_biases(found)


def test_three_sublayers_write_to_a_decoder_that_looks_across() -> None:
    spec = tiny.encoder_decoder()
    built = nn.build(config.Transformer(encoder=spec.encoder, decoder=spec.decoder, init=config.Init(scale_residuals=True)), seed=0)
    check_deviation(built.decoder.layers["0"].feed_forward.body.down.weight, 0.02 / 6**0.5, 0.12)
    check_deviation(built.encoder.layers["0"].feed_forward.body.down.weight, 0.02 / 4**0.5, 0.12)


def test_a_unit_offset_starts_at_zero_and_the_temperature_at_clips() -> None:
    stack = tiny.stack(tiny.attention(), norm=config.RMSNorm(unit_offset=True))
    assert all(p.eq(0).all() for n, p in nn.build(config.Transformer(encoder=stack)).named_parameters() if ".norm." in n)
    image = config.Stack(width=8, depth=1, input=config.Patches(image=4, patch=2), pattern=tiny.stack(tiny.attention()).pattern)
    both = nn.build(config.DualEncoder(text=tiny.stack(tiny.attention()), image=image, width=4))
    assert both.temperature.exp().item() == pytest.approx(1 / 0.07, rel=1e-5)


def test_a_seed_gives_the_same_weights_and_leaves_the_global_generator_alone() -> None:
    spec = tiny.encoder_decoder("bucketed")
    torch.manual_seed(5)
    first = nn.build(spec, seed=3)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))
    again, other = nn.build(spec, seed=3).state_dict(), nn.build(spec, seed=4).state_dict()
    assert all(torch.equal(t, again[n]) for n, t in first.state_dict().items())
    assert any(not torch.equal(t, other[n]) for n, t in first.state_dict().items())
    torch.manual_seed(5)
    unseeded = nn.build(spec)
    torch.manual_seed(5)
    assert torch.equal(unseeded.encoder.input.token.weight, nn.build(spec).encoder.input.token.weight)


@pytest.fixture(scope="module")
def _poisoned() -> Iterator[None]:
    """Memory that nothing has been written to reads as NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_poisoned")
@settings(max_examples=30, deadline=None)
@given(spec=strategies.models())
def test_every_tensor_gets_a_value(spec: config.Model) -> None:
    for scheme in ("normal", "t5", "xavier"):
        built = nn.build(config.with_overrides(config.Model, spec, {"init.scheme": scheme, "init.scale_residuals": scheme == "normal"}))
        for name, tensor in [*built.named_parameters(), *built.named_buffers()]:
            assert tensor.isfinite().all(), name
    empty = nn.build(spec, device="meta").to_empty(device="cpu")
    assert not all(p.isfinite().all() for p in empty.parameters())


@pytest.mark.parametrize("name", ["llama-65b", "qwen3-30b-a3b", "t5-11b"])
def test_large_models_build_on_meta_at_once(name: str) -> None:
    nn.build("gpt2", device="meta")
    start = time.process_time()
    built = nn.build(name, device="meta")
    assert time.process_time() - start < 1
    assert all(p.is_meta for p in built.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_is_built_in_the_dtype_asked_for(dtype: torch.dtype) -> None:
    assert {p.dtype for p in nn.build(tiny.decoder("alibi"), dtype=dtype).parameters()} == {dtype}


def test_laying_out_a_model_does_not_wake_torch_s_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its import, over a second, is what filling a tensor without memory begins with."""

    def woken(self: Tensor, *settings: Any, **more: Any) -> Tensor:
        raise AssertionError("filled")

    for name in ("normal_", "uniform_"):
        monkeypatch.setattr(Tensor, name, woken)
    for spec in (tiny.encoder_decoder("learned"), config.resolve("clip-vit-base-patch32")):
        nn.build(spec, device="meta")
    with pytest.raises(AssertionError, match="filled"), torch.device("meta"):
        torch.nn.Linear(2, 2)


def test_a_state_dict_goes_round() -> None:
    for spec in (tiny.encoder_decoder("bucketed"), tiny.decoder("learned", config.LanguageModel(bias="fixed"))):
        one, two = nn.build(spec, seed=0), nn.build(spec, seed=1)
        assert two.load_state_dict(one.state_dict()) == ([], [])
        assert all(torch.equal(t, one.state_dict()[n]) for n, t in two.state_dict().items())
    shared = nn.build(tiny.encoder_decoder())
    assert shared.decoder.input.token is shared.encoder.input.token
