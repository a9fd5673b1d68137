"""The 2017 Transformer, with the names of `torch.nn.Transformer` and a token table `token.weight`."""

from __future__ import annotations

from collections.abc import Iterator

from ..family import Family
from ..rules import FUSED, Row, pairs, rules

_SHARED = {"attention.norm": "norm1", "attention.body.out": "self_attn.out_proj", "feed_forward.body.up": "linear1",
           "feed_forward.body.down": "linear2"}  # fmt: skip
_NAMES = {
    "encoder": _SHARED | {"feed_forward.norm": "norm2"},
    "decoder": _SHARED | {"cross.norm": "norm2", "cross.body.out": "multihead_attn.out_proj", "feed_forward.norm": "norm3"},
}


def _side(side: str) -> Iterator[Row]:
    layer = f"{side}.layers.{{i}}"
    yield from pairs(side, side, {"norm": "norm"})
    yield from pairs(layer, layer, _NAMES[side])
    for kind in ("weight", "bias"):
        for ours, theirs in (("attention", "self_attn"), ("cross", "multihead_attn")):
            fused = tuple(f"{layer}.{ours}.body.{part}.{kind}" for part in ("query", "key", "value"))
            yield fused, f"{layer}.{theirs}.in_proj_{kind}", FUSED


FAMILY = Family(
    name="torch.nn.Transformer",
    table=rules(("encoder.input.token.weight", "token.weight"), *_side("encoder"), *_side("decoder")),
)
