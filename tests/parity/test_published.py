"""Presets against the published shapes: what is read from the reference's own configuration class is the preset."""

from dataclasses import replace
from typing import Any

import pytest

from triform import config, hub

LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
ROBERTA = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}


def decoder(vocab: int, width: int, depth: int, heads: tuple[int, int], hidden: int, theta: float = 1e4, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": vocab, "hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1], "intermediate_size": hidden,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta} | more.pop("rope", {}),
    } | more  # fmt: skip


def gpt2(width: int, depth: int, heads: int, length: int = 1024) -> dict[str, Any]:
    return {"n_embd": width, "n_layer": depth, "n_head": heads, "n_positions": length}


def t5(width: int, depth: int, heads: int, hidden: int, head_width: int = 64, vocab: int = 32128, **more: Any) -> dict[str, Any]:
    return {"vocab_size": vocab, "d_model": width, "d_kv": head_width, "d_ff": hidden, "num_layers": depth, "num_heads": heads} | more


def bart(width: int, depth: int, heads: int, hidden: int) -> dict[str, Any]:
    sizes = {"layers": depth, "attention_heads": heads, "ffn_dim": hidden}
    sides = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in sizes.items()}
    return sides | {"d_model": width, "attention_dropout": 0.1, "activation_dropout": 0.1}


SCALED = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
SMALL = {"rms_norm_eps": 1e-5}
LLAMA, QWEN2, QWEN3 = "LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"
T5, BART = "T5ForConditionalGeneration", "BartForConditionalGeneration"

# Class and the arguments in which the published configuration differs from the class's defaults
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "bert-base": ("BertModel", {}),
    "bert-large": ("BertModel", LARGE),
    "bert-base-chinese": ("BertModel", {"vocab_size": 21128}),
    "roberta-base": ("RobertaModel", ROBERTA),
    "roberta-large": ("RobertaModel", ROBERTA | LARGE),
    "distilbert-base": ("DistilBertModel", {}),
    "gpt2": ("GPT2LMHeadModel", {}),
    "gpt2-medium": ("GPT2LMHeadModel", gpt2(1024, 24, 16)),
    "gpt2-large": ("GPT2LMHeadModel", gpt2(1280, 36, 20)),
    "gpt2-xl": ("GPT2LMHeadModel", gpt2(1600, 48, 25)),
    "gpt3-175b": ("GPT2LMHeadModel", gpt2(12288, 96, 96, 2048)),
    "llama-7b": (LLAMA, decoder(32000, 4096, 32, (32, 32), 11008)),
    "llama-13b": (LLAMA, decoder(32000, 5120, 40, (40, 40), 13824)),
    "llama-65b": (LLAMA, decoder(32000, 8192, 80, (64, 64), 22016, **SMALL)),
    "llama-2-70b": (LLAMA, decoder(32000, 8192, 80, (64, 8), 28672, **SMALL)),
    "llama-3-8b": (LLAMA, decoder(128256, 4096, 32, (32, 8), 14336, 5e5, **SMALL)),
    "llama-3-70b": (LLAMA, decoder(128256, 8192, 80, (64, 8), 28672, 5e5, **SMALL)),
    "llama-3.2-1b": (LLAMA, decoder(128256, 2048, 16, (32, 8), 8192, 5e5, rope=SCALED, head_dim=64, tie_word_embeddings=True, **SMALL)),
    "smollm2-135m": (LLAMA, decoder(49152, 576, 30, (9, 3), 1536, 1e5, tie_word_embeddings=True, initializer_range=1 / 24, **SMALL)),
    "qwen2.5-0.5b": (QWEN2, decoder(151936, 896, 24, (14, 2), 4864, 1e6, tie_word_embeddings=True)),
    "qwen2.5-7b": (QWEN2, decoder(152064, 3584, 28, (28, 4), 18944, 1e6)),
    "qwen3-0.6b": (QWEN3, decoder(151936, 1024, 28, (16, 8), 3072, 1e6, head_dim=128, tie_word_embeddings=True)),
    "qwen3-8b": (QWEN3, decoder(151936, 4096, 36, (32, 8), 12288, 1e6, head_dim=128)),
    "qwen3-30b-a3b": (
        "Qwen3MoeForCausalLM",
        decoder(151936, 2048, 48, (32, 4), 6144, 1e6, head_dim=128, moe_intermediate_size=768, num_experts=128, num_experts_per_tok=8,
                norm_topk_prob=True),
    ),
    "mixtral-8x7b": ("MixtralForCausalLM", decoder(32000, 4096, 32, (32, 8), 14336, 1e6)),
    "gemma3-270m": (
        "Gemma3ForCausalLM",
        {"vocab_size": 262144, "hidden_size": 640, "num_hidden_layers": 18, "num_attention_heads": 4, "num_key_value_heads": 1,
         "intermediate_size": 2048, "sliding_window": 512},
    ),
    "t5-small": (T5, t5(512, 6, 8, 2048)),
    "t5-base": (T5, t5(768, 12, 12, 3072)),
    "t5-large": (T5, t5(1024, 24, 16, 4096)),
    "t5-3b": (T5, t5(1024, 24, 32, 16384, 128)),
    "t5-11b": (T5, t5(1024, 24, 128, 65536, 128)),
    "flan-t5-base": (T5, t5(768, 12, 12, 2048, feed_forward_proj="gated-gelu", tie_word_embeddings=False)),
    "chatlm-mini-chinese": (T5, t5(768, 10, 12, 3072, vocab=29298)),
    "switch-base-8": (
        "SwitchTransformersForConditionalGeneration",
        t5(768, 12, 12, 3072, num_experts=8, num_sparse_encoder_layers=6, num_sparse_decoder_layers=6, num_decoder_layers=12),
    ),
    "bart-base": (BART, bart(768, 6, 12, 3072)),
    "bart-large": (BART, bart(1024, 12, 16, 4096)),
    "vit-base-patch16-224": ("ViTForImageClassification", {"num_labels": 1000}),
    "vit-large-patch16-224": ("ViTForImageClassification", LARGE | {"num_labels": 1000}),
    "clip-vit-base-patch32": ("CLIPModel", {"text_config": {"eos_token_id": 2}}),
    "clip-vit-large-patch14": (
        "CLIPModel",
        {"projection_dim": 768,
         "text_config": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "eos_token_id": 2},
         "vision_config": LARGE | {"patch_size": 14}},
    ),
}  # fmt: skip


