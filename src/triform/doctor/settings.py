"""What the recipe says of the optimization, against what is usual; and what the plan says of memory and time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from triform import planner
from triform.objectives.kto import KTO
from triform.objectives.on_policy import OnPolicy
from triform.objectives.preference import Preference
from triform.planner import Plan
from triform.planner.describe import short
from triform.planner.quantities import data_size, duration
from triform.train.recipe import Recipe

from .findings import Finding, graded
from .subject import Subject

_CAREFUL = (Preference, KTO, OnPolicy)  # objectives for which a trained model is moved a little only
_TIGHT = 0.9  # of the memory


class Band(NamedTuple):
    """Learning rates that are usual, and what for."""

    low: float
    high: float
    why: str


def usual_rate(recipe: Recipe, parameters: int) -> Band:
    """The learning rates that are usual for an optimizer, a size and a beginning.

    Adam's for a new model are around 0.003239 - 0.0001395 ln(parameters) (Kaplan et al. 2020, appendix D.6), which larger models bear
    less of; a model that was trained already bears twice that at most, and commonly has a hundredth.
    """
    optimizer, loaded = recipe.train.optimizer, recipe.train.start is not None
    what = f"{optimizer} on {'a trained' if loaded else 'a new'} model of {short(parameters)} parameters"
    if recipe.train.adapter is not None:
        return Band(1e-5, 1e-2, f"{optimizer} on an adapter")
    if optimizer == "sgd":
        return Band(1e-5, 1.0, what) if loaded else Band(1e-3, 2.0, what)
    if optimizer == "adafactor":
        return Band(1e-5, 1e-2, what) if loaded else Band(1e-4, 5e-2, what)
    centre = max(1e-4, 0.003239 - 0.0001395 * math.log(max(2, parameters)))
    if isinstance(recipe.objective, _CAREFUL):
        return Band(1e-8, centre, what)
    return Band(centre / 1000, 2 * centre, what) if loaded else Band(centre / 30, 10 * centre, what)


def check_rate(subject: Subject) -> Iterator[Finding]:
    """The learning rate is in the usual band."""
    recipe = subject.recipe
    settings = recipe.train
    band = usual_rate(recipe, planner.parameters(subject.spec).total)
    rates = [("train.rate", settings.rate, band)]
    if settings.optimizer == "muon":
        rates.append(("train.muon_rate", settings.muon_rate, Band(1e-4, 0.1, "muon")))
    for name, rate, usual in rates:
        between = f"{usual.low:.1g} to {usual.high:.1g} is usual for {usual.why}"
        figures = {"rate": rate, "low": usual.low, "high": usual.high}
        if usual.low <= rate <= usual.high:
            yield Finding("learning rate", "fine", f"{name} is {rate:g}; {between}", figures=figures)
            continue
        above = rate > usual.high
        what = "the loss may rise, or be no number" if above else "little may be learnt in these steps"
        severity = graded(rate / usual.high, 1, 10) if above else graded(usual.low / rate, 1, 1000)
        advice = f"set {name}={usual.high if above else usual.low:.1g}, or ask `triform train RECIPE --find-rate`"
        yield Finding("learning rate", severity, f"{name} is {rate:g}, and {between}: {what}", advice, figures)


def check_steps(subject: Subject) -> Iterator[Finding]:
    """The warm-up ends before the run, and the data are read neither hardly nor all too often."""
    settings = subject.recipe.train
    if settings.warmup >= settings.steps:
        advice = f"set train.warmup={max(1, settings.steps // 20)} or so"
        says = f"the rate still rises when the run ends: train.warmup is {settings.warmup} of {settings.steps} steps"
        yield Finding("warm-up", "warning", says, advice, {"warmup": settings.warmup, "steps": settings.steps})
    if subject.share is None:
        return
    samples = max(1, round(len(subject.train) / subject.share))
    passes = settings.steps * settings.batch * settings.accumulate / samples / getattr(subject.recipe.objective, "iterations", 1)
    figures = {"passes": passes, "samples": samples}
    if passes > 200:
        says = f"each of {samples:,} samples is read {passes:,.0f} times, so the model will know them by heart"
        yield Finding("steps", "warning", says, "lower train.steps, or add data; train.export=best keeps the best of validation", figures)
    else:
        yield Finding("steps", "fine", f"{settings.steps:,} steps read each of {samples:,} samples {passes:.2g} times", figures=figures)


def check_plan(found: Plan) -> Iterator[Finding]:
    """Memory and time by the run's plan."""
    held, room = found.memory.training.total, found.memory.capacity
    largest = ", ".join(f"{name} {data_size(size)}" for name, size in sorted(found.memory.training.parts.items(), key=lambda p: -p[1])[:3])
    severity = graded(held / room, _TIGHT, 1)
    advice = "" if severity == "fine" else "lower train.batch, or set train.recompute=full or train.optimizer=adamw8bit"
    figures = {"bytes": held, "capacity": room}
    yield Finding("memory", severity, f"a step takes {data_size(held)} of {data_size(room)} ({largest})", advice, figures)
    seconds = found.time.expected_seconds
    says = f"about {duration(seconds)} for {found.steps:,} steps and {short(found.tokens)} tokens ({found.time.reason})"
    yield Finding("time", "note" if seconds >= 3600 else "fine", says, figures={"seconds": seconds})
