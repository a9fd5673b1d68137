"""GPT-2."""

from __future__ import annotations

from triform import config

from ..family import Family
from ..fields import Fields
from ..rules import FUSED, FUSED_TRANSPOSED, TRANSPOSED, pairs, rules
from .shared import causal_head

_QKV = tuple(f"decoder.layers.{{i}}.attention.body.{part}." for part in ("query", "key", "value"))
_LINEAR = {"attention.body.out": "attn.c_proj", "feed_forward.body.up": "mlp.c_fc", "feed_forward.body.down": "mlp.c_proj"}
TABLE = rules(
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


def read(hf: Fields) -> tuple[config.Transformer, Family]:
    """The model and the names of a GPT-2 configuration."""
    hf.refuse(scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    head, bare = causal_head(hf, tied=True)
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
        table=TABLE,
        prefix="transformer.",
        bare=bare,
        repeats=() if bare else (("lm_head.weight", "transformer.wte.weight"),),
        ignore=(r".*\.attn\.(masked_)?bias",),
    )
    return model, family
