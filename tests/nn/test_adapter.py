"""Adapters on linear layers of any form: what they compute, train and leave alone.

Stated: equal to the update written out, and merged, to 1e-5 of the largest value; 4-bit matrices to 2 % in the 2-norm of what
bitsandbytes' own bounds are (11 % relative error for normal numbers).
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from triform import config, nn
from triform.nn.adapter import (
    adapted_layers,
    adapter_names,
    adapter_parts,
    add_adapter,
    attach,
    in_use,
    linear_layers,
    merge_adapter,
    remove_adapter,
    switch_off,
    trainable,
    use_adapter,
    use_adapters,
    without_adapter,
)
from triform.nn.nf4 import NF4Linear, dequantize, quantize

TOLERANCE = 1e-5


def with_feed_forward(spec: Any) -> config.Transformer:
    return config.Transformer(decoder=tiny.stack(tiny.attention("rotary", mask="causal"), feed_forward=spec), head=config.LanguageModel())


MODELS = {
    "decoder": tiny.decoder("rotary"),
    "encoder": tiny.encoder("learned"),
    "both": tiny.encoder_decoder("bucketed"),
    "gated": with_feed_forward(tiny.GATED),
    "experts": with_feed_forward(tiny.EXPERTS),
}
KINDS = ["lora", "dora"]


def made(name: str = "decoder", dtype: torch.dtype = torch.float32) -> Any:
    """A model of one's own, whose weights may be changed."""
    return copy.deepcopy(tiny.build(MODELS[name], dtype)).requires_grad_(True)


def scores(model: Any, seed: int = 0, rows: int = 2) -> Tensor:
    ids = torch.randint(tiny.VOCAB, (rows, 7), generator=torch.Generator().manual_seed(seed))
    out: Tensor = model(ids, target=ids[:, :5] if model.config.form == "encoder-decoder" else None).logits
    return out


def moved(model: Any, name: str = "default", seed: int = 3) -> None:
    """Give an adapter matrices that change something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in adapter_parts(model, name).values():
            for tensor in (part.lora_a, part.lora_b, *([] if part.magnitude is None else [part.magnitude])):
                tensor.add_(0.2 * torch.randn(tensor.shape, generator=generator).to(tensor.dtype))


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max() / b.detach().abs().max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_a_new_adapter_changes_nothing_and_a_moved_one_is_what_merging_makes(name: str, kind: str) -> None:
    model = made(name)
    before = scores(model)
    layers = add_adapter(model, config.Adapter(rank=3, alpha=5, kind=kind), seed=1)
    assert layers
    assert difference(scores(model), before) < TOLERANCE
    moved(model)
    after = scores(model)
    assert difference(after, before) > 100 * TOLERANCE
    with without_adapter(model):
        assert difference(scores(model), before) < TOLERANCE
    names = set(made(name).state_dict())
    merge_adapter(model)
    assert set(model.state_dict()) == names
    assert not adapter_names(model)
    assert all(p.requires_grad for p in model.parameters())
    assert difference(scores(model), after) < TOLERANCE


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_update_written_out(kind: str, rslora: bool) -> None:
    layer = torch.nn.Linear(6, 4)
    model = torch.nn.ModuleDict({"layers": torch.nn.ModuleDict({"0": torch.nn.ModuleDict({"query": layer})})})
    model = torch.nn.ModuleDict({"decoder": model})
    add_adapter(model, config.Adapter(rank=2, alpha=3, kind=kind, rslora=rslora, whole=()), seed=0)
    moved(model)
    part = adapter_parts(model)["decoder.layers.0.query"]
    x, s = torch.randn(5, 6), 3 / (2**0.5 if rslora else 2)
    whole = layer.weight + s * part.lora_b @ part.lora_a
    if kind == "dora":
        assert part.magnitude is not None
        whole = whole / whole.norm(dim=1, keepdim=True) * part.magnitude[:, None]
    assert difference(layer(x), x @ whole.T + layer.bias) < TOLERANCE
    with without_adapter(model):
        assert difference(layer(x), x @ whole.T + layer.bias) > 100 * TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["none", "selective", "full"])
def test_only_the_adapter_gets_gradients_also_recomputed(kind: str, how: Any) -> None:
    gradients = []
    for each in ("none", how):
        model = made().train()
        for module in model.modules():
            if hasattr(module, "p"):
                module.p = 0.0
        frozen = {n: p.clone() for n, p in model.named_parameters()}
        add_adapter(model, config.Adapter(rank=2, kind=kind), seed=0)
        moved(model)
        with nn.recomputing(each):
            scores(model).square().sum().backward()
        found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        assert found.keys() == trainable(model).keys()
        assert all(".adapter.0." in n for n in found)
        assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)
        gradients.append(found)
    assert all(torch.equal(gradients[0][n], gradients[1][n]) for n in gradients[0])


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_differences(kind: str) -> None:
    """In fp64, with DoRA's lengths held still as the paper has it: its gradient leaves out what they would add."""
    layer = torch.nn.Linear(5, 4).double()
    model = torch.nn.ModuleDict({"layers": torch.nn.ModuleDict({"0": torch.nn.ModuleDict({"query": layer})})})
    model = torch.nn.ModuleDict({"decoder": model})
    add_adapter(model, config.Adapter(rank=2, kind=kind, whole=()), seed=0)
    moved(model)
    part, x = adapter_parts(model)["decoder.layers.0.query"], torch.randn(3, 5).double()
    inputs = [part.lora_a, part.lora_b] if part.magnitude is None else [part.magnitude]
    assert torch.autograd.gradcheck(lambda *_: layer(x), inputs, atol=1e-8)


