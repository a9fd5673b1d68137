"""Models into folders and back: bit for bit, in the layout that others read, and never half."""

import json
import os
import shutil
from collections.abc import Callable
from itertools import count
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
from triform.config.files import replacing_all, settle
from triform.hub import safetensors
from triform.hub.files import INDEX, SINGLE, WeightFiles

TEXTS = ["the cat sat on the mat", "猫坐在垫子上", "a dog and a cat"] * 20


@pytest.fixture(scope="module")
def tokenizer() -> text.Tokenizer:
    return text.train_tokenizer(TEXTS, kind="characters", min_frequency=1)


PRESETS = ("llama-3-8b", "gpt2", "qwen3-0.6b", "gemma3-270m", "mixtral-8x7b", "bert-base", "roberta-base", "distilbert-base", "t5-small",
           "flan-t5-base", "switch-base-8", "bart-base", "transformer-base", "vit-base-patch16-224", "clip-vit-base-patch32",
           "storyteller", "critic", "translator")  # fmt: skip
OWN = {"transformer-base"}  # what no public family computes


def tiny(name: str, **changes: Any) -> config.Model:
    """A preset, made small."""
    data = config.to_dict(config.preset(name), defaults=True, hint=config.Model)

    def shrink(part: Any) -> Any:
        small = {"width": 16, "depth": 2, "vocab_size": 60, "hidden": 24, "heads": 2, "length": 40, "image": 8, "patch": 4, "count": 3}
        small |= {"kv_heads": 1, "head_width": 8, "window": 4, "end_token": 3, "capacity": 4}
        if isinstance(part, dict):
            part = part | ({"scale": 16**0.5 if part["scale"] > 1 else 16**-0.5} if part.get("scale", 1.0) not in (1.0, None) else {})
            return {k: small[k] if k in small and type(v) is int else shrink(v) for k, v in part.items()}
        return [shrink(v) for v in part] if isinstance(part, list) else part

    return config.with_overrides(config.Model, config.from_dict(config.Model, shrink(data)), changes)


def perturbed(spec: config.Model, dtype: torch.dtype = torch.float32) -> Any:
    model = nn.build(spec, dtype=dtype, seed=0).eval()
    with torch.no_grad():
        for i, tensor in enumerate([*model.parameters(), *model.buffers()]):
            tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(i)) / 5)
    return model


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().view(-1).view(torch.uint8)


def same(one: Any, other: Any) -> bool:
    a, b = one.state_dict(), other.state_dict()
    alike = one.config == other.config and list(a) == list(b)
    return alike and all(t.dtype == b[n].dtype and bits(t).equal(bits(b[n])) for n, t in a.items())


