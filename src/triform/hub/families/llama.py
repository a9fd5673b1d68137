"""LLaMA and those that follow it: Mistral, Mixtral, Qwen2, Qwen3 (dense and experts), Gemma 3."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from triform import config

from ..family import Family
from ..fields import Fields
from ..function import period
from ..rules import FUSED_SECOND, STACKED, Row, pairs, rules
from .shared import CAUSAL, causal_head, class_of, dense, head_fields, stack_of, tied

_GEMMA_ENDINGS = ("ForCausalLM", "ForSequenceClassification", "Model")
_OURS, _THEIRS = "decoder.layers.{i}", "model.layers.{i}"
_ATTENTION = {"query": "q", "key": "k", "value": "v", "out": "o"}
_COMMON: tuple[Row, ...] = (
    ("decoder.input.token.weight", "model.embed_tokens.weight"),
    ("decoder.norm.weight", "model.norm.weight"),
    ("head.weight", "lm_head.weight"),
    *pairs(_OURS, _THEIRS, {f"attention.body.{ours}": f"self_attn.{theirs}_proj" for ours, theirs in _ATTENTION.items()}),
    *pairs(_OURS, _THEIRS, {f"feed_forward.body.{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")}),
    *pairs(_OURS, _THEIRS, {"attention.body.query_norm": "self_attn.q_norm", "attention.body.key_norm": "self_attn.k_norm"}, ["weight"]),
    *pairs(_OURS, _THEIRS, {"attention.norm": "input_layernorm"}, ["weight"]),
)
_PRE: tuple[Row, ...] = ((f"{_OURS}.feed_forward.norm.weight", f"{_THEIRS}.post_attention_layernorm.weight"),)
_SANDWICH: tuple[Row, ...] = (
    (f"{_OURS}.attention.norm_out.weight", f"{_THEIRS}.post_attention_layernorm.weight"),
    (f"{_OURS}.feed_forward.norm.weight", f"{_THEIRS}.pre_feedforward_layernorm.weight"),
    (f"{_OURS}.feed_forward.norm_out.weight", f"{_THEIRS}.post_feedforward_layernorm.weight"),
)


def _expert_rows(room: str, names: tuple[str, str, str]) -> tuple[Row, ...]:
    """Rows for a router and experts whose matrices are called `names`: gate, up, down."""
    stacked = tuple(
        (f"{_OURS}.feed_forward.body.{part}", f"{_THEIRS}.{room}.experts.{{e}}.{name}.weight", STACKED)
        for part, name in zip(("gate", "up", "down"), names, strict=True)
    )
    return (f"{_OURS}.feed_forward.body.router.weight", f"{_THEIRS}.{room}.gate.weight"), *stacked


# All experts of a layer in one tensor, as transformers 5 keeps them in memory and, asked to, in files
_FUSED_EXPERTS: tuple[Row, ...] = (
    (f"{_OURS}.feed_forward.body.router.weight", f"{_THEIRS}.mlp.gate.weight"),
    (tuple(f"{_OURS}.feed_forward.body.{part}" for part in ("gate", "up")), f"{_THEIRS}.mlp.experts.gate_up_proj", FUSED_SECOND),
    (f"{_OURS}.feed_forward.body.down", f"{_THEIRS}.mlp.experts.down_proj"),
)


@dataclass(frozen=True)
class _Kind:
    """Where the families differ.

    windows: on no layer, on all that have any, or on those that `layer_types` names.
    attention_bias: whether the field of that name is heeded.
    answers: what stands before the base model's names in a model that answers questions.
    """

    stem: str
    rows: tuple[Row, ...] = _PRE
    windows: Literal["none", "all", "layers"] = "none"
    bias: Literal["none", "qkv"] = "none"
    attention_bias: bool = False
    qk_norm: bool = False
    tied: bool = False
    eps: float = 1e-6
    theta: float = 10_000.0
    answers: str = "transformer."


_KINDS = {
    "llama": _Kind("Llama", attention_bias=True),
    "mistral": _Kind("Mistral", windows="all", answers="model."),
    "mixtral": _Kind(
        "Mixtral", _PRE + _expert_rows("block_sparse_moe", ("w1", "w3", "w2")), "all", eps=1e-5, theta=1_000_000.0, answers="model."
    ),
    "qwen2": _Kind("Qwen2", windows="layers", bias="qkv"),
    "qwen3": _Kind("Qwen3", windows="layers", attention_bias=True, qk_norm=True),
    "qwen3_moe": _Kind(
        "Qwen3Moe", _PRE + _expert_rows("mlp", ("gate_proj", "up_proj", "down_proj")), "all", attention_bias=True, qk_norm=True
    ),
    "gemma3_text": _Kind("Gemma3", _SANDWICH, "layers", attention_bias=True, qk_norm=True, tied=True, answers="model."),
}


def _scaling(rope: Fields, longest: int | None) -> config.Linear | config.Llama3 | config.Yarn | None:
    name = "type" if rope.has("type") and not rope.has("rope_type") else "rope_type"  # "type" until 2024
    match rope.text(name, "default"):
        case "default":
            return None
        case "linear":
            return config.Linear(factor=rope.number("factor"))
        case "llama3":
            return config.Llama3(
                factor=rope.number("factor"),
                low=rope.number("low_freq_factor"),
                high=rope.number("high_freq_factor"),
                original_length=rope.whole("original_max_position_embeddings"),
            )
        case "yarn":
            rope.refuse(truncate=True)
            return config.Yarn(
                factor=rope.number("factor"),
                original_length=rope.whole("original_max_position_embeddings", longest),
                fast=rope.number("beta_fast", 32.0),
                slow=rope.number("beta_slow", 1.0),
                attention_factor=_magnitude(rope),
            )
        case _:
            raise rope.fail(name, "one of default, linear, llama3, yarn")


def _magnitude(rope: Fields) -> float | None:
    """YaRN's factor on cosine and sine, where it is said or follows from weights on the usual one (DeepSeek's `mscale`)."""
    if rope.has("attention_factor"):
        return rope.number("attention_factor")
    weights = [rope.number(name, 0.0) for name in ("mscale", "mscale_all_dim")]
    growth = math.log(max(rope.number("factor"), 1.0))
    return (0.1 * weights[0] * growth + 1) / (0.1 * weights[1] * growth + 1) if all(weights) else None


def _rotary(hf: Fields, layer: str, kind: str) -> config.Rotary:
    """The rotation of layers of a type, from `rope_parameters` or from the older `rope_theta` with `rope_scaling`."""
    theta, local = _KINDS[kind].theta, kind == "gemma3_text" and layer == "sliding_attention"
    if hf.has("rope_parameters"):
        rope = hf.part("rope_parameters")
        rope = rope.part(layer) if rope.has(layer) else rope
    else:
        rope = Fields({}) if local else hf.part("rope_scaling")
    if kind == "gemma3_text":
        theta = hf.number("rope_local_base_freq", 10_000.0) if local else hf.number("rope_theta", 1_000_000.0)
    else:
        theta = hf.number("rope_theta", theta)
    rope.refuse(partial_rotary_factor=1.0)
    return config.Rotary(theta=rope.number("rope_theta", theta), scaling=_scaling(rope, hf.maybe_whole("max_position_embeddings")))


def _layer_types(hf: Fields, kind: str, depth: int) -> list[str]:
    """sliding_attention or full_attention for each layer, as said or as the family means it."""
    windows = _KINDS[kind].windows
    if windows == "none":
        return ["full_attention"] * depth
    if windows == "layers" and (said := hf.names("layer_types")) is not None:
        if len(said) != depth or set(said) - {"sliding_attention", "full_attention"}:
            raise hf.fail("layer_types", f"sliding_attention or full_attention for each of the {depth} layers")
        return said
    if kind == "gemma3_text":
        every = hf.count("sliding_window_pattern", hf.count("_sliding_window_pattern", 6))
        return ["full_attention" if (i + 1) % every == 0 else "sliding_attention" for i in range(depth)]
    if windows == "all":
        used = hf.has("sliding_window") and (kind != "qwen3_moe" or hf.flag("use_sliding_window", False))
        return ["sliding_attention" if used else "full_attention"] * depth
    first = hf.whole("max_window_layers", 28) if hf.flag("use_sliding_window", False) and hf.has("sliding_window") else depth
    return ["sliding_attention" if i >= first else "full_attention" for i in range(depth)]


def _attention(hf: Fields, kind: str, layer: str, norm: config.RMSNorm) -> config.Attention:
    heads, width = hf.whole("num_attention_heads"), hf.whole("hidden_size")
    kv_heads, head_width = hf.whole("num_key_value_heads", heads), hf.maybe_whole("head_dim")
    gemma = kind == "gemma3_text"
    return config.Attention(
        heads=heads,
        kv_heads=None if kv_heads == heads else kv_heads,
        head_width=None if head_width is not None and head_width * heads == width else head_width,
        mask="causal",
        window=hf.whole("sliding_window") if layer == "sliding_attention" else None,
        position=_rotary(hf, layer, kind),
        qk_norm=norm if _KINDS[kind].qk_norm else None,
        bias="all" if _KINDS[kind].attention_bias and hf.flag("attention_bias", False) else _KINDS[kind].bias,
        scale=hf.number("query_pre_attn_scalar", 256) ** -0.5 if gemma else None,
        dropout=hf.number("attention_dropout", 0.0),
    )


def _feed_forward(hf: Fields, kind: str, index: int) -> config.FeedForward | config.Experts:
    activation = hf.activation("hidden_activation", "gelu_pytorch_tanh") if kind == "gemma3_text" else hf.activation("hidden_act", "silu")

    def gated(hidden: int) -> config.FeedForward:
        return config.FeedForward(hidden=hidden, activation=activation, gated=True, bias=kind == "llama" and hf.flag("mlp_bias", False))

    if kind == "mixtral":
        expert, count = gated(hf.whole("intermediate_size")), hf.whole("num_local_experts", 8)
        return config.Experts(expert=expert, count=count, top_k=hf.whole("num_experts_per_tok", 2), renormalize=True)
    if kind == "qwen3_moe":
        count = hf.whole("num_experts", hf.maybe_whole("num_local_experts") or 128)
        dense = index in (hf.data.get("mlp_only_layers") or []) or (index + 1) % hf.count("decoder_sparse_step", 1) != 0
        if not dense:
            return config.Experts(
                expert=gated(hf.whole("moe_intermediate_size")),
                count=count,
                top_k=hf.whole("num_experts_per_tok", 8),
                renormalize=hf.flag("norm_topk_prob", False),
            )
    return gated(hf.whole("intermediate_size"))


def read(hf: Fields) -> tuple[config.Transformer, Family]:
    """The model and the names of a configuration of LLaMA's kind."""
    name = hf.text("model_type")
    if name == "mistral":
        hf = Fields({"sliding_window": 4096} | dict(hf.data))  # absent is the first Mistral's; null is none
    kind, gemma = _KINDS[name], name == "gemma3_text"
    hf.refuse(attn_logit_softcapping=None, final_logit_softcapping=None, use_bidirectional_attention=False)
    norm = config.RMSNorm(eps=hf.number("rms_norm_eps", kind.eps), unit_offset=gemma)
    depth, width = hf.count("num_hidden_layers"), hf.whole("hidden_size")
    blocks = [
        config.Block(
            attention=_attention(hf, name, layer, norm),
            feed_forward=_feed_forward(hf, name, index),
            norm=norm,
            placement="sandwich" if gemma else "pre",
        )
        for index, layer in enumerate(_layer_types(hf, name, depth))
    ]
    tokens = config.Tokens(vocab_size=hf.whole("vocab_size"), scale=width**0.5 if gemma else 1.0)
    head, end = causal_head(hf, tied=kind.tied, endings=_GEMMA_ENDINGS if gemma else CAUSAL)
    model = config.Transformer(
        decoder=config.Stack(width=width, depth=depth, input=tokens, pattern=period(blocks), norm=norm),
        head=head,
        init=config.Init(std=hf.number("initializer_range", 0.02)),
    )
    out = "qa_outputs" if end == "ForQuestionAnswering" else "score"
    family = Family(
        name=name,
        table=rules(*_COMMON, *kind.rows, *pairs("head", "", {"out": out})),
        prefix="model.",
        bare=end == "Model",
        repeats=() if end == "Model" else (("lm_head.weight", "model.embed_tokens.weight"),),
        ignore=(r".*\.rotary_emb\.inv_freq",),
        variant=rules(*_FUSED_EXPERTS) if name in ("mixtral", "qwen3_moe") else (),
    )
    return model, family.under(kind.answers) if end == "ForQuestionAnswering" else family


