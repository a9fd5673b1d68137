"""A few real steps of a model, timed: what a whole run of it will take on this machine."""

from __future__ import annotations

import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from itertools import islice
from pathlib import Path

import torch
from safetensors.torch import save

from triform import config
from triform.nn import IGNORE, build
from triform.objectives import Batch, Objective
from triform.objectives.classification import ClassificationObjective
from triform.planner import flops
from triform.planner.calibration import Calibration, remember
from triform.planner.machine import measure
from triform.planner.setting import Setting

from .allocator import keeping_memory
from .checkpoint import kept
from .loop import Trainer
from .offload import check_offload
from .outlook import device_here, setting_of
from .peak import check_precision
from .recipe import Recipe, TrainRecipe
from .step import Steps

Report = Callable[[float], None]
_GOLDEN = (math.sqrt(5) - 1) / 2
_WARM_UP = 0.15  # of the time, and at least two steps: thread pools, kernels chosen for a shape, caches
_LEAST = 3  # timed steps, however long they take
_VALIDATION_SHARE = 0.2  # of the time
_SIZING_SHARE = 0.1  # of the time, for steps that are made and not taken
_ALIKE = 0.005  # steps whose FLOPs differ by less are of one size


@dataclass
class _LanguageModelling:
    """The loss of a language model, for batches that no objective has made."""

    metric_names: tuple[str, ...] = ()
    loss = Objective.loss


@dataclass
class _Classifying:
    """The loss of a classifier, for batches that no objective has made."""

    problem = "single_label_classification"
    metric_names: tuple[str, ...] = ClassificationObjective.metric_names
    loss = ClassificationObjective.loss


def calibrate(
    what: Recipe | config.Model, setting: Setting | None = None, *, seconds: float = 60.0, folder: Path | None = None,
    report: Report | None = None,
) -> Calibration:  # fmt: skip
    """Time some steps of a recipe on its own data, or of a model with a setting on random tokens, for about `seconds`.

    The steps are the training loop's own. Of a recipe they are spread evenly over the run, so that padding is what
    it will be, and a validation and a checkpoint are timed too; its data is prepared first, in `folder` where one is
    given (not the run's own), to be found there the next time. The result is remembered (`calibration.recall`) for this machine, the model
    and the setting (`setting_of` a recipe). `report` is called with the share that is done.

    Raises ValueError for a model that no objective trains, for a model without a setting, and for less than a second.
    """
    if not seconds >= 1:
        raise ValueError(f"seconds: expected at least 1, got {seconds}")
    say = report or (lambda share: None)
    if isinstance(what, Recipe):
        with _place(folder) as place:
            trainer = Trainer(what, place, progress=report is not None)
            with keeping_memory():
                found = _measure(trainer, trainer.train.step, what.train.steps, seconds, say, trainer=trainer)
            remember(trainer.spec, setting_of(what, trainer.spec, trainer.precision), found)
        return found
    if setting is None:
        raise ValueError("calibrate: expected a setting beside a model; a recipe has its own")
    steps = _rehearsal(what, setting)
    with keeping_memory():
        found = _measure(steps, lambda step: _random_batches(what, setting, step), 1_000_000, seconds, say)
    remember(what, setting, found)
    return found


@contextmanager
def _place(folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="triform-calibrate-") as name:
        yield Path(name)


def _measure(
    steps: Steps, batches: Callable[[int], Sequence[Batch]], count: int, seconds: float, say: Report, *, trainer: Trainer | None = None
) -> Calibration:
    begun, number, warm = time.perf_counter(), 0, 0
    together = 1 if trainer is None else getattr(trainer.recipe.objective, "updates", 1)
    times: list[float] = []
    sizes: list[tuple[float, int]] = []
    while True:
        passed = time.perf_counter() - begun
        place = number % together
        if passed >= seconds and len(times) >= _LEAST and place == 0:
            break
        say(min(1.0, passed / seconds) * (1 - _VALIDATION_SHARE))
        step, number = _walk(number, count, together), number + 1
        start = time.perf_counter()
        made = batches(step)
        steps.take(step, made)
        took = time.perf_counter() - start
        if warm < 2 or (not times and (passed < _WARM_UP * seconds or place)):
            warm += 1
            continue
        times.append(took)
        sizes.append(_size(steps, made))
    further = (_size(steps, batches(_walk(number + i, count, together))) for i in range(count))
    mean, (work, tokens) = _corrected(times, sizes, further, seconds)
    validation, checkpoint = _rest(trainer, seconds * _VALIDATION_SHARE) if trainer is not None else (0.0, 0.0)
    say(1.0)
    return Calibration(
        step_seconds=mean,
        step_flops=work,
        step_tokens=tokens,
        utilisation=work / mean / measure().card.at(steps.precision),
        validation_seconds=validation,
        checkpoint_seconds=checkpoint,
        steps=len(times),
        spread=statistics.pstdev(times) / statistics.fmean(times),
        precision=steps.precision,
        day=date.today().isoformat(),
    )


