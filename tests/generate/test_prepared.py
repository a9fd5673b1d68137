"""Models prepared from files, and what the native pass refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_tools import SPECS

from triform import config, hub
from triform.cli import run
from triform.cli.models import open_model as command_model
from triform.generate.prepared import PackedHead, Stepper, load_prepared, prepare
from triform.generate.slots import Slots
from triform.hub.gguf import write
from triform.kernels import PackedEmbedding, PackedLinear, native, unpack
from triform.kernels.build import variants
from triform.nn import build
from triform.serve import Writer, open_model

from .conftest import tokenizer_of


def slots_of(model: Any, capacity: int = 8) -> Slots:
    return Slots(model.config, 2, capacity, 1, torch.zeros(1))


def linears(model: Any) -> dict[str, Any]:
    return {name: m for name, m in model.named_modules() if isinstance(m, PackedLinear) and not name.startswith("head.")}


@pytest.mark.parametrize("name", ["llama", "llama-tied-wide", "gpt2", "qwen3"])
@pytest.mark.parametrize(("dtype", "kind"), [("q8_0", "int8"), ("q4_0", "int4")])
def test_a_files_blocks_are_not_rounded_again(name: str, dtype: Any, kind: str, tmp_path: Path) -> None:
    write(build(SPECS[name], seed=0), None, tmp_path / "model.gguf", dtype)
    plain, _ = hub.load(tmp_path / "model.gguf")
    model, _ = load_prepared(tmp_path / "model.gguf")
    expected = {name: module.weight for name, module in plain.named_modules() if isinstance(module, torch.nn.Linear)}
    found = linears(model)
    assert found.keys() == expected.keys()
    blocks = [name for name, layer in found.items() if layer.kind == kind]
    assert len(blocks) > len(found) / 2
    for name in blocks:
        assert torch.equal(unpack(found[name].packed), expected[name]), name
    assert torch.equal(model.head.matrix(None), plain.head.matrix(plain.token_table))
    other, _ = load_prepared(tmp_path / "model.gguf", "int4" if kind == "int8" else "int8")
    assert {layer.kind for layer in linears(other).values()} != {layer.kind for layer in found.values()}


def test_a_few_blocks_do_not_make_a_quantized_model() -> None:
    """A file whose token table alone is in 8 bits: with auto nothing is rounded on the way."""

    class Table:
        def kind(self, name: str) -> Any:
            return "int8" if name == "decoder.input.token.weight" else None

        def blocks(self, name: str) -> torch.Tensor:
            raise AssertionError("not asked for")

    model = prepare(build(SPECS["llama-tied-wide"], seed=0), "auto", Table())
    assert {layer.kind for layer in linears(model).values()} == {model.decoder.input.token.kind} == {"fp32"}


def test_a_model_is_prepared_once_and_keeps_one_copy() -> None:
    model = build(SPECS["llama-tied-wide"], seed=0)
    assert prepare(model, "int4") is model
    table = model.decoder.input.token
    assert isinstance(table, PackedEmbedding)
    assert isinstance(model.head, PackedHead)
    assert model.head.table.data.data_ptr() == table.data.data_ptr()
    assert table.kind == "int8"
    assert {layer.kind for layer in linears(model).values()} == {"int4"}
    kept = sum(parameter.numel() for parameter in model.parameters())
    assert kept == sum(p.numel() for n, p in model.named_parameters() if "norm" in n), "only norms are left as parameters"
    assert Stepper.of(prepare(model, "int4")) is not None


@pytest.mark.parametrize(("stored", "kind"), [("float32", "fp32"), ("bfloat16", "bf16"), ("float16", "fp32")])
def test_auto_keeps_the_weights_as_they_are(stored: str, kind: str) -> None:
    model = build(SPECS["llama"], seed=0).to(getattr(torch, stored))
    weight = model.decoder.layers["0"].attention.body.query.weight.clone()
    prepare(model)
    query = model.decoder.layers["0"].attention.body.query
    assert query.kind == kind
    assert torch.equal(unpack(query.packed), weight.float())


def test_what_is_not_offered_is_refused() -> None:
    model = build(SPECS["llama"], seed=0)
    with pytest.raises(ValueError, match="dtype: expected one of auto, fp32, bf16, int8, int4, got 'fp8'"):
        prepare(model, "fp8")  # type: ignore[arg-type]
    assert Stepper.of(model) is None, "a model that was not prepared has no native form"
    assert prepare(model.double()).decoder.norm.weight.dtype == torch.float64


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "int4"])
def test_without_a_compiler_torch_does_the_same(precision: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = torch.randint(96, (1, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = prepare(build(SPECS["llama"], seed=0), precision)(ids).logits.float()
        for module in ("triform.kernels.linear", "triform.generate.prepared", "triform.generate.stepper"):
            monkeypatch.setattr(f"{module}.library", lambda: None)
        model = prepare(build(SPECS["llama"], seed=0), precision)
        assert Stepper.of(model) is None
        found, other = model(ids).logits.float(), prepare(build(SPECS["llama"], seed=1), precision)(ids).logits.float()
    assert any(isinstance(m, PackedLinear) for m in model.modules()) == precision.startswith("int")
    # bf16: torch rounds each sum, the kernels only what they are given; int8 and int4: an input near a tie is rounded up or down
    most = 1e-5 if precision == "fp32" else 3e-2
    assert float((found - expected).abs().max() / expected.abs().max()) < most
    assert float((other - expected).abs().max() / expected.abs().max()) > most


def test_the_native_pass_refuses_what_is_not_there() -> None:
    model = prepare(build(SPECS["llama"], seed=0))
    stepper, cache = Stepper.of(model), slots_of(model)
    assert stepper is not None

    def step(tokens: list[int], slots: list[int], **more: Any) -> torch.Tensor:
        return stepper.step(torch.tensor(tokens), torch.tensor(slots), cache, **more)

    assert step([1, 2], [0, 1]).shape == (2, 96)
    assert step([1, 2, 3], [0, 0, 1], wanted=torch.tensor([1])).shape == (1, 96)
    with pytest.raises(ValueError, match="expected ids below 96, got 96"):
        step([96], [0])
    with pytest.raises(ValueError, match="got -1"):
        step([-1], [0])
    with pytest.raises(ValueError, match="expected numbers below 2, got 2"):
        step([1], [2])
    with pytest.raises(ValueError, match="a slot holds 8 tokens and 9 are needed"):
        step([1] * 9, [0] * 9)
    with pytest.raises(ValueError, match="wanted: row 2 of 2"):
        step([1, 2], [0, 1], wanted=torch.tensor([2]))
    half = Slots(model.config, 2, 8, 1, torch.zeros(1, dtype=torch.float16))
    with pytest.raises(ValueError, match="fp32 or bf16"):
        stepper.step(torch.tensor([1]), torch.tensor([0]), half)


def test_a_program_is_checked_before_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = prepare(build(SPECS["llama"], seed=0))
    model.decoder.layers["1"].attention.body.out = model.decoder.layers["1"].feed_forward.body.up
    with pytest.raises(ValueError, match="out: expected 64 x 64 weights, got 96 x 64"):
        Stepper.of(model)


def test_a_variant_that_the_processor_lacks_is_refused() -> None:
    found = native.library()
    assert found is not None
    with pytest.raises(ValueError, match="cannot run abacus"):
        found.done(found.use(b"abacus"))


def test_positions_of_every_kind() -> None:
    """ALiBi, sinusoids and learned positions through the native pass, in pieces."""
    block = config.Block(
        attention=config.Attention(heads=4, mask="causal", position=config.Alibi()), feed_forward=config.FeedForward(hidden=96)
    )
    for position in (config.Sinusoidal(), config.Sinusoidal(interleaved=False), config.Learned(length=12, offset=2)):
        tokens = config.Tokens(vocab_size=50, position=position, segments=2, norm=config.LayerNorm(), scale=2.0)
        head = config.LanguageModel(tied=False, bias="learned", scale=0.5, transform="gelu")
        spec = config.Transformer(decoder=config.Stack(width=64, depth=2, input=tokens, pattern=(block,)), head=head)
        model = prepare(build(spec, seed=0))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
            ids = torch.randint(50, (1, 7))
            expected = model(ids).logits[0]
            stepper, cache = Stepper.of(model), slots_of(model)
            assert stepper is not None
            first = stepper.step(ids[0, :4], torch.tensor([1] * 4), cache)
            cache.lengths[1] = 4
            found = torch.cat((first, stepper.step(ids[0, 4:], torch.tensor([1] * 3), cache)))
        assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5
        assert float((found[:4] - expected[3:]).abs().max() / expected.abs().max()) > 1e-2


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "int4"])
def test_all_processors_agree(precision: Any) -> None:
    """Every variant that this processor can run gives the same scores, but for the order of sums and inputs near a tie."""
    library = native.library()
    assert library is not None
    best = library.variant()
    model = prepare(build(SPECS["gemma3"], seed=0), precision)
    stepper = Stepper.of(model)
    assert stepper is not None
    ids, slots = torch.arange(7), torch.zeros(7, dtype=torch.long)
    like = torch.zeros(1, dtype=next(model.parameters()).dtype)
    found = {}
    try:
        for name in variants():
            if not library.use(name.encode()):
                found[name] = stepper.step(ids, slots, Slots(model.config, 1, 8, 1, like))
    finally:
        library.done(library.use(best))
    assert len(found) > 1, "only one variant runs here"
    expected = found[best.decode()]
    for name, scores in found.items():
        assert float((scores - expected).abs().max() / expected.abs().max()) < (1e-5 if precision == "fp32" else 2e-2), name
    assert float((expected[1:] - expected[:-1]).abs().max() / expected.abs().max()) > 2e-2


QUANTIZED = [("q8_0", "int8"), ("q4_0", "int4")]


@pytest.fixture(params=QUANTIZED, ids=[kind for _, kind in QUANTIZED])
def quantized(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    """A GGUF file with a tokenizer, and the kind of most of its matrices."""
    dtype, kind = request.param
    tokenizer = tokenizer_of("byte-bpe")
    settings = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 192, "num_key_value_heads": 2}
    settings |= {"model_type": "llama", "vocab_size": tokenizer.vocab_size, "max_position_embeddings": 256, "tie_word_embeddings": False}
    model = build(hub.read_config(settings)[0], seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    write(model, tokenizer, tmp_path / "model.gguf", dtype)
    return tmp_path / "model.gguf", kind


def test_serve_generate_and_chat_take_a_files_blocks_as_they_are(quantized: tuple[Path, str]) -> None:
    file, kind = quantized
    plain, _ = hub.load(file)
    weights = {name: module.weight for name, module in plain.named_modules() if isinstance(module, torch.nn.Linear)}
    writer = open_model(str(file), slots=1, capacity=32)
    try:
        assert isinstance(writer, Writer)
        for model in (command_model(file, "auto")[0], writer.model):
            found = linears(model)
            assert {layer.kind for layer in found.values()} == {kind}
            assert all(torch.equal(unpack(layer.packed), weights[name]) for name, layer in found.items())
        rounded = linears(command_model(file, "int4" if kind == "int8" else "int8")[0])
        assert not any(torch.equal(unpack(layer.packed), weights[name]) for name, layer in rounded.items() if layer.kind == "int4")
    finally:
        writer.close()


def test_a_files_blocks_give_the_tokens_of_its_numbers(quantized: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    """Inputs are rounded to 8 bits: a token may differ from the dequantized model's best one where that is as good as level with it."""
    file, _ = quantized
    prompts = ["话说天下大势", "The quick brown fox", "酒店房间"]
    assert run(["generate", str(file), *prompts, "--max-new-tokens", "24", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    plain, _ = hub.load(file)

    def short(model: Any) -> float:
        """The most by which a token's log-probability is below the best one's in its place."""
        most = 0.0
        for row in rows:
            ids = row["prompt_ids"] + row["ids"]
            with torch.no_grad():
                chances = model(torch.tensor([ids])).logits[0, len(row["prompt_ids"]) - 1 : -1].float().log_softmax(-1)
            own = chances[range(len(row["ids"])), row["ids"]]
            most = max(most, float((chances.max(-1).values - own).max()))
        return most

    assert short(plain) < 0.1
    with torch.no_grad():
        plain.decoder.layers["0"].feed_forward.body.down.weight.mul_(0.9)
    assert short(plain) > 0.1