def _rope(rotary: config.Rotary) -> dict[str, Any]:
    """A rotation in the spelling that older software reads too."""
    match rotary.scaling:
        case config.Linear(factor=factor):
            said: dict[str, Any] = {"rope_type": "linear", "factor": factor}
        case config.Llama3() as scaling:
            said = {"rope_type": "llama3", "factor": scaling.factor, "low_freq_factor": scaling.low, "high_freq_factor": scaling.high}
        case config.Yarn() as scaling:
            said = {"rope_type": "yarn", "factor": scaling.factor, "beta_fast": scaling.fast, "beta_slow": scaling.slow}
            if scaling.attention_factor is not None:
                said["attention_factor"] = scaling.attention_factor
        case None:
            return {"rope_theta": rotary.theta}
    if not isinstance(rotary.scaling, config.Linear):
        said["original_max_position_embeddings"] = rotary.scaling.original_length
    return {"rope_theta": rotary.theta, "rope_scaling": said}


def _longest(rotary: config.Rotary) -> int:
    """How many positions a scaling was made for; where there is none, what LLaMA's configuration says by default."""
    scaling = rotary.scaling
    return round(scaling.factor * scaling.original_length) if isinstance(scaling, config.Llama3 | config.Yarn) else 2048


def _rotary_of(blocks: list[config.Block]) -> config.Rotary:
    return next((b.attention.position for b in blocks if isinstance(b.attention.position, config.Rotary)), config.Rotary())


