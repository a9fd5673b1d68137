"""What llama.cpp calls the weights of each architecture, and how it lays them out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from triform import config

from ..family import Family
from ..rules import FUSED, Layout, Row, pairs, rules

if TYPE_CHECKING:
    from torch import Size, Tensor

_OURS, _THEIRS = "decoder.layers.{i}", "blk.{i}"
_PARTS = ("query", "key", "value")
_TOP: tuple[Row, ...] = (
    ("decoder.input.token.weight", "token_embd.weight"),
    ("decoder.input.position.weight", "position_embd.weight"),
    ("head.weight", "output.weight"),
)
_LAYER = {
    "attention.body.out": "attn_output",
    "feed_forward.body.gate": "ffn_gate",
    "feed_forward.body.up": "ffn_up",
    "feed_forward.body.down": "ffn_down",
}
_NORMS = {
    "attention.norm": "attn_norm",
    "attention.norm_out": "post_attention_norm",
    "attention.body.query_norm": "attn_q_norm",
    "attention.body.key_norm": "attn_k_norm",
    "feed_forward.norm": "ffn_norm",
    "feed_forward.norm_out": "post_ffw_norm",
}
_EXPERTS: tuple[Row, ...] = (
    (f"{_OURS}.feed_forward.body.router.weight", f"{_THEIRS}.ffn_gate_inp.weight"),
    *((f"{_OURS}.feed_forward.body.{part}", f"{_THEIRS}.ffn_{part}_exps.weight") for part in ("gate", "up", "down")),
)


def interleaved(head_width: int) -> Layout:
    """Theirs has the rows of each head in the order 0, half, 1, half + 1, ..., for a rotation of neighbours."""

    def load(tensors: list[Tensor], shapes: list[Size]) -> list[Tensor]:
        if any(tensor.shape != shape for tensor, shape in zip(tensors, shapes, strict=True)):
            return tensors  # refused by whoever asked
        return [t.reshape(-1, head_width // 2, 2, *t.shape[1:]).transpose(1, 2).reshape(t.shape) for t in tensors]

    def save(tensors: list[Tensor]) -> list[Tensor]:
        return [t.reshape(-1, 2, head_width // 2, *t.shape[1:]).transpose(1, 2).reshape(t.shape) for t in tensors]

    return Layout(load, save)


RAISED = Layout(lambda tensors, shapes: [t - 1 for t in tensors], lambda tensors: [t.float() + 1 for t in tensors])
"""Theirs is the whole scale of a norm, ours what it differs from one by (Gemma). In fp32 the whole scale is kept exactly."""


def family(architecture: str, spec: config.Transformer) -> Family:
    """The names of a model's weights in GGUF files of an architecture."""
    stack = spec.last
    attention = stack.block(0).attention
    rows = [*_TOP, *pairs(_OURS, _THEIRS, _LAYER)]
    if architecture == "gpt2":
        for kind in ("weight", "bias"):
            rows.append((tuple(f"{_OURS}.attention.body.{part}.{kind}" for part in _PARTS), f"{_THEIRS}.attn_qkv.{kind}", FUSED))
            rows.append((f"decoder.norm.{kind}", f"output_norm.{kind}"))
        rows += pairs(_OURS, _THEIRS, _NORMS)
        return Family(name="gpt2", table=rules(*rows))
    turned = (interleaved(stack.head_width(attention)),) if architecture == "llama" else ()
    rows += pairs(_OURS, _THEIRS, {"attention.body.value": "attn_v"})
    for kind in ("weight", "bias"):
        rows += [(f"{_OURS}.attention.body.{part}.{kind}", f"{_THEIRS}.attn_{part[0]}.{kind}", *turned) for part in ("query", "key")]
    raised = (RAISED,) if architecture == "gemma3" else ()
    rows.append(("decoder.norm.weight", "output_norm.weight", *raised))
    rows += [(f"{_OURS}.{ours}.weight", f"{_THEIRS}.{theirs}.weight", *raised) for ours, theirs in _NORMS.items()]
    return Family(name=architecture, table=rules(*rows, *_EXPERTS), ignore=(r"rope_freqs\.weight",))
