"""BART, and the 2017 Transformer as Marian (norms after) and Pegasus (norms before) write it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from triform import config

from ..family import Family
from ..fields import Fields, activation_name
from ..rules import Row, computed, leading, pairs, rules
from .shared import PAIRED, class_of, dense, ending, head_fields, learned, paired_head

if TYPE_CHECKING:
    from torch import Tensor

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


@dataclass(frozen=True)
class _Kind:
    """Where the three differ."""

    stem: str
    placement: Literal["pre", "post"] = "post"
    sinusoidal: bool = True
    activation: str = "gelu"
    own_tables: bool = False  # encoder and decoder may have a token table each


_KINDS = {
    "bart": _Kind("Bart", sinusoidal=False),
    "marian": _Kind("Marian", own_tables=True),
    "pegasus": _Kind("Pegasus", placement="pre"),
}
# What later versions of their classes could ask for, and these do not have
_FIXED = {
    "bart": {"normalize_before": False, "add_final_layer_norm": False, "normalize_embedding": True, "static_position_embeddings": False},
    "marian": {"normalize_before": False, "add_final_layer_norm": False, "normalize_embedding": False, "static_position_embeddings": True},
    "pegasus": {"normalize_before": True, "add_final_layer_norm": True, "normalize_embedding": False, "static_position_embeddings": True},
}


def _side(side: str) -> Iterator[Row]:
    yield f"{side}.input.position.weight", f"model.{side}.embed_positions.weight"
    yield from pairs(f"{side}.input", f"model.{side}", {"norm": "layernorm_embedding"})
    yield from pairs(side, f"model.{side}", {"norm": "layer_norm"})
    yield from pairs(f"{side}.layers.{{i}}", f"model.{side}.layers.{{i}}", _LAYER)


def _family(name: str, kind: _Kind, shared: bool, bare: bool, head: tuple[Row, ...] = ()) -> Family:
    encoder, decoder = (f"model.{side}.embed_tokens.weight" for side in ("encoder", "decoder"))
    table = "model.shared.weight" if shared else encoder
    copies = [(encoder, table), (decoder, table)] if shared else []
    return Family(
        name=name,
        table=rules(
            ("encoder.input.token.weight", table),
            ("decoder.input.token.weight", decoder),
            ("head.weight", "lm_head.weight"),
            ("head.bias", "final_logits_bias", leading(1)),
            *_side("encoder"),
            *_side("decoder"),
            *head,
        ),
        prefix="model.",
        bare=bare,
        repeats=(*copies, *(() if bare or head else (("lm_head.weight", table if shared else decoder),))),
        # sines and cosines, which some files hold
        ignore=(r"model\.(en|de)coder\.embed_positions\.weight",) if kind.sinusoidal else (),
    )


def _sinusoids(length: int, width: int) -> Tensor:
    import torch

    from triform.nn.position import sinusoids

    return sinusoids(torch.arange(length), width, interleaved=False)


def _stack(hf: Fields, kind: _Kind, side: str) -> config.Stack:
    heads, dropout, width = hf.whole(f"{side}_attention_heads"), hf.number("dropout", 0.1), hf.whole("d_model")
    attended = hf.number("attention_dropout", 0.0)
    vocab_size = hf.whole("vocab_size")
    if side == "decoder" and kind.own_tables:
        vocab_size = hf.whole("decoder_vocab_size", vocab_size)
    position: config.Learned | config.Sinusoidal = config.Sinusoidal(interleaved=False)
    if not kind.sinusoidal:
        position = config.Learned(length=hf.whole("max_position_embeddings"), offset=2)
    tokens = config.Tokens(
        vocab_size=vocab_size,
        position=position,
        norm=None if kind.sinusoidal else config.LayerNorm(),
        scale=width**0.5 if hf.flag("scale_embedding", False) else 1.0,
        dropout=dropout,
    )
    block = config.Block(
        attention=config.Attention(heads=heads, mask="causal" if side == "decoder" else "bidirectional", dropout=attended),
        cross=config.Attention(heads=heads, dropout=attended) if side == "decoder" else None,
        feed_forward=config.FeedForward(
            hidden=hf.whole(f"{side}_ffn_dim"),
            activation=hf.activation("activation_function", kind.activation),
            dropout=hf.number("activation_dropout", 0.0),
        ),
        placement=kind.placement,
        dropout=dropout,
    )
    last = config.LayerNorm() if kind.placement == "pre" else None
    return config.Stack(width=width, depth=hf.count(f"{side}_layers"), input=tokens, pattern=(block,), norm=last)


def read(hf: Fields) -> tuple[config.Transformer, Family]:
    """The model and the names of a BART, Marian or Pegasus configuration."""
    name = hf.text("model_type")
    kind = _KINDS[name]
    end = ending(hf, ("ForConditionalGeneration", "MTModel", *(PAIRED if name == "bart" else ()), "Model"))
    bare = end == "Model"
    rows: tuple[Row, ...] = ()
    head: config.Head | None = None if bare else config.LanguageModel(tied=hf.flag("tie_word_embeddings", True), bias="fixed")
    if end in PAIRED:
        head, rows = paired_head(hf, end)
    hf.refuse(**_FIXED[name])
    shared = not kind.own_tables or hf.flag("share_encoder_decoder_embeddings", True)
    model = config.Transformer(
        encoder=_stack(hf, kind, "encoder"),
        decoder=_stack(hf, kind, "decoder"),
        head=head,
        share_tokens=shared,
        init=config.Init(std=hf.number("init_std", 0.02)),
    )
    family = _family(name, kind, shared, bare, rows)
    if name == "pegasus":  # its class would take absent ones for untrained
        table = partial(_sinusoids, hf.count("max_position_embeddings", 1024), hf.whole("d_model"))
        sides = (f"{'' if bare else 'model.'}{side}.embed_positions.weight" for side in ("encoder", "decoder"))
        family = replace(family, computed=tuple(computed(side, table) for side in sides))
    return model, family


def write(model: config.Model, name: str) -> dict[str, Any] | None:
    """The nearest BART, Marian or Pegasus configuration of an encoder-decoder; None for other forms."""
    if not isinstance(model, config.Transformer) or model.encoder is None or model.decoder is None:
        return None
    tokens, kind = model.encoder.input, _KINDS[name]
    if not isinstance(tokens, config.Tokens) or not isinstance(model.decoder.input, config.Tokens):
        return None
    block = model.encoder.pattern[0]
    end = class_of(model.head, "MTModel" if name == "marian" else "ForConditionalGeneration")
    data: dict[str, Any] = {
        "model_type": name,
        "architectures": [kind.stem + end],
        "is_encoder_decoder": True,
        "vocab_size": tokens.vocab_size,
        "max_position_embeddings": learned(tokens, 1024).length,
        "d_model": model.encoder.width,
        "scale_embedding": tokens.scale != 1.0,
        "activation_function": activation_name(dense(block.feed_forward).activation),
        "dropout": block.dropout,
        "attention_dropout": block.attention.dropout,
        "activation_dropout": dense(block.feed_forward).dropout,
        "init_std": model.init.std,
        "pad_token_id": 0,
        "decoder_start_token_id": 0,
        "forced_eos_token_id": None,
        "tie_word_embeddings": True,  # untied, the library gives encoder and decoder tables of their own
        **head_fields(model.head),
    }
    for side, stack in (("encoder", model.encoder), ("decoder", model.decoder)):
        data[f"{side}_layers"] = stack.depth
        data[f"{side}_attention_heads"] = stack.pattern[0].attention.heads
        data[f"{side}_ffn_dim"] = dense(stack.pattern[0].feed_forward).hidden
    if kind.own_tables:
        data |= {"share_encoder_decoder_embeddings": model.share_tokens, "decoder_vocab_size": model.decoder.input.vocab_size}
    return data
