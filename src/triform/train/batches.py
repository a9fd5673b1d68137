"""Which samples make which step, worked out from the step's number alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from triform.data.order import Order
from triform.objectives import Batch, Objective, Samples

from .recipe import TrainRecipe


class Batches:
    """The batches of a split under a recipe. Any process can say what is in any step."""

    def __init__(self, objective: Objective, samples: Samples, recipe: TrainRecipe) -> None:
        self.objective, self.samples, self.recipe = objective, samples, recipe
        self.order = Order(len(samples), recipe.seed)

    def indices(self, step: int) -> np.ndarray:
        """The samples of a step. With `bucket` above 1, that many steps share their samples out by length."""
        size, bucket = self.recipe.batch * self.recipe.accumulate, self.recipe.bucket
        if bucket == 1:
            return np.asarray(self.order.indices(step * size, size))
        block, place = divmod(step, bucket)
        found = np.asarray(self.order.indices(block * bucket * size, bucket * size))
        found = found[np.argsort(self.samples.lengths[found], kind="stable")].reshape(bucket, size)
        turn = np.random.default_rng((self.recipe.seed, block)).permutation(bucket)
        return np.asarray(found[turn[place]])

    def step(self, step: int) -> list[Batch]:
        """The micro-batches of a step."""
        size = self.recipe.batch
        chosen = self.indices(step)
        seeds: list[tuple[int, ...]] = [(self.recipe.seed, step, i) for i in range(len(chosen))]
        return [self._collate(chosen[i : i + size], seeds[i : i + size]) for i in range(0, len(chosen), size)]

    def once(self, most: int | None) -> Iterator[Batch]:
        """All samples once, those of like length together, or `most` batches spread evenly over them; the same each time."""
        size, chosen = self.recipe.batch, np.arange(len(self.samples))
        if most is not None and most * size < len(chosen):
            chosen = np.arange(most * size) * len(chosen) // (most * size)
        ranked = chosen[np.argsort(self.samples.lengths[chosen], kind="stable")]
        for start in range(0, len(ranked), size):
            chosen = ranked[start : start + size]
            yield self._collate(chosen, [(self.recipe.seed, int(i)) for i in chosen])

    def _collate(self, chosen: np.ndarray, seeds: list[tuple[int, ...]]) -> Batch:
        return self.objective.collate([self.samples[i] for i in chosen], seeds)
