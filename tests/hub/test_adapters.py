"""Folders of adapters: what is refused, with what words, and what else is found there."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from triform import config, hub
from triform.hub.facts import facts
from triform.nn.adapter import adapter_parts, add_adapter, build_quantized

NAME = "base_model.model.decoder.layers.0.attention.body.query"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A model without a public counterpart."""
    hub.save(tiny.build(tiny.decoder("alibi")), None, tmp_path / "base")
    return tmp_path / "base"


def adapted(base: Path) -> Any:
    """The model with a new adapter."""
    model = hub.load(base)[0]
    add_adapter(model, config.Adapter(rank=2, targets=("query",)), seed=0)
    return model


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    """An adapter of it."""
    model = adapted(base)
    with torch.no_grad():
        for part in adapter_parts(model).values():
            part.lora_b.add_(0.1)
    hub.save_adapter(model, None, tmp_path / "adapter", base)
    return tmp_path / "adapter"


def test_what_the_folder_of_an_adapter_holds(base: Path, adapter: Path) -> None:
    found, of_model = facts(adapter), facts(base)
    assert found.adapter == f"LoRA of rank 2 for {base}"
    assert sum(found.numbers.values()) == sum(part.lora_a.numel() + part.lora_b.numel() for part in adapter_parts(adapted(base)).values())
    assert 0 < found.bytes < of_model.bytes
    assert of_model.adapter is None


def say(folder: Path, **fields: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | fields), encoding="utf-8")


def store(folder: Path, **changes: Any) -> None:
    """Change tensors of an adapter by the ends of their names; None leaves one out."""
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file) | {f"{NAME}.{end.replace('__', '.')}": tensor for end, tensor in changes.items()}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, file)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"peft_type": "LOHA"}, "adapter_config.json: peft_type: expected LORA, got 'LOHA'"),
        ({"bias": "all"}, "bias: expected 'none', as nothing else is supported, got 'all'"),
        ({"r": 0}, "r: expected a rank from 1 to"),
        ({"r": 3}, r"lora_A.weight is \(2, 16\), expected \(3, 16\)"),
        ({"use_dora": True}, r"lacks decoder.layers.0.attention.body.query.lora_magnitude_vector"),
        ({"rank_pattern": {"(": 2}}, "expected patterns of modules' names"),
        ({"target_parameters": ["up"]}, "target_parameters: expected None"),
    ],
)
def test_what_a_configuration_may_not_say(fields: dict[str, Any], told: str, adapter: Path) -> None:
    say(adapter, **fields)
    with pytest.raises(ValueError, match=told) as caught:
        hub.load(adapter)
    assert str(caught.value).startswith(str(adapter.parent))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"lora_B__weight": None}, "lacks decoder.layers.0.attention.body.query.lora_B"),
        ({"lora_A__weight": torch.zeros(2, 15)}, r"lora_A.weight is \(2, 15\), expected \(2, 16\)"),
        ({"lora_B__weight": torch.zeros(16, 5)}, r"lora_B.weight is \(16, 5\), expected \(16, 2\)"),
        ({"lora_embedding_A": torch.zeros(2, 2)}, "which this model has not; is it another model's"),
    ],
)
def test_what_tensors_may_not_be(changes: dict[str, Any], told: str, adapter: Path) -> None:
    store(adapter, **changes)
    with pytest.raises(ValueError, match=told):
        hub.load(adapter)


def test_a_base_that_is_gone_is_named(adapter: Path) -> None:
    say(adapter, base_model_name_or_path="nowhere/at-all/ever")
    with pytest.raises(ValueError, match="nowhere/at-all/ever"):
        hub.load(adapter)
    say(adapter, base_model_name_or_path=None)
    with pytest.raises(ValueError, match="base_model_name_or_path: expected the path or name of the model that it belongs to"):
        hub.load(adapter)


def test_a_base_may_lie_beside_its_adapter(adapter: Path) -> None:
    wanted = hub.load(adapter)[0].state_dict()
    say(adapter, base_model_name_or_path="../base")
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in hub.load(adapter)[0].state_dict().items())


def test_an_adapter_of_an_adapter(base: Path, adapter: Path, tmp_path: Path) -> None:
    model = hub.load(adapter)[0]
    add_adapter(model, config.Adapter(rank=1, targets=("up",)), seed=0)
    with torch.no_grad():
        for part in adapter_parts(model).values():
            part.lora_b.add_(0.1)
    hub.save_adapter(model, None, tmp_path / "second", adapter)
    ids = torch.arange(6)[None]
    assert torch.allclose(hub.load(tmp_path / "second")[0](ids).logits, model(ids).logits, atol=1e-5)
    assert not torch.allclose(hub.load(adapter)[0](ids).logits, model(ids).logits, atol=1e-4)


def test_an_adapter_takes_the_place_of_a_model_and_a_model_of_an_adapter(base: Path, adapter: Path) -> None:
    model = hub.load(adapter)[0]
    hub.save(model, None, adapter)
    assert not (adapter / "adapter_config.json").exists()
    assert torch.equal(hub.load(adapter)[0].decoder.norm.weight, model.decoder.norm.weight)
    other = copy.deepcopy(hub.load(base)[0])
    add_adapter(other, config.Adapter(rank=1))
    hub.save_adapter(other, None, adapter, base)
    assert not (adapter / "model.safetensors").exists()
    assert hub.read_spec(adapter) == hub.read_spec(base)


def test_a_base_comes_into_4_bits_a_matrix_at_a_time(base: Path) -> None:
    whole = hub.load(base)[0]
    model = build_quantized(whole.config, seed=0)
    hub.Checkpoint.open(base).begin(model)
    add_adapter(whole, config.Adapter(rank=1, quantize="nf4"), seed=0)
    add_adapter(model, config.Adapter(rank=1, quantize="nf4"), seed=0)
    assert not any(tensor.is_meta for tensor in model.state_dict().values())
    expected = whole.state_dict()
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
