"""From rows of text to batches, as training goes, without a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from recipes import LINES

from triform.data.shards import write_shards
from triform.objectives import Batch, Objective, Samples, build_objective
from triform.text import Tokenizer, train_tokenizer


@lru_cache
def trained(kind: str, sentinels: int = 0) -> Tokenizer:
    """A tokenizer of a kind, trained on the lines."""
    size = {"characters": 150, "bpe": 560, "wordpiece": 261, "all characters": 261}[kind]
    return train_tokenizer(LINES, kind=kind.removeprefix("all "), vocab_size=size, min_frequency=1, sentinels=sentinels)


def samples(spec: Any, tokenizer: Tokenizer, rows: Sequence[Mapping[str, Any] | str], folder: Path) -> tuple[Objective, Samples]:
    """The objective of a specification, and the samples of rows, which go through shards in `folder`."""
    objective = build_objective(spec, tokenizer)
    encoded = objective.encode([{"text": row} if isinstance(row, str) else row for row in rows])
    return objective, objective.samples(write_shards(encoded, folder / "shards", vocab_size=objective.sizes(), fingerprint="test"))


def batch(objective: Objective, found: Samples, seed: int = 0) -> Batch:
    """All samples in one batch."""
    return objective.collate([found[i] for i in range(len(found))], [(seed, 0, i) for i in range(len(found))])
