"""One step of training, whoever makes its batches: the loop, or a calibration."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from triform import config
from triform.nn import DualEncoder, Transformer, recomputing
from triform.objectives import Batch, Loss
from triform.planner import flops

from .optimizer import Optimizer, clip_gradients, schedule
from .recipe import TrainRecipe


class Scoring(Protocol):
    """What a step needs of an objective."""

    metric_names: tuple[str, ...]

    def loss(self, model: Any, batch: Batch, *, smoothing: float = 0.0, z_loss: float = 0.0) -> Loss:
        """What a batch costs."""
        ...


class Steps:
    """A model with its optimizer, and what happens to them in a step."""

    def __init__(
        self, spec: config.Model, model: Transformer | DualEncoder, objective: Scoring, settings: TrainRecipe, *, precision: str
    ) -> None:
        self.spec, self.model, self.objective, self.settings, self.precision = spec, model, objective, settings, precision
        self.device = next(model.parameters()).device.type
        self.optimizer = Optimizer(model, settings)

    def take(self, step: int, batches: Sequence[Batch]) -> dict[str, float]:
        """Train on the micro-batches of a step counted from 0.

        Returns its loss and metrics, rate, gradient_norm, tokens (padding left out) and flops. Raises ValueError
        when the loss or the gradient is no number any more.
        """
        recipe = self.settings
        torch.manual_seed(recipe.seed * 1_000_003 + step)  # dropout depends on the step alone, so a resumed run draws the same
        self.model.train()
        tokens = sum(batch.tokens for batch in batches)
        losses = self._backward(batches, tokens)
        norm = clip_gradients(self.model, recipe.clip)
        if not math.isfinite(losses["loss"]) or not math.isfinite(norm):
            raise ValueError(
                f"the loss is {losses['loss']} and its gradient's norm {norm} at step {step + 1}, expected numbers: "
                "lower train.rate or raise train.warmup"
            )
        share = schedule(step, recipe)
        self.optimizer.step(share)
        work = sum(batch_flops(self.spec, batch) for batch in batches)
        return {**losses, "rate": recipe.rate * share, "gradient_norm": norm, "tokens": tokens, "flops": work}

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16")

    def _backward(self, batches: Sequence[Batch], tokens: int) -> dict[str, float]:
        """Gradients of a step: of the loss summed over its labels, divided by their number. Returns the step's loss and metrics."""
        recipe = self.settings
        count = max(1, sum(batch.count for batch in batches))
        sums = dict.fromkeys(("loss", *self.objective.metric_names), 0.0)
        for batch in batches:
            part = batch.tokens / tokens
            batch = batch.to(self.device)
            with self._autocast(), recomputing(recipe.recompute):
                loss = self.objective.loss(self.model, batch, smoothing=recipe.smoothing, z_loss=recipe.z_loss)
            objective = loss.total / count
            if loss.auxiliary:
                extra = recipe.load_balance * loss.auxiliary["load_balance"] + recipe.router_z * loss.auxiliary["router_z"]
                objective = objective + extra * part
            torch.autograd.backward(objective)
            _add(sums, loss.total, loss.metrics)
        return {name: value / count for name, value in sums.items()}

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """The loss and the metrics over batches, means over their labels."""
        self.model.eval()
        count, sums = 0, {"loss": 0.0}
        for batch in batches:
            count += batch.count
            with self._autocast():
                loss = self.objective.loss(self.model, batch.to(self.device))
            _add(sums, loss.total, loss.metrics)
        return {name: value / max(1, count) for name, value in sums.items()}


def batch_flops(spec: config.Model, batch: Batch) -> float:
    """FLOPs of a batch's forward and backward pass, padding included."""
    target = None if batch.target is None else batch.target.shape[1]
    scored = -(-batch.count // len(batch.inputs))
    return 3.0 * len(batch.inputs) * flops.forward(spec, batch.inputs.shape[1], target, scored)


def _add(sums: dict[str, float], total: Tensor, metrics: dict[str, float]) -> None:
    for name, value in {"loss": float(total.detach()), **metrics}.items():
        sums[name] = sums.get(name, 0.0) + value
