"""What several families read and write alike."""

from __future__ import annotations

from typing import Any, Literal

from triform import config

from ..fields import Fields
from ..rules import Row, pairs

CAUSAL = ("ForCausalLM", "LMHeadModel", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "Model")


def ending(hf: Fields, endings: tuple[str, ...]) -> str:
    """The end of the class that the weights were saved from, of those that are known; the first where none is said."""
    architecture = hf.architecture or endings[0]
    found = next((end for end in endings if architecture.endswith(end)), None)
    if found is None:
        names = endings[0] if len(endings) == 1 else f"{', '.join(endings[:-1])} or {endings[-1]}"
        raise hf.fail("architectures", f"a class that ends in {names}")
    return found


def causal_head(hf: Fields, *, tied: bool, endings: tuple[str, ...] = CAUSAL) -> tuple[config.Head | None, str]:
    """The head of a decoder-only model, and the end of its class; `tied` is the family's default.

    A sequence is judged at its last token.
    """
    end = ending(hf, endings)
    match end:
        case "ForSequenceClassification":
            return config.Classify(labels=hf.labels(), pool="last", bias=False), end
        case "ForTokenClassification":
            return config.ClassifyTokens(labels=hf.labels(), dropout=hf.number("classifier_dropout", 0.1)), end
        case "ForQuestionAnswering":
            return config.AnswerSpan(), end
        case "Model":
            return None, end
    return config.LanguageModel(tied=hf.flag("tie_word_embeddings", tied)), end


PAIRED = ("ForSequenceClassification", "ForQuestionAnswering")


def paired_head(hf: Fields, end: str) -> tuple[config.Head, tuple[Row, ...]]:
    """The head of an encoder-decoder that judges, one of PAIRED, and what its weights are called.

    It reads the decoder, whose target is the input itself, one place to the right; a sequence is judged at its last token.
    """
    if end == "ForQuestionAnswering":
        return config.AnswerSpan(), tuple(pairs("head", "", {"out": "qa_outputs"}))
    head = config.Classify(labels=hf.labels(), pool="last", transform="tanh", dropout=hf.number("classifier_dropout", 0.0))
    return head, tuple(pairs("head", "classification_head", {"dense": "dense", "out": "out_proj"}))


def class_of(head: config.Head | None, language_model: str = "ForCausalLM") -> str:
    """The end of the class whose head this is."""
    match head:
        case config.LanguageModel():
            return language_model
        case config.Classify():
            return "ForSequenceClassification"
        case config.ClassifyTokens():
            return "ForTokenClassification"
        case config.AnswerSpan():
            return "ForQuestionAnswering"
    return "Model"


def head_fields(head: config.Head | None) -> dict[str, Any]:
    """What a public configuration says of a head: its labels, by number where they have no names, and its dropout."""
    if not isinstance(head, config.Classify | config.ClassifyTokens):
        return {}
    names = [f"LABEL_{i}" for i in range(head.labels)]
    return {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
        "classifier_dropout": head.dropout,
    }


def tied(head: config.Head | None) -> bool:
    """Whether a head reuses the token table; True without a language model."""
    return head.tied if isinstance(head, config.LanguageModel) else True


def dense(part: config.FeedForward | config.Experts) -> config.FeedForward:
    """A feed-forward, or that of each expert."""
    return part if isinstance(part, config.FeedForward) else part.expert


Parts = tuple[config.Transformer, config.Stack, config.Tokens]


def stack_of(model: config.Model, side: Literal["encoder", "decoder"]) -> Parts | None:
    """A model that has this one stack and reads tokens, with the stack and its input; None for others."""
    if not isinstance(model, config.Transformer):
        return None
    stack, other = (model.encoder, model.decoder) if side == "encoder" else (model.decoder, model.encoder)
    if stack is None or other is not None or not isinstance(stack.input, config.Tokens):
        return None
    return model, stack, stack.input


def learned(tokens: config.Tokens, default: int) -> config.Learned:
    """The learned positions of an input, or as many as the default where it has others."""
    return tokens.position if isinstance(tokens.position, config.Learned) else config.Learned(length=default)
