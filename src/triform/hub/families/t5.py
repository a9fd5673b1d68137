"""T5 (1.0 and 1.1) and Switch: pre-norm encoder-decoders with bucketed relative positions."""

from __future__ import annotations

from collections.abc import Iterator

from triform import config

from ..family import Family
from ..fields import Fields
from ..rules import STACKED, Row, pairs, rules
from .shared import period

_SIDES = {"encoder": 1, "decoder": 2}  # the number of the feed-forward among a block's sublayers


def _attention(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.body.{mine}": f"{theirs}.{name}" for mine, name in {"query": "q", "key": "k", "value": "v", "out": "o"}.items()}


def _side(side: str, last: int, feed_forward: dict[str, str]) -> Iterator[Row]:
    names = _attention("attention", "layer.0.SelfAttention") | _attention("cross", "layer.1.EncDecAttention")
    names |= {"attention.norm": "layer.0.layer_norm", "cross.norm": "layer.1.layer_norm", "feed_forward.norm": f"layer.{last}.layer_norm"}
    names |= {f"feed_forward.body.{ours}": f"layer.{last}.{theirs}" for ours, theirs in feed_forward.items()}
    yield from pairs(f"{side}.layers.{{i}}", f"{side}.block.{{i}}", names, ["weight"])
    yield f"{side}.biases.0.weight", f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    yield f"{side}.norm.weight", f"{side}.final_layer_norm.weight"


def _experts(side: str, last: int) -> Iterator[Row]:
    mlp = f"{side}.block.{{i}}.layer.{last}.mlp"
    body = f"{side}.layers.{{i}}.feed_forward.body"
    yield f"{body}.router.weight", f"{mlp}.router.classifier.weight"
    for ours, theirs in (("up", "wi"), ("down", "wo")):
        yield f"{body}.{ours}", f"{mlp}.experts.expert_{{e}}.{theirs}.weight", STACKED


def _table(feed_forward: dict[str, str]) -> Iterator[Row]:
    yield "encoder.input.token.weight", "shared.weight"
    yield "head.weight", "lm_head.weight"
    for side, last in _SIDES.items():
        yield from _side(side, last, feed_forward)
        yield from _experts(side, last)


def _feed_forward(hf: Fields, switch: bool) -> tuple[config.FeedForward, dict[str, str]]:
    """The feed-forward and what its matrices are called."""
    described = hf.text("feed_forward_proj", "relu")
    gated = described.startswith("gated-")
    activation = "gelu_new" if described == "gated-gelu" else described.removeprefix("gated-")
    room = "mlp" if switch else "DenseReluDense"
    matrices = {"gate": "wi_0", "up": "wi_1", "down": "wo"} if gated else {"up": "wi", "down": "wo"}
    body = config.FeedForward(
        hidden=hf.whole("d_ff"),
        activation=Fields({"feed_forward_proj": activation}).activation("feed_forward_proj"),
        gated=gated,
        bias=False,
        dropout=hf.number("dropout_rate", 0.1),
    )
    return body, {ours: f"{room}.{theirs}" for ours, theirs in matrices.items()}


def _stack(hf: Fields, side: str, dense: config.FeedForward, switch: bool) -> config.Stack:
    dropout, heads, head_width = hf.number("dropout_rate", 0.1), hf.whole("num_heads"), hf.whole("d_kv")
    norm = config.RMSNorm(eps=hf.number("layer_norm_epsilon", 1e-6))
    depth = hf.count("num_layers")
    if side == "decoder":
        depth = hf.count("num_decoder_layers", depth)
    bucketed = config.Bucketed(
        buckets=hf.whole("relative_attention_num_buckets", 32), max_distance=hf.whole("relative_attention_max_distance", 128)
    )

    def attention(mask: str, position: config.Bucketed | None) -> config.Attention:
        return config.Attention(
            heads=heads, head_width=head_width, mask="causal" if mask == "causal" else "bidirectional", position=position,
            bias="none", scale=1.0, dropout=dropout,
        )  # fmt: skip

    def experts() -> config.Experts:
        return config.Experts(expert=dense, count=hf.whole("num_experts"), capacity=hf.maybe_whole("expert_capacity"))

    def block(index: int) -> config.Block:
        step = hf.whole(f"{side}_sparse_step") if switch else 0
        sparse = step == 1 or (step > 1 and index % step == 1)
        return config.Block(
            attention=attention("causal" if side == "decoder" else "bidirectional", bucketed),
            cross=attention("bidirectional", None) if side == "decoder" else None,
            feed_forward=experts() if sparse else dense,
            norm=norm,
            dropout=dropout,
        )

    tokens = config.Tokens(vocab_size=hf.whole("vocab_size"), dropout=dropout)
    return config.Stack(width=hf.whole("d_model"), depth=depth, input=tokens, pattern=period([block(i) for i in range(depth)]), norm=norm)


def read(hf: Fields) -> tuple[config.Transformer, Family]:
    """The model and the names of a T5 or Switch configuration."""
    name = hf.text("model_type")
    switch = name == "switch_transformers"
    if not (hf.architecture or "ForConditionalGeneration").endswith(("ForConditionalGeneration", "WithLMHeadModel")):
        raise hf.fail("architectures", "a class that ends in ForConditionalGeneration")
    if switch:
        hf.refuse(router_bias=False)
    dense, matrices = _feed_forward(hf, switch)
    tied = hf.flag("tie_word_embeddings", True)
    scaled = hf.flag("scale_decoder_outputs", tied)  # newer configurations say so; older ones mean it
    model = config.Transformer(
        encoder=_stack(hf, "encoder", dense, switch),
        decoder=_stack(hf, "decoder", dense, switch),
        head=config.LanguageModel(tied=tied, scale=hf.whole("d_model") ** -0.5 if scaled else 1.0),
        share_tokens=True,
        init=config.Init(scheme="t5"),
    )
    family = Family(
        name=name,
        table=rules(*_table(matrices)),
        repeats=(
            ("lm_head.weight", "shared.weight"),
            ("encoder.embed_tokens.weight", "shared.weight"),
            ("decoder.embed_tokens.weight", "shared.weight"),
        ),
        # the first T5 files hold a bias for cross-attention that no version of the model uses
        ignore=(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",),
    )
    return model, family
