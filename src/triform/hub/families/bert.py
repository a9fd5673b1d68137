"""BERT, RoBERTa, its pre-norm form, and DistilBERT: encoders that differ in names and extras."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from triform import config

from ..family import Family
from ..fields import Fields, activation_name
from ..rules import Row, pairs, rules
from .shared import class_of, dense, ending, head_fields, learned, stack_of

_LAYER = {
    "attention.body.query": "attention.self.query",
    "attention.body.key": "attention.self.key",
    "attention.body.value": "attention.self.value",
    "attention.body.out": "attention.output.dense",
    "attention.norm": "attention.output.LayerNorm",
    "feed_forward.body.up": "intermediate.dense",
    "feed_forward.body.down": "output.dense",
    "feed_forward.norm": "output.LayerNorm",
}
_PRE_NORM_LAYER = _LAYER | {"attention.norm": "attention.LayerNorm", "feed_forward.norm": "intermediate.LayerNorm"}
_DISTILBERT_LAYER = {
    "attention.body.query": "attention.q_lin",
    "attention.body.key": "attention.k_lin",
    "attention.body.value": "attention.v_lin",
    "attention.body.out": "attention.out_lin",
    "attention.norm": "sa_layer_norm",
    "feed_forward.body.up": "ffn.lin1",
    "feed_forward.body.down": "ffn.lin2",
    "feed_forward.norm": "output_layer_norm",
}


@dataclass(frozen=True)
class _Names:
    """What one of them calls things; heads by the end of the class that holds them."""

    stem: str
    prefix: str
    layers: str
    layer: dict[str, str]
    output: str  # the language model's own output matrix
    output_bias: str
    language_model: dict[str, str]
    classify: dict[str, str]
    offset: bool = False  # positions count from after the padding id
    last_norm: str = ""
    fields: dict[str, str] = field(default_factory=dict)  # BERT's field to this one's


_ROBERTA_HEADS = (
    "lm_head.decoder", "lm_head.bias", {"dense": "lm_head.dense", "norm": "lm_head.layer_norm"},
    {"dense": "classifier.dense", "out": "classifier.out_proj"},
)  # fmt: skip

_NAMES = {
    "bert": _Names(
        "Bert", "bert.", "encoder.layer", _LAYER, "cls.predictions.decoder", "cls.predictions.bias",
        {"dense": "cls.predictions.transform.dense", "norm": "cls.predictions.transform.LayerNorm"},
        {"dense": "bert.pooler.dense", "out": "classifier"},
    ),
    "roberta": _Names("Roberta", "roberta.", "encoder.layer", _LAYER, *_ROBERTA_HEADS, offset=True),
    "roberta-prelayernorm": _Names(
        "RobertaPreLayerNorm", "roberta_prelayernorm.", "encoder.layer", _PRE_NORM_LAYER, *_ROBERTA_HEADS, offset=True,
        last_norm="LayerNorm",
    ),
    "distilbert": _Names(
        "DistilBert", "distilbert.", "transformer.layer", _DISTILBERT_LAYER, "vocab_projector", "vocab_projector.bias",
        {"dense": "vocab_transform", "norm": "vocab_layer_norm"},
        {"dense": "pre_classifier", "out": "classifier"},
        fields={
            "hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads", "intermediate_size": "hidden_dim",
            "hidden_act": "activation", "hidden_dropout_prob": "dropout", "attention_probs_dropout_prob": "attention_dropout",
        },
    ),
}  # fmt: skip

_SUFFIXES = ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "Model")
_ONLY_BERT = ("ForPreTraining", "ForNextSentencePrediction")


def _rows(names: _Names, suffix: str) -> Iterator[Row]:
    base = names.prefix + "embeddings"
    for ours, theirs in (("token", "word"), ("position", "position"), ("segment", "token_type")):
        yield f"encoder.input.{ours}.weight", f"{base}.{theirs}_embeddings.weight"
    yield from pairs("encoder.input", base, {"norm": "LayerNorm"})
    yield from pairs("encoder.layers.{i}", f"{names.prefix}{names.layers}.{{i}}", names.layer)
    if names.last_norm:
        yield from pairs("encoder", names.prefix.removesuffix("."), {"norm": names.last_norm})
    if suffix in ("ForPreTraining", "ForMaskedLM"):
        yield from pairs("head", "", names.language_model)
        yield "head.weight", f"{names.output}.weight"
        yield "head.bias", names.output_bias
        yield from pairs("sentence_head", "", {"dense": f"{names.prefix}pooler.dense", "out": "cls.seq_relationship"})
    elif suffix == "ForNextSentencePrediction":
        yield from pairs("head", "", {"dense": f"{names.prefix}pooler.dense", "out": "cls.seq_relationship"})
    elif suffix == "ForSequenceClassification":
        yield from pairs("head", "", names.classify)
    elif suffix == "Model":
        yield from pairs("head", "", {"dense": f"{names.prefix}pooler.dense"})
    else:
        yield from pairs("head", "", {"out": "classifier" if suffix == "ForTokenClassification" else "qa_outputs"})


def _family(kind: str, names: _Names, suffix: str) -> Family:
    repeats: tuple[tuple[str, str], ...] = ()
    if suffix in ("ForPreTraining", "ForMaskedLM"):
        table = f"{names.prefix}embeddings.word_embeddings.weight"
        repeats = ((f"{names.output}.weight", table), (f"{names.output}.bias", names.output_bias))
    unused = {
        "ForMaskedLM": (rf"{names.prefix}pooler\..*", r"cls\.seq_relationship\..*"),
        "ForTokenClassification": (rf"{names.prefix}pooler\..*",),
        "ForQuestionAnswering": (rf"{names.prefix}pooler\..*",),
    }
    return Family(
        name=kind,
        table=rules(*_rows(names, suffix)),
        prefix=names.prefix,
        bare=suffix == "Model",
        repeats=tuple(pair for pair in repeats if pair[0] != pair[1]),
        ignore=(r".*\.position_ids", *unused.get(suffix, ())),
        renames=((r"(.*)\.gamma", r"\1.weight"), (r"(.*)\.beta", r"\1.bias")),
    )


def _head(hf: Fields, kind: str, suffix: str, norm: config.Norm, dropout: float) -> config.Head | None:
    names = _NAMES[kind]
    activation = "gelu" if names.offset else hf.activation("activation" if kind == "distilbert" else "hidden_act", "gelu")
    match suffix:
        case "Model":
            return None if kind == "distilbert" else config.Embed(pool="first", transform="tanh")
        case "ForNextSentencePrediction":
            return config.Classify(labels=2, transform="tanh")
        case "ForSequenceClassification":
            if kind == "distilbert":
                return config.Classify(labels=hf.labels(), transform="relu", dropout=hf.number("seq_classif_dropout", 0.2))
            return config.Classify(labels=hf.labels(), transform="tanh", dropout=hf.number("classifier_dropout", dropout))
        case "ForTokenClassification":
            return config.ClassifyTokens(labels=hf.labels(), dropout=hf.number("classifier_dropout", dropout))
        case "ForQuestionAnswering":
            return config.AnswerSpan(dropout=hf.number("qa_dropout", 0.1) if kind == "distilbert" else 0.0)
        case _:
            return config.LanguageModel(tied=hf.flag("tie_word_embeddings", True), bias="learned", transform=activation, norm=norm)


def read(hf: Fields) -> tuple[config.Transformer, Family]:
    """The model and the names of a configuration of BERT's kind; the head follows `architectures`."""
    kind = hf.text("model_type")
    names = _NAMES[kind]

    def called(name: str) -> str:
        return names.fields.get(name, name)

    hf.refuse(position_embedding_type="absolute", is_decoder=False, add_cross_attention=False)
    suffix = ending(hf, _SUFFIXES + (_ONLY_BERT if kind == "bert" else ()))
    norm = config.LayerNorm(eps=hf.number("layer_norm_eps", 1e-12))
    dropout = hf.number(called("hidden_dropout_prob"), 0.1)
    offset = hf.whole("pad_token_id", 1) + 1 if names.offset else 0
    tokens = config.Tokens(
        vocab_size=hf.whole("vocab_size"),
        position=config.Learned(length=hf.whole("max_position_embeddings") - offset, offset=offset),
        segments=0 if kind == "distilbert" else hf.count("type_vocab_size", 2),
        norm=norm,
        dropout=dropout,
    )
    block = config.Block(
        attention=config.Attention(
            heads=hf.whole(called("num_attention_heads")), dropout=hf.number(called("attention_probs_dropout_prob"), 0.1)
        ),
        feed_forward=config.FeedForward(
            hidden=hf.whole(called("intermediate_size")), activation=hf.activation(called("hidden_act"), "gelu")
        ),
        norm=norm,
        placement="pre" if names.last_norm else "post",
        dropout=dropout,
    )
    stack = config.Stack(
        width=hf.whole(called("hidden_size")), depth=hf.count(called("num_hidden_layers")), input=tokens, pattern=(block,),
        norm=norm if names.last_norm else None,
    )  # fmt: skip
    sentence = config.Classify(labels=2, transform="tanh") if suffix == "ForPreTraining" else None
    model = config.Transformer(
        encoder=stack,
        head=_head(hf, kind, suffix, norm, dropout),
        sentence_head=sentence,
        init=config.Init(std=hf.number("initializer_range", 0.02)),
    )
    return model, _family(kind, names, suffix)


