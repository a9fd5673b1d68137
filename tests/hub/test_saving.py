"""Models into folders and back: bit for bit, in the layout that others read, and never half."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from strategies import models
from torch import Tensor

import triform
from triform import config, hub, nn, text
from triform.config import files as config_files
from triform.hub import safetensors
from triform.hub.files import INDEX, SINGLE, WeightFiles
from triform.hub.saving import write_weights

TEXTS = ["the cat sat on the mat", "猫坐在垫子上", "a dog and a cat"] * 20


@pytest.fixture(scope="module")
def tokenizer() -> text.Tokenizer:
    return text.train_tokenizer(TEXTS, kind="characters", min_frequency=1)


def tiny(form: str, vocab_size: int = 60, **changes: Any) -> config.Model:
    """A small model whose like is public: a LLaMA, a BERT, a T5."""
    name = {"decoder": "llama-7b", "encoder": "bert-base", "both": "t5-small"}[form]
    sizes: dict[str, Any] = {}
    for side in ("encoder", "decoder"):
        if getattr(config.preset(name), side) is not None:
            sizes |= {f"{side}.{field}": value for field, value in {"depth": 2, "width": 16, "input.vocab_size": vocab_size}.items()}
            sizes |= {f"{side}.pattern[0].attention.heads": 2, f"{side}.pattern[0].feed_forward.hidden": 24}
    return config.with_overrides(config.Model, config.preset(name), sizes | changes)


def perturbed(spec: config.Model, dtype: torch.dtype = torch.float32) -> Any:
    model = nn.build(spec, dtype=dtype, seed=0).eval()
    with torch.no_grad():
        for i, tensor in enumerate([*model.parameters(), *model.buffers()]):
            tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(i)))
    return model


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().view(-1).view(torch.uint8)


def same(one: Any, other: Any) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return one.config == other.config and list(a) == list(b) and all(t.dtype == b[n].dtype and bits(t).equal(bits(b[n])) for n, t in a.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_every_kind_of_model_comes_back_bit_for_bit(dtype: torch.dtype, tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    model = perturbed(data.draw(models()), dtype)
    folder = tmp_path_factory.mktemp("model")
    hub.save(model, None, folder)
    assert (folder / "config.json").exists() != (folder / "triform.json").exists()
    loaded = triform.load(folder)[0]
    assert same(loaded, model)
    with torch.no_grad():
        next(loaded.parameters()).view(-1)[0] += 1
    assert not same(loaded, model)
