"""Writing public configurations: what is written reads back, and what has no counterpart is named."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import models

from triform import config, hub, nn
from triform.hub.function import differences, function

WRITABLE = [name for name in config.presets() if not name.startswith("transformer-")]


def written(model: config.Model) -> dict[str, Any]:
    """The public configuration, as it comes back from a file."""
    data: dict[str, Any] = json.loads(json.dumps(hub.write_config(model)[0]))
    return data


def attempt(model: config.Model) -> tuple[dict[str, Any], hub.Family] | str:
    """What is written, or the text of the refusal."""
    try:
        return hub.write_config(model)
    except hub.NoCounterpart as error:
        return str(error)


@pytest.mark.parametrize("name", WRITABLE)
def test_every_preset_of_a_public_family_is_written_and_read_back(name: str) -> None:
    model = config.preset(name)
    data = written(model)
    assert hub.read_config(data)[0] == model
    del data["triform"]
    assert not differences(hub.read_config(data)[0], model)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(models())
def test_any_configuration_is_written_whole_or_refused_in_one_line(model: config.Model) -> None:
    made = attempt(model)
    if isinstance(made, str):
        assert "\n" not in made
        return
    data, family = made
    assert hub.read_config(data)[0] == model
    public = {name: value for name, value in data.items() if name != "triform"}
    found = hub.read_config(json.loads(json.dumps(public)))[0]
    assert function(found) == function(model) or not differences(found, model)
    hub.export_weights(nn.build(model, device="meta"), family)  # every weight has a name


NEAR = st.sampled_from([name for name in WRITABLE if "switch" not in name])
CHANGES: dict[str, list[Any]] = {
    "placement": ["pre", "post", "sandwich"],
    "norm": [{"kind": "LayerNorm"}, {"kind": "RMSNorm"}, {"kind": "LayerNorm", "eps": 1e-3}],
    "attention.bias": ["none", "qkv", "out", "all"],
    "attention.window": [None, 4],
    "attention.scale": [None, 1.0],
    "feed_forward": [{"kind": "FeedForward", "hidden": 64, "gated": True, "activation": "silu", "bias": False}],
    "dropout": [0.0, 0.3],
}


@settings(max_examples=30, deadline=None)
@given(NEAR, st.sampled_from(sorted(CHANGES)), st.data())
def test_a_change_near_a_public_model_is_kept_or_named(name: str, field: str, data: Any) -> None:
    model = config.preset(name)
    side = "text" if isinstance(model, config.DualEncoder) else "decoder" if model.decoder else "encoder"
    value = data.draw(st.sampled_from(CHANGES[field]))
    changed = config.with_overrides(config.Model, model, {f"{side}.pattern[0].{field}": value})
    made = attempt(changed)
    if isinstance(made, str):
        # by the change another family may be as near, and then what is told is where the model differs from that one
        assert field.split(".")[-1] in made or re.search(r"has other [\w.\[\]]+ \(.+ here, .+ there\)", made)
    else:
        assert hub.read_config(made[0])[0] == changed


@pytest.mark.parametrize(
    ("preset", "changes", "message"),
    [
        (
            "bert-base", {"encoder.input.position": None, "encoder.pattern[0].attention.position": {"kind": "Alibi"}},
            r"encoder-only model does; the nearest, bert, has other encoder.input.position \(none here, Learned there\), "
            r"encoder.pattern\[0\].attention.position \(Alibi here, none there\)$",
        ),
        ("llama-7b", {"decoder.pattern[0].feed_forward.gated": False},
         r"decoder-only model does; the nearest, llama, has other decoder.pattern\[0\].feed_forward.gated \(no here, yes there\)$"),
        ("llama-7b", {"decoder.pattern[0].attention.mask": "prefix"}, r"llama, .*attention.mask \(prefix here, causal there\)$"),
        ("gpt2", {"decoder.pattern[0].attention.kv_heads": 4}, r"nearest, gpt2, .*attention.kv_heads \(4 here, 12 there\)$"),
        ("bert-base", {"head": {"kind": "Embed", "pool": "mean"}}, r"bert, has other head.pool \(mean here, first there\), head.transf"),
        ("bert-base", {"encoder.input.segments": 0}, r"bert, has other encoder.input.segments \(0 here, 1 there\)$"),
        ("bart-base", {"head.tied": False}, r"nearest, bart, has other head.tied \(no here, yes there\)$"),
        ("t5-small", {"encoder.pattern[0].attention.position.buckets": 16}, r"t5, has other decoder.pattern\[0\].attention.position.buck"),
    ],
)  # fmt: skip
def test_what_stands_in_the_way_is_named(preset: str, changes: dict[str, Any], message: str) -> None:
    model = config.with_overrides(config.Model, config.preset(preset), changes)
    with pytest.raises(hub.NoCounterpart, match=r"^no public family computes what this .*" + message):
        hub.write_config(model)


def test_what_only_training_uses_survives() -> None:
    model = config.with_overrides(
        config.Model, config.preset("storyteller"),
        {"decoder.pattern[0].feed_forward.dropout": 0.25, "init.scheme": "xavier", "decoder.input.dropout": 0.5},
    )  # fmt: skip
    assert hub.read_config(written(model))[0] == model


def test_public_fields_win_where_someone_changed_them() -> None:
    model = config.preset("storyteller")
    data = written(model)
    assert hub.read_config(data | {"hidden_act": "gelu"})[0].decoder.pattern[0].feed_forward.activation == "gelu"  # type: ignore[union-attr]
    assert hub.read_config(data | {"triform": {"kind": "Transformer", "from_another": "version"}})[0].init == config.Init()
    assert hub.read_config(data | {"triform": ["not", "ours"]})[0].head == model.head  # type: ignore[union-attr]


def test_labels_are_numbered_for_those_who_have_no_names() -> None:
    model = replace(config.preset("bert-base"), head=config.Classify(labels=3, transform="tanh"))
    assert written(model)["id2label"] == {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}


@settings(max_examples=25, deadline=None)
@given(models())
def test_equal_functions_give_equal_answers(model: config.Model) -> None:
    """What `function` calls the same builds the same weights; and a default that is spelled out is the default."""
    ours, spelled = nn.build(model, device="meta"), nn.build(function(model), device="meta")
    assert {n: p.shape for n, p in ours.named_parameters()} == {n: p.shape for n, p in spelled.named_parameters()}


def test_a_spelled_out_configuration_computes_the_same() -> None:
    spec = config.with_overrides(
        config.Model, config.preset("storyteller"),
        {"decoder.pattern[0].attention.position.scaling": {"kind": "Yarn", "factor": 4.0, "original_length": 16}},
    )  # fmt: skip
    one, other = nn.build(spec, seed=0).eval(), nn.build(function(spec)).eval()
    other.load_state_dict(one.state_dict())
    ids = torch.arange(24)[None]
    with torch.no_grad():
        assert (one(ids).logits - other(ids).logits).abs().max() < 1e-6


def test_configurations_are_read_and_written_without_torch() -> None:
    code = """
import sys
from triform import config, hub
data, family = hub.write_config(config.preset("mixtral-8x7b"))
hub.read_config(data), hub.Family, hub.NoCounterpart, hub.read_spec
assert family.as_stored(["model.norm.weight"]) is family
assert "torch" not in sys.modules, "torch"
assert "tokenizers" not in sys.modules, "tokenizers"
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
