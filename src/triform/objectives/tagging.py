"""Token classification: a label for each token of a text, such as names (IOB2: B-X begins an X, I-X goes on with it).

Shapes: B batch, T tokens, L labels.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch.nn.functional as F

from triform import config
from triform.config.spec import spec
from triform.data.shards import Shards
from triform.nn import IGNORE
from triform.nn.norm import at_least_float
from triform.text.framing import judged, windows
from triform.text.segment import joined

from .base import Batch, Loss, Objective, Sample, Samples, auxiliary, field_of, need, stack_rows, whole_rows

_NAMES = ("labels", "tags", "ner_tags")


@spec
class TokenClassification:
    """The words in the field `tokens` and a label for each in the field `label` (None: the first that is there of labels, tags,
    ner_tags), names or their numbers.

    labels: the names, in the order of the head's scores, as IOB2 has them ("O", "B-PER", "I-PER") or plain. length: tokens of a row;
    longer texts are read in several. A word of several tokens has its label at each of them, the first as B-X and the others as I-X,
    so that `triform tag` finds it whole; with `first` only its first token is scored.
    """

    labels: tuple[str, ...]
    length: int = 256
    tokens: str = "tokens"
    label: str | None = None
    first: bool = False

    def __post_init__(self) -> None:
        if len(set(self.labels)) != len(self.labels) or len(self.labels) < 2:
            raise ValueError(f"labels: expected at least two different names, got {list(self.labels)}")
        lacking = [f"I-{name[2:]}" for name in self.labels if name.startswith("B-") and f"I-{name[2:]}" not in self.labels]
        if lacking:
            raise ValueError(f"labels: expected {', '.join(lacking)} beside what begins so (IOB2)")
        if self.length < 3:
            raise ValueError(f"length: expected at least 3 tokens, got {self.length}")

    def longest(self) -> dict[str, tuple[str, int]]:
        """For each stack the field that decides on its longest row, and that row's tokens."""
        return dict.fromkeys(("encoder", "decoder"), ("length", self.length))

    def texts(self, row: Mapping[str, Any]) -> list[str]:
        """The text of a row. Raises ValueError for a row without words and labels."""
        return [joined(self.words(row)[0])[0]]

    def words(self, row: Mapping[str, Any]) -> tuple[list[str], list[int]]:
        """The words of a row and the numbers of their labels. Raises ValueError for what does not fit together, a label that is not
        named, and an I-X that goes on with nothing."""
        name = self.label or next((name for name in _NAMES if name in row), _NAMES[0])
        words, labels = field_of(row, self.tokens, "words"), field_of(row, name, "words' labels")
        if not isinstance(words, list | tuple) or not words or not all(isinstance(word, str) and word for word in words):
            raise ValueError(f"expected a list of words, none of them empty, in {self.tokens!r}")
        if not isinstance(labels, list | tuple) or len(labels) != len(words):
            got = f"{len(labels)}" if isinstance(labels, list | tuple) else "none"
            raise ValueError(f"expected {len(words)} labels in {name!r}, one for each word, got {got}")
        numbers = [self._number(label) for label in labels]
        for before, number in zip([None, *numbers], numbers, strict=False):
            mark, _, kind = self.labels[number].partition("-")
            if mark == "I" and kind and (before is None or self.labels[before] not in (f"B-{kind}", f"I-{kind}")):
                told = "the beginning" if before is None else self.labels[before]
                raise ValueError(f"I-{kind} follows {told}; in IOB2 B-{kind} begins what I-{kind} goes on with")
        return list(words), numbers

    def _number(self, label: Any) -> int:
        if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(self.labels):
            return label
        if label not in self.labels:
            raise ValueError(f"label {str(label)[:40]!r}: expected one of {', '.join(self.labels)}; add it to objective.labels")
        return self.labels.index(label)

    def going_on(self, number: int) -> int:
        """The number of what a label is in the middle of a word: I-X for B-X."""
        name = self.labels[number]
        return self.labels.index(f"I-{name[2:]}") if name.startswith("B-") else number


