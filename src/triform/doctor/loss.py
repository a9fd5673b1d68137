"""The loss before the first step: of a new model that of knowing nothing, of one that was trained that of the model it begins from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from triform import config, hub
from triform.objectives import Batch, Objective
from triform.train.loop import Trainer

from .findings import Finding
from .subject import Subject

_APART = 0.15  # of the expected loss, and at least half a nat
_AS_BASE, _AS_QUANTIZED = 0.02, 0.2  # of the base's loss


def step_zero(objective: Objective, model: Any, batches: Sequence[Batch]) -> float:
    """The mean loss (nats a label) over batches, without dropout and without gradients."""
    model.eval()
    device = next(model.parameters()).device
    with torch.no_grad():
        total = sum(float(objective.loss(model, batch.to(device)).total) for batch in batches)
    return total / max(1, sum(batch.count for batch in batches))


def check_loss(subject: Subject, trainer: Trainer) -> Iterator[Finding]:
    """The loss at step 0 is what it should be."""
    batches = subject.batches[:2]
    found = step_zero(subject.objective, trainer.model, batches)
    uniform = _uniform(subject, batches)
    figures = {"loss": found, "knowing_nothing": uniform}
    if not math.isfinite(found):
        advice = "look for weights that are no numbers (`triform doctor MODEL`), and for a precision too narrow"
        yield Finding("loss at step 0", "error", f"it is {found}", advice, {"loss": found})
        return
    if subject.recipe.train.start is not None:
        yield from _against_base(subject, hub.Checkpoint.open(subject.recipe.train.start), batches, figures)
        return
    if uniform is None:
        yield Finding("loss at step 0", "fine", f"it is {found:.3f} nats", figures=figures)
        return
    says = f"it is {found:.3f} nats, where a model that knows nothing has {uniform:.3f}"
    apart = max(0.5, _APART * uniform)
    if abs(found - uniform) <= apart or (found < uniform and isinstance(getattr(subject.spec, "head", None), config.Embed)):
        yield Finding("loss at step 0", "fine", says, figures=figures)
    elif found > uniform:
        advice = "the scores start too large: lower model.init.std, or scale tied embeddings as the family does (model.head.scale)"
        yield Finding("loss at step 0", "error" if found > 2 * uniform + 1 else "warning", says, advice, figures)
    else:
        advice = "a new model cannot know that: look whether the answer is in what it reads (labels not shifted, a mask that is not causal)"
        yield Finding("loss at step 0", "error", says, advice, figures)


def _uniform(subject: Subject, batches: Sequence[Batch]) -> float | None:
    found = [subject.objective.uniform_loss(subject.spec, batch) for batch in batches]
    counts = [batch.count for batch in batches]
    if any(loss is None for loss in found):
        return None
    return sum((loss or 0.0) * count for loss, count in zip(found, counts, strict=True)) / max(1, sum(counts))


def _against_base(subject: Subject, start: hub.Checkpoint, batches: Sequence[Batch], figures: dict[str, Any]) -> Iterator[Finding]:
    """The loss of a model that begins from another, beside that one's."""
    found, uniform = figures["loss"], figures["knowing_nothing"]
    base = _base_loss(subject, start, batches)
    figures = figures | {"base": base}
    if base is None:
        fresh = f"; it begins with a new head, and knowing nothing would be {uniform:.3f}" if uniform is not None else ""
        yield Finding("loss at step 0", "fine", f"it is {found:.3f} nats{fresh}", figures=figures)
        return
    says = f"it is {found:.3f} nats, and {base:.3f} by the model in {start.path.name}"
    adapter = subject.recipe.train.adapter
    near = _AS_QUANTIZED if adapter is not None and adapter.quantize is not None else _AS_BASE
    if abs(found - base) > near * max(1.0, base):
        advice = "the weights did not arrive as they were: compare the recipe's model with `triform inspect` of train.start"
        yield Finding("loss at step 0", "error", says, advice, figures)
    elif uniform is not None and subject.writes and not subject.objective.compares and base > 0.95 * uniform:
        advice = "the model knows nothing of such text: look at the tokenizer, the chat template and the text itself"
        yield Finding("loss at step 0", "warning", f"{says}; knowing nothing would be {uniform:.3f}", advice, figures)
    else:
        yield Finding("loss at step 0", "fine", says, figures=figures)


def _base_loss(subject: Subject, start: hub.Checkpoint, batches: Sequence[Batch]) -> float | None:
    """What the model that the run begins from gives for the same batches; None where its head or its table is another."""
    ours, theirs = subject.spec, start.spec
    if not (isinstance(ours, config.Transformer) and isinstance(theirs, config.Transformer)):
        return None
    if (ours.form, ours.head, ours.sentence_head) != (theirs.form, theirs.head, theirs.sentence_head):
        return None
    highest = max(int(x.max()) for batch in batches for x in (batch.inputs, batch.target) if x is not None and not x.is_floating_point())
    read = theirs.last.input
    if isinstance(read, config.Tokens) and highest >= read.vocab_size:
        return None
    return step_zero(subject.objective, start.build(dtype="fp32"), batches)
