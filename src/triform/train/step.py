"""One step of training, whoever makes its batches: the loop, or a calibration."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Protocol

import torch

from triform import config
from triform.nn import DualEncoder, Transformer, recomputing
from triform.nn.compiler import choose_compile
from triform.nn.products import Products, allow_narrow, training_products
from triform.objectives import Batch, Loss
from triform.planner import flops

from .average import Average
from .compiled import Compiled
from .fp8 import to_fp8
from .guard import Watch, fresh
from .offload import offloading
from .onednn import choose_linear
from .optimizer import Optimizer, clip_factor, norm_of_gradients, schedule
from .recipe import TrainRecipe
from .scaling import LossScale


class Scoring(Protocol):
    """What a step needs of an objective."""

    metric_names: tuple[str, ...]

    def loss(self, model: Any, batch: Batch, *, smoothing: float = 0.0, z_loss: float = 0.0) -> Loss:
        """What a batch costs."""
        ...


class Steps:
    """A model with its optimizer, and what happens to them in a step."""

    def __init__(
        self, spec: config.Model, model: Transformer | DualEncoder, objective: Scoring, settings: TrainRecipe, *, precision: str,
        linear: str | None = None, compiled: bool | None = None,
    ) -> None:  # fmt: skip
        self.spec, self.model, self.objective, self.settings, self.precision = spec, model, objective, settings, precision
        self.device = next(model.parameters()).device.type
        self.linear = linear or choose_linear(settings.linear, self.device, precision)
        if precision == "fp8":
            to_fp8(model)
        wanted = choose_compile(settings.compile, self.device) if compiled is None else compiled
        self.compiled = Compiled(model) if wanted else None
        self.optimizer = Optimizer(model, settings)
        self.narrow = self.device == "cpu" and precision == "bf16" and self.compiled is None and self.optimizer.takes_narrow
        if self.narrow:
            allow_narrow(model.parameters())
        self.average = None if settings.ema is None else Average(model, settings.ema)
        self.watch = None if settings.guard is None else Watch(settings.guard, fresh())
        self.scaling = LossScale() if precision == "fp16" else None

    def take(self, step: int, batches: Sequence[Batch]) -> dict[str, Any]:
        """Train on the micro-batches of a step counted from 0.

        Returns its loss and metrics, rate, gradient_norm, tokens (padding left out) and flops; under a guard a bad
        step changes nothing but has `skipped`, which says why. Raises ValueError when, without a guard, the loss
        or the gradient is no number any more.
        """
        recipe, tokens = self.settings, sum(batch.tokens for batch in batches)
        losses, norm = self.gradients(step, batches)
        why = self._judge(step, losses["loss"], norm)
        share = schedule(step, recipe)
        if why is None:
            self.optimizer.step(share, clip_factor(norm, recipe.clip))
            if self.average is not None:
                self.average.update(step)
        else:
            self.model.zero_grad(set_to_none=True)
        work = sum(batch_flops(self.spec, batch, self.settings.adapter) for batch in batches)
        row = {**losses, "rate": recipe.rate * share, "gradient_norm": norm, "tokens": tokens, "flops": work}
        return row if why is None else row | {"skipped": why}

    def gradients(self, step: int, batches: Sequence[Batch]) -> tuple[dict[str, float], float]:
        """Leave the gradients of a step in the model, not yet clipped; returns its loss and metrics, and the gradients' norm."""
        torch.manual_seed(self.settings.seed * 1_000_003 + step)  # dropout depends on the step alone, so a resumed run draws the same
        self.model.train()
        losses = self._backward(batches, sum(batch.tokens for batch in batches))
        if self.scaling is not None:
            self.scaling.unscale(self.model.parameters())
        return losses, norm_of_gradients(self.model)

    def _judge(self, step: int, loss: float, norm: float) -> str | None:
        """Why a step must not be taken."""
        if self.scaling is not None and math.isfinite(loss):
            if math.isfinite(norm):
                self.scaling.went_well()
            elif self.scaling.overflowed():
                return f"a gradient overflowed in fp16; the loss is scaled by {self.scaling.factor:g} from now on"
        if self.watch is not None:
            return self.watch.judge(step, loss, norm)
        if math.isfinite(loss) and math.isfinite(norm):
            return None
        raise ValueError(
            f"the loss is {loss} and its gradient's norm {norm} at step {step + 1}, expected numbers: "
            "lower train.rate or raise train.warmup, or leave such steps out with train.guard={}"
        )

    def averaged(self) -> AbstractContextManager[None]:
        """The model has the averaged weights in this context, where an average is kept."""
        return nullcontext() if self.average is None else self.average.used()

    def _autocast(self) -> torch.autocast:
        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.device, dtype, enabled=self.precision != "fp32")

    def _backward(self, batches: Sequence[Batch], tokens: int) -> dict[str, float]:
        """Gradients of a step: of the loss summed over its labels, divided by their number. Returns the step's loss and metrics."""
        recipe = self.settings
        count = max(1, sum(batch.count for batch in batches))
        sums, counts = dict.fromkeys(("loss", *self.objective.metric_names), 0.0), dict[str, float]()
        # A gradient that nothing is added to stays as narrow as the product that made it.
        ways = Products(self.linear == "onednn", in_place=True, narrow=self.narrow and len(batches) == 1, layers=self.compiled is None)
        products = partial(training_products, ways) if self.device == "cpu" else None
        compiled = nullcontext if self.compiled is None else self.compiled.used
        for batch in batches:
            part = batch.tokens / tokens
            batch = batch.to(self.device)
            with (
                self._autocast(), (products or nullcontext)(), offloading(recipe.offload, self.model.parameters()),
                recomputing(recipe.recompute, products), compiled(),
            ):  # fmt: skip
                loss = self.objective.loss(self.model, batch, smoothing=recipe.smoothing, z_loss=recipe.z_loss)
            objective = loss.total / count
            if loss.auxiliary:
                extra = recipe.load_balance * loss.auxiliary["load_balance"] + recipe.router_z * loss.auxiliary["router_z"]
                objective = objective + extra * part
            torch.autograd.backward(objective if self.scaling is None else objective * self.scaling.factor)
            ways.settle()
            _add(sums, counts, loss)
        return _means(sums, counts, count)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """The loss and the metrics over batches, means over their labels, with the averaged weights where there are any."""
        self.model.eval()
        count, sums, counts = 0, {"loss": 0.0}, dict[str, float]()
        with self.averaged():
            for batch in batches:
                count += batch.count
                with self._autocast():
                    loss = self.objective.loss(self.model, batch.to(self.device))
                _add(sums, counts, loss)
        return _means(sums, counts, max(1, count))


def batch_flops(spec: config.Model, batch: Batch, adapter: config.Adapter | None = None) -> float:
    """FLOPs of a batch's forward and backward pass, padding included; with an adapter none are by frozen weights."""
    target = None if batch.target is None else batch.target.shape[1]
    scored = -(-batch.scored // len(batch.inputs))
    shape = (spec, batch.inputs.shape[1], target, scored)
    each = 3 * flops.forward(*shape) if adapter is None else flops.training(*shape, adapter=adapter)
    return float(len(batch.inputs) * each)


def _add(sums: dict[str, float], counts: dict[str, float], loss: Loss) -> None:
    for name, value in {"loss": float(loss.total.detach()), **loss.metrics}.items():
        sums[name] = sums.get(name, 0.0) + value
    for name, value in loss.counts.items():
        counts[name] = counts.get(name, 0.0) + value


def _means(sums: dict[str, float], counts: dict[str, float], count: float) -> dict[str, float]:
    """Sums over `count` labels, or over what `counts` says, as means; one over nothing is left out."""
    return {name: value / counts.get(name, count) for name, value in sums.items() if counts.get(name, count)}
