"""What every objective shares: the batch, the loss, and the two steps between them and the text.

An objective turns rows of text into columns of tokens (`encode`, once, into shards), samples
of those into a batch (`sample` and `collate`, every step), and a batch into a loss
(`loss`). The training loop knows nothing else of it.

Shapes: B batch, T tokens, U target tokens.
"""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from triform import config
from triform.data.shards import Shards
from triform.nn import IGNORE, Layout
from triform.text import Tokenizer

Sample = dict[str, np.ndarray]


@dataclass
class Batch:
    """Tensors of one micro-batch.

    inputs (B, T) of ids, or pictures (B, C, S, S); mask (B, T), False where padding, or None where there is none;
    target and target_mask (B, U) for the decoder of an encoder-decoder, target (B, C, S, S) for
    the picture tower of a dual encoder; labels (B, T),
    (B, U) or (B,), IGNORE where nothing is scored, or numbers (B, L); layout.documents (B, T) where rows
    hold several documents; sentence (B,), the labels of a sentence head.
    """

    inputs: Tensor
    labels: Tensor
    mask: Tensor | None = None
    target: Tensor | None = None
    target_mask: Tensor | None = None
    layout: Layout | None = None
    sentence: Tensor | None = None

    @property
    def scored(self) -> int:
        """Labels that are scored."""
        return self.labels.numel() if self.labels.is_floating_point() else int((self.labels != IGNORE).sum())

    @property
    def count(self) -> int:
        """The loss' denominator: the labels that are scored, unless an objective counts something else."""
        return self.scored

    @property
    def tokens(self) -> int:
        """Tokens that the model reads, padding left out; a picture counts as one."""
        read = _read(self.inputs, self.mask)
        return read if self.target is None else read + _read(self.target, self.target_mask)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device."""

        def move(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.to(device, non_blocking=True)

        layout = None if self.layout is None else Layout(**{k: move(v) for k, v in vars(self.layout).items()})
        rest: dict[str, Any] = {k: move(v) if isinstance(v, Tensor) else v for k, v in vars(self).items() if k != "layout"}
        return replace(self, **rest, layout=layout)


def _read(x: Tensor, mask: Tensor | None) -> int:
    if x.is_floating_point():
        return len(x)
    return x.numel() if mask is None else int(mask.sum())


@dataclass
class Loss:
    """What a batch costs.

    total: a scalar, summed over the batch's labels, to be divided by the whole step's count. metrics: sums over
    the same labels, or over so many other things as `counts` says of each. auxiliary: "load_balance" and "router_z" of models
    with experts, means over the batch's tokens.
    """

    total: Tensor
    metrics: dict[str, float] = field(default_factory=dict)
    auxiliary: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)


class Samples:
    """The samples of one split: how many, how long each is (tokens), and each by its index."""

    def __init__(self, lengths: np.ndarray, get: Callable[[int], Sample]) -> None:
        self.lengths, self._get = lengths, get

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Sample:
        return self._get(int(index))


class Objective(ABC):
    """What a model is trained to do. `spec` is its part of the recipe."""

    metric_names: tuple[str, ...] = ()
    reads_text = True
    cuts_rows = False  # whether a sample is a row of a stream, which may be cut anywhere
    chats = False  # whether it learns answers, which a chat template writes if there is one
    smooths = True  # whether its loss takes train.smoothing and train.z_loss
    compares = False  # whether its samples need what the reference model says of them; see `reference`
    tokenizer: Tokenizer  # only where `reads_text`

    def __init__(self, spec: Any, tokenizer: Tokenizer | None) -> None:
        self.spec = spec
        if tokenizer is not None:
            self.tokenizer = tokenizer

    @property
    def vocab_size(self) -> int | None:
        """The tokenizer's; None where no text is read."""
        return self.tokenizer.vocab_size if self.reads_text else None

    @property
    def fingerprint(self) -> str | None:
        """The tokenizer's, and its chat templates' where it has any; None where no text is read."""
        if not self.reads_text or not self.tokenizer.chat_templates:
            return self.tokenizer.fingerprint if self.reads_text else None
        written = json.dumps(self.tokenizer.chat_templates, sort_keys=True)
        return hashlib.sha256(f"{self.tokenizer.fingerprint} {written}".encode()).hexdigest()

    @abstractmethod
    def encode(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Sequence[int]]]:
        """Columns of tokens for some rows of a source."""

    def sizes(self) -> int | dict[str, int]:
        """How many different ids there may be, in all columns or in each."""
        return self.tokenizer.vocab_size

    @abstractmethod
    def samples(self, shards: Shards) -> Samples:
        """The samples that shards hold; what is in one is the collator's affair."""

    def cut(self, sample: Sample, pieces: int) -> list[Sample]:
        """A sample that is a row of a stream as so many rows of nearly equal length, fewer where it has fewer tokens."""
        raise NotImplementedError(f"{type(self).__name__} has no rows to cut")

    @abstractmethod
    def collate(self, samples: Sequence[Sample], seeds: Sequence[tuple[int, ...]]) -> Batch:
        """One batch; `seeds` holds one seed a sample for what is drawn at random, so that a batch can be made again."""

    def example(self, sample: Sample) -> list[tuple[str, bool]] | None:
        """A sample as runs of text, and whether each is learned, to be shown before training; None where that says nothing."""
        return None

    @abstractmethod
    def check(self, model: config.Model) -> None:
        """Raise ValueError when the model cannot be trained so."""

    def reference(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        """What the model that a run begins with says of a batch: columns for its samples, of a number (nats) each."""
        raise NotImplementedError(f"{type(self).__name__} needs no reference")

    def attach(self, model: Any) -> None:  # noqa: B027, most objectives have nothing to give
        """Give the model what is trained along with it and is no part of it, before its optimizer is made."""

    @contextmanager
    def detached(self, model: Any) -> Iterator[None]:
        """The model is without what `attach` gave it, as it is exported."""
        yield

    def loss(self, model: Any, batch: Batch, *, smoothing: float = 0.0, z_loss: float = 0.0) -> Loss:
        """The language-model loss, made in chunks of the vocabulary; objectives with another head override it."""
        out = model(batch.inputs, batch.mask, batch.target, batch.target_mask, layout=batch.layout, logits=False)
        total = model.language_model_loss(out.hidden, batch.labels, smoothing=smoothing, z_loss=z_loss)
        metrics = {} if model.training else {"accuracy": token_accuracy(model, out.hidden, batch.labels)}
        return Loss(total, metrics, auxiliary(out))

    def uniform_loss(self, model: config.Model, batch: Batch) -> float | None:
        """The loss (nats, of what `batch.count` counts) of a model to which all answers are alike; None where there is no such figure."""
        if type(self).loss is not Objective.loss or not isinstance(model, config.Transformer):
            return None
        read = model.last.input
        return math.log(read.vocab_size) if isinstance(read, config.Tokens) else None

    def task(self) -> dict[str, Any]:
        """What to save beside the model so that it can be used: labels and the like."""
        return {"objective": type(self.spec).__name__}


def auxiliary(out: Any) -> dict[str, Tensor]:
    """The losses of experts, where a model has them."""
    if out.aux.load_balance is None:
        return {}
    return {"load_balance": out.aux.load_balance, "router_z": out.aux.router_z}


def cross_entropy_among(scores: Tensor, labels: Tensor, possible: Tensor | None, smoothing: float = 0.0) -> Tensor:
    """The cross-entropy of labels (N,) by scores (N, C), summed, where not all of C can be chosen in each row.

    possible (N, C): what can; the other scores are the lowest there are, and smoothing leaves them out too. None: everything can.
    """
    if possible is None or not smoothing:
        return F.cross_entropy(scores, labels, reduction="sum", label_smoothing=smoothing)
    found = scores.log_softmax(-1)
    even = found.masked_fill(~possible, 0.0).sum(-1) / possible.sum(-1)
    return (1 - smoothing) * F.nll_loss(found, labels, reduction="sum") - smoothing * even.sum()


@torch.no_grad()
def token_accuracy(model: Any, hidden: Tensor, labels: Tensor, chunk: int = 1024) -> float:
    """How many of the scored labels are the most probable token."""
    kept = labels != IGNORE
    right = 0
    for states, wanted in zip(torch.split(hidden[kept], chunk), torch.split(labels[kept], chunk), strict=True):
        right += int((model.score(states).argmax(-1) == wanted).sum())
    return float(right)


def stack_rows(rows: Sequence[np.ndarray], fill: int) -> tuple[Tensor, Tensor | None]:
    """Rows of ids, padded on the right: (B, T) and its mask, None when no row is padded."""
    longest = max(len(r) for r in rows)
    ids = np.full((len(rows), longest), fill, dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    lengths = torch.tensor([len(r) for r in rows])
    if int(lengths.min()) == longest:
        return torch.from_numpy(ids), None
    return torch.from_numpy(ids), torch.arange(longest)[None] < lengths[:, None]


def packed(documents: Sequence[np.ndarray]) -> Layout | None:
    """The layout (B, T) of packed documents' numbers, each from 0 and padded with -1; None when every row holds one."""
    if all(d[-1] == 0 for d in documents):
        return None
    numbers, _ = stack_rows(documents, -1)
    return Layout(documents=numbers)


def columns_of(shards: Shards, index: int) -> Sample:
    """A row of shards with all its columns."""
    return {name: np.asarray(values, dtype=np.int64) for name, values in shards[index].items()}


def whole_rows(shards: Shards, *columns: str) -> Samples:
    """Each row of shards a sample, as long as these columns of it together."""
    lengths = np.sum([np.diff(shards.column(name).offsets) for name in columns], axis=0)
    return Samples(lengths, lambda index: columns_of(shards, index))


def documents(shards: Shards, column: str, length: int) -> Samples:
    """Each document a sample, cut to `length` tokens."""
    tokens, offsets = shards.column(column).tokens, shards.column(column).offsets
    lengths = np.minimum(np.diff(offsets), length)

    def get(index: int) -> Sample:
        start = int(offsets[index])
        return {column: np.asarray(tokens[start : start + int(lengths[index])], dtype=np.int64)}

    return Samples(lengths, get)


def field_of(row: Mapping[str, Any], name: str, where: str) -> Any:
    """A field of a row. Raises ValueError that lists the fields there are."""
    if name not in row:
        there = ", ".join(map(str, row))
        raise ValueError(f"a row of the data has no field {name!r} for the {where}; it has {there}; name one in the recipe's objective")
    return row[name]


def texts_of(rows: Sequence[Mapping[str, Any]], name: str, where: str = "text") -> list[str]:
    """A field of text of each row. Raises ValueError for a row without it, or where it is something else."""
    texts = [field_of(row, name, where) for row in rows]
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"a row of the data has {text!r} in its field {name!r}; expected text; leave such rows out")
    return texts


def need(condition: bool, objective: str, what: str, got: object) -> None:
    """Raise ValueError in the house's form unless the condition holds."""
    if not condition:
        raise ValueError(f"objective {objective}: expected {what}, got {got}")


def need_language_model(model: config.Model, objective: str, form: str) -> config.Transformer:
    """The model as a Transformer of that form with a language-model head, or ValueError."""
    need(model.form == form, objective, f"a model that is {form}", f"one that is {model.form}")
    assert isinstance(model, config.Transformer)
    need(isinstance(model.head, config.LanguageModel), objective, "a LanguageModel head", type(model.head).__name__)
    return model
