"""GPT-2."""

from __future__ import annotations

from typing import Any

from triform import config

from ..family import Family
from ..fields import Fields, activation_name
from ..rules import FUSED, FUSED_TRANSPOSED, TRANSPOSED, pairs, rules
from .shared import causal_head, class_of, dense, head_fields, learned, stack_of, tied

_QKV = tuple(f"decoder.layers.{{i}}.attention.body.{part}." for part in ("query", "key", "value"))
_LINEAR = {"attention.body.out": "attn.c_proj", "feed_forward.body.up": "mlp.c_fc", "feed_forward.body.down": "mlp.c_proj"}
_TABLE = (
    ("decoder.input.token.weight", "transformer.wte.weight"),
    ("decoder.input.position.weight", "transformer.wpe.weight"),
    *pairs("decoder.layers.{i}", "transformer.h.{i}", {"attention.norm": "ln_1", "feed_forward.norm": "ln_2"}),
    (tuple(part + "weight" for part in _QKV), "transformer.h.{i}.attn.c_attn.weight", FUSED_TRANSPOSED),
    (tuple(part + "bias" for part in _QKV), "transformer.h.{i}.attn.c_attn.bias", FUSED),
    *((f"decoder.layers.{{i}}.{ours}.weight", f"transformer.h.{{i}}.{theirs}.weight", TRANSPOSED) for ours, theirs in _LINEAR.items()),
    *pairs("decoder.layers.{i}", "transformer.h.{i}", _LINEAR, ["bias"]),
    *pairs("decoder", "transformer", {"norm": "ln_f"}),
    ("head.weight", "lm_head.weight"),
)
_OUT = {"ForSequenceClassification": "score", "ForTokenClassification": "classifier", "ForQuestionAnswering": "qa_outputs"}


def read(hf: Fields) -> tuple[config.Transformer, Family]:
    """The model and the names of a GPT-2 configuration."""
    hf.refuse(scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    head, end = causal_head(hf, tied=True)
    width = hf.whole("n_embd")
    norm = config.LayerNorm(eps=hf.number("layer_norm_epsilon", 1e-5))
    block = config.Block(
        attention=config.Attention(heads=hf.whole("n_head"), mask="causal", dropout=hf.number("attn_pdrop", 0.1)),
        feed_forward=config.FeedForward(hidden=hf.whole("n_inner", 4 * width), activation=hf.activation("activation_function", "gelu_new")),
        norm=norm,
        dropout=hf.number("resid_pdrop", 0.1),
    )
    tokens = config.Tokens(
        vocab_size=hf.whole("vocab_size"),
        position=config.Learned(length=hf.whole("n_positions", 1024)),
        dropout=hf.number("embd_pdrop", 0.1),
    )
    model = config.Transformer(
        decoder=config.Stack(width=width, depth=hf.count("n_layer"), input=tokens, pattern=(block,), norm=norm),
        head=head,
        init=config.Init(std=hf.number("initializer_range", 0.02), scale_residuals=True),
    )
    family = Family(
        name="gpt2",
        table=rules(*_TABLE, *pairs("head", "", {"out": _OUT[end]} if end in _OUT else {})),
        prefix="transformer.",
        bare=end == "Model",
        repeats=() if end == "Model" else (("lm_head.weight", "transformer.wte.weight"),),
        ignore=(r".*\.attn\.(masked_)?bias",),
    )
    return model, family


def write(model: config.Model) -> dict[str, Any] | None:
    """The nearest GPT-2 configuration of a decoder-only model; None for other forms."""
    if (parts := stack_of(model, "decoder")) is None:
        return None
    whole, stack, tokens = parts
    block = stack.pattern[0]
    forward = dense(block.feed_forward)
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2" + class_of(whole.head, "LMHeadModel")],
        "vocab_size": tokens.vocab_size,
        "n_positions": learned(tokens, 1024).length,
        "n_embd": stack.width,
        "n_layer": stack.depth,
        "n_head": block.attention.heads,
        "n_inner": forward.hidden,
        "activation_function": activation_name(forward.activation),
        "layer_norm_epsilon": block.norm.eps,
        "attn_pdrop": block.attention.dropout,
        "resid_pdrop": block.dropout,
        "embd_pdrop": tokens.dropout,
        "initializer_range": whole.init.std,
        "tie_word_embeddings": tied(whole.head),
        **head_fields(whole.head),
    }
