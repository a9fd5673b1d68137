"""Public checkpoints from folders: shards, older names, bare models, and files that must be refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import triform
from triform import hub, nn
from triform.hub.files import INDEX, SINGLE, WeightFiles

GPT2 = {
    "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 8,
    "vocab_size": 11,
}  # fmt: skip
BERT = {
    "model_type": "bert", "architectures": ["BertForMaskedLM"], "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "vocab_size": 11, "max_position_embeddings": 8, "type_vocab_size": 2,
}  # fmt: skip
LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "vocab_size": 11,
}  # fmt: skip
T5 = {"model_type": "t5", "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "vocab_size": 11}
MIXTRAL = LLAMA | {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "num_local_experts": 3}
FAMILIES = {"gpt2": GPT2, "bert": BERT, "llama": LLAMA, "t5": T5, "mixtral": MIXTRAL}


def made(data: dict[str, Any]) -> tuple[Any, dict[str, Tensor]]:
    """A model of a public configuration, and its weights under public names."""
    spec, family = hub.read_config(data)
    model = nn.build(spec, seed=0)
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
    return model, hub.export_weights(model, family)


def write(folder: Path, data: dict[str, Any], tensors: dict[str, Tensor], shards: int = 1) -> Path:
    """A folder in the public layout."""
    (folder / "config.json").write_text(json.dumps(data))
    if shards == 1:
        save_file(tensors, folder / SINGLE)
        return folder
    names = sorted(tensors)
    files = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    for i, file in enumerate(files):
        save_file({n: tensors[n] for n in names[i::shards]}, folder / file)
    weight_map = {n: files[names.index(n) % shards] for n in names}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def same(one: Any, other: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("name", FAMILIES)
def test_there_and_back(tmp_path: Path, name: str, shards: int) -> None:
    model, tensors = made(FAMILIES[name])
    loaded, tokenizer = triform.load(write(tmp_path, FAMILIES[name], tensors, shards))
    assert tokenizer is None
    assert not loaded.training
    assert same(loaded, model)
    assert not same(loaded, nn.build(loaded.config, seed=1))


@pytest.mark.parametrize(("stored", "asked", "given"), [
    (torch.float32, "auto", torch.float32), (torch.bfloat16, "auto", torch.bfloat16), (torch.float16, "auto", torch.float16),
    (torch.float64, "auto", torch.float64), (torch.bfloat16, "fp32", torch.float32), (torch.float32, "bf16", torch.bfloat16),
    (torch.bfloat16, "fp16", torch.float16), (torch.float8_e4m3fn, "auto", torch.float32),
])  # fmt: skip
def test_the_model_has_the_type_that_is_stored_or_asked_for(
    tmp_path: Path, stored: torch.dtype, asked: Any, given: torch.dtype
) -> None:
    model, tensors = made(LLAMA)
    loaded = hub.load_public(write(tmp_path, LLAMA, {n: t.to(stored) for n, t in tensors.items()}), dtype=asked)
    assert {t.dtype for t in loaded.state_dict().values()} == {given}
    assert all(torch.equal(t, model.state_dict()[n].to(stored).to(given)) for n, t in loaded.state_dict().items())


def test_norms_and_routers_stored_wide_stay_wide(tmp_path: Path) -> None:
    _, tensors = made(MIXTRAL)
    wide = {n: t if "norm" in n or "gate.weight" in n else t.bfloat16() for n, t in tensors.items()}
    loaded = hub.load_public(write(tmp_path, MIXTRAL, wide))
    types = {n: t.dtype for n, t in loaded.state_dict().items()}
    assert {n for n, dtype in types.items() if dtype == torch.float32} == {n for n in types if "norm" in n or "router" in n}
    assert torch.isfinite(loaded(torch.tensor([[1, 2, 3]])).logits).all()
    asked = hub.load_public(tmp_path, dtype="bf16")
    assert {t.dtype for t in asked.state_dict().values()} == {torch.bfloat16}


def test_another_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"dtype: expected one of auto, fp32, bf16, fp16, got 'int8'$"):
        hub.load_public(write(tmp_path, GPT2, made(GPT2)[1]), dtype="int8")  # type: ignore[arg-type]


def test_quantized_weights_are_refused(tmp_path: Path) -> None:
    _, tensors = made(GPT2)
    name = "transformer.h.0.mlp.c_fc.weight"
    with pytest.raises(ValueError, match=rf"{name} is torch.int8, expected floating point"):
        hub.load_public(write(tmp_path, GPT2, tensors | {name: tensors[name].to(torch.int8)}))


def old_gpt2(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As published in 2019: no prefix, and the causal mask as a buffer of each layer."""
    old = {n.removeprefix("transformer."): t for n, t in tensors.items()}
    return old | {f"h.{i}.attn.bias": torch.ones(1, 1, 8, 8) for i in range(2)}


