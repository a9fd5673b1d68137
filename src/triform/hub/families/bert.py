"""BERT, RoBERTa and DistilBERT: post-norm encoders that differ in names and extras."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from triform import config

from ..family import Family
from ..fields import Fields
from ..rules import Row, pairs, rules

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
    """What one of the three calls things; heads by the end of the class that holds them."""

    prefix: str
    layers: str
    layer: dict[str, str]
    output: str  # the language model's own output matrix
    output_bias: str
    language_model: dict[str, str]
    classify: dict[str, str]
    fields: dict[str, str] = field(default_factory=dict)  # BERT's field to this one's


_NAMES = {
    "bert": _Names(
        "bert.", "encoder.layer", _LAYER, "cls.predictions.decoder", "cls.predictions.bias",
        {"dense": "cls.predictions.transform.dense", "norm": "cls.predictions.transform.LayerNorm"},
        {"dense": "bert.pooler.dense", "out": "classifier"},
    ),
    "roberta": _Names(
        "roberta.", "encoder.layer", _LAYER, "lm_head.decoder", "lm_head.bias",
        {"dense": "lm_head.dense", "norm": "lm_head.layer_norm"},
        {"dense": "classifier.dense", "out": "classifier.out_proj"},
    ),
    "distilbert": _Names(
        "distilbert.", "transformer.layer", _DISTILBERT_LAYER, "vocab_projector", "vocab_projector.bias",
        {"dense": "vocab_transform", "norm": "vocab_layer_norm"},
        {"dense": "pre_classifier", "out": "classifier"},
        {
            "hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads", "intermediate_size": "hidden_dim",
            "hidden_act": "activation", "hidden_dropout_prob": "dropout", "attention_probs_dropout_prob": "attention_dropout",
        },
    ),
}  # fmt: skip

_SUFFIXES = ("ForPreTraining", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "Model")


def _rows(names: _Names, suffix: str) -> Iterator[Row]:
    base = names.prefix + "embeddings"
    for ours, theirs in (("token", "word"), ("position", "position"), ("segment", "token_type")):
        yield f"encoder.input.{ours}.weight", f"{base}.{theirs}_embeddings.weight"
    yield from pairs("encoder.input", base, {"norm": "LayerNorm"})
    yield from pairs("encoder.layers.{i}", f"{names.prefix}{names.layers}.{{i}}", names.layer)
    if suffix in ("ForPreTraining", "ForMaskedLM"):
        yield from pairs("head", "", names.language_model)
        yield "head.weight", f"{names.output}.weight"
        yield "head.bias", names.output_bias
        yield from pairs("sentence_head", "", {"dense": f"{names.prefix}pooler.dense", "out": "cls.seq_relationship"})
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
    activation = "gelu" if kind == "roberta" else hf.activation("activation" if kind == "distilbert" else "hidden_act", "gelu")
    match suffix:
        case "Model":
            return None if kind == "distilbert" else config.Embed(pool="first", transform="tanh")
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
    """The model and the names of a BERT, RoBERTa or DistilBERT configuration; the head follows `architectures`."""
    kind = hf.text("model_type")
    names = _NAMES[kind]

    def called(name: str) -> str:
        return names.fields.get(name, name)

    hf.refuse(position_embedding_type="absolute", is_decoder=False, add_cross_attention=False)
    architecture = hf.architecture or "ForMaskedLM"
    suffix = next((s for s in _SUFFIXES if architecture.endswith(s)), None)
    if suffix is None or (suffix == "ForPreTraining" and kind != "bert"):
        raise hf.fail("architectures", f"a class that ends in one of {', '.join(_SUFFIXES)}")
    norm = config.LayerNorm(eps=hf.number("layer_norm_eps", 1e-12))
    dropout = hf.number(called("hidden_dropout_prob"), 0.1)
    offset = 2 if kind == "roberta" else 0  # RoBERTa counts from after its padding id, 1
    tokens = config.Tokens(
        vocab_size=hf.whole("vocab_size"),
        position=config.Learned(length=hf.whole("max_position_embeddings") - offset, offset=offset),
        segments=0 if kind == "distilbert" else hf.whole("type_vocab_size"),
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
        placement="post",
        dropout=dropout,
    )
    stack = config.Stack(width=hf.whole(called("hidden_size")), depth=hf.count(called("num_hidden_layers")), input=tokens, pattern=(block,))
    sentence = config.Classify(labels=2, transform="tanh") if suffix == "ForPreTraining" else None
    model = config.Transformer(
        encoder=stack,
        head=_head(hf, kind, suffix, norm, dropout),
        sentence_head=sentence,
        init=config.Init(std=hf.number("initializer_range", 0.02)),
    )
    return model, _family(kind, names, suffix)
