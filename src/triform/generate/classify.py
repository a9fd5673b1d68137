"""Judgements over whole texts, and their vectors.

Shapes: B batch, L labels, W width of a vector.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from triform import config
from triform.nn import Transformer
from triform.text import Tokenizer
from triform.text.framing import judged

from .forms import Module, batches, check_ids, evaluating, expect, listed, longest, padded


@dataclass(frozen=True)
class Judgement:
    """The most probable label of a text, its probability, and the probability of every label."""

    label: str
    score: float
    scores: dict[str, float]


def classify(
    model: Module,
    tokenizer: Tokenizer,
    texts: str | Sequence[str],
    labels: Sequence[str] | None = None,
    *,
    length: int | None = None,
    batch_size: int = 32,
    on_batch: Callable[[int], None] | None = None,
) -> list[Judgement]:
    """Judge each text with a model that has a Classify head.

    labels: their names in the order of the head's scores; left out, "0", "1" and so on.
    length: texts are cut to so many tokens, and in any case to the tokenizer's `length` and the model's learned positions; a
        warning says how many were.
    on_batch: called with the number of texts done, after each batch.

    Raises ValueError for a model without such a head and for another number of labels than it has.
    """
    net = expect(model, "classify")
    head = net.config.head
    assert isinstance(head, config.Classify)
    names = [str(i) for i in range(head.labels)] if labels is None else list(labels)
    if len(names) != head.labels:
        raise ValueError(f"labels: expected {head.labels} names, as the model's head has, got {len(names)}")
    rows = _encode(net, tokenizer, listed(texts), length)
    results: dict[int, Judgement] = {}
    for numbers, scores in _outputs(net, tokenizer, rows, batch_size):
        for number, chances in zip(numbers, scores.float().softmax(-1).tolist(), strict=True):
            best = max(range(len(names)), key=chances.__getitem__)
            results[number] = Judgement(names[best], chances[best], dict(zip(names, chances, strict=True)))
        if on_batch is not None:
            on_batch(len(results))
    return [results[number] for number in range(len(rows))]


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
    rows = _encode(net, tokenizer, listed(texts), length)
    done = 0
    out = torch.empty(len(rows), head.width or net.config.last.width)
    for numbers, vectors in _outputs(net, tokenizer, rows, batch_size):
        out[torch.tensor(numbers)] = vectors.float().cpu()
        done += len(numbers)
        if on_batch is not None:
            on_batch(done)
    return out


def _encode(net: Transformer, tokenizer: Tokenizer, texts: list[str], length: int | None) -> list[list[int]]:
    limits = [limit for limit in (length, tokenizer.length, longest(net.config.encoder), longest(net.config.decoder)) if limit is not None]
    plain = tokenizer.encode_batch(texts, plain=True)
    rows = [judged(tokenizer, ids) for ids in plain]
    if limits:
        cut = sum(len(row) > min(limits) for row in rows)
        if cut:
            warnings.warn(f"{cut:,} of {len(rows):,} texts are longer than {min(limits):,} tokens and were cut to that", stacklevel=3)
        rows = [judged(tokenizer, ids, min(limits)) if len(row) > min(limits) else row for ids, row in zip(plain, rows, strict=True)]
    spec = net.config.encoder or net.config.decoder
    assert spec is not None
    check_ids(rows, spec)
    for number, row in enumerate(rows, 1):
        if not row:
            raise ValueError(f"text {number} is empty, and the tokenizer has no special token to put in its place; leave it out")
    return rows


def _outputs(net: Transformer, tokenizer: Tokenizer, rows: list[list[int]], batch_size: int) -> Iterator[tuple[list[int], Tensor]]:
    """The numbers of the texts of each batch, and what the head gives for them."""
    for numbers in batches([len(row) for row in rows], batch_size):
        with evaluating(net) as device:
            ids, mask = padded([rows[number] for number in numbers], tokenizer.pad or 0, device)
            logits = net(ids, mask).logits
        yield numbers, logits
