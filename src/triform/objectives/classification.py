"""Classification: one label for a whole text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from triform import config
from triform.config.spec import spec
from triform.data.shards import Shards
from triform.nn.norm import at_least_float
from triform.text.framing import judged

from .base import Batch, Loss, Objective, Sample, Samples, auxiliary, field_of, need, stack_rows, texts_of


@spec
class Classification:
    """The field `label` judged from the field `text`, cut to `length` tokens. `labels` are the names, in the order of the head's scores."""

    labels: tuple[str, ...]
    length: int = 256
    text: str = "text"
    label: str = "label"

    def __post_init__(self) -> None:
        if len(set(self.labels)) != len(self.labels) or len(self.labels) < 2:
            raise ValueError(f"labels: expected at least two different names, got {list(self.labels)}")
        if self.length < 3:
            raise ValueError(f"length: expected at least 3 tokens, got {self.length}")

    def longest(self) -> dict[str, tuple[str, int]]:
        """For each stack the field that decides on its longest row, and that row's tokens."""
        return dict.fromkeys(("encoder", "decoder"), ("length", self.length))


class ClassificationObjective(Objective):
    """In: framed texts ([CLS] text [SEP], or text [EOS]) and the numbers of their labels.

    Out: inputs (B, T), mask (B, T), labels (B,), with T the longest of the batch.
    """

    spec: Classification
    metric_names = ("accuracy",)

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Sequence[int]]]:
        """Columns "text", framed, and "label", one number."""
        encoded = self.tokenizer.encode_batch(texts_of(rows, self.spec.text), plain=True)
        return [
            {"text": judged(self.tokenizer, ids, self.spec.length), "label": [self.number(row)]}
            for row, ids in zip(rows, encoded, strict=True)
        ]

    def number(self, row: Mapping[str, Any]) -> int:
        """The number of a row's label. Raises ValueError for one that the recipe does not name."""
        label = str(field_of(row, self.spec.label, "label"))
        if label not in self.spec.labels:
            raise ValueError(f"label {label!r}: expected one of {', '.join(self.spec.labels)}; add it to objective.labels")
        return self.spec.labels.index(label)

    def sizes(self) -> dict[str, int]:
        return {"text": self.tokenizer.vocab_size, "label": len(self.spec.labels)}

    def samples(self, shards: Shards) -> Samples:
        def get(index: int) -> Sample:
            return {name: np.asarray(ids, dtype=np.int64) for name, ids in shards[index].items()}

        return Samples(np.diff(shards.column("text").offsets), get)

    def collate(self, samples: Sequence[Sample], seeds: Sequence[tuple[int, ...]]) -> Batch:
        inputs, mask = stack_rows([s["text"] for s in samples], self.tokenizer.pad or 0)
        return Batch(inputs, torch.from_numpy(np.concatenate([s["label"] for s in samples])), mask)

    def loss(self, model: Any, batch: Batch, *, smoothing: float = 0.0, z_loss: float = 0.0) -> Loss:
        out = model(batch.inputs, batch.mask)
        logits = at_least_float(out.logits)
        total = F.cross_entropy(logits, batch.labels, reduction="sum", label_smoothing=smoothing)
        if z_loss:
            total = total + z_loss * logits.logsumexp(-1).square().sum()
        right = float((logits.argmax(-1) == batch.labels).sum())
        return Loss(total, {"accuracy": right}, auxiliary(out))

    def check(self, model: config.Model) -> None:
        forms = ("encoder-only", "decoder-only")
        need(model.form in forms, "Classification", "a model that is encoder-only or decoder-only", f"one that is {model.form}")
        self.check_head(model)

    def check_head(self, model: config.Model) -> None:
        """Raise ValueError unless the model's head judges so many labels."""
        head, name = getattr(model, "head", None), type(self.spec).__name__
        need(isinstance(head, config.Classify), name, "a Classify head", type(head).__name__)
        assert isinstance(head, config.Classify)
        need(head.labels == len(self.spec.labels), name, f"a head of {len(self.spec.labels)} labels", head.labels)

    def task(self) -> dict[str, Any]:
        return {"objective": "Classification", "labels": list(self.spec.labels), "length": self.spec.length}
