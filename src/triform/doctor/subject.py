"""A recipe as the checks see it: its rows, what its objective makes of some of them, and the first batches.

Of large data only the beginning is read, and of what was read some rows, evenly spread, become tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from triform import config
from triform.data.rows import BadRows
from triform.data.shards import write_shards
from triform.objectives import Batch, Objective, Samples
from triform.objectives.instruction import Instruction
from triform.objectives.kto import KTO
from triform.objectives.on_policy import OnPolicy
from triform.objectives.preference import Preference
from triform.objectives.reward_model import RewardModel
from triform.text import Tokenizer
from triform.train.batches import Batches
from triform.train.recipe import Recipe

Row = Mapping[str, Any]
MOST_ROWS, MOST_CHARACTERS = 50_000, 16_000_000  # of a part that is read
ENCODED_ROWS, ENCODED_PICTURES, ENCODED_CHARACTERS = 2_000, 200, 4_000_000  # of these, what becomes tokens
_BATCHES, _STEPS = 8, 4
UNLIMITED = 2**30  # tokens: longer than any row


@dataclass(frozen=True)
class Part:
    """Rows of a split that were read. whole: whether they are all there are."""

    rows: list[Row]
    whole: bool

    @property
    def said(self) -> str:
        """How many rows were looked at."""
        return f"{len(self.rows):,} rows" if self.whole else f"the first {len(self.rows):,} rows"

    def some(self, most: int, characters: int = ENCODED_CHARACTERS) -> list[Row]:
        """Some of them, evenly spread, with no more characters than that, but one row at least."""
        chosen = self.rows[:: -(-len(self.rows) // most)] if self.rows else []
        sizes = np.cumsum([len(each) for each in map("".join, map(texts, chosen))])
        return chosen[: max(1, int(np.searchsorted(sizes, characters, side="right")))]


def read_part(rows: Iterable[Row] | None, most: int = MOST_ROWS) -> Part:
    """The first rows of a split, up to `most` (0: all) and 16 million characters."""
    found: list[Row] = []
    left = MOST_CHARACTERS
    for row in rows if rows is not None else ():
        if most and (len(found) == most or left <= 0):
            return Part(found, whole=False)
        found.append(row)
        left -= sum(map(len, texts(row)))
    return Part(found, whole=True)


def texts(row: Any) -> list[str]:
    """The texts of a row, those in lists and mappings too, but for what only names it or its parts."""
    if isinstance(row, str):
        return [row]
    if isinstance(row, Mapping):
        return [text for name, value in row.items() if name not in _NAMES for text in texts(value)]
    if isinstance(row, (list, tuple)) and row and not isinstance(row[0], (int, float)):
        return [text for value in row for text in texts(value)]
    return []


_NAMES = frozenset({"id", "uid", "uuid", "idx", "index", "role", "from", "label", "labels", "tags", "ner_tags"})


@dataclass(frozen=True)
class Subject:
    """What the checks of a recipe look at. spec: the model's configuration with the tokenizer's vocabulary.

    share: of all training samples those that are in `train`; None where nobody knows, as not all rows were read.
    source: where the run takes its batches from; None: samples in the run's order.
    """

    recipe: Recipe
    spec: config.Model
    objective: Objective
    train: Samples
    validation: Samples
    share: float | None = 1.0
    source: Batches | None = None

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer, None where no text is read."""
        return getattr(self.objective, "tokenizer", None)

    @property
    def writes(self) -> bool:
        """Whether the objective teaches the model to write: token by token, up to a stop."""
        return isinstance(getattr(self.spec, "head", None), config.LanguageModel) and getattr(self.spec, "decoder", None) is not None

    @property
    def converses(self) -> bool:
        """Whether the rows are conversations, or prompts with answers."""
        return isinstance(self.recipe.objective, Instruction | Preference | KTO | RewardModel | OnPolicy)

    def is_full(self, batch: Batch, row: int) -> bool:
        """Whether a row has as many tokens as the objective allows, so that something may have been cut from it."""
        side, ids, mask = "encoder", batch.inputs, batch.mask
        if batch.target is not None or getattr(self.spec, "encoder", None) is None:
            side, ids, mask = ("decoder", *((ids, mask) if batch.target is None else (batch.target, batch.target_mask)))
        tokens = ids.shape[1] if mask is None else int(mask[row].sum())
        return tokens >= self.recipe.objective.longest().get(side, ("", UNLIMITED))[1] - 1

    @cached_property
    def batches(self) -> list[Batch]:
        """The micro-batches of the first steps, a few at most."""
        source = self.source or Batches(self.objective, self.train, self.recipe.train)
        steps = range(min(_STEPS, self.recipe.train.steps))
        return list(islice((batch for step in steps for batch in source.step(step)), _BATCHES))


def encoded(objective: Objective, rows: Sequence[Row], folder: Path, bad: BadRows) -> Samples:
    """The samples that an objective makes of some rows, by shards in a new folder. Raises ValueError where nothing comes of them."""
    made = bad.made(rows, objective.encode)
    if not made:
        why = f"; the first: {bad.first}" if len(bad) else ""
        raise ValueError(f"nothing is left of {len(rows):,} rows of the data once they are tokens{why}")
    return objective.samples(write_shards(made, folder, vocab_size=objective.sizes(), fingerprint="examined"))


def no_samples() -> Samples:
    """The samples of a part that nothing was held out for."""
    return Samples(np.zeros(0, dtype=np.int64), lambda index: {})


def without_limits(objective: Objective) -> Objective | None:
    """The same objective with rows as long as they come; None where nothing limits them."""
    limits = [name for name in ("length", "target_length") if isinstance(getattr(objective.spec, name, None), int)]
    return _changed(objective, **dict.fromkeys(limits, UNLIMITED)) if limits else None


def one_by_one(objective: Objective) -> Objective:
    """The same objective with a row for each example."""
    return _changed(objective, packing=False) if hasattr(objective.spec, "packing") else objective


def _changed(objective: Objective, **fields: Any) -> Objective:
    other = copy(objective)
    other.spec = replace(objective.spec, **fields)
    return other