class TokenClassificationObjective(Objective):
    """In: texts, framed ([CLS] text [SEP], or text [EOS]), and a label for each token.

    Out: inputs (B, T), mask (B, T), labels (B, T), IGNORE for what stands around a text and for padding.
    """

    spec: TokenClassification
    metric_names = ("accuracy",)

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Sequence[int]]]:
        """Columns "text", framed, and "label", 0 where nothing is scored and else the label's number and 1."""
        found = [self.spec.words(row) for row in rows]
        texts = [joined(words) for words, _ in found]
        encodings = self.tokenizer.encodings([text for text, _ in texts], plain=True)
        made: list[dict[str, Sequence[int]]] = []
        for (_, numbers), (text, places), encoding in zip(found, texts, encodings, strict=True):
            made += self._rows(encoding.ids, list(self._aligned(text, places, numbers, encoding.offsets)))
        return made

    def _aligned(self, text: str, places: list[tuple[int, int]], numbers: list[int], offsets: list[tuple[int, int]]) -> Iterator[int]:
        """For each token the number of its label and 1, by the word that its first character but for spaces is of; else 0."""
        begins, last = [start for start, _ in places], -1
        for start, end in offsets:
            shown = re.search(r"\S", text[start:end])
            if shown is None:
                yield 0
                continue
            word = bisect_right(begins, start + shown.start()) - 1
            number = numbers[word]
            if word == last:
                yield 0 if self.spec.first else self.spec.going_on(number) + 1
            else:
                yield number + 1
            last = word

    def _rows(self, ids: list[int], labels: list[int]) -> Iterator[dict[str, Sequence[int]]]:
        frame = judged(self.tokenizer, [])
        before = judged(self.tokenizer, [-1]).index(-1)
        for start, end in windows(len(ids), self.spec.length - len(frame), 0):
            if any(labels[start:end]):
                around = [0] * (len(frame) - before)
                yield {"text": judged(self.tokenizer, ids[start:end]), "label": [*[0] * before, *labels[start:end], *around]}

    def sizes(self) -> dict[str, int]:
        return {"text": self.tokenizer.vocab_size, "label": len(self.spec.labels) + 1}

    def samples(self, shards: Shards) -> Samples:
        return whole_rows(shards, "text")

    def collate(self, samples: Sequence[Sample], seeds: Sequence[tuple[int, ...]]) -> Batch:
        inputs, mask = stack_rows([s["text"] for s in samples], self.tokenizer.pad or 0)
        labels, _ = stack_rows([np.where(s["label"] == 0, IGNORE, s["label"] - 1) for s in samples], IGNORE)
        return Batch(inputs, labels, mask)

    def loss(self, model: Any, batch: Batch, *, smoothing: float = 0.0, z_loss: float = 0.0) -> Loss:
        """The cross-entropy of each scored token's label; transformers' of the mean over them."""
        out = model(batch.inputs, batch.mask)
        kept = batch.labels != IGNORE
        logits, labels = at_least_float(out.logits[kept]), batch.labels[kept]
        total = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)
        if z_loss:
            total = total + z_loss * logits.logsumexp(-1).square().sum()
        return Loss(total, {"accuracy": float((logits.argmax(-1) == labels).sum())}, auxiliary(out))

    def uniform_loss(self, model: config.Model, batch: Batch) -> float | None:
        return math.log(len(self.spec.labels))

    def check(self, model: config.Model) -> None:
        forms, head = ("encoder-only", "decoder-only"), getattr(model, "head", None)
        need(model.form in forms, "TokenClassification", "a model that is encoder-only or decoder-only", f"one that is {model.form}")
        need(isinstance(head, config.ClassifyTokens), "TokenClassification", "a ClassifyTokens head", type(head).__name__)
        assert isinstance(head, config.ClassifyTokens)
        need(head.labels == len(self.spec.labels), "TokenClassification", f"a head of {len(self.spec.labels)} labels", head.labels)

    def task(self) -> dict[str, Any]:
        return {"objective": "TokenClassification", "labels": list(self.spec.labels), "length": self.spec.length}
