"""Causal language modelling: each token predicted from those before it (GPT, LLaMA)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from triform import config
from triform.config.spec import spec
from triform.data.packing import rows_of
from triform.data.shards import Shards
from triform.nn import IGNORE
from triform.text.framing import opening

from .base import Batch, Objective, Sample, Samples, need, need_language_model, packed, stack_rows, texts_of
from .middle import middle_tokens, rearranged


@spec
class Causal:
    """Rows of `length` tokens cut from the stream of all documents, which never see each other.

    fim: the share of documents that are rearranged before that, so that the model learns to fill in the middle (Bavarian
    et al. 2022); fim_spm: of these, the share that begins with the suffix (SPM), while the others begin with the prefix (PSM).
    """

    length: int = 512
    text: str = "text"
    fim: float = 0.0
    fim_spm: float = 0.5

    def __post_init__(self) -> None:
        if self.length < 2:
            raise ValueError(f"length: expected at least 2 tokens, got {self.length}")
        for name in ("fim", "fim_spm"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a share from 0 to 1, got {getattr(self, name)}")

    def longest(self) -> dict[str, tuple[str, int]]:
        """For each stack the field that decides on its longest row, and that row's tokens."""
        return {"decoder": ("length", self.length)}


class CausalObjective(Objective):
    """In: rows of `length` tokens of the stream, and the token after each.

    Out: inputs (B, length), labels (B, length) one token ahead and IGNORE where the next token begins another
    document, and the documents' numbers (B, length) where a row holds several. Only the stream's last row is padded.
    """

    spec: Causal
    cuts_rows = True

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Sequence[int]]]:
        """Column "text": what opens a text for this tokenizer, the document, [EOS]."""
        before = opening(self.tokenizer)
        after = [] if self.tokenizer.eos is None else [self.tokenizer.eos]
        encoded = self.tokens(texts_of(rows, self.spec.text))
        return [{"text": before + ids + after} for ids in encoded]

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of texts, some of them rearranged."""
        if self.spec.fim:
            return rearranged(self.tokenizer, texts, self.spec.fim, self.spec.fim_spm)
        return self.tokenizer.encode_batch(texts, plain=True)

    def samples(self, shards: Shards) -> Samples:
        column = shards.column("text")
        rows = rows_of(column.offsets, self.spec.length)

        def get(index: int) -> Sample:
            row = rows[index]
            ids = np.asarray(column.tokens[row.start : row.stop + 1], dtype=np.int64)
            inputs = ids[: row.stop - row.start]
            labels = np.full(len(inputs), IGNORE, dtype=np.int64)
            labels[: len(ids) - 1] = ids[1:]
            labels[:-1][np.diff(row.documents) != 0] = IGNORE
            if column.offsets[np.searchsorted(column.offsets, row.stop)] == row.stop:  # the row ends where a document does
                labels[-1] = IGNORE
            return {"text": inputs, "labels": labels, "document": row.documents}

        lengths = np.full(len(rows), self.spec.length)
        lengths[-1:] = len(column.tokens) - (len(rows) - 1) * self.spec.length
        return Samples(lengths, get)

    def cut(self, sample: Sample, pieces: int) -> list[Sample]:
        columns = {name: np.array_split(values, pieces) for name, values in sample.items()}
        parts = (dict(zip(columns, part, strict=True)) for part in zip(*columns.values(), strict=True))
        return [part | {"document": part["document"] - part["document"][0]} for part in parts if len(part["text"])]

    def collate(self, samples: Sequence[Sample], seeds: Sequence[tuple[int, ...]]) -> Batch:
        inputs, mask = stack_rows([s["text"] for s in samples], self.tokenizer.pad or 0)
        labels, _ = stack_rows([s["labels"] for s in samples], IGNORE)
        return Batch(inputs, labels, mask, layout=packed([s["document"] for s in samples]))

    def check(self, model: config.Model) -> None:
        found = need_language_model(model, "Causal", "decoder-only")
        masks = {block.attention.mask for block in found.last.pattern}
        need("bidirectional" not in masks, "Causal", "attention whose mask is causal or prefix", "bidirectional")
        if self.spec.fim:
            middle_tokens(self.tokenizer)
