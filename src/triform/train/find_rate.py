"""Finding a learning rate: it rises exponentially over some steps on the real data, and the loss shows where it is too high."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from triform.config.files import replacing
from triform.objectives.on_policy import OnPolicy

from .loop import Trainer
from .optimizer import clip_factor
from .recipe import Recipe

Report = Callable[[int], None]
_MEMORY = 0.9  # of the loss' moving average
_DIVERGED = 1.5  # times the lowest loss, in nats above zero, ends the sweep


@dataclass(frozen=True)
class Rates:
    """What a sweep found.

    rates, losses: of each step, the losses smoothed. steepest: the rate where the loss falls fastest. rate: the
    suggestion, a tenth of the rate where the loss was lowest, or the steepest where that is higher.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    steepest: float
    rate: float


def find_rate(recipe: Recipe, *, steps: int = 100, low: float = 1e-6, high: float = 1.0, report: Report | None = None) -> Rates:
    """Train for up to `steps` steps while the rate rises from `low` to `high`, and suggest one (Smith 2017, section 3.3).

    The model begins as the recipe's run would; it and its prepared data are thrown away. `report` is called with the
    number of each step. Raises ValueError for what is wrong in the recipe, or where the loss never falls.
    """
    if not (0 < low < high) or steps < 10:
        raise ValueError(f"find_rate: expected 0 < low < high and at least 10 steps, got {low}, {high} and {steps}")
    if isinstance(recipe.objective, OnPolicy):
        raise ValueError(f"find_rate: the loss of {type(recipe.objective).__name__} says nothing of a rate; watch the reward of short runs")
    with tempfile.TemporaryDirectory(prefix="triform-rate-") as place:
        sweep = replace(recipe, train=replace(recipe.train, steps=steps, warmup=0, guard=None, track=(), samples=None, curriculum=None))
        losses = _sweep(Trainer(sweep, Path(place), progress=report is not None), steps, low, high, report or (lambda step: None))
    rates = [_rate(step, steps, low, high) for step in range(len(losses))]
    lowest = int(np.argmin(losses))
    if lowest < 5:
        where = f"{losses[0]:.3f} at any rate from {low:g} to {high:g}"
        raise ValueError(f"the loss does not fall from {where}; look at the data and the model")
    slopes = np.gradient(np.asarray(losses[: lowest + 1]))
    steepest = rates[int(np.argmin(slopes))]
    return Rates(tuple(rates), tuple(losses), steepest, _two_digits(max(steepest, rates[lowest] / 10)))


def _rate(step: int, steps: int, low: float, high: float) -> float:
    return float(low * (high / low) ** (step / (steps - 1)))


def _sweep(trainer: Trainer, steps: int, low: float, high: float, report: Report) -> list[float]:
    smooth, weight, losses = 0.0, 0.0, list[float]()
    for step in range(steps):
        figures, norm = trainer.gradients(step, trainer.train.step(step))
        loss = figures["loss"]
        if not (math.isfinite(loss) and math.isfinite(norm)):
            break
        smooth, weight = _MEMORY * smooth + (1 - _MEMORY) * loss, _MEMORY * weight + (1 - _MEMORY)
        losses.append(smooth / weight)
        if losses[-1] > _DIVERGED * min(losses):
            break
        trainer.optimizer.step(_rate(step, steps, low, high) / trainer.settings.rate, clip_factor(norm, trainer.settings.clip))
        report(step + 1)
    if not losses:
        raise ValueError("the first loss is no number; look at the data and the model")
    return losses


def _two_digits(value: float) -> float:
    return float(f"{value:.1e}")


def plot_rates(found: Rates, file: Path) -> Path:
    """Draw the loss over the rate, with the suggestion, as SVG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axis = figure.subplots()
    axis.plot(found.rates, found.losses)
    axis.axvline(found.rate, color="tab:red", linestyle="--", label=f"{found.rate:g}")
    axis.set_xscale("log")
    axis.set_xlabel("learning rate")
    axis.set_title("loss (nats a label, smoothed)")
    axis.grid(alpha=0.3)
    axis.legend()
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as new:
        figure.savefig(new, format="svg")
    return file