def published(name: str) -> Any:
    """The reference's configuration object."""
    import transformers

    model, arguments = PUBLISHED[name]
    made = getattr(transformers, model).config_class(**arguments)
    made.architectures = [model]
    return made


def test_every_preset_with_a_reference_is_here() -> None:
    assert set(config.presets()) - PUBLISHED.keys() >= {"transformer-base", "transformer-big"}
    assert PUBLISHED.keys() <= set(config.presets())


@pytest.mark.parametrize("name", PUBLISHED)
def test_reading_the_published_configuration_gives_the_preset(name: str) -> None:
    data = published(name).to_dict()
    if name == "flan-t5-base":
        data["tie_word_embeddings"] = False  # as its file says; transformers 5 writes True over it
    spec, _ = hub.read_config(data)
    assert spec == config.preset(name)


def test_another_size_is_another_preset() -> None:
    assert hub.read_config(published("gpt2").to_dict())[0] != config.preset("gpt2-medium")
    assert hub.read_config(published("bert-base").to_dict() | {"layer_norm_eps": 1e-5})[0] != config.preset("bert-base")


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_reference_has_as_many_parameters(name: str) -> None:
    import torch
    import transformers

    from triform import nn

    with torch.device("meta"):
        model = getattr(transformers, PUBLISHED[name][0])(published(name))
    expected = sum(p.numel() for p in model.parameters())
    spec = config.preset(name)
    if name == "flan-t5-base":  # transformers 5 ties it
        assert isinstance(spec, config.Transformer)
        assert isinstance(spec.head, config.LanguageModel)
        spec = replace(spec, head=replace(spec.head, tied=True))
    assert sum(p.numel() for p in nn.build(spec, device="meta").parameters()) == expected
