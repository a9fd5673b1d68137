"""The metadata of a GGUF file as our configuration."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from triform import config

from ..fields import Fields
from ..function import period
from .header import Header

ARCHITECTURES = ("llama", "qwen2", "qwen3", "qwen3moe", "gemma3", "gpt2")
_KNOWN = {
    "vocab_size", "context_length", "embedding_length", "block_count", "feed_forward_length", "tensor_data_layout",
    "attention.causal", "attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length",
    "attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon", "attention.sliding_window", "attention.sliding_window_pattern",
    "rope.dimension_count", "rope.freq_base", "rope.freq_base_swa", "rope.scale_linear", "rope.scaling.attn_factor",
    "rope.scaling.factor", "rope.scaling.finetuned", "rope.scaling.original_context_length", "rope.scaling.type",
    "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow", "expert_count", "expert_feed_forward_length", "expert_used_count",
}  # fmt: skip
_WITHOUT = ("attn_logit_softcapping", "final_logit_softcapping", "expert_shared_count", "attention.scale", "logit_scale")
ROPE_FACTORS = "rope_freqs.weight"


class Metadata(Fields):
    """The metadata that belongs to an architecture, under keys without its name."""

    def __init__(self, header: Header) -> None:
        everything = Fields(header.metadata, f"{header.path}: ")
        self.architecture_name = everything.text("general.architecture")
        if self.architecture_name not in ARCHITECTURES:
            raise everything.fail("general.architecture", f"one of {', '.join(ARCHITECTURES)}")
        before = self.architecture_name + "."
        mine = {key.removeprefix(before): value for key, value in header.metadata.items() if key.startswith(before)}
        super().__init__(mine, f"{header.path}: {before}")
        for name in _WITHOUT:
            if mine.get(name):
                raise self.fail(name, "nothing, as it is not supported")
        if unknown := sorted(mine.keys() - _KNOWN - set(_WITHOUT)):
            raise self.fail(unknown[0], "no such key, as what it means for the model is not known")
        self.refuse(**{"attention.causal": True})

    def positive(self, name: str, default: float | None = None) -> float:
        """A number above zero."""
        value = self.number(name, default)
        if not 0 < value < math.inf:
            raise self.fail(name, "a number above zero")
        return value

    def same(self, name: str, default: int | None = None) -> int:
        """A whole number, which may be given once for each layer if it is always the same one."""
        value = self.data.get(name)
        if isinstance(value, array) and len(value) and all(isinstance(v, int) and v == value[0] for v in value):
            return int(value[0])
        return self.whole(name, default)


def read_spec(header: Header) -> config.Transformer:
    """The model that a GGUF file holds. Raises ValueError that names the file and the key.

    The rotation's scaling of Llama 3 is not among the metadata but a tensor of factors: see `factors_spec`.
    """
    data = Metadata(header)
    depth = data.count("block_count")
    if depth > len(header.tensors):
        raise data.fail("block_count", f"at most the file's {len(header.tensors)} tensors")
    vocabulary, width = data.count("vocab_size", _rows(header, "token_embd.weight"), 2**24), data.count("embedding_length", most=2**20)
    if (vocabulary, width) != header.tensors["token_embd.weight"].shape:
        raise ValueError(f"{header.path}: token_embd.weight is {header.tensors['token_embd.weight'].shape}, not {(vocabulary, width)}")
    head = config.LanguageModel(tied="output.weight" not in header.tensors)
    if data.architecture_name == "gpt2":
        stack = _gpt2(header, data, depth, width, vocabulary)
        return config.Transformer(decoder=stack, head=head, init=config.Init(scale_residuals=True))
    gemma = data.architecture_name == "gemma3"
    norm = config.RMSNorm(eps=data.positive("attention.layer_norm_rms_epsilon"), unit_offset=gemma)
    blocks = [
        config.Block(
            attention=_attention(header, data, norm, depth, local),
            feed_forward=_feed_forward(header, data),
            norm=norm,
            placement="sandwich" if gemma else "pre",
        )
        for local in _local(data, depth)
    ]
    tokens = config.Tokens(vocab_size=vocabulary, scale=width**0.5 if gemma else 1.0)
    return config.Transformer(decoder=config.Stack(width=width, depth=depth, input=tokens, pattern=period(blocks), norm=norm), head=head)


def _rows(header: Header, name: str) -> int:
    if name not in header.tensors:
        raise ValueError(f"{header.path}: expected a model with a tensor {name}, found none")
    return header.tensors[name].shape[0]


def _gpt2(header: Header, data: Metadata, depth: int, width: int, vocabulary: int) -> config.Stack:
    norm = config.LayerNorm(eps=data.positive("attention.layer_norm_epsilon"))
    heads = data.count("attention.head_count", most=2**16)
    if data.same("attention.head_count_kv", heads) != heads or data.whole("attention.key_length", width // heads) * heads != width:
        raise data.fail("attention.head_count", f"heads that share the width {width} evenly and have keys of their own")
    block = config.Block(
        attention=config.Attention(heads=heads, mask="causal"),
        feed_forward=config.FeedForward(hidden=_rows(header, "blk.0.ffn_up.weight"), activation="gelu_tanh"),
        norm=norm,
    )
    position = config.Learned(length=_rows(header, "position_embd.weight"))
    tokens = config.Tokens(vocab_size=vocabulary, position=position)
    return config.Stack(width=width, depth=depth, input=tokens, pattern=(block,), norm=norm)


def _local(data: Metadata, depth: int) -> list[bool]:
    """Which layers see a window only. Other architectures than Gemma 3 have no such layers in llama.cpp, whatever the key says."""
    if data.architecture_name != "gemma3" or not data.data.get("attention.sliding_window"):
        return [False] * depth
    name = "attention.sliding_window_pattern"
    said = data.data.get(name)
    if isinstance(said, array):
        if len(said) < depth:
            raise data.fail(name, f"a value for each of the {depth} layers")
        return [bool(value) for value in said[:depth]]
    every = data.whole(name, 6)
    return [every == 0 or i % every < every - 1 for i in range(depth)]


def _attention(header: Header, data: Metadata, norm: config.RMSNorm, depth: int, local: bool) -> config.Attention:
    name, width = data.architecture_name, data.whole("embedding_length")
    heads = data.same("attention.head_count")
    if not 1 <= heads <= 2**16:
        raise data.fail("attention.head_count", "a whole number from 1 to 65536")
    kv_heads, head_width = data.same("attention.head_count_kv", heads), data.whole("attention.key_length", width // heads)
    if kv_heads < 1 or heads % kv_heads:
        raise data.fail("attention.head_count_kv", f"a divisor of the {heads} heads")
    if _rows(header, "blk.0.attn_q.weight") != heads * head_width:
        raise data.fail("attention.head_count", f"heads that make up the {_rows(header, 'blk.0.attn_q.weight')} rows of attn_q")
    data.refuse(**{"attention.value_length": head_width, "rope.dimension_count": head_width})
    bias = "all" if "blk.0.attn_output.bias" in header.tensors else "qkv" if "blk.0.attn_q.bias" in header.tensors else "none"
    # llama.cpp scales Gemma 3's 27B, which it knows by its 62 layers, by another width than the head's
    scale = ((width / heads if depth == 62 else head_width) ** -0.5) if name == "gemma3" else None
    return config.Attention(
        heads=heads,
        kv_heads=None if kv_heads == heads else kv_heads,
        head_width=None if head_width * heads == width else head_width,
        mask="causal",
        window=data.count("attention.sliding_window", most=2**40) if local else None,
        position=_rotary(data, local),
        qk_norm=norm if name in ("qwen3", "qwen3moe", "gemma3") else None,
        bias=bias,  # type: ignore[arg-type]
        scale=scale,
    )


def _rotary(data: Metadata, local: bool) -> config.Rotary:
    theta = data.positive("rope.freq_base", 10_000.0)
    if local:
        return config.Rotary(theta=data.positive("rope.freq_base_swa", 10_000.0))
    said = next((name for name in ("rope.scaling.factor", "rope.scale_linear") if data.data.get(name)), "")  # 0 stands for none
    factor = data.positive(said) if said else 1.0
    kind = data.text("rope.scaling.type", "linear")
    scaling: config.Linear | config.Yarn | None = None
    if kind not in ("none", "linear", "yarn"):
        raise data.fail("rope.scaling.type", "one of none, linear, yarn")
    if kind == "yarn":
        stretched = data.positive("rope.scaling.attn_factor", 1.0)
        scaling = config.Yarn(
            factor=factor,
            original_length=data.count("rope.scaling.original_context_length", data.whole("context_length"), 2**40),
            fast=data.positive("rope.scaling.yarn_beta_fast", 32.0),
            slow=data.positive("rope.scaling.yarn_beta_slow", 1.0),
            attention_factor=None if stretched == 1.0 else stretched * (0.1 * math.log(factor) + 1),
        )
    elif kind == "linear" and factor != 1.0:
        scaling = config.Linear(factor=factor)
    return config.Rotary(theta=theta, scaling=scaling)


def _feed_forward(header: Header, data: Metadata) -> config.FeedForward | config.Experts:
    activation: config.Activation = "gelu_tanh" if data.architecture_name == "gemma3" else "silu"

    def gated(hidden: int) -> config.FeedForward:
        return config.FeedForward(hidden=hidden, activation=activation, gated=True, bias="blk.0.ffn_up.bias" in header.tensors)

    count = data.whole("expert_count", 0)
    if not count:
        return gated(_rows(header, "blk.0.ffn_up.weight"))
    stored = header.tensors.get("blk.0.ffn_up_exps.weight")
    if stored is None or len(stored.shape) != 3 or stored.shape[0] != count:
        raise data.fail("expert_count", "as many experts as the tensor blk.0.ffn_up_exps.weight holds")
    return config.Experts(expert=gated(stored.shape[1]), count=count, top_k=data.whole("expert_used_count"), renormalize=True)


def llama3_factors(rotary: config.Rotary, scaling: config.Llama3, width: int) -> list[float]:
    """By how much each of the `width` / 2 frequencies is divided, which is how GGUF keeps Llama 3's scaling."""
    factors = []
    for pair in range(0, width, 2):
        turns = scaling.original_length * rotary.theta ** (-pair / width) / (2 * math.pi)
        keep = min(max((turns - scaling.low) / (scaling.high - scaling.low), 0.0), 1.0)
        factors.append(1 / (keep + (1 - keep) / scaling.factor))
    return factors