def comes_back(model: Any, folder: Path) -> bool:
    """Saved and loaded it is the same; changed in one number it is not."""
    hub.save(model, None, folder)
    assert (folder / "config.json").exists() != (folder / "triform.json").exists()
    loaded = triform.load(folder)[0]
    alike = same(loaded, model)
    with torch.no_grad():
        next(loaded.parameters()).view(-1)[0] += 1
    assert not same(loaded, model)
    return alike


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_comes_back_bit_for_bit(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    assert comes_back(perturbed(tiny(name), dtype), tmp_path)
    assert (tmp_path / "triform.json").exists() == (name in OWN)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@settings(max_examples=10, deadline=None)
@given(st.data())
def test_every_kind_of_model_comes_back_bit_for_bit(dtype: torch.dtype, tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    assert comes_back(perturbed(data.draw(models()), dtype), tmp_path_factory.mktemp("model"))


# Files


def test_a_file_is_the_same_as_the_library_writes(tmp_path: Path) -> None:
    names = ["a", "字", 'quoted"\\', "line\n", "z", "b.c"]
    types = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool, torch.uint8, torch.float8_e4m3fn]
    tensors = {f"{name}{i}": torch.ones(i % 3, 2 + i).to(dtype) for name in names for i, dtype in enumerate(types)}
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    safetensors.write(tmp_path / "ours", {n: (t.dtype, t.shape) for n, t in tensors.items()}, reversed(tensors.items()))
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


@pytest.mark.parametrize("name", ["gpt2", "mixtral-8x7b", "t5-small"])
@pytest.mark.parametrize("shard_bytes", [2**30, 20_000, 1])
def test_shards_hold_the_exported_weights(tmp_path: Path, name: str, shard_bytes: int) -> None:
    model = perturbed(tiny(name))
    hub.save(model, None, tmp_path, shard_bytes=shard_bytes)
    expected = hub.export_weights(model, hub.write_config(model.config)[1])
    files = sorted(tmp_path.glob("*.safetensors"))
    stored = {n: t for file in files for n, t in load_file(file).items()}
    assert stored.keys() == expected.keys()
    assert all(bits(stored[n]).equal(bits(t)) for n, t in expected.items())
    assert (tmp_path / INDEX).exists() == (len(files) > 1) == (shard_bytes < 2**30)
    if shard_bytes == 1:
        assert len(files) == len(expected)
    if len(files) > 1:
        index = json.loads((tmp_path / INDEX).read_text())
        assert index["metadata"]["total_size"] == sum(t.nbytes for t in expected.values())
        assert [file.name for file in files] == [f"model-{i:05}-of-{len(files):05}.safetensors" for i in range(1, len(files) + 1)]
    assert same(hub.load(tmp_path)[0], model)


def test_no_shard_is_of_no_bytes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"shard_bytes: expected at least 1, got 0$"):
        hub.save(perturbed(tiny("gpt2")), None, tmp_path / "new", shard_bytes=0)
    assert not (tmp_path / "new").exists()


# What others read


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "opener"),
    [("llama-3-8b", "AutoModelForCausalLM"), ("gpt2", "AutoModelForCausalLM"), ("t5-small", "AutoModelForSeq2SeqLM"),
     ("bert-base", "AutoModelForMaskedLM")],
)  # fmt: skip
def test_transformers_opens_the_folder(tmp_path: Path, tokenizer: text.Tokenizer, name: str, opener: str) -> None:
    import transformers

    masked = {"kind": "LanguageModel", "bias": "learned", "transform": "gelu", "norm": {"kind": "LayerNorm", "eps": 1e-12}}
    model = perturbed(tiny(name, **({"head": masked} if name == "bert-base" else {})))
    hub.save(model, tokenizer, tmp_path)
    theirs = getattr(transformers, opener).from_pretrained(tmp_path).eval()
    ids = torch.tensor([[7, 9, 11, 8]])
    both = name == "t5-small"
    with torch.no_grad():
        expected = theirs(input_ids=ids, **({"decoder_input_ids": ids} if both else {})).logits
        ours = model(ids, target=ids if both else None).logits
    assert (ours - expected).abs().max() < 1e-5 * expected.abs().max()
    assert (ours.flip(0, 1) - expected).abs().max() > 1e-3 * expected.abs().max()  # control
    assert theirs.dtype == torch.float32
    encoded = transformers.AutoTokenizer.from_pretrained(tmp_path)("the cat", add_special_tokens=False).input_ids
    assert encoded == tokenizer.encode("the cat")
    if opener != "AutoModelForMaskedLM":
        assert theirs.generation_config.eos_token_id == tokenizer.eos
        assert theirs.generation_config.pad_token_id == tokenizer.pad
        assert theirs.generation_config.decoder_start_token_id == (tokenizer.bos if both else None)


