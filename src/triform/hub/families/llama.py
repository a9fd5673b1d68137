"""LLaMA and those that follow it: Mistral, Mixtral, Qwen2, Qwen3 (dense and experts), Gemma 3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from triform import config

from ..family import Family
from ..fields import Fields
from ..rules import STACKED, Row, pairs, rules
from .shared import causal_head, period

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


@dataclass(frozen=True)
class _Kind:
    """Where the families differ."""

    rows: tuple[Row, ...] = _PRE
    bias: Literal["none", "qkv"] = "none"
    qk_norm: bool = False
    tied: bool = False
    eps: float = 1e-6
    theta: float = 10_000.0


_KINDS = {
    "llama": _Kind(),
    "mistral": _Kind(),
    "mixtral": _Kind(_PRE + _expert_rows("block_sparse_moe", ("w1", "w3", "w2")), eps=1e-5, theta=1_000_000.0),
    "qwen2": _Kind(bias="qkv"),
    "qwen3": _Kind(qk_norm=True),
    "qwen3_moe": _Kind(_PRE + _expert_rows("mlp", ("gate_proj", "up_proj", "down_proj")), qk_norm=True),
    "gemma3_text": _Kind(_SANDWICH, qk_norm=True, tied=True),
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
            rope.refuse(truncate=True, mscale=None, mscale_all_dim=None)
            return config.Yarn(
                factor=rope.number("factor"),
                original_length=rope.whole("original_max_position_embeddings", longest),
                fast=rope.number("beta_fast", 32.0),
                slow=rope.number("beta_slow", 1.0),
                attention_factor=rope.number("attention_factor") if rope.has("attention_factor") else None,
            )
        case _:
            raise rope.fail(name, "one of default, linear, llama3, yarn")


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
    if (said := hf.names("layer_types")) is not None:
        if len(said) != depth or set(said) - {"sliding_attention", "full_attention"}:
            raise hf.fail("layer_types", f"sliding_attention or full_attention for each of the {depth} layers")
        return said
    if kind == "gemma3_text":
        every = hf.count("sliding_window_pattern", hf.count("_sliding_window_pattern", 6))
        return ["full_attention" if (i + 1) % every == 0 else "sliding_attention" for i in range(depth)]
    if kind in ("mistral", "mixtral"):
        return ["sliding_attention" if hf.has("sliding_window") else "full_attention"] * depth
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
        bias="all" if hf.flag("attention_bias", False) else _KINDS[kind].bias,
        scale=hf.number("query_pre_attn_scalar", 256) ** -0.5 if gemma else None,
        dropout=hf.number("attention_dropout", 0.0),
    )


def _feed_forward(hf: Fields, kind: str, index: int) -> config.FeedForward | config.Experts:
    activation = hf.activation("hidden_activation", "gelu_pytorch_tanh") if kind == "gemma3_text" else hf.activation("hidden_act", "silu")

    def gated(hidden: int) -> config.FeedForward:
        return config.FeedForward(hidden=hidden, activation=activation, gated=True, bias=hf.flag("mlp_bias", False))

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
    head, bare = causal_head(hf, tied=kind.tied)
    model = config.Transformer(
        decoder=config.Stack(width=width, depth=depth, input=tokens, pattern=period(blocks), norm=norm),
        head=head,
        init=config.Init(std=hf.number("initializer_range", 0.02)),
    )
    family = Family(
        name=name,
        table=rules(*_COMMON, *kind.rows),
        prefix="model.",
        bare=bare,
        repeats=() if bare else (("lm_head.weight", "model.embed_tokens.weight"),),
        ignore=(r".*\.rotary_emb\.inv_freq",),
    )
    return model, family
