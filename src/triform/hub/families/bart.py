"""BART."""

from __future__ import annotations

from collections.abc import Iterator

from triform import config

from ..family import Family
from ..fields import Fields
from ..rules import Row, leading, pairs, rules

_PARTS = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}
_LAYER = {
    "attention.norm": "self_attn_layer_norm",
    "cross.norm": "encoder_attn_layer_norm",
    "feed_forward.body.up": "fc1",
    "feed_forward.body.down": "fc2",
    "feed_forward.norm": "final_layer_norm",
    **{f"attention.body.{ours}": f"self_attn.{theirs}" for ours, theirs in _PARTS.items()},
    **{f"cross.body.{ours}": f"encoder_attn.{theirs}" for ours, theirs in _PARTS.items()},
}


def _side(side: str) -> Iterator[Row]:
    yield f"{side}.input.position.weight", f"model.{side}.embed_positions.weight"
    yield from pairs(f"{side}.input", f"model.{side}", {"norm": "layernorm_embedding"})
    yield from pairs(f"{side}.layers.{{i}}", f"model.{side}.layers.{{i}}", _LAYER)


FAMILY = Family(
    name="bart",
    table=rules(
        ("encoder.input.token.weight", "model.shared.weight"),
        ("head.weight", "lm_head.weight"),
        ("head.bias", "final_logits_bias", leading(1)),
        *_side("encoder"),
        *_side("decoder"),
    ),
    prefix="model.",
    repeats=(
        ("lm_head.weight", "model.shared.weight"),
        ("model.encoder.embed_tokens.weight", "model.shared.weight"),
        ("model.decoder.embed_tokens.weight", "model.shared.weight"),
    ),
)


def _stack(hf: Fields, side: str) -> config.Stack:
    heads, dropout, width = hf.whole(f"{side}_attention_heads"), hf.number("dropout", 0.1), hf.whole("d_model")
    attended = hf.number("attention_dropout", 0.0)
    tokens = config.Tokens(
        vocab_size=hf.whole("vocab_size"),
        position=config.Learned(length=hf.whole("max_position_embeddings"), offset=2),
        norm=config.LayerNorm(),
        scale=width**0.5 if hf.flag("scale_embedding", False) else 1.0,
        dropout=dropout,
    )
    block = config.Block(
        attention=config.Attention(heads=heads, mask="causal" if side == "decoder" else "bidirectional", dropout=attended),
        cross=config.Attention(heads=heads, dropout=attended) if side == "decoder" else None,
        feed_forward=config.FeedForward(
            hidden=hf.whole(f"{side}_ffn_dim"),
            activation=hf.activation("activation_function", "gelu"),
            dropout=hf.number("activation_dropout", 0.0),
        ),
        placement="post",
        dropout=dropout,
    )
    return config.Stack(width=width, depth=hf.count(f"{side}_layers"), input=tokens, pattern=(block,))


def read(hf: Fields) -> tuple[config.Transformer, Family]:
    """The model and the names of a BART configuration."""
    if not (hf.architecture or "ForConditionalGeneration").endswith("ForConditionalGeneration"):
        raise hf.fail("architectures", "a class that ends in ForConditionalGeneration")
    hf.refuse(normalize_before=False, add_final_layer_norm=False, normalize_embedding=True, static_position_embeddings=False)
    model = config.Transformer(
        encoder=_stack(hf, "encoder"),
        decoder=_stack(hf, "decoder"),
        head=config.LanguageModel(tied=hf.flag("tie_word_embeddings", True), bias="fixed"),
        share_tokens=True,
        init=config.Init(std=hf.number("init_std", 0.02)),
    )
    return model, FAMILY
