"""Prefix language modelling: a part read both ways, and what follows written from it (Liu et al. 2018, Raffel et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from triform import config
from triform.config.spec import spec
from triform.nn import IGNORE, Layout

from .base import Batch, Sample, need, need_language_model, stack_rows
from .causal import CausalObjective


@spec
class Prefix:
    """Rows of `length` tokens cut from the stream of all documents; of each document in a row a prefix is read both ways.

    share: of a document's tokens in the row that are the prefix; null: drawn anew each time, every length from one token
    to all but one alike.
    """

    length: int = 512
    text: str = "text"
    share: float | None = None

    def __post_init__(self) -> None:
        if self.length < 2:
            raise ValueError(f"length: expected at least 2 tokens, got {self.length}")
        if self.share is not None and not 0 < self.share < 1:
            raise ValueError(f"share: expected a share between 0 and 1, or null for a random one, got {self.share}")

    def longest(self) -> dict[str, tuple[str, int]]:
        """For each stack the field that decides on its longest row, and that row's tokens."""
        return {"decoder": ("length", self.length)}


class PrefixObjective(CausalObjective):
    """In: rows of `length` tokens of the stream, and the token after each.

    Out: what `Causal` gives, with `layout.prefix` (B, length) True for the prefix of each document, and labels IGNORE
    but for what comes after it.
    """

    spec: Prefix  # type: ignore[assignment]

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        return self.tokenizer.encode_batch(texts, plain=True)

    def collate(self, samples: Sequence[Sample], seeds: Sequence[tuple[int, ...]]) -> Batch:
        batch = super().collate(samples, seeds)
        prefixes = [self.prefix(sample["document"], np.random.default_rng(seed)) for sample, seed in zip(samples, seeds, strict=True)]
        prefix = stack_rows([p.astype(np.int64) for p in prefixes], 0)[0].bool()
        # the prefix' last token predicts the first one after it
        inner = torch.zeros_like(prefix)
        inner[:, :-1] = prefix[:, :-1] & prefix[:, 1:]
        if batch.layout is not None and batch.layout.documents is not None:
            inner[:, :-1] &= batch.layout.documents[:, :-1] == batch.layout.documents[:, 1:]
        batch.labels = batch.labels.masked_fill(inner, IGNORE)
        batch.layout = Layout(documents=None if batch.layout is None else batch.layout.documents, prefix=prefix)
        return batch

    def prefix(self, document: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """True (T,) for the prefix of each document of a row; `document` (T,) holds their numbers."""
        sizes = np.bincount(document)
        drawn = rng.integers(1, np.maximum(sizes, 2))
        if self.spec.share is not None:
            drawn = np.clip(np.rint(sizes * self.spec.share).astype(np.int64), 1, np.maximum(sizes - 1, 1))
        starts = np.concatenate(([0], np.cumsum(sizes)[:-1]))
        place = np.arange(len(document)) - starts[document]
        return np.asarray(place < drawn[document])

    def check(self, model: config.Model) -> None:
        found = need_language_model(model, "Prefix", "decoder-only")
        masks = {block.attention.mask for block in found.last.pattern}
        need(masks == {"prefix"}, "Prefix", "attention whose mask is prefix in every layer", ", ".join(sorted(masks)))