def test_ids_that_begin_and_end_come_back(tmp_path: Path, tokenizer: text.Tokenizer) -> None:
    model = perturbed(tiny("t5-small"))
    mine = text.Tokenizer(tokenizer.backend, tokenizer.roles)
    mine.ends, mine.start = [5, 6], [0, 9]
    hub.save(model, mine, tmp_path)
    said = json.loads((tmp_path / "generation_config.json").read_text())
    assert said == {
        "bos_token_id": mine.bos, "pad_token_id": mine.pad, "eos_token_id": [5, 6], "decoder_start_token_id": 0, "forced_bos_token_id": 9,
    }  # fmt: skip
    back = hub.load(tmp_path)[1]
    assert back is not None
    assert (back.ends, back.start) == ([5, 6], [0, 9])


@pytest.mark.parametrize(
    ("first", "second", "ends", "start"),
    [
        ({}, {}, None, []),
        ({"eos_token_id": 9}, {}, [9], []),
        ({"eos_token_id": 9}, {"eos_token_id": [5, 6, 5]}, [5, 6], []),
        ({"eos_token_id": None, "decoder_start_token_id": 0}, {}, None, [0]),
        ({"decoder_start_token_id": 0}, {"forced_bos_token_id": 7}, None, [0, 7]),
        ({"eos_token_id": 10**9, "decoder_start_token_id": -100}, {}, None, []),
    ],
)
def test_both_configurations_say_what_begins_and_ends(
    tmp_path: Path, tokenizer: text.Tokenizer, first: dict[str, Any], second: dict[str, Any], ends: list[int] | None, start: list[int]
) -> None:
    hub.save(perturbed(tiny("t5-small")), tokenizer, tmp_path)
    data = json.loads((tmp_path / "config.json").read_text())
    data = {k: v for k, v in data.items() if k not in ("eos_token_id", "decoder_start_token_id")}
    (tmp_path / "config.json").write_text(json.dumps(data | first))
    (tmp_path / "generation_config.json").write_text(json.dumps(second))
    back = hub.load(tmp_path)[1]
    assert back is not None
    assert (back.ends, back.start) == ([tokenizer.eos] if ends is None else ends, start)


def test_a_wrong_end_is_refused(tmp_path: Path, tokenizer: text.Tokenizer) -> None:
    hub.save(perturbed(tiny("gpt2")), tokenizer, tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": "<end>"}')
    with pytest.raises(ValueError, match=r"eos_token_id: expected a token's id, or a list of them, got '<end>'$"):
        hub.load(tmp_path)


@pytest.mark.parametrize(
    ("task", "kept"),
    [
        ({"labels": ["坏", "good"]}, None),
        ({"labels": ["坏", "good"], "length": 12, "objective": "Classification"}, {"length": 12, "objective": "Classification"}),
        ({"labels": ["same", "same"]}, {"labels": ["same", "same"]}),
    ],
)
def test_labels_are_where_others_look(tmp_path: Path, task: dict[str, Any], kept: dict[str, Any] | None) -> None:
    head = {"kind": "Classify", "labels": 2, "transform": "tanh", "dropout": 0.1}
    hub.save(perturbed(tiny("bert-base", head=head)), None, tmp_path, task)
    assert hub.task(tmp_path) == task
    if kept != task:
        assert json.loads((tmp_path / "config.json").read_text())["id2label"] == {"0": "坏", "1": "good"}
    assert (tmp_path / "task.json").exists() == (kept is not None)
    if kept is not None:
        assert json.loads((tmp_path / "task.json").read_text()) == kept


def test_no_task_says_nothing(tmp_path: Path) -> None:
    hub.save(perturbed(tiny("gpt2")), None, tmp_path)
    assert hub.task(tmp_path) == {}
    assert hub.task(tmp_path / "nowhere") == {}


# One model a folder


def test_an_older_model_leaves_nothing_that_misleads(tmp_path: Path, tokenizer: text.Tokenizer) -> None:
    public, own = perturbed(tiny("gpt2")), perturbed(tiny("transformer-base"))
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / "pytorch_model.bin").write_text("mine")
    for name in ("chat_template.jinja", "special_tokens_map.json"):
        (tmp_path / name).write_text("{}")
    hub.save(public, tokenizer, tmp_path, {"more": 1}, shard_bytes=10_000)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert not (tmp_path / "chat_template.jinja").exists()
    hub.save(own, None, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "README.md", SINGLE, "pytorch_model.bin", "task.json", "triform.json",
    ]  # fmt: skip
    loaded, back = hub.load(tmp_path)
    assert same(loaded, own)
    assert back is None
    hub.save(public, tokenizer, tmp_path)
    assert not (tmp_path / "triform.json").exists()
    assert not (tmp_path / "task.json").exists()
    assert same(hub.load(tmp_path)[0], public)
    assert (tmp_path / "README.md").read_text() == "mine"


