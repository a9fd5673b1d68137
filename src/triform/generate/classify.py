"""Judgements over whole texts, and their vectors.

Shapes: B batch, L labels, W width of a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from triform import config
from triform.text import Tokenizer

from .forms import Module, expect, listed
from .judging import framed, outputs

Problem = Literal["single_label_classification", "multi_label_classification", "regression"]


@dataclass(frozen=True)
class Judgement:
    """The most probable label of a text, its probability, and the probability of every label (of a regression: the numbers)."""

    label: str
    score: float
    scores: dict[str, float]


def classify(
    model: Module,
    tokenizer: Tokenizer,
    texts: str | Sequence[str],
    labels: Sequence[str] | None = None,
    *,
    problem: Problem | None = None,
    length: int | None = None,
    batch_size: int = 32,
    on_batch: Callable[[int], None] | None = None,
) -> list[Judgement]:
    """Judge each text with a model that has a Classify head.

    The decoder of an encoder-decoder that judges reads the text again.

    labels: their names in the order of the head's scores; left out, "0", "1" and so on.
    problem: labels of which one fits a text, whose probabilities sum to 1; of which several may fit, each with a probability
        of its own (also the default with one label); or numbers, which are given as they are.
    length: texts are cut to so many tokens, and in any case to the tokenizer's `length` and the model's learned positions; a
        warning says how many were.
    on_batch: called with the number of texts done, after each batch.

    Raises ValueError for a model without such a head and for another number of labels than it has.
    """
    net = expect(model, "classify")
    head = net.config.head
    assert isinstance(head, config.Classify)
    names = names_of(head, labels)
    rows = framed(net, tokenizer, listed(texts), length)
    results: dict[int, Judgement] = {}
    for numbers, scores in outputs(net, tokenizer, rows, batch_size):
        for number, row in zip(numbers, chances(scores.float(), problem).tolist(), strict=True):
            results[number] = judgement(names, row)
        if on_batch is not None:
            on_batch(len(results))
    return [results[number] for number in range(len(rows))]


def chances(scores: Tensor, problem: Problem | None) -> Tensor:
    """Scores (B, L) as what a problem asks for, as transformers' pipeline has it."""
    if problem == "regression":
        return scores
    if problem == "multi_label_classification" or (problem is None and scores.shape[-1] == 1):
        return scores.sigmoid()
    return scores.softmax(-1)


def names_of(head: config.Classify, labels: Sequence[str] | None) -> list[str]:
    """The names of a head's labels. Raises ValueError for another number of them than it has."""
    names = [str(i) for i in range(head.labels)] if labels is None else list(labels)
    if len(names) != head.labels:
        raise ValueError(f"labels: expected {head.labels} names, as the model's head has, got {len(names)}")
    return names


def judgement(names: Sequence[str], scores: Sequence[float]) -> Judgement:
    """What scores of named labels say."""
    best = max(range(len(names)), key=scores.__getitem__)
    return Judgement(names[best], scores[best], dict(zip(names, scores, strict=True)))


def embed(
    model: Module,
    tokenizer: Tokenizer,
    texts: str | Sequence[str],
    *,
    length: int | None = None,
    batch_size: int = 32,
    on_batch: Callable[[int], None] | None = None,
) -> Tensor:
    """A vector for each text, (B, W), with a model that has an Embed head; `length` and `on_batch` are as in `classify`."""
    net = expect(model, "embed")
    head = net.config.head
    assert isinstance(head, config.Embed)
    rows = framed(net, tokenizer, listed(texts), length)
    done = 0
    out = torch.empty(len(rows), head.width or net.config.last.width)
    for numbers, vectors in outputs(net, tokenizer, rows, batch_size):
        out[torch.tensor(numbers)] = vectors.float().cpu()
        done += len(numbers)
        if on_batch is not None:
            on_batch(done)
    return out
