"""Small reference models of Hugging Face transformers, one a case.

Every parameter and buffer is perturbed, so that norms are not all one, biases not all zero
and attention not all even: on fresh models, two norms or two biases swapped would go unseen.
Queries whose scores nothing scales (T5's) are perturbed the less by what others divide by: with
attention that sees one token alone, gradients in fp32 are rounding to a few 1e-5, the reference's too.
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
MARIAN = BART | {"pad_token_id": 97, "decoder_start_token_id": 97, "scale_embedding": True, "activation_function": "swish"}
VISION = SIZE | {"image_size": 32, "patch_size": 8}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
MSCALE = YARN | {"mscale": 0.7, "mscale_all_dim": 1.0, "beta_fast": 16.0}
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


def _prenorm(head: str, **more: Any) -> Case:
    size = TEXT | {"max_position_embeddings": 66, "type_vocab_size": 1}
    return Case(f"RobertaPreLayerNorm{head}", "RobertaPreLayerNormConfig", size | more, "encoder")


def _causal(stem: str, config: str, head: str = "ForCausalLM", **more: Any) -> Case:
    return Case(stem + head, config, DECODER | {"pad_token_id": 97} | more if head.startswith("ForSeq") else DECODER | more)


def _gpt2(head: str, **more: Any) -> Case:
    return Case(f"GPT2{head}", "GPT2Config", {"vocab_size": 99, "n_positions": 64, "n_embd": 32, "n_layer": 3, "n_head": 4} | more)


EXPERTS = {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": True,
           "mlp_only_layers": [1]}  # fmt: skip
CLIP_TEXT = TEXT | {"max_position_embeddings": 64, "eos_token_id": 98, "hidden_act": "quick_gelu"}
CLIP_IMAGE = VISION | {"hidden_act": "quick_gelu"}
SWITCH = T5 | {"num_experts": 4, "expert_capacity": 64, "num_sparse_encoder_layers": 2, "num_sparse_decoder_layers": 2,
               "router_jitter_noise": 0.0}  # fmt: skip
GATED = T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}

CASES = {
    "bert": _bert("ForMaskedLM"),
    "bert-pretraining": _bert("ForPreTraining"),
    "bert-next-sentence": _bert("ForNextSentencePrediction"),
    "bert-bare": _bert("Model"),
    "bert-classes": _bert("ForSequenceClassification", num_labels=3),
    "bert-regression": _bert("ForSequenceClassification", num_labels=1, problem_type="regression"),
    "bert-tokens": _bert("ForTokenClassification", num_labels=5),
    "bert-answers": _bert("ForQuestionAnswering"),
    "roberta": _roberta("ForMaskedLM"),
    "roberta-bare": _roberta("Model"),
    "roberta-pad-0": _roberta("ForMaskedLM", pad_token_id=0),
    "roberta-classes": _roberta("ForSequenceClassification", num_labels=3),
    "roberta-tokens": _roberta("ForTokenClassification", num_labels=5),
    "roberta-answers": _roberta("ForQuestionAnswering"),
    "roberta-prelayernorm": _prenorm("ForMaskedLM"),
    "roberta-prelayernorm-classes": _prenorm("ForSequenceClassification", num_labels=3),
    "distilbert": _distilbert("ForMaskedLM"),
    "distilbert-bare": _distilbert("Model"),
    "distilbert-classes": _distilbert("ForSequenceClassification", num_labels=3),
    "distilbert-tokens": _distilbert("ForTokenClassification", num_labels=5),
    "distilbert-answers": _distilbert("ForQuestionAnswering"),
    "gpt2": _gpt2("LMHeadModel"),
    "gpt2-bare": _gpt2("Model"),
    "gpt2-classes": _gpt2("ForSequenceClassification", num_labels=3, pad_token_id=97),
    "gpt2-tokens": _gpt2("ForTokenClassification", num_labels=5),
    "gpt2-answers": _gpt2("ForQuestionAnswering"),
    "llama": _causal("Llama", "LlamaConfig"),
    "llama-bare": _causal("Llama", "LlamaConfig", "Model"),
    "llama-classes": _causal("Llama", "LlamaConfig", "ForSequenceClassification", num_labels=3),
    "llama-tokens": _causal("Llama", "LlamaConfig", "ForTokenClassification", num_labels=5),
    "llama-answers": _causal("Llama", "LlamaConfig", "ForQuestionAnswering"),
    "llama-tied-biases": _causal("Llama", "LlamaConfig", tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    "llama-3.1": _causal("Llama", "LlamaConfig", rope_parameters=LLAMA3),
    "llama-yarn": _causal("Llama", "LlamaConfig", rope_parameters=YARN),
    "llama-yarn-mscale": _causal("Llama", "LlamaConfig", rope_parameters=MSCALE),
    "llama-linear": _causal("Llama", "LlamaConfig", rope_parameters=LINEAR),
    "mistral": _causal("Mistral", "MistralConfig", sliding_window=4),
    "mistral-classes": _causal("Mistral", "MistralConfig", "ForSequenceClassification", sliding_window=4, num_labels=3),
    "mistral-answers": _causal("Mistral", "MistralConfig", "ForQuestionAnswering", sliding_window=None),
    "mixtral": _causal("Mixtral", "MixtralConfig", num_local_experts=4, sliding_window=None),
    "mixtral-windows": _causal("Mixtral", "MixtralConfig", num_local_experts=4, sliding_window=4),
    "qwen2": _causal("Qwen2", "Qwen2Config"),
    "qwen2-windows": _causal("Qwen2", "Qwen2Config", use_sliding_window=True, sliding_window=4, max_window_layers=1),
    "qwen2-classes": _causal("Qwen2", "Qwen2Config", "ForSequenceClassification", num_labels=3),
    "qwen2-tokens": _causal("Qwen2", "Qwen2Config", "ForTokenClassification", num_labels=5),
    "qwen3": _causal("Qwen3", "Qwen3Config", head_dim=16, tie_word_embeddings=True),
    "qwen3-classes": _causal("Qwen3", "Qwen3Config", "ForSequenceClassification", head_dim=16, num_labels=3),
    "qwen3-answers": _causal("Qwen3", "Qwen3Config", "ForQuestionAnswering", head_dim=16, attention_bias=True),
    "qwen3-experts": _causal("Qwen3Moe", "Qwen3MoeConfig", **EXPERTS),
    "qwen3-experts-windows": _causal("Qwen3Moe", "Qwen3MoeConfig", **EXPERTS, use_sliding_window=True, sliding_window=4),
    "gemma3": Case("Gemma3ForCausalLM", "Gemma3TextConfig", GEMMA),
    "gemma3-classes": Case("Gemma3TextForSequenceClassification", "Gemma3TextConfig", GEMMA | {"num_labels": 3, "pad_token_id": 97}),
    "t5": Case("T5ForConditionalGeneration", "T5Config", T5, "both"),
    "t5-1.1": Case("T5ForConditionalGeneration", "T5Config", GATED, "both", True),
    "t5-bare": Case("T5Model", "T5Config", T5, "both"),
    "t5-encoder": Case("T5EncoderModel", "T5Config", GATED, "encoder"),
    "t5-tokens": Case("T5ForTokenClassification", "T5Config", T5 | {"num_labels": 5}, "encoder"),
    "mt5": Case("MT5ForConditionalGeneration", "MT5Config", GATED, "both", True),
    "switch": Case("SwitchTransformersForConditionalGeneration", "SwitchTransformersConfig", SWITCH, "both"),
    "bart": Case("BartForConditionalGeneration", "BartConfig", BART, "both"),
    "bart-bare": Case("BartModel", "BartConfig", BART | {"scale_embedding": True}, "both"),
    "marian": Case("MarianMTModel", "MarianConfig", MARIAN, "both"),
    "marian-two-tables": Case(
        "MarianMTModel", "MarianConfig",
        MARIAN | {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 101}, "both",
    ),
    "pegasus": Case("PegasusForConditionalGeneration", "PegasusConfig", MARIAN | {"activation_function": "relu"}, "both"),
    "vit": Case("ViTForImageClassification", "ViTConfig", VISION | {"num_labels": 7}, "image"),
    "vit-no-bias": Case("ViTForImageClassification", "ViTConfig", VISION | {"num_labels": 7, "qkv_bias": False}, "image"),
    "vit-bare": Case("ViTModel", "ViTConfig", VISION, "image"),
    "clip": Case(
        "CLIPModel", "CLIPConfig", {"text_config": CLIP_TEXT, "vision_config": CLIP_IMAGE, "projection_dim": 24}, "pair",
    ),
    "clip-text": Case("CLIPTextModelWithProjection", "CLIPTextConfig", CLIP_TEXT | {"projection_dim": 24}, "encoder"),
    "clip-text-bare": Case("CLIPTextModel", "CLIPTextConfig", CLIP_TEXT, "encoder"),
    "clip-image": Case("CLIPVisionModelWithProjection", "CLIPVisionConfig", CLIP_IMAGE | {"projection_dim": 24}, "image"),
    "clip-image-bare": Case("CLIPVisionModel", "CLIPVisionConfig", CLIP_IMAGE, "image"),
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
        learned = {n: p for n, p in model.named_parameters() if p.requires_grad or "embed_positions" not in n}  # sinusoids stay
        perturb(learned | {n: b for n, b in model.named_buffers() if n == "final_logits_bias"}, case.arguments)
    return model, saved(model)


def perturb(tensors: dict[str, Tensor], arguments: dict[str, Any], size: float = 0.2) -> None:
    """Noise on all, in place; on T5's queries as much less as the scores of others are scaled down."""
    for name, tensor in tensors.items():
        scale = arguments["d_kv"] ** -0.5 if "d_kv" in arguments and name.endswith("Attention.q.weight") else 1.0
        tensor.add_(size * scale * torch.randn_like(tensor))


_folders: list[TemporaryDirectory[str]] = []  # removed when the tests end


def saved(model: Any) -> Path:
    """A folder with what the model's own `save_pretrained` writes."""
    _folders.append(TemporaryDirectory(prefix="parity-"))
    folder = Path(_folders[-1].name)
    model.save_pretrained(folder)
    return folder


def inputs(length: int = 12, seed: int = 0) -> Tensor:
    """Ids (1, length) that end with the end token, 98, and hold no padding id (0, 1 or 97)."""
    ids = torch.randint(3, 97, (1, length), generator=torch.Generator().manual_seed(seed + length))
    ids[:, -1] = 98
    return ids


def pixels() -> Tensor:
    """Two images (2, 3, 32, 32)."""
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))