class Killed(BaseException):
    """The process is no more."""


def killed_at(moment: int, monkeypatch: pytest.MonkeyPatch, run: Callable[[], Any]) -> bool:
    """Run until the given step that changes the folder, from which on nothing happens any more. False: it ended before."""
    steps = count()

    def dying(function: Any) -> Any:
        def step(*arguments: Any, **more: Any) -> Any:
            if next(steps) >= moment:
                raise Killed
            return function(*arguments, **more)

        return step

    with monkeypatch.context() as patch:
        for owner, name in ((os, "replace"), (os, "fsync"), (Path, "unlink"), (Path, "rmdir"), (shutil, "rmtree"), (Path, "write_text")):
            patch.setattr(owner, name, dying(getattr(owner, name)))
        try:
            run()
        except Killed:
            return True
    return False


@pytest.mark.parametrize("back", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_whenever_it_is_killed_a_whole_model_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, back: bool) -> None:
    models = [perturbed(tiny("gpt2")), perturbed(tiny("transformer-base"))]
    old, new = reversed(models) if back else models
    folder, seen = tmp_path / "model", []
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # a step like the others, but quick
    hub.save(old, None, tmp_path / "old", {"labels": ["old"]}, shard_bytes=30_000)
    for moment in count():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "old", folder)
        died = killed_at(moment, monkeypatch, lambda: hub.save(new, None, folder, {"labels": ["new"]}, shard_bytes=25_000))
        found = hub.load(folder)[0]
        is_new = same(found, new)
        assert is_new or same(found, old)
        assert hub.task(folder) == {"labels": ["new" if is_new else "old"]}
        seen.append(is_new)
        hub.save(old, None, folder)
        assert same(hub.load(folder)[0], old)
        if not died:
            break
    assert seen == sorted(seen)  # once it is new, it stays so
    assert seen[0] is False
    assert seen.count(False) > 3
    assert seen.count(True) > 3


