"""Configurations as plain data: there and back without loss, and refused with the path to the mistake."""

import copy
import json
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triform import config
from triform.config import Model

NAMES = config.presets()


@pytest.mark.parametrize("defaults", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_every_preset_survives_plain_data_and_json(name: str, defaults: bool) -> None:
    model = config.preset(name)
    data = json.loads(json.dumps(config.to_dict(model, defaults=defaults, hint=Model)))
    assert config.from_dict(Model, data) == model


def test_every_preset_survives_a_file(tmp_path: Path) -> None:
    for name in NAMES:
        config.save(config.preset(name), tmp_path / "triform.json")
        assert config.read(tmp_path) == config.preset(name)


def test_two_presets_are_not_the_same_data() -> None:
    texts = {json.dumps(config.to_dict(config.preset(name), hint=Model), sort_keys=True) for name in NAMES}
    assert len(texts) == len(NAMES)


def changed(path: list[Any], value: Any, name: str = "gpt2") -> Any:
    data = copy.deepcopy(config.to_dict(config.preset(name), defaults=True, hint=Model))
    here = data
    for step in path[:-1]:
        here = here[step]
    here[path[-1]] = value
    return data


ATTENTION = ["decoder", "pattern", 0, "attention"]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ([*ATTENTION, "heads"], "x", "decoder.pattern[0].attention.heads: expected a whole number, got 'x'"),
        ([*ATTENTION, "heads"], 12.0, "decoder.pattern[0].attention.heads: expected a whole number, got 12.0"),
        ([*ATTENTION, "heads"], True, "decoder.pattern[0].attention.heads: expected a whole number, got True"),
        ([*ATTENTION, "heads"], None, "decoder.pattern[0].attention.heads: expected a whole number, got None"),
        ([*ATTENTION, "heads"], 0, "decoder.pattern[0].attention.heads: expected at least 1, got 0"),
        ([*ATTENTION, "kv_heads"], 5, "decoder.pattern[0].attention.kv_heads: expected a divisor of the 12 heads, got 5"),
        (
            [*ATTENTION, "heads"], 7,
            "decoder.pattern[0].attention.heads: expected a divisor of the width 768, got 7; or set head_width",
        ),
        (
            [*ATTENTION, "mask"], "casual",
            "decoder.pattern[0].attention.mask: expected 'bidirectional' or 'causal' or 'prefix', got 'casual'",
        ),
        (
            [*ATTENTION, "position"], {"kind": "Rotery"},
            "decoder.pattern[0].attention.position.kind: expected one of Alibi, Bucketed, Rotary, got 'Rotery'",
        ),
        (
            [*ATTENTION, "dropout"], 1.0,
            "decoder.pattern[0].attention.dropout: expected a probability from 0 up to but not including 1, got 1.0",
        ),
        (["decoder", "input", "scale"], float("nan"), "decoder.input.scale: expected a number, got nan"),
        (["decoder", "pattern"], [], "decoder.pattern: expected at least one block, got none"),
        (["decoder", "pattern"], {}, "decoder.pattern: expected a list, got a mapping"),
        (["decoder", "depth"], "6", "decoder.depth: expected a whole number, got '6'"),
        (["decoder"], None, "encoder: expected an encoder, a decoder, or both, got neither"),
        (["kind"], "Transfomer", "kind: expected one of DualEncoder, Transformer, got 'Transfomer'"),
        (["share_tokens"], 1, "share_tokens: expected true or false, got 1"),
    ],
)  # fmt: skip
def test_bad_values_are_refused_by_path(path: list[Any], value: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        config.from_dict(Model, changed(path, value))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("path", "start", "end"),
    [
        (["encodr"], "encodr: expected one of the keys encoder, decoder,", "got 'encodr'; did you mean 'encoder'?"),
        ([*ATTENTION, "head"], "decoder.pattern[0].attention.head: expected one of the keys heads,", "did you mean 'heads'?"),
        (["decoder", "layers"], "decoder.layers: expected one of the keys width,", "got 'layers'"),
    ],
)
def test_unknown_keys_are_refused_by_path(path: list[Any], start: str, end: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        config.from_dict(Model, changed(path, 1))
    assert str(caught.value).startswith(start)
    assert str(caught.value).endswith(end)


def test_a_missing_key_is_named() -> None:
    data = changed(["decoder", "depth"], 1)
    del data["decoder"]["depth"]
    with pytest.raises(ValueError, match=r"^decoder.depth: expected a whole number, got nothing$"):
        config.from_dict(Model, data)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("decoder.depht=6", r"^decoder.depht: expected one of the keys .*did you mean 'depth'\?$"),
        ("decoder.depth=six", r"^decoder.depth: expected a whole number, got 'six'$"),
        ("decoder.depth", r"^override 'decoder.depth': expected path=value, such as decoder.depth=6$"),
        ("decoder.pattern[1].attention.heads=8", r"^decoder.pattern.1: expected an index below 1$"),
        ("encoder.depth=6", r"^encoder: expected a part to set depth in, got nothing; set encoder as a whole$"),
        ("decoder.depth.x=1", r"^decoder.depth.x: expected a part with fields, got 12$"),
    ],
)
def test_bad_overrides_are_refused(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config.resolve("gpt2", [override])


def test_overrides_hold_together_whatever_their_order() -> None:
    pair = ["decoder.width=60", "decoder.pattern[0].attention.heads=5"]
    one, two = config.resolve("gpt2", pair), config.resolve("gpt2", pair[::-1])
    assert isinstance(one, config.Transformer)
    assert one == two
    assert one.decoder is not None
    assert (one.decoder.width, one.decoder.pattern[0].attention.heads) == (60, 5)


def paths(value: Any, where: str = "") -> list[tuple[str, Any]]:
    """Every field below a configuration, with its path."""
    found = []
    for f in fields(value):
        part, path = getattr(value, f.name), f"{where}.{f.name}" if where else f.name
        parts = [(f"{path}[{i}]", p) for i, p in enumerate(part)] if isinstance(part, tuple) else [(path, part)]
        for at, inner in parts:
            found.append((at, inner))
            if is_dataclass(inner):
                found += paths(inner, at)
    return found


FIELDS = [(name, path, value) for name in ("bert-base", "gemma3-270m", "switch-base-8", "clip-vit-base-patch32")
          for path, value in paths(config.preset(name))]  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(FIELDS))
