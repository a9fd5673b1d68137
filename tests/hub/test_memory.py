"""How much memory loading and saving take, counted in pages by the kernel (Linux: VmHWM, reset by clear_refs)."""

import ctypes
import gc
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hub.hostile import BERT, BIN, HOSTILE, PICKLES
from safetensors.torch import load_file

from triform import config, hub, nn
from triform.hub.files import SINGLE, WeightFiles

MOST = 1.15  # times the weights


def _bytes(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024


def peak(run: Callable[[], Any]) -> tuple[Any, int]:
    """What it gives, and how far memory grew beyond what there was at its start."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # so that nothing that was freed is used again unseen
    Path("/proc/self/clear_refs").write_text("5")
    before = _bytes("VmRSS")
    result = run()
    return result, _bytes("VmHWM") - before


def spec(name: str, size: int) -> config.Model:
    """A GPT-2, whose matrices are stored turned around, or a Mixtral, whose experts are stored one by one; `size` in MB of fp32."""
    width = {48: 256, 200: 512}[size]
    fields = {"decoder.width": width, "decoder.depth": 12, "decoder.input.vocab_size": 12_000, "decoder.pattern[0].attention.heads": 8}
    if name == "gpt2":
        return config.with_overrides(config.Model, config.preset("gpt2"), fields | {"decoder.pattern[0].feed_forward.hidden": 4 * width})
    fields |= {"decoder.pattern[0].attention.kv_heads": 4, "decoder.pattern[0].feed_forward.expert.hidden": width // 2}
    return config.with_overrides(config.Model, config.preset("mixtral-8x7b"), fields)


def made(name: str, size: int) -> Any:
    """The model, with memory behind every weight."""
    model = nn.build(spec(name, size), device="meta").to_empty(device="cpu")
    for i, parameter in enumerate(model.parameters()):
        parameter.data.fill_(i)
    return model


def naive(folder: Path) -> Any:
    """The control: all tensors, and then the model."""
    tensors = load_file(folder / SINGLE)
    return {name: tensor.clone() for name, tensor in tensors.items()}, tensors


@pytest.mark.parametrize("size", [48, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["gpt2", "mixtral-8x7b"])
def test_a_model_is_loaded_and_saved_in_little_more_than_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, size: int
) -> None:
    monkeypatch.setattr("triform.hub.stored.PIECE", size * 2**14)  # in proportion to so small a model
    models = [made(name, size)]
    weights = sum(parameter.nbytes for parameter in models[0].parameters())
    hub.save(models[0], None, tmp_path / "first")
    hub.load(tmp_path / "first")  # what is imported and kept on first use
    assert peak(lambda: hub.save(models[0], None, tmp_path / "again", shard_bytes=weights // 3))[1] < (MOST - 1) * weights
    models.clear()
    for folder in ("first", "again"):
        loaded, grown = peak(lambda folder=folder: hub.load(tmp_path / folder))  # type: ignore[misc]
        assert grown < MOST * weights
        del loaded
    half, grown = peak(lambda: hub.load(tmp_path / "first", dtype="bf16"))
    assert grown < MOST * weights / 2
    del half
    assert peak(lambda: naive(tmp_path / "first"))[1] > 1.5 * weights


@pytest.mark.parametrize("size", [48, pytest.param(200, marks=pytest.mark.slow)])
def test_so_is_an_old_file(tmp_path: Path, size: int) -> None:
    hub.save(made("gpt2", size), None, tmp_path)
    tensors = load_file(tmp_path / SINGLE)
    torch.save(tensors, tmp_path / BIN)
    weights = sum(tensor.nbytes for tensor in tensors.values())
    del tensors
    (tmp_path / SINGLE).unlink()
    hub.load(tmp_path)
    loaded, grown = peak(lambda: hub.load(tmp_path))
    assert grown < MOST * weights
    assert next(loaded[0].parameters()).dtype == torch.float32


@pytest.mark.filterwarnings("ignore")
def test_no_memory_is_taken_for_what_is_refused(tmp_path: Path) -> None:
    made = nn.build(hub.read_config(BERT)[0], seed=0)
    hub.save(made, None, tmp_path / "model")
    files = []
    for i, (content, _) in enumerate(HOSTILE.values()):
        files.append(tmp_path / f"{i}.safetensors")
        files[-1].write_bytes(content)
    for i, (make, _) in enumerate(PICKLES.values()):
        (tmp_path / str(i)).mkdir()
        files.append(tmp_path / str(i) / BIN)
        make(files[-1])
    config_file = tmp_path / "model" / "config.json"
    sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "max_position_embeddings", "type_vocab_size")

    def all_refused() -> int:
        count = 0
        for file in files:
            with pytest.raises(ValueError, match=str(tmp_path)):
                WeightFiles(file)
            count += 1
        for name in sizes:
            for value in (10**6, 2**40, 2**62, 10**30):
                config_file.write_text(json.dumps(BERT | {name: value}))
                with pytest.raises(ValueError, match=str(tmp_path)):
                    hub.load(config_file.parent)
                count += 1
        return count

    all_refused()  # what is imported and kept on first use
    count, grown = peak(all_refused)
    assert count > 50
    assert grown < 16 * 2**20