def test_a_failure_leaves_the_folder_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = perturbed(tiny("gpt2"))
    hub.save(model, None, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(safetensors, "_bytes", lambda tensor: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        hub.save(perturbed(tiny("llama-3-8b")), None, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_was_decided_is_finished_only_for_files_of_the_folder(tmp_path: Path) -> None:
    folder, outside = tmp_path / "model", tmp_path / "outside"
    for path in (folder, outside):
        path.mkdir()
    (outside / config_files._NAMES).write_text("{}")
    (outside / "secret").write_text("secret")
    (folder / config_files._READY).symlink_to(outside)
    settle(folder)
    assert sorted(path.name for path in folder.iterdir()) == [config_files._READY]
    (folder / config_files._READY).unlink()
    (folder / config_files._READY).mkdir()
    (folder / config_files._READY / config_files._NAMES).write_text('{"old": ["../outside/secret", "..", ""]}')
    settle(folder)
    assert (outside / "secret").read_text() == "secret"
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("content", ["", "{", "[]", '{"old": 3}', '{"old": [3]}'])
def test_a_broken_decision_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / config_files._READY).mkdir()
    (tmp_path / config_files._READY / config_files._NAMES).write_text(content)
    with pytest.raises(ValueError, match=r"cannot be finished") as caught:
        settle(tmp_path)
    assert str(caught.value).startswith(str(tmp_path))


def test_files_that_are_not_owned_stay(tmp_path: Path) -> None:
    for name in ("a.json", "b.json", "c.txt"):
        (tmp_path / name).write_text("old")
    with replacing_all(tmp_path, lambda name: name.endswith(".json")) as temporary:
        (temporary / "a.json").write_text("new")
        (temporary / "part").mkdir()
        (temporary / "part" / "d").write_text("new")
    assert {str(p.relative_to(tmp_path)): p.read_text() for p in tmp_path.rglob("*") if p.is_file()} == {
        "a.json": "new", "c.txt": "old", "part/d": "new",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["gpt2", "transformer-base"])
def test_a_saved_folder_is_a_configuration_too(tmp_path: Path, name: str) -> None:
    hub.save(perturbed(tiny(name)), None, tmp_path)
    assert config.read(tmp_path) == config.resolve(tmp_path) == hub.read_spec(tmp_path) == tiny(name)


def test_a_public_folder_is_not_without_the_hub(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match=r"config.json: a public configuration, which triform.hub.read_spec reads$"):
        config.read(tmp_path)


# Beginning from a checkpoint


def test_stacks_begin_from_a_public_checkpoint(tmp_path: Path) -> None:
    model = perturbed(tiny("bert-base"))
    hub.save(model, None, tmp_path)
    judge = nn.build(tiny("bert-base", head={"kind": "Classify", "labels": 3}), seed=5)
    fresh = {n: t.clone() for n, t in judge.state_dict().items()}
    hub.Checkpoint.open(tmp_path).begin(judge)
    begun, theirs = judge.state_dict(), model.state_dict()
    assert all(torch.equal(begun[n], theirs[n]) for n in begun if n.startswith("encoder."))
    assert all(torch.equal(begun[n], fresh[n]) for n in begun if n.startswith("head."))
    alike = nn.build(model.config, seed=6)
    hub.Checkpoint.open(tmp_path).begin(alike)
    assert all(torch.equal(t, theirs[n]) for n, t in alike.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"encoder.depth": 3}, r"the checkpoint lacks encoder.layers.2.* and 11 more, which the model has$"),
        ({"encoder.depth": 1}, r"the checkpoint has encoder.layers.1.* and 11 more, which the model has not$"),
        ({"encoder.input.vocab_size": 61}, r"encoder.input.token.weight is \(60, 16\) in the checkpoint, and \(61, 16\) in the model$"),
    ],
)
def test_other_stacks_are_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    hub.save(perturbed(tiny("bert-base")), None, tmp_path)
    with pytest.raises(ValueError, match=says) as caught:
        hub.Checkpoint.open(tmp_path).begin(nn.build(tiny("bert-base", **changes), seed=0))
    assert str(caught.value).startswith(str(tmp_path))


def test_names_and_types_of_a_saved_folder(tmp_path: Path) -> None:
    hub.save(perturbed(tiny("llama-3-8b"), torch.bfloat16), None, tmp_path)
    found = WeightFiles(tmp_path)
    assert {found.dtype(name) for name in found} == {torch.bfloat16}
    data = json.loads((tmp_path / "config.json").read_text())
    assert data["torch_dtype"] == "bfloat16"
    assert "transformers_version" not in data


@pytest.mark.parametrize("offset", [1, 2])
def test_an_id_that_positions_count_from_is_not_the_tokenizer_s_to_say(tmp_path: Path, tokenizer: text.Tokenizer, offset: int) -> None:
    """RoBERTa's positions begin after its padding id, and this tokenizer pads with 0."""
    spec = config.with_overrides(config.Model, tiny("roberta-base"), {"encoder.input.position.offset": offset})
    model = nn.build(spec, seed=0).eval()
    hub.save(model, tokenizer, tmp_path)
    assert tokenizer.pad == 0
    assert json.loads((tmp_path / "config.json").read_text())["pad_token_id"] == offset - 1
    assert hub.load(tmp_path)[0].config == spec