def _window_fields(kind: _Kind, blocks: list[config.Block]) -> dict[str, Any]:
    windows = [block.attention.window for block in blocks]
    window = next((w for w in windows if w), None)
    match kind.windows:
        case "all":
            return {"sliding_window": window, "use_sliding_window": window is not None}
        case "layers":
            types = ["full_attention" if w is None else "sliding_attention" for w in windows]
            return {"sliding_window": window or 4096, "use_sliding_window": window is not None, "layer_types": types}
    return {}


def _expert_fields(name: str, blocks: list[config.Block]) -> dict[str, Any]:
    routed = next((b.feed_forward for b in blocks if isinstance(b.feed_forward, config.Experts)), None)
    if routed is None:
        routed = config.Experts(expert=dense(blocks[0].feed_forward), count=1)
    if name == "mixtral":
        return {"intermediate_size": routed.expert.hidden, "num_local_experts": routed.count, "num_experts_per_tok": routed.top_k}
    return {
        "moe_intermediate_size": routed.expert.hidden,
        "num_experts": routed.count,
        "num_experts_per_tok": routed.top_k,
        "norm_topk_prob": routed.renormalize,
        "mlp_only_layers": [i for i, block in enumerate(blocks) if isinstance(block.feed_forward, config.FeedForward)],
    }