def llama3_scaling(rotary: config.Rotary, factors: Sequence[float], width: int) -> config.Llama3 | None:
    """The scaling that gives these factors, or None. Llama 3's own ramp, from 1 to 4 turns, of any length that is a power of two."""
    if not 0 < max(factors) < math.inf:
        return None
    for exponent in range(5, 21):
        scaling = config.Llama3(factor=round(max(factors), 6), low=1.0, high=4.0, original_length=2**exponent)
        if all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(llama3_factors(rotary, scaling, width), factors, strict=True)):
            return scaling
    return None


def with_factors(spec: config.Transformer, factors: Sequence[float], where: str) -> config.Transformer:
    """The model with the scaling of Llama 3 that its file keeps as factors. Raises ValueError where they are another scaling's."""
    stack = spec.last
    width = stack.head_width(stack.block(0).attention)

    def scaled(block: config.Block) -> config.Block:
        rotary: Any = block.attention.position
        found = llama3_scaling(rotary, factors, width) if len(factors) == width // 2 else None
        if found is None or rotary.scaling is not None:
            raise ValueError(f"{where}: {ROPE_FACTORS} holds factors that are no scaling of Llama 3's, and no other is supported")
        return replace(block, attention=replace(block.attention, position=replace(rotary, scaling=found)))

    if all(factor == 1.0 for factor in factors):
        return spec
    return replace(spec, decoder=replace(stack, pattern=tuple(scaled(block) for block in stack.pattern)))
