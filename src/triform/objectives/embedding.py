"""Sentence embeddings: each text finds the one that belongs to it among a batch's (in-batch negatives, Henderson et al. 2017).

Shapes: B batch, T tokens, N negatives of a batch, W width of a vector.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from triform import config
from triform.config.spec import spec
from triform.data.shards import Shards
from triform.nn import IGNORE
from triform.nn.norm import at_least_float
from triform.text.framing import judged

from .base import Batch, Loss, Objective, Sample, Samples, auxiliary, cross_entropy_among, need, stack_rows, texts_of, whole_rows


@spec
class SentenceEmbedding:
    """The fields `anchor` and `positive`, texts that belong together, and where it is there `negative`, a text or several that seem to
    but do not (hard negatives), each cut to `length` tokens.

    What not to find are the positives and the negatives of the other rows of a micro-batch, and the row's own negatives: a larger
    `train.batch` has more of them, and `train.accumulate` adds none. scale: cosines are multiplied with it (1 / temperature).
    symmetric: positives look for their anchors too.
    """

    length: int = 128
    anchor: str = "anchor"
    positive: str = "positive"
    negative: str = "negative"
    scale: float = 20.0
    symmetric: bool = False

    def __post_init__(self) -> None:
        if self.length < 3:
            raise ValueError(f"length: expected at least 3 tokens, got {self.length}")
        if self.scale <= 0:
            raise ValueError(f"scale: expected a number above 0, got {self.scale}")

    def longest(self) -> dict[str, tuple[str, int]]:
        """For each stack the field that decides on its longest row, and that row's tokens."""
        return dict.fromkeys(("encoder", "decoder"), ("length", self.length))

    def texts(self, row: Mapping[str, Any]) -> list[str]:
        """The texts of a row: anchor, positive, negatives. Raises ValueError for one that is missing, empty or no text."""
        found = [texts_of([row], name, what)[0] for name, what in ((self.anchor, "anchor"), (self.positive, "positive"))]
        negatives = row.get(self.negative)
        found += [] if negatives is None else [negatives] if isinstance(negatives, str) else list(negatives)
        for text in found:
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"expected texts that are not empty in {self.anchor}, {self.positive} and {self.negative}, got {text!r}")
        return found


def in_batch_loss(anchors: Tensor, candidates: Tensor, same: Tensor, scale: float, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """The cross-entropy of each anchor finding its own candidate by cosine, summed over the batch, and the scores (B, B + N).

    anchors (B, W); candidates (B + N, W), the first B each anchor's own; same (B, B + N): which candidates are the same text as its
    own, and so nothing that it should not find. Where all texts differ it is sentence-transformers' MultipleNegativesRankingLoss.
    """
    scores = scale * F.normalize(anchors, dim=-1) @ F.normalize(candidates, dim=-1).T
    own = torch.arange(len(anchors), device=anchors.device)
    other = same.clone()
    other[own, own] = False
    scores = scores.masked_fill(other, torch.finfo(scores.dtype).min)
    return cross_entropy_among(scores, own, ~other, smoothing), scores


class SentenceEmbeddingObjective(Objective):
    """In: texts, framed ([CLS] text [SEP], or text [EOS]).

    Out: inputs (2 B + N, T), anchors first, then their positives, then the negatives; mask; labels (2 B + N,), of which the first B
    say where each anchor's positive is among those after the anchors, and the others are IGNORE.
    """

    spec: SentenceEmbedding
    metric_names = ("accuracy",)

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Sequence[int]]]:
        """Columns "text", all of a row end to end, and "size" of each."""
        made = []
        for row in rows:
            texts = self.spec.texts(row)
            framed = [judged(self.tokenizer, ids, self.spec.length) for ids in self.tokenizer.encode_batch(texts, plain=True)]
            made.append({"text": [i for ids in framed for i in ids], "size": [len(ids) for ids in framed]})
        return made  # type: ignore[return-value]

    def sizes(self) -> dict[str, int]:
        return {"text": self.tokenizer.vocab_size, "size": self.spec.length + 1}

    def samples(self, shards: Shards) -> Samples:
        return whole_rows(shards, "text")

    def collate(self, samples: Sequence[Sample], seeds: Sequence[tuple[int, ...]]) -> Batch:
        texts = [np.split(s["text"], np.cumsum(s["size"])[:-1]) for s in samples]
        rows = [t[0] for t in texts] + [t[1] for t in texts] + [negative for t in texts for negative in t[2:]]
        inputs, mask = stack_rows(rows, self.tokenizer.pad or 0)
        labels = torch.full((len(rows),), IGNORE)
        labels[: len(texts)] = torch.arange(len(texts))
        return Batch(inputs, labels, mask)

    def loss(self, model: Any, batch: Batch, *, smoothing: float = 0.0, z_loss: float = 0.0) -> Loss:
        """accuracy: how many anchors have their positive as the most similar candidate."""
        out = model(batch.inputs, batch.mask)
        vectors, count = at_least_float(out.logits), batch.count
        texts = batch.inputs if batch.mask is None else batch.inputs.masked_fill(~batch.mask, -1)
        same = (texts[count : 2 * count, None] == texts[None, count:]).all(-1)
        total, scores = in_batch_loss(vectors[:count], vectors[count:], same, self.spec.scale, smoothing)
        if self.spec.symmetric:
            alike = (texts[:count, None] == texts[None, :count]).all(-1)
            back, _ = in_batch_loss(vectors[count : 2 * count], vectors[:count], alike, self.spec.scale, smoothing)
            total = (total + back) / 2
        if z_loss:
            total = total + z_loss * scores.logsumexp(-1).square().sum()
        right = float((scores.argmax(-1) == batch.labels[:count]).sum())
        return Loss(total, {"accuracy": right}, auxiliary(out))

    def uniform_loss(self, model: config.Model, batch: Batch) -> float | None:
        return math.log(len(batch.inputs) - batch.count)

    def check(self, model: config.Model) -> None:
        forms, head = ("encoder-only", "decoder-only"), getattr(model, "head", None)
        need(model.form in forms, "SentenceEmbedding", "a model that is encoder-only or decoder-only", f"one that is {model.form}")
        need(isinstance(head, config.Embed), "SentenceEmbedding", "an Embed head", type(head).__name__)

    def task(self) -> dict[str, Any]:
        return {"objective": "SentenceEmbedding", "length": self.spec.length}
