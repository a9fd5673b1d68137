"""Small reference models of Hugging Face transformers, one a case.

Every parameter and buffer is perturbed, so that norms are not all one, biases not all zero
and attention not all even: on fresh models, two norms or two biases swapped would go unseen.
"""

import json
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

SIZE: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
TEXT = SIZE | {"vocab_size": 99}
DECODER = TEXT | {"num_key_value_heads": 2, "max_position_embeddings": 128}
T5: dict[str, Any] = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 4, "num_decoder_layers": 4, "num_heads": 4, "vocab_size": 99,
                      "relative_attention_num_buckets": 8, "relative_attention_max_distance": 10}  # fmt: skip
BART = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in (("attention_heads", 4), ("ffn_dim", 48))}
BART |= {"d_model": 32, "encoder_layers": 3, "decoder_layers": 2, "vocab_size": 99, "max_position_embeddings": 64}
VISION = SIZE | {"image_size": 32, "patch_size": 8}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
GEMMA = DECODER | {"num_hidden_layers": 7, "head_dim": 16, "sliding_window": 4, "query_pre_attn_scalar": 24, "rms_norm_eps": 1e-5}


@dataclass(frozen=True)
class Case:
    """A reference's class and the arguments of its configuration.

    form: encoder, decoder, both, image or pair, for how it is called.
    untied: give the output a matrix of its own, which transformers 5 cannot for T5.
    """

    model: str
    config: str
    arguments: dict[str, Any] = field(hash=False)
    form: str = "decoder"
    untied: bool = False


def _bert(head: str, **more: Any) -> Case:
    return Case(f"Bert{head}", "BertConfig", TEXT | {"max_position_embeddings": 64} | more, "encoder")


def _distilbert(head: str, **more: Any) -> Case:
    size = {"vocab_size": 99, "dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 64}
    return Case(f"DistilBert{head}", "DistilBertConfig", size | more, "encoder")


def _roberta(head: str, **more: Any) -> Case:
    return Case(f"Roberta{head}", "RobertaConfig", TEXT | {"max_position_embeddings": 66, "type_vocab_size": 1} | more, "encoder")


CASES = {
    "bert": _bert("ForMaskedLM"),
    "bert-pretraining": _bert("ForPreTraining"),
    "bert-bare": _bert("Model"),
    "bert-classes": _bert("ForSequenceClassification", num_labels=3),
    "bert-tokens": _bert("ForTokenClassification", num_labels=5),
    "bert-answers": _bert("ForQuestionAnswering"),
    "roberta": _roberta("ForMaskedLM"),
    "roberta-classes": _roberta("ForSequenceClassification", num_labels=3),
    "distilbert": _distilbert("ForMaskedLM"),
    "distilbert-bare": _distilbert("Model"),
    "distilbert-classes": _distilbert("ForSequenceClassification", num_labels=3),
    "gpt2": Case("GPT2LMHeadModel", "GPT2Config", {"vocab_size": 99, "n_positions": 64, "n_embd": 32, "n_layer": 3, "n_head": 4}),
    "llama": Case("LlamaForCausalLM", "LlamaConfig", DECODER),
    "llama-tied-biases": Case("LlamaForCausalLM", "LlamaConfig", DECODER | {"tie_word_embeddings": True, "attention_bias": True}),
    "llama-3.1": Case("LlamaForCausalLM", "LlamaConfig", DECODER | {"rope_parameters": LLAMA3}),
    "llama-yarn": Case("LlamaForCausalLM", "LlamaConfig", DECODER | {"rope_parameters": YARN}),
    "llama-linear": Case("LlamaForCausalLM", "LlamaConfig", DECODER | {"rope_parameters": LINEAR}),
    "mistral": Case("MistralForCausalLM", "MistralConfig", DECODER | {"sliding_window": 4}),
    "mixtral": Case("MixtralForCausalLM", "MixtralConfig", DECODER | {"num_local_experts": 4, "sliding_window": None}),
    "qwen2": Case("Qwen2ForCausalLM", "Qwen2Config", DECODER),
    "qwen2-windows": Case(
        "Qwen2ForCausalLM", "Qwen2Config", DECODER | {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
    ),
    "qwen3": Case("Qwen3ForCausalLM", "Qwen3Config", DECODER | {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen3-experts": Case(
        "Qwen3MoeForCausalLM", "Qwen3MoeConfig",
        DECODER | {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": True,
                   "mlp_only_layers": [1]},
    ),
    "gemma3": Case("Gemma3ForCausalLM", "Gemma3TextConfig", GEMMA),
    "t5": Case("T5ForConditionalGeneration", "T5Config", T5, "both"),
    "t5-1.1": Case(
        "T5ForConditionalGeneration", "T5Config", T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}, "both", True
    ),
    "switch": Case(
        "SwitchTransformersForConditionalGeneration", "SwitchTransformersConfig",
        T5 | {"num_experts": 4, "expert_capacity": 64, "num_sparse_encoder_layers": 2, "num_sparse_decoder_layers": 2,
              "router_jitter_noise": 0.0}, "both",
    ),
    "bart": Case("BartForConditionalGeneration", "BartConfig", BART, "both"),
    "vit": Case("ViTForImageClassification", "ViTConfig", VISION | {"num_labels": 7}, "image"),
    "vit-bare": Case("ViTModel", "ViTConfig", VISION, "image"),
    "clip": Case(
        "CLIPModel", "CLIPConfig",
        {"text_config": TEXT | {"max_position_embeddings": 64, "eos_token_id": 98, "hidden_act": "quick_gelu"},
         "vision_config": VISION | {"hidden_act": "quick_gelu"}, "projection_dim": 24}, "pair",
    ),
}  # fmt: skip


@lru_cache(maxsize=None)
def reference(name: str) -> tuple[Any, Path]:
    """The perturbed reference model of a case, and the folder that it saved itself to."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    case = CASES[name]
    torch.manual_seed(sum(map(ord, name)))
    arguments = json.loads(json.dumps(case.arguments))
    model = getattr(transformers, case.model)(getattr(transformers, case.config)(**arguments)).eval()
    with torch.no_grad():
        if case.untied:
            model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
        for tensor in [*model.parameters(), *(b for n, b in model.named_buffers() if n == "final_logits_bias")]:
            tensor.add_(0.2 * torch.randn_like(tensor))
    return model, saved(model)


_folders: list[TemporaryDirectory[str]] = []  # removed when the tests end


def saved(model: Any) -> Path:
    """A folder with what the model's own `save_pretrained` writes."""
    _folders.append(TemporaryDirectory(prefix="parity-"))
    folder = Path(_folders[-1].name)
    model.save_pretrained(folder)
    return folder


def inputs(length: int = 12, seed: int = 0) -> Tensor:
    """Ids (1, length) that end with the end token, 98, and hold no padding id."""
    ids = torch.randint(3, 97, (1, length), generator=torch.Generator().manual_seed(seed + length))
    ids[:, -1] = 98
    return ids


def pixels() -> Tensor:
    """Two images (2, 3, 32, 32)."""
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))
