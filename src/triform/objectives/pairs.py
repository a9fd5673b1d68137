"""Sequence to sequence: a target written from a source (translation, question to answer)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from triform import config
from triform.config.spec import spec
from triform.data.shards import Shards
from triform.nn import IGNORE
from triform.text import Tokenizer
from triform.text.framing import decoder_start, source

from .base import Batch, Objective, Sample, Samples, need, need_language_model, stack_rows, texts_of, whole_rows


@spec
class SequenceToSequence:
    """Fields `source` and `target` of each row, cut to `length` and `target_length` tokens, [EOS] included."""

    length: int = 256
    target_length: int = 256
    source: str = "source"
    target: str = "target"

    def __post_init__(self) -> None:
        for name in ("length", "target_length"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name}: expected at least 2 tokens, got {getattr(self, name)}")

    def longest(self) -> dict[str, tuple[str, int]]:
        """For each stack the field that decides on its longest row, and that row's tokens."""
        return {"encoder": ("length", self.length), "decoder": ("target_length", self.target_length)}


def pair_batch(tokenizer: Tokenizer, sources: Sequence[np.ndarray], targets: Sequence[np.ndarray]) -> Batch:
    """A batch for an encoder-decoder.

    In: sources, framed, and targets without [EOS], each (tokens,). Out: inputs (B, T) and mask (B, T); labels (B, U),
    each target and [EOS], IGNORE where padding; target (B, U), the start token and then the labels but the last; target_mask (B, U).
    """
    end = [] if tokenizer.eos is None else [tokenizer.eos]
    pad = tokenizer.pad or 0
    inputs, mask = stack_rows(sources, pad)
    labels, target_mask = stack_rows([np.concatenate((t, end)).astype(np.int64) for t in targets], IGNORE)
    target = torch.full_like(labels, decoder_start(tokenizer))
    target[:, 1:] = labels[:, :-1].masked_fill(labels[:, :-1] == IGNORE, pad)
    return Batch(inputs, labels, mask, target, target_mask)


class SequenceToSequenceObjective(Objective):
    """In: sources, framed as the tokenizer's template says, and targets. Out: what `pair_batch` gives."""

    spec: SequenceToSequence

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Sequence[int]]]:
        """Columns "source", framed, and "target", both cut; pairs of which one side is empty are left out."""
        sources = self.tokenizer.encode_batch(texts_of(rows, self.spec.source, "source"), plain=True)
        targets = self.tokenizer.encode_batch(texts_of(rows, self.spec.target, "target"), plain=True)
        return [
            {"source": source(self.tokenizer, s, self.spec.length), "target": t[: self.spec.target_length - 1]}
            for s, t in zip(sources, targets, strict=True)
            if s and t
        ]

    def samples(self, shards: Shards) -> Samples:
        return whole_rows(shards, "source", "target")

    def collate(self, samples: Sequence[Sample], seeds: Sequence[tuple[int, ...]]) -> Batch:
        return pair_batch(self.tokenizer, [s["source"] for s in samples], [s["target"] for s in samples])

    def check(self, model: config.Model) -> None:
        need_language_model(model, "SequenceToSequence", "encoder-decoder")
        need(self.tokenizer.eos is not None, "SequenceToSequence", "a tokenizer with an eos token", "one without")
        decoder_start(self.tokenizer)