def old_bert(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As published in 2018: gamma and beta, positions as a buffer, what the other heads had, and the output matrix twice."""
    names = {n: n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta") for n in tensors}
    return {names[n]: t for n, t in tensors.items()} | {
        "bert.embeddings.position_ids": torch.arange(8)[None],
        "bert.pooler.dense.weight": torch.zeros(16, 16),
        "bert.pooler.dense.bias": torch.zeros(16),
        "cls.seq_relationship.weight": torch.zeros(2, 16),
        "cls.seq_relationship.bias": torch.zeros(2),
        "cls.predictions.decoder.weight": tensors["bert.embeddings.word_embeddings.weight"].clone(),
    }


def old_llama(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return tensors | {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.zeros(4) for i in range(2)}


def old_t5(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The shared table under the name of one of its copies."""
    old = {("encoder.embed_tokens.weight" if n == "shared.weight" else n): t for n, t in tensors.items()}
    return old | {"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": torch.zeros(32, 2)}


@pytest.mark.parametrize(("name", "old"), [("gpt2", old_gpt2), ("bert", old_bert), ("llama", old_llama), ("t5", old_t5)])
def test_older_files_read_alike(tmp_path: Path, name: str, old: Any) -> None:
    model, tensors = made(FAMILIES[name])
    older = old(tensors)
    assert older.keys() != tensors.keys()
    assert same(hub.load_public(write(tmp_path, FAMILIES[name], older)), model)


@pytest.mark.parametrize(
    ("data", "architecture", "extra"), [(GPT2, "GPT2Model", ()), (LLAMA, "LlamaModel", ("lm_head.weight",)), (BERT, "BertModel", ())]
)
def test_a_bare_model_is_written_without_prefix_and_read_with_either(
    tmp_path: Path, data: dict[str, Any], architecture: str, extra: tuple[str, ...]
) -> None:
    bare = data | {"architectures": [architecture]}
    model, tensors = made(bare)
    prefix = hub.read_config(bare)[1].prefix
    assert not any(n.startswith(prefix) for n in tensors)
    assert same(hub.load_public(write(tmp_path, bare, tensors)), model)
    assert same(hub.load_public(write(tmp_path, bare, {prefix + n: t for n, t in tensors.items()})), model)


def test_an_output_matrix_of_its_own_unties_the_model(tmp_path: Path) -> None:
    """transformers 5 writes `tie_word_embeddings: true` for T5 1.1, whose output is not tied."""
    model, tensors = made(T5 | {"tie_word_embeddings": False, "scale_decoder_outputs": False})
    loaded = hub.load_public(write(tmp_path, T5 | {"tie_word_embeddings": True, "scale_decoder_outputs": False}, tensors))
    assert loaded.config == model.config
    assert same(loaded, model)


def test_an_equal_output_matrix_leaves_it_tied(tmp_path: Path) -> None:
    model, tensors = made(GPT2)
    loaded = hub.load_public(write(tmp_path, GPT2, tensors | {"lm_head.weight": tensors["transformer.wte.weight"].clone()}))
    assert loaded.config == model.config


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("gpt2", {"n_layer": 3}, r"lacks transformer.h.2.attn.c_attn.bias, .* 7 more, which a gpt2 model of this configuration needs$"),
        ("gpt2", {"n_layer": 1}, r"also has transformer.h.1.attn.c_attn.bias, .* 7 more, which a gpt2 model .* has not$"),
        ("gpt2", {"vocab_size": 2**62}, r"asks for vocab_size 4611686018427387904, and"),
        ("gpt2", {"vocab_size": 12}, r"decoder.input.token.weight should be \(12, 16\), and .*transformer.wte.weight is \(11, 16\)$"),
        ("gpt2", {"vocab_size": 10**12}, r"asks for vocab_size 1000000000000, and the checkpoint holds \d+ numbers in all$"),
        ("gpt2", {"n_layer": 10_000}, r"the configuration asks for 10000 layers, and the checkpoint holds 28 tensors in all$"),
        ("mixtral", {"num_local_experts": 4}, r"lacks model.layers.0.block_sparse_moe.experts.3.w1.weight, .* and 1 more"),
        ("mixtral", {"num_local_experts": 2}, r"model.layers.0.block_sparse_moe.gate.weight is \(3, 16\)$|also has .*experts.2"),
        ("llama", {"num_key_value_heads": 1}, r"attention.body.key.weight should be \(8, 16\), and .* is \(16, 16\)$"),
        ("llama", {"architectures": ["LlamaModel"]}, r"also has lm_head.weight"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(tmp_path: Path, name: str, change: dict[str, Any], message: str) -> None:
    folder = write(tmp_path, FAMILIES[name] | change, made(FAMILIES[name])[1])
    with pytest.raises(ValueError, match=message) as caught:
        hub.load_public(folder)
    assert str(caught.value).startswith(str(folder))
    assert len(str(caught.value).splitlines()) == 1


def test_a_transposed_matrix_is_refused(tmp_path: Path) -> None:
    _, tensors = made(GPT2)
    name = "transformer.h.0.mlp.c_fc.weight"
    with pytest.raises(ValueError, match=r"feed_forward.body.up.weight should be \(64, 16\)"):
        hub.load_public(write(tmp_path, GPT2, tensors | {name: tensors[name].T.contiguous()}))


def cut_short(folder: Path) -> None:
    (folder / SINGLE).write_bytes((folder / SINGLE).read_bytes()[:-20])


def outside(folder: Path) -> None:
    (folder / SINGLE).rename(folder / "other.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))


def shard_lost(folder: Path) -> None:
    (folder / SINGLE).unlink()
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}))


