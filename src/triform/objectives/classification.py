"""Classification of whole texts: one label each, or several, or numbers.

Shapes: B batch, T tokens, L labels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from triform import config
from triform.config.spec import spec
from triform.data.shards import Shards
from triform.nn.norm import at_least_float
from triform.text import Tokenizer
from triform.text.framing import judged

from .base import Batch, Loss, Objective, Sample, Samples, auxiliary, field_of, need, stack_rows, texts_of, whole_rows

Problem = Literal["single_label_classification", "multi_label_classification", "regression"]


@spec
class Classification:
    """The field `label` judged from the field `text`, cut to `length` tokens. `labels` are the names, in the order of the head's scores.

    problem: each text has one label; or several, or none (a list of names, or one text with commas between them); or a number for each
    of `labels` (a number, or a list).
    """

    labels: tuple[str, ...]
    length: int = 256
    text: str = "text"
    label: str = "label"
    problem: Problem = "single_label_classification"

    def __post_init__(self) -> None:
        least = 2 if self.problem == "single_label_classification" else 1
        if len(set(self.labels)) != len(self.labels) or len(self.labels) < least:
            names = "two different names" if least == 2 else "one name, and different ones"
            raise ValueError(f"labels: expected at least {names}, got {list(self.labels)}")
        if self.length < 3:
            raise ValueError(f"length: expected at least 3 tokens, got {self.length}")

    def longest(self) -> dict[str, tuple[str, int]]:
        """For each stack the field that decides on its longest row, and that row's tokens."""
        return dict.fromkeys(("encoder", "decoder"), ("length", self.length))


class ClassificationObjective(Objective):
    """In: framed texts ([CLS] text [SEP], or text [EOS]) and the numbers of their labels.

    Out: inputs (B, T), mask (B, T), labels (B,) or, of several labels and of numbers, (B, L), with T the longest of the batch.
    """

    spec: Classification
    metric_names = ("accuracy",)

    def __init__(self, spec: Any, tokenizer: Tokenizer | None) -> None:
        super().__init__(spec, tokenizer)
        self.problem: Problem = getattr(spec, "problem", "single_label_classification")
        self.smooths = self.problem == "single_label_classification"
        if self.problem == "regression":
            self.metric_names = ("absolute_error",)

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Sequence[int]]]:
        """Columns "text", framed, and "label": its number, 0 or 1 for each, or the bits of a number (32 each) for each."""
        encoded = self.tokenizer.encode_batch(texts_of(rows, self.spec.text), plain=True)
        return [
            {"text": judged(self.tokenizer, ids, self.spec.length), "label": self.judgement(row)}
            for row, ids in zip(rows, encoded, strict=True)
        ]

    def judgement(self, row: Mapping[str, Any]) -> Sequence[int]:
        """What a row's label is in a shard. Raises ValueError for one that the recipe does not name, and for what is no number."""
        found = field_of(row, self.spec.label, "label")
        if self.problem == "single_label_classification":
            return [self.number(str(found))]
        if self.problem == "multi_label_classification":
            names = [part.strip() for part in found.split(",") if part.strip()] if isinstance(found, str) else found
            if not isinstance(names, list | tuple):
                raise ValueError(f"expected a list of labels in {self.spec.label!r}, got {found!r}")
            chosen = {self.number(str(name)) for name in names}
            return [int(number in chosen) for number in range(len(self.spec.labels))]
        try:
            numbers = np.asarray(found, dtype=np.float32).reshape(-1)
        except (TypeError, ValueError):
            raise ValueError(f"expected a number in {self.spec.label!r}, got {str(found)[:40]!r}") from None
        if len(numbers) != len(self.spec.labels) or not np.isfinite(numbers).all():
            raise ValueError(f"expected {len(self.spec.labels)} finite numbers in {self.spec.label!r}, got {str(found)[:40]!r}")
        return numbers.view(np.uint32)  # type: ignore[return-value]

    def number(self, label: str) -> int:
        """The number of a label. Raises ValueError for one that the recipe does not name."""
        if label not in self.spec.labels:
            raise ValueError(f"label {label[:40]!r}: expected one of {', '.join(self.spec.labels)}; add it to objective.labels")
        return self.spec.labels.index(label)

    def sizes(self) -> dict[str, int]:
        highest = {"multi_label_classification": 2, "regression": 2**32}.get(self.problem, len(self.spec.labels))
        return {"text": self.tokenizer.vocab_size, "label": highest}

    def samples(self, shards: Shards) -> Samples:
        return whole_rows(shards, "text")

    def collate(self, samples: Sequence[Sample], seeds: Sequence[tuple[int, ...]]) -> Batch:
        inputs, mask = stack_rows([s["text"] for s in samples], self.tokenizer.pad or 0)
        return Batch(inputs, self._labels(samples), mask)

    def _labels(self, samples: Sequence[Sample]) -> Tensor:
        if self.problem == "single_label_classification":
            return torch.from_numpy(np.concatenate([s["label"] for s in samples]))
        values = np.stack([s["label"] for s in samples])
        return torch.from_numpy(values.astype(np.uint32).view(np.float32) if self.problem == "regression" else values.astype(np.float32))

    def loss(self, model: Any, batch: Batch, *, smoothing: float = 0.0, z_loss: float = 0.0) -> Loss:
        """The cross-entropy of the label; of several that of each by itself; of numbers the squared error.

        accuracy: how many labels are right, absolute_error: of the numbers."""
        out = model(batch.inputs, batch.mask)
        logits, labels = at_least_float(out.logits), batch.labels
        if self.problem == "regression":
            error = logits - labels
            return Loss(error.square().sum(), {"absolute_error": float(error.detach().abs().sum())}, auxiliary(out))
        if self.problem == "multi_label_classification":
            total = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="sum")
            return Loss(total, {"accuracy": float(((logits > 0) == (labels > 0.5)).sum())}, auxiliary(out))
        total = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)
        if z_loss:
            total = total + z_loss * logits.logsumexp(-1).square().sum()
        right = float((logits.argmax(-1) == labels).sum())
        return Loss(total, {"accuracy": right}, auxiliary(out))

    def uniform_loss(self, model: config.Model, batch: Batch) -> float | None:
        if self.problem == "regression":
            return None
        return math.log(2 if self.problem == "multi_label_classification" else len(self.spec.labels))

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
        facts = {"objective": "Classification", "labels": list(self.spec.labels), "length": self.spec.length}
        return facts if self.problem == "single_label_classification" else facts | {"problem_type": self.problem}