def test_dropout_acts_on_the_adapter_alone() -> None:
    model = made()
    add_adapter(model, config.Adapter(rank=2, dropout=0.5), seed=0)
    eager = scores(model)
    model.train()
    for name, module in model.named_modules():
        if hasattr(module, "p") and ".adapter." not in name:
            module.p = 0.0
    assert difference(scores(model), eager) < TOLERANCE  # B is zero, and nothing else is dropped
    moved(model)
    torch.manual_seed(0)
    one = scores(model)
    assert difference(scores(model), one) > 100 * TOLERANCE


def test_targets_by_name_by_pattern_and_all() -> None:
    model = made("both")
    every = {name for name in linear_layers(model) if ".layers." in name}
    wanted = {
        "all": every,
        ("query", "value"): {name for name in every if name.endswith(("query", "value"))},
        ("decoder.*.query",): {name for name in every if name.startswith("decoder.") and name.endswith("query")},
        ("encoder.layers.1.feed_forward.body.up",): {"encoder.layers.1.feed_forward.body.up"},
    }
    for targets, expected in wanted.items():
        model = made("both")
        assert set(add_adapter(model, config.Adapter(rank=1, targets=targets))) == expected == set(adapted_layers(model))


@pytest.mark.parametrize(
    ("name", "targets", "told"),
    [
        ("decoder", ("quary",), "'quary' names no linear layer of this model; expected all, or names such as down, key, out, query"),
        ("experts", ("gate",), "of experts, whose matrices are one tensor"),
        ("experts", ("router",), "of experts"),
    ],
)
def test_targets_that_are_not_there_are_refused(name: str, targets: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        add_adapter(made(name), config.Adapter(targets=targets))


def test_all_leaves_experts_as_they_are() -> None:
    layers = add_adapter(made("experts"), config.Adapter(rank=2))
    assert {name.rpartition(".")[2] for name in layers} == {"query", "key", "value", "out"}


def test_a_head_that_is_no_language_model_s_is_trained_whole() -> None:
    spec = tiny.encoder(head=config.Classify(labels=3))
    model = copy.deepcopy(tiny.build(spec)).requires_grad_(True)
    add_adapter(model, config.Adapter(rank=2))
    assert {"head.out.weight", "head.out.bias"} <= trainable(model).keys()
    with pytest.raises(ValueError, match=r"head is trained whole; set train.adapter.whole to"), without_adapter(model):
        pass
    model = copy.deepcopy(tiny.build(spec))
    add_adapter(model, config.Adapter(rank=2, whole=("encoder.norm",)))
    assert {n for n in trainable(model) if ".adapter." not in n} == {"encoder.norm.weight", "encoder.norm.bias"}
    with pytest.raises(ValueError, match="whole: expected parts of the model such as head"):
        add_adapter(copy.deepcopy(tiny.build(spec)), config.Adapter(whole=("nose",)))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_one_batch_use_different_adapters(kind: str) -> None:
    model = made()
    for seed, name in enumerate(("one", "two.point", "three")):
        parts = attach(model, dict.fromkeys(linear_layers(model), config.Adapter(rank=1 + seed, kind=kind)), name=name, trainable=False)
        for where, part in parts.items():
            part.start(model.get_submodule(where))
        moved(model, name, seed)
    switch_off(model)
    assert not in_use(model)
    plain = scores(model, rows=5)
    names = ["two.point", None, "one", "one", "three"]
    with use_adapters(model, [(name, 7) for name in names]):
        together = scores(model, rows=5)
    for row, name in enumerate(names):
        alone = plain
        if name is not None:
            with use_adapter(model, name):
                alone = scores(model, rows=5)
            assert difference(alone[row], plain[row]) > 100 * TOLERANCE
        assert difference(together[row], alone[row]) < TOLERANCE
    remove_adapter(model, "one")
    assert adapter_names(model) == ["two.point", "three"]
    with pytest.raises(ValueError, match=r"no adapter 'one'; it has two.point, three"), use_adapter(model, "one"):
        pass
    for name in ("two.point", "three"):
        remove_adapter(model, name)
    assert not adapted_layers(model)
    assert torch.equal(scores(model, rows=5), plain)


def test_a_second_adapter_of_a_name_is_refused() -> None:
    model = made()
    add_adapter(model, config.Adapter(rank=2))
    with pytest.raises(ValueError, match="has an adapter 'default' already"):
        add_adapter(model, config.Adapter(rank=2))


def test_a_copy_has_an_adapter_of_its_own() -> None:
    model = made()
    add_adapter(model, config.Adapter(rank=2), seed=0)
    other = copy.deepcopy(model)
    moved(model)
    assert difference(scores(model), scores(other)) > 100 * TOLERANCE
    with without_adapter(model):
        assert in_use(other)
        assert not in_use(model)


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_blocks_give_the_same(kind: str) -> None:
    model = made()
    add_adapter(model, config.Adapter(rank=2, kind=kind), seed=0)
    moved(model)
    before = scores(model)
    block = model.decoder.layers["0"]
    block._compiled_call_impl = torch.compile(block._call_impl, backend="eager")
    assert difference(scores(model), before) < TOLERANCE
    with without_adapter(model):
        assert difference(scores(model), before) > 100 * TOLERANCE


# 4 bits


def test_nf4_keeps_normal_numbers_to_a_tenth_and_its_own_values_exactly() -> None:
    weight = torch.randn(96, 80, generator=torch.Generator().manual_seed(0)) * 0.02
    stored = quantize(weight)
    again = dequantize(*stored, (96, 80), torch.float32)
    assert 0.05 < float((again - weight).norm() / weight.norm()) < 0.1
    bits = 8 * sum(part.nbytes for part in stored) / weight.numel()
    assert bits < 4.2
    twice = dequantize(*quantize(again), (96, 80), torch.float32)
    assert float((twice - again).norm() / again.norm()) < 0.01  # but for the scales, whose mean has moved


@pytest.mark.parametrize("shape", [(3, 5), (64, 64), (1, 130), (300, 70)])
def test_nf4_of_any_size_and_of_zeros(shape: tuple[int, int]) -> None:
    assert torch.equal(dequantize(*quantize(torch.zeros(shape)), shape, torch.float32), torch.zeros(shape))
    weight = torch.randn(shape)
    again = dequantize(*quantize(weight), shape, torch.bfloat16)
    assert again.shape == shape
    assert again.dtype == torch.bfloat16
    assert float((again.float() - weight).norm() / weight.norm()) < 0.15


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_on_4_bits_trains_as_on_the_numbers_they_stand_for(kind: str) -> None:
    quantized, plain = made(), made()
    add_adapter(quantized, config.Adapter(rank=2, kind=kind, quantize="nf4"), seed=0)
    layers = {name: module for name, module in quantized.named_modules() if isinstance(module, NF4Linear)}
    assert set(layers) == {name for name in linear_layers(plain) if ".layers." in name}
    with torch.no_grad():
        for name, layer in layers.items():
            plain.get_submodule(name).weight.copy_(layer.dequantized())
    add_adapter(plain, config.Adapter(rank=2, kind=kind), seed=0)
    for model in (quantized, plain):
        moved(model)
        scores(model).square().sum().backward()
    ours, theirs = (dict(model.named_parameters()) for model in (quantized, plain))
    for name in trainable(plain):
        assert difference(ours[name].grad, theirs[name].grad) < TOLERANCE
    after = scores(quantized)
    assert difference(after, scores(plain)) < TOLERANCE
    merge_adapter(quantized)
    assert not any(isinstance(module, NF4Linear) for module in quantized.modules())
    assert difference(scores(quantized), after) < TOLERANCE


def test_4_bits_survive_a_move_to_another_type() -> None:
    model = made()
    add_adapter(model, config.Adapter(rank=2, quantize="nf4"), seed=0)
    layer = next(module for module in model.modules() if isinstance(module, NF4Linear))
    before = layer.dequantized()
    model.to(torch.bfloat16)
    assert torch.equal(layer.dequantized(), before)