def empty_index(folder: Path) -> None:
    (folder / SINGLE).unlink()
    (folder / INDEX).write_text("{}")


def no_weights(folder: Path) -> None:
    (folder / SINGLE).unlink()


def no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut_short, r"/model.safetensors: .* within the 2\d+ bytes that there are, got .*; was the file cut short\?$"),
        (outside, r"model.safetensors.index.json: expected files beside it, got ../other.safetensors$"),
        (shard_lost, r"/model-00001-of-00002.safetensors: expected a file, found none$"),
        (empty_index, r"model.safetensors.index.json: expected a weight_map of names to files$"),
        (no_weights, r"expected weights in one of model.safetensors, .*, found none of them$"),
        (no_json, r"config.json: expected JSON, got "),
    ],
)
def test_broken_folders_are_refused(tmp_path: Path, spoil: Any, message: str) -> None:
    folder = write(tmp_path, GPT2, made(GPT2)[1])
    spoil(folder)
    with pytest.raises(ValueError, match=message):
        hub.load(folder)


def test_names_and_shapes_are_known_without_reading_tensors(tmp_path: Path) -> None:
    tensors = made(GPT2)[1]
    files = WeightFiles(write(tmp_path, GPT2, tensors, shards=2))
    assert set(files) == tensors.keys()
    assert all(files.shape(name) == tensor.shape for name, tensor in tensors.items())