def write(model: config.Model, kind: str) -> dict[str, Any] | None:
    """The nearest configuration of BERT's kind for an encoder-only model; None for other forms."""
    if (parts := stack_of(model, "encoder")) is None:
        return None
    whole, stack, tokens = parts
    names, block, position = _NAMES[kind], stack.pattern[0], learned(tokens, 512)
    forward = dense(block.feed_forward)
    data: dict[str, Any] = {
        "hidden_size": stack.width,
        "num_hidden_layers": stack.depth,
        "num_attention_heads": block.attention.heads,
        "intermediate_size": forward.hidden,
        "hidden_act": activation_name(forward.activation),
        "hidden_dropout_prob": block.dropout,
        "attention_probs_dropout_prob": block.attention.dropout,
    }
    data = {names.fields.get(name, name): value for name, value in data.items()}
    data |= {
        "model_type": kind,
        "architectures": [names.stem + ("ForPreTraining" if whole.sentence_head else class_of(whole.head, "ForMaskedLM"))],
        "vocab_size": tokens.vocab_size,
        "max_position_embeddings": position.length + (position.offset if names.offset else 0),
        "initializer_range": whole.init.std,
        "pad_token_id": 0,
        "tie_word_embeddings": True,  # untied, the library keeps a second bias
    }
    if names.offset:
        data["pad_token_id"] = max(position.offset - 1, 0)
    if kind != "distilbert":
        data |= {"layer_norm_eps": block.norm.eps, "type_vocab_size": max(tokens.segments, 1)}
    labels = head_fields(whole.head)
    if kind == "distilbert":
        dropout = labels.pop("classifier_dropout", None)
        data |= {} if dropout is None else {"seq_classif_dropout": dropout}
    return data | labels