def test_setting_a_field_to_what_it_is_changes_nothing(field: tuple[str, str, Any]) -> None:
    name, path, value = field
    model = config.preset(name)
    plain = config.to_dict(value, hint=None) if is_dataclass(value) else value
    assert config.with_overrides(Model, model, {path: plain}) == model


JUNK = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.lists(st.integers(), max_size=2),
                 st.dictionaries(st.text(max_size=5), st.integers(), max_size=2))  # fmt: skip


def outcome(overrides: Any, name: str) -> tuple[config.Model | None, str]:
    """The model that overrides make, or what is said against them."""
    try:
        return config.with_overrides(Model, config.preset(name), overrides), ""
    except ValueError as error:
        return None, str(error)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(FIELDS), JUNK)
def test_anything_set_is_kept_or_refused_with_its_place(field: tuple[str, str, Any], value: Any) -> None:
    name, path, _ = field
    made, message = outcome({path: value}, name)
    if made is None:
        assert re.fullmatch(r".+: expected .*", message)  # "." takes no new line
    else:
        assert config.from_dict(Model, json.loads(json.dumps(config.to_dict(made, hint=Model)))) == made


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30))
def test_any_text_as_override_gives_a_model_or_one_line(text: str) -> None:
    made, message = outcome([text], "gpt2")
    assert (made is None) == (len(message.splitlines()) == 1)
