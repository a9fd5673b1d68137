"""Counts from the configuration are those of the model itself."""

import pytest
import strategies
from hypothesis import given, settings

from triform import config, nn
from triform.planner import parameters


def weights_of(model: config.Model) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(p.shape)) for name, p in nn.build(model, device="meta").named_parameters()]


@pytest.mark.parametrize("name", config.presets())
def test_names_and_shapes_of_every_preset(name: str) -> None:
    model = config.preset(name)
    count = parameters(model)
    if model.form == "dual-encoder" or max(s.depth for s in (model.encoder, model.decoder) if s) <= 12:
        assert list(count.tree.weights()) == weights_of(model)
    assert count.total == sum(p.numel() for p in nn.build(model, device="meta").parameters())


@settings(max_examples=60, deadline=None)
@given(strategies.models())
def test_names_and_shapes_of_any_model(model: config.Model) -> None:
    count = parameters(model)
    built = nn.build(model, device="meta")
    assert list(count.tree.weights()) == [(n, tuple(p.shape)) for n, p in built.named_parameters()]
    assert count.total == sum(p.numel() for p in built.parameters())
    assert 0 <= count.embedding <= count.total
    assert count.active <= count.total


def test_a_wrong_configuration_is_seen() -> None:
    gpt2 = config.preset("gpt2")
    untied = config.resolve(gpt2, ["head.tied=false"])
    assert list(parameters(untied).tree.weights()) != weights_of(gpt2)
    assert parameters(untied).total - parameters(gpt2).total == 50257 * 768


@pytest.mark.parametrize(
    ("name", "total"),
    [
        ("bert-base", 109_482_240),
        ("gpt2", 124_439_808),
        ("llama-7b", 6_738_415_616),
        ("t5-11b", 11_307_321_344),
        ("bart-large", 406_291_456),
        ("mixtral-8x7b", 46_702_792_704),
        ("vit-base-patch16-224", 86_567_656),
    ],
)
def test_published_counts(name: str, total: int) -> None:
    assert parameters(config.preset(name)).total == total


@pytest.mark.parametrize(("name", "billions"), [("mixtral-8x7b", 12.88), ("qwen3-30b-a3b", 3.35), ("llama-7b", 6.74)])
def test_active_parameters_leave_out_idle_experts(name: str, billions: float) -> None:
    assert parameters(config.preset(name)).active / 1e9 == pytest.approx(billions, abs=0.01)


@pytest.mark.parametrize(
    ("name", "tables"),
    [
        ("bert-base", (30522 + 512 + 2) * 768),
        ("gpt2", (50257 + 1024) * 768),
        ("bart-base", (50265 + 2 * 1026) * 768),
        ("vit-base-patch16-224", 197 * 768),
        ("t5-small", 32128 * 512),
    ],
)
def test_embedding_parameters(name: str, tables: int) -> None:
    assert parameters(config.preset(name)).embedding == tables


def test_fixed_biases_count_zero() -> None:
    bart = config.preset("bart-base")
    learned = config.resolve(bart, ["head.bias=learned"])
    assert parameters(learned).total - parameters(bart).total == 50265


def test_the_tree_adds_up() -> None:
    def check(part):  # type: ignore[no-untyped-def]
        if part["name"] and "children" in part:
            assert part["parameters"] == sum(child["parameters"] for child in part["children"])
        for child in part.get("children", ()):
            check(child)

    tree = parameters(config.preset("switch-base-8")).tree.to_dict()
    check(tree)
    decoder = next(part for part in tree["children"] if part["name"] == "decoder")
    token = decoder["children"][0]["children"][0]["children"][0]
    assert token == {"name": "weight", "parameters": 0, "shape": [32128, 768], "shared": "encoder.input.token.weight"}
