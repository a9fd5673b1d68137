"""T5 (1.0 and 1.1), mT5 and Switch: pre-norm encoder-decoders with bucketed relative positions, and T5's encoder alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from triform import config

from ..family import Family
from ..fields import Fields, activation_name
from ..function import period
from ..rules import STACKED, Row, pairs, rules
from .shared import PAIRED, class_of, dense, ending, head_fields, paired_head, stack_of, tied

_SIDES = {"encoder": 1, "decoder": 2}  # the number of the feed-forward among a block's sublayers
_STEMS = {"t5": "T5", "mt5": "MT5", "switch_transformers": "SwitchTransformers"}
_ENCODERS = ("EncoderModel", "ForTokenClassification")
# ChatLM-mini-Chinese calls its T5 a TextToTextModel
_ENDINGS = ("ForConditionalGeneration", "WithLMHeadModel", "TextToTextModel", *_ENCODERS, *PAIRED, "Model")
_HEADS = ("ForTokenClassification", *PAIRED)


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


def _table(feed_forward: dict[str, str], head: tuple[Row, ...]) -> Iterator[Row]:
    yield "encoder.input.token.weight", "shared.weight"
    yield "head.weight", "lm_head.weight"
    yield from head
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


def _stack(hf: Fields, side: str, forward: config.FeedForward, switch: bool) -> config.Stack:
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
        return config.Experts(expert=forward, count=hf.whole("num_experts"), capacity=hf.maybe_whole("expert_capacity"))

    def block(index: int) -> config.Block:
        step = hf.whole(f"{side}_sparse_step") if switch else 0
        sparse = step == 1 or (step > 1 and index % step == 1)
        return config.Block(
            attention=attention("causal" if side == "decoder" else "bidirectional", bucketed),
            cross=attention("bidirectional", None) if side == "decoder" else None,
            feed_forward=experts() if sparse else forward,
            norm=norm,
            dropout=dropout,
        )

    tokens = config.Tokens(vocab_size=hf.whole("vocab_size"), dropout=dropout)
    return config.Stack(width=hf.whole("d_model"), depth=depth, input=tokens, pattern=period([block(i) for i in range(depth)]), norm=norm)


def _head(hf: Fields, name: str, end: str) -> tuple[config.Head | None, tuple[Row, ...]]:
    """The head, and what its weights are called where it is no language model."""
    if end == "ForTokenClassification":
        head = config.ClassifyTokens(labels=hf.labels(), dropout=hf.number("classifier_dropout", 0.0))
        return head, tuple(pairs("head", "", {"out": "classifier"}))
    if end in PAIRED:
        return paired_head(hf, end)
    if end.endswith("EncoderModel") or end == "Model":
        return None, ()
    tied = hf.flag("tie_word_embeddings", name != "mt5")
    # newer configurations say whether the output is scaled; older ones mean it where it is tied, and mT5 never
    scaled = name != "mt5" and hf.flag("scale_decoder_outputs", tied)
    return config.LanguageModel(tied=tied, scale=hf.whole("d_model") ** -0.5 if scaled else 1.0), ()


def read(hf: Fields) -> tuple[config.Transformer, Family]:
    """The model and the names of a T5, mT5 or Switch configuration."""
    name = hf.text("model_type")
    switch = name == "switch_transformers"
    end = ending(hf, tuple(e for e in _ENDINGS if not switch or e not in _HEADS))
    if switch:
        hf.refuse(router_bias=False)
    forward, matrices = _feed_forward(hf, switch)
    alone = end in _ENCODERS
    head, rows = _head(hf, name, end)
    model = config.Transformer(
        encoder=_stack(hf, "encoder", forward, switch),
        decoder=None if alone else _stack(hf, "decoder", forward, switch),
        head=head,
        share_tokens=not alone,
        init=config.Init(scheme="t5"),
    )
    family = Family(
        name=name,
        table=rules(*_table(matrices, rows)),
        repeats=(
            *(() if model.head is None or rows else (("lm_head.weight", "shared.weight"),)),
            ("encoder.embed_tokens.weight", "shared.weight"),
            ("decoder.embed_tokens.weight", "shared.weight"),
        ),
        # the first T5 files hold a bias for cross-attention that no version of the model uses
        ignore=(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",),
    )
    return model, family.under("transformer.") if end in ("ForTokenClassification", "ForSequenceClassification") else family


def _sparse_layers(stack: config.Stack) -> int:
    """How many sparse layers a Switch configuration has to ask for to get them where they are."""
    wanted = {i for i in range(stack.depth) if isinstance(stack.block(i).feed_forward, config.Experts)}
    for count in range(1, stack.depth + 1):
        step = stack.depth // count
        if wanted == {i for i in range(stack.depth) if step == 1 or i % step == 1}:
            return count
    return 1


def _switch_fields(stacks: dict[str, config.Stack]) -> dict[str, Any]:
    routed = [part for stack in stacks.values() for block in stack.pattern if isinstance(part := block.feed_forward, config.Experts)]
    data: dict[str, Any] = {"num_experts": routed[0].count if routed else 1, "router_jitter_noise": 0.0}
    data["expert_capacity"] = (routed[0].capacity if routed else None) or 1_000_000
    for side, stack in stacks.items():
        data[f"num_sparse_{side}_layers"] = _sparse_layers(stack)
        data[f"{side}_sparse_step"] = stack.depth // data[f"num_sparse_{side}_layers"]
    return data


def write(model: config.Model, name: str) -> dict[str, Any] | None:
    """The nearest configuration of T5's kind for an encoder-decoder or an encoder alone; None for other forms."""
    if not isinstance(model, config.Transformer) or model.encoder is None or not isinstance(model.encoder.input, config.Tokens):
        return None
    if model.decoder is None and (name != "t5" or stack_of(model, "encoder") is None):
        return None
    stacks = {"encoder": model.encoder} | ({"decoder": model.decoder} if model.decoder else {})
    stack, block = model.encoder, model.encoder.pattern[0]
    forward, position = dense(block.feed_forward), block.attention.position
    bucketed = position if isinstance(position, config.Bucketed) else config.Bucketed()
    end = class_of(model.head, "ForConditionalGeneration")
    if model.decoder is None:
        end = "ForTokenClassification" if isinstance(model.head, config.ClassifyTokens) else "EncoderModel"
    activation = activation_name(forward.activation)
    data: dict[str, Any] = {
        "model_type": name,
        "architectures": [_STEMS[name] + end],
        "is_encoder_decoder": model.decoder is not None,
        "vocab_size": model.encoder.input.vocab_size,
        "d_model": stack.width,
        "d_kv": stack.head_width(block.attention),
        "d_ff": forward.hidden,
        "num_layers": stack.depth,
        "num_decoder_layers": (model.decoder or stack).depth,
        "num_heads": block.attention.heads,
        "relative_attention_num_buckets": bucketed.buckets,
        "relative_attention_max_distance": bucketed.max_distance,
        "feed_forward_proj": {"gelu_new": "gated-gelu"}.get(activation, f"gated-{activation}") if forward.gated else activation,
        "dropout_rate": block.dropout,
        "layer_norm_epsilon": block.norm.eps,
        "pad_token_id": 0,
        "decoder_start_token_id": 0,
        "tie_word_embeddings": tied(model.head),
        **head_fields(model.head),
    }
    if name == "t5":
        data["scale_decoder_outputs"] = isinstance(model.head, config.LanguageModel) and model.head.scale != 1.0
    return data | (_switch_fields(stacks) if name == "switch_transformers" else {})