def _walk(number: int, count: int, together: int = 1) -> int:
    """The golden-ratio walk over the steps of a run, which comes everywhere evenly, whenever it ends.

    Of steps that follow from one another, as those of one rollout do, so many are visited together.
    """
    block, place = divmod(number, together)
    return int(block * _GOLDEN % 1 * max(1, count // together)) * together + place


def _corrected(
    times: list[float], sizes: list[tuple[float, int]], more: Iterator[tuple[float, int]], seconds: float
) -> tuple[float, tuple[float, float]]:
    """Seconds, FLOPs and tokens of a mean step of the run.

    Where steps differ in size, those that were timed are a small sample: more are made, not taken, and the time
    is corrected along its slope over the FLOPs (a control variate).
    """
    works = [work for work, _ in sizes]
    mean = statistics.fmean(times)
    if statistics.pstdev(works) < _ALIKE * statistics.fmean(works):
        return mean, (statistics.fmean(works), statistics.fmean(tokens for _, tokens in sizes))
    slope = max(0.0, statistics.linear_regression(works, times).slope)
    every, end = list(sizes), time.perf_counter() + _SIZING_SHARE * seconds
    for size in more:
        every.append(size)
        if time.perf_counter() >= end:
            break
    work = statistics.fmean(work for work, _ in every)
    return mean + slope * (work - statistics.fmean(works)), (work, statistics.fmean(tokens for _, tokens in every))


def _size(steps: Steps, batches: Sequence[Batch]) -> tuple[float, int]:
    """FLOPs, padding included, and tokens, padding left out, of a step."""
    return sum(_flops(steps, batch) for batch in batches), sum(batch.tokens for batch in batches)


def _flops(steps: Steps, batch: Batch) -> float:
    """FLOPs of a batch's forward and backward pass, padding and recomputation included."""
    target = None if batch.target is None else batch.target.shape[1]
    scored = -(-batch.count // len(batch.inputs))
    each = flops.training(steps.spec, batch.inputs.shape[1], target, scored, steps.settings.recompute, steps.settings.adapter)
    return len(batch.inputs) * each


def _rest(trainer: Trainer, seconds: float) -> tuple[float, float]:
    """Seconds of a whole validation, from batches spread over it, and of a checkpoint."""
    validation = 0.0
    if trainer.validation is not None:
        most, size = trainer.settings.validation_batches, trainer.settings.batch
        every = -(-len(trainer.validation.samples) // size)
        whole = every if most is None else min(most, every)
        # Batches are sorted by length: one in the middle is the first to time, and tells how many fit.
        start = time.perf_counter()
        trainer.evaluate(islice(trainer.validation.once(most), whole // 2, whole // 2 + 1))
        stride = max(1, math.ceil(whole * (time.perf_counter() - start) / seconds))
        start = time.perf_counter()
        trainer.evaluate(islice(trainer.validation.once(most), stride // 2, None, stride))
        validation = (time.perf_counter() - start) * whole / len(range(stride // 2, whole, stride))
    # What a checkpoint holds, written beside where it will be.
    tensors = {f"model/{name}": tensor for name, tensor in kept(trainer.model).items()} | trainer.optimizer.state()
    with tempfile.TemporaryFile(dir=trainer.folder) as file:
        start = time.perf_counter()
        file.write(save({name: tensor.contiguous() for name, tensor in tensors.items()}))
        file.flush()
        os.fsync(file.fileno())
        return validation, time.perf_counter() - start


def _rehearsal(model: config.Model, setting: Setting) -> Steps:
    objective = _objective(model)
    if setting.precision == "fp16":
        raise ValueError("precision: expected fp32 or bf16, which the training loop computes in, got fp16")
    check_precision(setting.precision, device_here())
    if setting.offload:
        check_offload(device_here())
    settings = TrainRecipe(
        steps=1_000_000, batch=setting.batch, accumulate=setting.accumulate, optimizer=setting.optimizer,
        recompute=setting.recompute, offload=setting.offload,
    )
    built = build(model, device=device_here(), seed=0)
    return Steps(model, built, objective, settings, precision=setting.precision)


def _objective(model: config.Model) -> _LanguageModelling | _Classifying:
    head = getattr(model, "head", None)
    reads = [getattr(model, side, None) for side in ("encoder", "decoder")]
    if all(isinstance(stack.input, config.Tokens) for stack in reads if stack is not None):
        if isinstance(head, config.LanguageModel):
            return _LanguageModelling()
        if isinstance(head, config.Classify):
            return _Classifying()
    kind = type(head).__name__ if head is not None else "no"
    raise ValueError(f"calibrate: expected a model of text with a LanguageModel or Classify head, got a {model.form} with {kind} head")


def _random_batches(model: config.Model, setting: Setting, step: int) -> list[Batch]:
    assert isinstance(model, config.Transformer)
    random = torch.Generator().manual_seed(step)
    read, last = model.encoder or model.last, model.last
    both = model.form == "encoder-decoder"

    def ids(stack: config.Stack, length: int) -> torch.Tensor:
        assert isinstance(stack.input, config.Tokens)
        return torch.randint(stack.input.vocab_size, (setting.batch, length), generator=random)

    def batch() -> Batch:
        length = setting.target_length if both else setting.sequence
        inputs, target = ids(read, setting.sequence), ids(last, length) if both else None
        if isinstance(model.head, config.Classify):
            return Batch(inputs, torch.randint(model.head.labels, (setting.batch,), generator=random), target=target)
        labels = ids(last, length)
        if setting.scored is not None:
            labels[:, torch.randperm(length, generator=random)[setting.scored :]] = IGNORE
        return Batch(inputs, labels, target=target)

    return [batch() for _ in range(setting.accumulate)]
