"""Files and configurations as other times and tools wrote them: each is read as the reference's own file of the same model."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from parity.cases import CASES, reference
from parity.compare import TOLERANCE, compare
from safetensors.torch import load_file, save_file
from torch import Tensor

from triform import hub
from triform.hub.fields import read_json

pytestmark = pytest.mark.filterwarnings("ignore")
Tensors = dict[str, Tensor]


def renamed(pattern: str, replacement: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {re.sub(pattern, replacement, name): tensor for name, tensor in tensors.items()}


def copied(original: str, *copies: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {copy: tensors[original].clone() for copy in copies}


def both(one: Callable[[Tensors], Tensors], other: Callable[[Tensors], Tensors]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: other(one(tensors))


def also(*shape: int, names: tuple[str, ...]) -> Callable[[Tensors], Tensors]:
    """Tensors that nothing of the model holds; {i} in a name stands for each of three layers."""
    return lambda tensors: tensors | {name.format(i=i): torch.ones(shape) for name in names for i in range(3)}


T5_TABLES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
CROSS_BIAS = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
BART_TABLES = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")
BERT_TABLE = "bert.embeddings.word_embeddings.weight"
SPELLINGS: dict[str, tuple[str, Callable[[Tensors], Tensors]]] = {
    "gamma and beta": ("bert", both(renamed(r"LayerNorm\.weight", "LayerNorm.gamma"), renamed(r"LayerNorm\.bias", "LayerNorm.beta"))),
    "BERT without its prefix": ("bert", renamed(r"^bert\.", "")),
    "BERT's position ids": ("bert", also(1, 64, names=("bert.embeddings.position_ids",))),
    "BERT's output twice": (
        "bert", both(copied(BERT_TABLE, "cls.predictions.decoder.weight"), copied("cls.predictions.bias", "cls.predictions.decoder.bias")),
    ),
    "the pooler of a masked model": (
        "bert", also(32, names=("bert.pooler.dense.weight", "bert.pooler.dense.bias", "cls.seq_relationship.weight")),
    ),
    "RoBERTa's output twice": (
        "roberta", both(copied("roberta.embeddings.word_embeddings.weight", "lm_head.decoder.weight"),
                        copied("lm_head.bias", "lm_head.decoder.bias")),
    ),
    "DistilBERT's output twice": ("distilbert", copied("distilbert.embeddings.word_embeddings.weight", "vocab_projector.weight")),
    "GPT-2 without its prefix": ("gpt2", renamed(r"^transformer\.", "")),
    "GPT-2's masks": ("gpt2", also(1, 1, 8, 8, names=("transformer.h.{i}.attn.bias", "h.{i}.attn.masked_bias"))),
    "GPT-2's output twice": ("gpt2", copied("transformer.wte.weight", "lm_head.weight")),
    "a bare GPT-2 with its prefix": ("gpt2-bare", renamed(r"^", "transformer.")),
    "LLaMA's frequencies": ("llama", also(4, names=("model.layers.{i}.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"))),
    "a tied output twice": ("llama-tied-biases", copied("model.embed_tokens.weight", "lm_head.weight")),
    "a bare LLaMA with its prefix": ("llama-bare", renamed(r"^", "model.")),
    "T5's table four times": ("t5", copied("shared.weight", *T5_TABLES)),
    "T5's table under its encoder's name": ("t5", renamed(r"^shared", "encoder.embed_tokens")),
    "T5's bias of cross-attention": ("t5", also(8, 4, names=(CROSS_BIAS,))),
    "Switch's table four times": ("switch", copied("shared.weight", *T5_TABLES)),
    "BART's table four times": ("bart", copied("model.shared.weight", *BART_TABLES)),
    "Marian's table four times": ("marian", copied("model.shared.weight", *BART_TABLES)),
    "Marian's positions": ("marian", also(64, 32, names=("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight"))),
    "the pooler of a ViT that classifies": ("vit", also(32, names=("vit.pooler.dense.weight", "vit.pooler.dense.bias"))),
    "CLIP's position ids": ("clip", also(1, 9, names=("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids"))),
    "CLIP's text tower with its prefix": ("clip-text-bare", renamed(r"^", "text_model.")),
}  # fmt: skip


def folder_of(place: Path, data: dict[str, Any], tensors: Tensors) -> Path:
    (place / "config.json").write_text(json.dumps(data))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, place / "model.safetensors")
    return place


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_other_spellings_of_weights(spelling: str, tmp_path: Path) -> None:
    name, respell = SPELLINGS[spelling]
    folder = reference(name)[1]
    original = load_file(folder / "model.safetensors")
    tensors = respell(original)
    assert tensors.keys() != original.keys()
    model = hub.load_public(folder_of(tmp_path, read_json(folder / "config.json"), tensors))
    assert compare(model, reference(name)[0], name) < TOLERANCE


@pytest.mark.parametrize("name", ["mixtral", "mixtral-windows", "qwen3-experts"])
def test_experts_in_one_tensor(name: str, tmp_path: Path) -> None:
    """As transformers 5 keeps them in memory, and writes them if asked."""
    theirs = reference(name)[0]
    theirs.save_pretrained(tmp_path, save_original_format=False)
    assert "model.layers.0.mlp.experts.gate_up_proj" in load_file(tmp_path / "model.safetensors")
    assert compare(hub.load_public(tmp_path), theirs, name) < TOLERANCE


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("bert", {"architectures": None, "use_return_dict": True, "pooler_fc_size": 768, "directionality": "bidi"}),
        ("t5", {"architectures": ["T5WithLMHeadModel"], "scale_decoder_outputs": None, "is_gated_act": None, "dense_act_fn": None}),
        ("t5", {"architectures": ["TextToTextModel"], "tie_word_embeddings": None}),
        ("gpt2", {"architectures": ["GPT2LMHeadModel"], "n_ctx": 64, "summary_type": "cls_index", "tie_word_embeddings": None}),
        ("llama", {"pretraining_tp": 1, "rope_parameters": None, "rope_theta": 10000.0, "rope_scaling": None, "head_dim": None}),
        ("mistral", {"rope_parameters": None, "head_dim": None}),
        ("marian", {"normalize_before": False, "static_position_embeddings": True, "add_bias_logits": False, "decoder_vocab_size": None}),
        ("distilbert", {"tie_weights_": True, "sinusoidal_pos_embds": False, "architectures": None}),
    ],
)  # fmt: skip
def test_other_spellings_of_configurations(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    folder = reference(name)[1]
    data = {key: value for key, value in (read_json(folder / "config.json") | changes).items() if value is not None}
    assert data != read_json(folder / "config.json")
    model = hub.load_public(folder_of(tmp_path, data, load_file(folder / "model.safetensors")))
    assert compare(model, reference(name)[0], name) < TOLERANCE


@pytest.mark.parametrize(
    ("name", "stray", "message"),
    [
        ("bert", "bert.encoder.layer.0.attention.self.query.scale", r"also has bert.encoder.layer.0.attention.self.query.scale, which"),
        ("gpt2", "transformer.h.0.attn.c_attn.lora_A", r"also has transformer.h.0.attn.c_attn.lora_A, which a gpt2"),
        ("t5", "encoder.block.3.layer.0.SelfAttention.relative_attention_bias.weight", r"also has encoder.block.3.layer.0"),
        ("llama", "lm_head.bias", r"also has lm_head.bias"),
    ],
)
def test_what_no_rule_explains_is_refused_by_name(name: str, stray: str, message: str, tmp_path: Path) -> None:
    folder = reference(name)[1]
    tensors = load_file(folder / "model.safetensors") | {stray: torch.ones(4)}
    with pytest.raises(ValueError, match=message):
        hub.load_public(folder_of(tmp_path, read_json(folder / "config.json"), tensors))


def test_spellings_are_of_cases() -> None:
    assert {name for name, _ in SPELLINGS.values()} <= set(CASES)
