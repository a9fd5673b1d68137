"""A few examples learnt by heart: what a model cannot do when labels, masks or weights are wrong, and what takes a minute to try."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from triform import config
from triform.nn import IGNORE
from triform.objectives import Batch
from triform.train.loop import Trainer
from triform.train.optimizer import Optimizer, clip_factor, norm_of_gradients
from triform.train.recipe import TrainRecipe

from .findings import Finding
from .subject import Subject

EXAMPLES, STEPS, WARMUP = 10, 300, 10
NEAR_ZERO = 0.1  # nats a label
_FALLEN = 0.2  # of what the loss was
_FASTER, _SLOWER = 10.0, 0.1  # times the recipe's rate

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Fit:
    """How it went: the loss (nats a label, without dropout and smoothing) before and after, the loss to come to, and the rate and the
    steps that it took."""

    before: float
    after: float
    goal: float
    rate: float
    steps: int

    @property
    def learnt(self) -> bool:
        """Whether the loss came near zero."""
        return self.after <= self.goal


def lowest_loss(batch: Batch, *, looks_back: bool) -> float:
    """The loss (nats a label) that no model can go below on a batch: what the same text before it does not decide.

    looks_back: a label follows from the tokens before it in its document, and the encoder's, if there is one; otherwise from its
    whole row and its place.
    """
    counts: defaultdict[object, Counter[int]] = defaultdict(Counter)
    documents = None if batch.layout is None else batch.layout.documents
    for row, labels in enumerate(batch.labels):
        read = batch.inputs[row] if batch.target is None else batch.target[row]
        beside = () if batch.target is None and looks_back else hash(tuple(batch.inputs[row].flatten().tolist()))
        if labels.ndim == 0:
            counts[beside or row][int(labels)] += 1
            continue
        before = 0
        for place, label in enumerate(labels.tolist()):
            begins = place == 0 or (documents is not None and documents[row, place] != documents[row, place - 1])
            before = hash((0 if begins else before, int(read[place])))
            if label != IGNORE:
                counts[(beside, before if looks_back else place)][label] += 1
    total = sum(found.total() for found in counts.values())
    lost = sum(count * math.log(found.total() / count) for found in counts.values() for count in found.values())
    return lost / max(1, total)


def few(subject: Subject, trainer: Trainer) -> Batch:
    """One batch of the first ten samples of the run, the same masks and noise each time."""
    samples = trainer.train.samples
    steps = range(min(EXAMPLES, trainer.settings.steps))
    chosen = list(dict.fromkeys(int(i) for step in steps for i in trainer.train.indices(step)))[:EXAMPLES]
    return subject.objective.collate([samples[i] for i in chosen], [(0, 0, i) for i in range(len(chosen))])


def near_zero(subject: Subject, batch: Batch) -> float | None:
    """The loss that counts as near zero on a batch; None where the loss has no such zero, and a fifth of what it is at first counts."""
    head = getattr(subject.spec, "head", None)
    if subject.objective.uniform_loss(subject.spec, batch) is None or hasattr(subject.recipe.objective, "rows_a_sample"):
        return None
    if batch.labels.is_floating_point() or not isinstance(head, config.LanguageModel | config.Classify | config.ClassifyTokens):
        return NEAR_ZERO
    return NEAR_ZERO + lowest_loss(batch, looks_back=getattr(subject.spec, "decoder", None) is not None)


def fit(
    trainer: Trainer, batch: Batch, goal: float | None, factor: float = 1.0, *, steps: int = STEPS, report: Report | None = None
) -> Fit:
    """Train the model on one batch with the recipe's optimizer, at `factor` times its rates, until the loss is at the `goal` (nats a
    label; None: a fifth of what it is at first); then give it its weights back."""
    model, settings = trainer.model, trainer.settings
    settings = replace(settings, rate=settings.rate * factor, muon_rate=settings.muon_rate * factor, weight_decay=0.0)
    batch = batch.to(trainer.device)
    model.eval()  # dropout would keep the loss from zero
    before = {parameter: parameter.detach().clone() for parameter in model.parameters() if parameter.requires_grad}
    try:
        return _fitted(trainer, (batch, goal), settings, steps, report)
    finally:
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for parameter, value in before.items():
                parameter.copy_(value)


def _fitted(trainer: Trainer, task: tuple[Batch, float | None], settings: TrainRecipe, steps: int, report: Report | None) -> Fit:
    optimizer, (batch, goal) = Optimizer(trainer.model, settings), task
    first = math.nan
    for step in range(steps + 1):
        loss = trainer.objective.loss(trainer.model, batch).total / max(1, batch.count)
        now = float(loss.detach())
        first = now if step == 0 else first
        goal = _FALLEN * first if goal is None else goal
        if report is not None:
            report(step, steps)
        if not math.isfinite(now) or now <= goal or step == steps:
            break
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step(min(1.0, (step + 1) / WARMUP), clip_factor(norm_of_gradients(trainer.model), settings.clip))
    assert goal is not None
    return Fit(first, now, goal, settings.rate, step)


def check_overfit(subject: Subject, trainer: Trainer, report: Report | None = None, *, steps: int = STEPS) -> Finding:
    """Ten examples can be learnt by heart; where they cannot, other rates tell whether the rate is at fault or the examples are."""
    batch = few(subject, trainer)
    goal = near_zero(subject, batch)
    if not batch.count:
        says = f"nothing is scored in the first {len(batch.inputs)} samples"
        return Finding("overfit", "error", says, "see what is said of labels above")
    if batch.labels.ndim == 1 and goal is not None and goal > 2 * NEAR_ZERO:
        says = f"equal examples among the first {len(batch.inputs)} have different labels"
        return Finding("overfit", "error", says, "decide which label is right; see `contradictions`", {"lowest_loss": goal - NEAR_ZERO})
    tried: list[Fit] = []
    for factor in (1.0, _FASTER, _SLOWER):
        tried.append(fit(trainer, batch, goal, factor, steps=steps, report=report))
        if tried[-1].learnt:
            break
    return _told(tried, len(batch.inputs))


def _told(tried: list[Fit], examples: int) -> Finding:
    own, last = tried[0], tried[-1]
    figures: dict[str, Any] = {"tried": [{**vars(one), "learnt": one.learnt} for one in tried]}
    went = f"from {own.before:.3f} to {own.after:.3f} nats in {own.steps} steps on {examples} examples"
    if own.learnt:
        floor = own.goal - NEAR_ZERO
        lowest = f", where no model can come below {floor:.3f}" if 0.01 <= floor < own.after else ""
        return Finding("overfit", "fine", f"the loss falls {went}{lowest}", figures=figures)
    if last.learnt:
        what = "low" if last.rate > own.rate else "high"
        advice = f"train.rate={own.rate:g} is too {what}: with {last.rate:g} the loss falls to {last.after:.3f} in {last.steps} steps"
        return Finding("overfit", "warning", f"the loss goes {went} only", advice, figures)
    advice = (
        "what is asked for does not follow from what is read, or does not reach the weights: look for equal examples with different "
        "labels, answers that are cut off, a mask that hides the text, frozen or all-zero weights, and a model too small for ten examples"
    )
    return Finding("overfit", "error", f"the loss goes {went}, and no rate brings it near zero", advice, figures)
