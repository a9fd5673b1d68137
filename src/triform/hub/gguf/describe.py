"""Our configuration as the metadata of a GGUF file."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

from triform import config

from ..family import NoCounterpart
from ..function import differences
from .header import Header, Stored
from .spec import read_spec

Value = str | bool | int | float | list[bool]


def describe(model: config.Model, length: int | None = None) -> tuple[str, dict[str, Value]]:
    """The architecture of llama.cpp that computes what a model computes, and the metadata that says its sizes.

    length: the most tokens that the model takes, where the configuration does not say it. A window that all layers
        share is kept by a context no longer than it, where the architecture has no windows.

    Raises NoCounterpart, a ValueError that names what stands in the way.
    """
    if not isinstance(model, config.Transformer) or model.form != "decoder-only":
        raise NoCounterpart(f"a GGUF file holds a decoder-only language model, and this model is {model.form}")
    architecture = _nearest(model)
    longest, plain = _longest(model, length), model
    if architecture != "gemma3":
        plain, window = _unwindowed(model)
        longest = min(longest, window or longest)
    said = {f"{architecture}.{key}": value for key, value in _sizes(plain, architecture, longest).items()}
    header = SimpleNamespace(path=Path("GGUF"), metadata={"general.architecture": architecture, **said}, tensors=_tensors(plain))
    try:
        # the rotation's scaling of Llama 3 travels as a tensor, not as metadata
        found = differences(_without_llama3(plain) if architecture == "llama" else plain, read_spec(cast(Header, header)))
    except ValueError as error:
        raise NoCounterpart(f"the {architecture} architecture of llama.cpp cannot express the model: {error}") from None
    if found:
        wanted = "; ".join(f"{path} is {ours}, and there {theirs}" for path, (ours, theirs) in list(found.items())[:3])
        raise NoCounterpart(f"no architecture of llama.cpp that is known computes this; the nearest, {architecture}, differs: {wanted}")
    return architecture, said


def _nearest(model: config.Transformer) -> str:
    block, stack = model.last.block(0), model.last
    attention = block.attention
    rotary = attention.position
    if isinstance(stack.input, config.Tokens) and isinstance(stack.input.position, config.Learned):
        return "gpt2"
    if block.placement == "sandwich":
        return "gemma3"
    if attention.qk_norm:
        return "qwen3moe" if isinstance(block.feed_forward, config.Experts) else "qwen3"
    whole = stack.head_width(attention) * attention.heads == stack.width
    scaled = isinstance(rotary, config.Rotary) and isinstance(rotary.scaling, config.Llama3)
    dense = isinstance(block.feed_forward, config.FeedForward) and not block.feed_forward.bias
    return "qwen2" if attention.bias == "qkv" and whole and dense and not scaled else "llama"


def _longest(model: config.Transformer, length: int | None) -> int:
    """How many tokens the model takes: its table of positions, or as said, or its rotation's scaling; else LLaMA's default."""
    position = model.last.input.position if isinstance(model.last.input, config.Tokens) else None
    if isinstance(position, config.Learned):
        return position.length
    if length is not None:
        return length
    rotaries = [block.attention.position for block in model.last.pattern]
    scalings = [rotary.scaling for rotary in rotaries if isinstance(rotary, config.Rotary)]
    reached = [round(s.factor * s.original_length) for s in scalings if isinstance(s, config.Llama3 | config.Yarn)]
    return max(reached, default=2048)


def _unwindowed(model: config.Transformer) -> tuple[config.Transformer, int | None]:
    """The model without a window that all its layers share, and that window."""
    stack = model.last
    windows = {block.attention.window for block in stack.pattern}
    window = windows.pop() if len(windows) == 1 else None
    if window is None:
        return model, None
    pattern = tuple(replace(block, attention=replace(block.attention, window=None)) for block in stack.pattern)
    return replace(model, decoder=replace(stack, pattern=pattern)), window


def _without_llama3(model: config.Transformer) -> config.Transformer:
    def plain(block: config.Block) -> config.Block:
        rotary = block.attention.position
        if not isinstance(rotary, config.Rotary) or not isinstance(rotary.scaling, config.Llama3):
            return block
        return replace(block, attention=replace(block.attention, position=replace(rotary, scaling=None)))

    scalings = {getattr(block.attention.position, "scaling", None) for block in model.last.pattern}
    if len(scalings) != 1:
        return model  # layers that scale differently share one tensor of factors in llama.cpp
    return replace(model, decoder=replace(model.last, pattern=tuple(plain(block) for block in model.last.pattern)))


def _sizes(model: config.Transformer, architecture: str, longest: int) -> dict[str, Value]:
    stack, blocks = model.last, [model.last.block(i) for i in range(model.last.depth)]
    attention, norm, head_width = blocks[0].attention, blocks[0].norm, stack.head_width(blocks[0].attention)
    forward = blocks[0].feed_forward
    dense = forward.expert if isinstance(forward, config.Experts) else forward
    said: dict[str, Value] = {
        "vocab_size": stack.input.vocab_size if isinstance(stack.input, config.Tokens) else 0,
        "context_length": longest,
        "embedding_length": stack.width,
        "block_count": stack.depth,
        "feed_forward_length": dense.hidden,
        "attention.head_count": attention.heads,
    }
    if architecture == "gpt2":
        return said | {"attention.layer_norm_epsilon": norm.eps}
    said |= {
        "attention.head_count_kv": attention.kv_heads or attention.heads,
        "attention.key_length": head_width,
        "attention.value_length": head_width,
        "attention.layer_norm_rms_epsilon": norm.eps,
        "rope.dimension_count": head_width,
    }
    if isinstance(forward, config.Experts):
        said |= {"expert_count": forward.count, "expert_used_count": forward.top_k}
        if architecture == "qwen3moe":
            said["expert_feed_forward_length"] = dense.hidden
    local = [block.attention.window is not None for block in blocks]
    far = next((b.attention.position for b, near in zip(blocks, local, strict=True) if not near), attention.position)
    if isinstance(far, config.Rotary):
        said |= _rope(far)
    if architecture == "gemma3" and any(local):
        near = blocks[local.index(True)].attention
        said |= {"attention.sliding_window": near.window or 0, **_pattern(local)}
        if isinstance(near.position, config.Rotary):
            said["rope.freq_base_swa"] = near.position.theta
    return said


def _pattern(local: list[bool]) -> dict[str, Value]:
    """Which layers have a window: every how many there is one without, or one by one where they follow no such rule."""
    key = "attention.sliding_window_pattern"
    every = local.index(False) + 1 if False in local else 0
    regular = all(near == (every == 0 or i % every < every - 1) for i, near in enumerate(local))
    return {key: every if regular else local}


def _rope(rotary: config.Rotary) -> dict[str, Value]:
    said: dict[str, Value] = {"rope.freq_base": rotary.theta}
    match rotary.scaling:
        case config.Linear(factor=factor):
            said |= {"rope.scaling.type": "linear", "rope.scaling.factor": factor}
        case config.Yarn() as yarn:
            usual = 0.1 * math.log(yarn.factor) + 1
            said |= {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": yarn.factor,
                "rope.scaling.original_context_length": yarn.original_length,
                "rope.scaling.yarn_beta_fast": yarn.fast,
                "rope.scaling.yarn_beta_slow": yarn.slow,
            }
            if yarn.attention_factor is not None:
                said["rope.scaling.attn_factor"] = yarn.attention_factor / usual
    return said


def _tensors(model: config.Transformer) -> dict[str, Stored]:
    """What `read_spec` asks of the tensors: some shapes of the first layer, and which there are."""
    stack, block = model.last, model.last.block(0)
    attention, forward = block.attention, block.feed_forward
    vocabulary = stack.input.vocab_size if isinstance(stack.input, config.Tokens) else 0
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (vocabulary, stack.width),
        "blk.0.attn_q.weight": (stack.head_width(attention) * attention.heads, stack.width),
    }
    if isinstance(stack.input, config.Tokens) and isinstance(stack.input.position, config.Learned):
        shapes["position_embd.weight"] = (stack.input.position.length, stack.width)
    if isinstance(model.head, config.LanguageModel) and not model.head.tied:
        shapes["output.weight"] = (vocabulary, stack.width)
    if isinstance(forward, config.Experts):
        shapes["blk.0.ffn_up_exps.weight"] = (forward.count, forward.expert.hidden, stack.width)
    else:
        shapes["blk.0.ffn_up.weight"] = (forward.hidden, stack.width)
    if (forward.expert if isinstance(forward, config.Experts) else forward).bias:
        shapes["blk.0.ffn_up.bias"] = (1,)
    if attention.bias != "none":
        shapes["blk.0.attn_q.bias"] = (1,)
    if attention.bias == "all":
        shapes["blk.0.attn_output.bias"] = (1,)
    depth = {f"layer.{i}": (1,) for i in range(stack.depth)}  # a file has more tensors than layers
    return {name: Stored(shape, "F32", 0, 0) for name, shape in (shapes | depth).items()}