def _gemma_fields(blocks: list[config.Block], activation: str, head_width: int) -> dict[str, Any]:
    far, near = ([b for b in blocks if (b.attention.window is None) == full] for full in (True, False))
    scale = blocks[0].attention.scale
    return {
        **_rope(_rotary_of(far or near)),
        "rope_local_base_freq": _rotary_of(near or far).theta,
        "hidden_activation": activation,
        "query_pre_attn_scalar": head_width if scale is None else max(round(scale**-2), 1),
    }


def write(model: config.Model, name: str) -> dict[str, Any] | None:
    """The nearest configuration of a family of LLaMA's kind for a decoder-only model; None for other forms."""
    if (parts := stack_of(model, "decoder")) is None:
        return None
    whole, stack, tokens = parts
    kind, blocks = _KINDS[name], [stack.block(i) for i in range(stack.depth)]
    attention, head_width = blocks[0].attention, stack.head_width(blocks[0].attention)
    forward = next((b.feed_forward for b in blocks if isinstance(b.feed_forward, config.FeedForward)), dense(blocks[0].feed_forward))
    activation = {"gelu_tanh": "gelu_pytorch_tanh"}.get(forward.activation, forward.activation)
    rotary = _rotary_of(blocks)
    data: dict[str, Any] = {
        "model_type": name,
        "architectures": [kind.stem + class_of(whole.head)],
        "vocab_size": tokens.vocab_size,
        "hidden_size": stack.width,
        "intermediate_size": forward.hidden,
        "num_hidden_layers": stack.depth,
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads or attention.heads,
        "head_dim": head_width,
        "hidden_act": activation,
        "max_position_embeddings": _longest(rotary),
        "rms_norm_eps": blocks[0].norm.eps,
        "attention_dropout": attention.dropout,
        "initializer_range": whole.init.std,
        "tie_word_embeddings": tied(whole.head),
        **_rope(rotary),
        **_window_fields(kind, blocks),
        **head_fields(whole.head),
    }
    if kind.attention_bias:
        data["attention_bias"] = attention.bias == "all"
    if name == "llama":
        data["mlp_bias"] = forward.bias
    if name in ("mixtral", "qwen3_moe"):
        data |= _expert_fields(name, blocks)
    if name == "gemma3_text":
        data |= _gemma_fields(blocks, activation, head_width)
    if name == "gemma3_text" and data["architectures"] in (["Gemma3Model"], ["Gemma3ForSequenceClassification"]):
        data["architectures"] = [data["architectures"][0].replace("Gemma3", "Gemma3Text")]
    return data
