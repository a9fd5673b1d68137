"""Contrastive image-text: each text finds its picture among a batch's, and each picture its text (CLIP, Radford et al. 2021).

Shapes: B batch, T tokens, C channels, S the picture's side.
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
from triform.nn.norm import at_least_float
from triform.text.framing import opening

from .base import Batch, Loss, Objective, Sample, Samples, need, stack_rows, texts_of
from .images import Pictures

_HIGHEST = math.log(100)  # of the temperature's logarithm, as in CLIP


@spec
class Contrastive(Pictures):
    """Pictures beside texts in the field `text`, cut to `length` tokens with [EOS].

    What not to find are the other pairs of a micro-batch: a larger `train.batch` has more of them, and `train.accumulate` adds none.
    """

    length: int = 64
    text: str = "text"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length < 3:
            raise ValueError(f"length: expected at least 3 tokens, got {self.length}")

    def longest(self) -> dict[str, tuple[str, int]]:
        """The text's longest row; a picture's patches are the model's to count."""
        return {"encoder": ("length", self.length)}


def contrastive_loss(logits: Tensor, smoothing: float = 0.0, z_loss: float = 0.0) -> Tensor:
    """The mean of both directions' cross-entropies, summed over a batch; logits (B, B) of texts by pictures, their own on the diagonal.

    Texts that are equal have equal scores, so that each other's pictures need no target of their own: their loss and its
    gradient are those of a target shared out among them.
    """
    own = torch.arange(len(logits), device=logits.device)
    total = logits.new_zeros(())
    for scores in (logits, logits.T):
        total = total + F.cross_entropy(scores, own, reduction="sum", label_smoothing=smoothing)
        total = total + z_loss * scores.logsumexp(1).square().sum()
    return total / 2


class ContrastiveObjective(Objective):
    """In: texts, framed as a decoder reads them with [EOS], and their pictures.

    Out: inputs (B, T), mask (B, T), target (B, C, S, S), normalized, and labels (B,), the place of each text's picture.
    """

    spec: Contrastive
    metric_names = ("accuracy",)

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Sequence[int]]]:
        """Columns "text", framed, and "image", C S S numbers from 0 to 255."""
        assert self.tokenizer.eos is not None
        before, end = opening(self.tokenizer), self.tokenizer.eos
        room = self.spec.length - len(before) - 1
        encoded = self.tokenizer.encode_batch(texts_of(rows, self.spec.text), plain=True)
        return [
            {"text": [*before, *ids[:room], end], "image": self.spec.pixels(row).ravel()}  # type: ignore[dict-item]
            for row, ids in zip(rows, encoded, strict=True)
        ]

    def sizes(self) -> dict[str, int]:
        return {"text": self.tokenizer.vocab_size, "image": 256}

    def samples(self, shards: Shards) -> Samples:
        return Samples(np.diff(shards.column("text").offsets), lambda index: dict(shards[index]))

    def collate(self, samples: Sequence[Sample], seeds: Sequence[tuple[int, ...]]) -> Batch:
        inputs, mask = stack_rows([sample["text"] for sample in samples], self.tokenizer.pad or 0)
        pictures = self.spec.normalized([sample["image"] for sample in samples])
        return Batch(inputs, torch.arange(len(inputs)), mask, pictures)

    def loss(self, model: Any, batch: Batch, *, smoothing: float = 0.0, z_loss: float = 0.0) -> Loss:
        """accuracy: how many texts have a picture of theirs as the most similar one of the micro-batch."""
        out = model(batch.inputs, batch.mask, batch.target)
        logits = model.temperature.clamp(max=_HIGHEST).exp() * (at_least_float(out.hidden) @ at_least_float(out.memory).T)
        same = (batch.inputs[:, None] == batch.inputs[None]).all(-1)
        right = float(same.gather(1, logits.argmax(1, keepdim=True)).sum())
        return Loss(contrastive_loss(logits, smoothing, z_loss), {"accuracy": right})

    def uniform_loss(self, model: config.Model, batch: Batch) -> float | None:
        return math.log(len(batch.labels))

    def check(self, model: config.Model) -> None:
        need(isinstance(model, config.DualEncoder), "Contrastive", "a DualEncoder", f"a model that is {model.form}")
        assert isinstance(model, config.DualEncoder)
        self.spec.check_patches(model.image, "Contrastive")
        end = self.tokenizer.eos
        need(end is not None, "Contrastive", "a tokenizer with an eos token", "one without")
        read = self.tokenizer.vocab_size - 1 if model.end_token is None else model.end_token
        need(read == end, "Contrastive", f"a text tower that is read at the tokenizer's eos (model.end_token: {end})", model.end_token)
        place = getattr(model.text.input, "position", None)
        if isinstance(place, config.Learned):
            most = place.length
            need(self.spec.length <= most, "Contrastive", f"a length of at most the text tower's {most} positions", self.spec.length)

    def task(self) -> dict[str, Any]:
        return {"objective": "Contrastive", "length": self.spec.length, **self.spec.facts()}
