"""Which samples make which step, worked out from the step's number alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
from torch import Tensor

from triform.data.order import Order
from triform.objectives import Batch, Objective, Samples

from .recipe import TrainRecipe


class Batches:
    """The batches of a split under a recipe. Any process can say what is in any step."""

    def __init__(self, objective: Objective, samples: Samples, recipe: TrainRecipe) -> None:
        self.objective, self.samples, self.recipe = objective, samples, recipe
        self.order = Order(len(samples), recipe.seed)
        how = recipe.curriculum
        steps = 0 if how is None else round(how.share * recipe.steps)
        self._cutting = steps if objective.cuts_rows else 0
        self._sorting = 0 if objective.cuts_rows else steps - steps % recipe.bucket

    def check(self) -> None:
        """Raise ValueError for a curriculum by length of samples that are all of one length."""
        lengths = self.samples.lengths
        if self.recipe.curriculum is not None and not self.objective.cuts_rows and lengths.min() == lengths.max():
            raise ValueError(f"train.curriculum: expected samples of different lengths, and all have {int(lengths[0])}; leave it out")

    @cached_property
    def _by_length(self) -> np.ndarray:
        """The samples of the curriculum's steps, short before long; 8 bytes each."""
        found = np.asarray(self.order.indices(0, self._sorting * self.recipe.batch * self.recipe.accumulate))
        return found[np.argsort(self.samples.lengths[found], kind="stable")]

    def pieces(self, step: int) -> int:
        """Into how many pieces the rows of a step are cut."""
        how = self.recipe.curriculum
        if how is None or step >= self._cutting:
            return 1
        share = how.start + (1 - how.start) * step / self._cutting
        return math.ceil(1 / share - 1e-9)

    def indices(self, step: int) -> np.ndarray:
        """The samples of a step. With `bucket` above 1, that many steps share their samples out by length."""
        size, bucket = self.recipe.batch * self.recipe.accumulate, self.recipe.bucket
        if step < self._sorting:
            return self._by_length[step * size : (step + 1) * size]
        if bucket == 1:
            return np.asarray(self.order.indices(step * size, size))
        block, place = divmod(step, bucket)
        found = np.asarray(self.order.indices(block * bucket * size, bucket * size))
        found = found[np.argsort(self.samples.lengths[found], kind="stable")].reshape(bucket, size)
        turn = np.random.default_rng((self.recipe.seed, block)).permutation(bucket)
        return np.asarray(found[turn[place]])

    def step(self, step: int) -> list[Batch]:
        """The micro-batches of a step."""
        size, pieces = self.recipe.batch, self.pieces(step)
        chosen = self.indices(step)
        seeds: list[tuple[int, ...]] = [(self.recipe.seed, step, i) for i in range(len(chosen))]
        return [self._collate(chosen[i : i + size], seeds[i : i + size], pieces) for i in range(0, len(chosen), size)]

    def visited(self) -> np.ndarray:
        """The samples of all steps, each once."""
        recipe = self.recipe
        if recipe.steps * recipe.batch * recipe.accumulate >= len(self.samples):
            return np.arange(len(self.samples))
        return np.unique(np.concatenate([self.indices(step) for step in range(recipe.steps)]))

    def spread(self, most: int | None) -> np.ndarray:
        """All samples, or those of `most` batches spread evenly over them."""
        size, count = self.recipe.batch, len(self.samples)
        if most is None or most * size >= count:
            return np.arange(count)
        return np.arange(most * size) * count // (most * size)

    def once(self, most: int | None) -> Iterator[Batch]:
        """All samples once, those of like length together, or `most` batches spread evenly over them; the same each time."""
        size, chosen = self.recipe.batch, self.spread(most)
        ranked = chosen[np.argsort(self.samples.lengths[chosen], kind="stable")]
        for start in range(0, len(ranked), size):
            chosen = ranked[start : start + size]
            yield self._collate(chosen, [(self.recipe.seed, int(i)) for i in chosen])

    @property
    def figures(self) -> dict[str, float]:
        """What there is to tell of the last step's batches beside their loss."""
        return {}

    def parts(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint must hold for the next step's batches to be made, by file."""
        return {}

    def take_up(self, checkpoint: Path) -> None:
        """Go on as `parts` of this checkpoint say."""

    def _collate(self, chosen: np.ndarray, seeds: list[tuple[int, ...]], pieces: int = 1) -> Batch:
        samples = [self.samples[i] for i in chosen]
        if pieces > 1:
            cut = [self.objective.cut(sample, pieces) for sample in samples]
            seeds = [(*seed, i) for seed, parts in zip(seeds, cut, strict=True) for i in range(len(parts))]
            samples = [part for parts in cut for part in parts]
        return self.objective.collate(samples, seeds)
