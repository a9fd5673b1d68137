"""The one loop: recipe in, trained model out. It knows neither BERT nor T5, only an objective's batches and losses."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from triform import config, hub
from triform.data.order import Order
from triform.nn import build
from triform.objectives import Batch, Objective, Samples
from triform.plan import flops

from .checkpoint import checkpoints, load_checkpoint, save_checkpoint
from .metrics import Metrics, plot_curves, progress_bar
from .optimizer import Optimizer, clip_gradients, schedule
from .peak import choose_precision, matmul_peak
from .prepare import prepare
from .recipe import Recipe, TrainRecipe

Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Result:
    """What a run came to.

    seconds: time in steps and validation. flops: of forward and backward passes. finished:
    False when interrupted.
    """

    folder: str
    steps: int
    seconds: float
    tokens: int
    flops: float
    parameters: int
    precision: str
    loss: float | None
    validation_loss: float | None
    validation_accuracy: float | None
    finished: bool


class Batches:
    """Which samples make which step, worked out from the step's number alone."""

    def __init__(self, objective: Objective, samples: Samples, recipe: TrainRecipe, shuffle: bool = True) -> None:
        self.objective, self.samples, self.recipe = objective, samples, recipe
        self.order = Order(len(samples), recipe.seed, shuffle=shuffle)

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
        """All samples once, longest together, at most `most` batches; the same each time."""
        ranked = np.argsort(self.samples.lengths, kind="stable") if self.recipe.bucket > 1 else np.arange(len(self.samples))
        size = self.recipe.batch
        starts = range(0, len(ranked), size)[:most]
        for start in starts:
            chosen = ranked[start : start + size]
            yield self._collate(chosen, [(self.recipe.seed, int(i)) for i in chosen])

    def _collate(self, chosen: np.ndarray, seeds: list[tuple[int, ...]]) -> Batch:
        return self.objective.collate([self.samples[i] for i in chosen], seeds)


class Trainer:
    """A run in a folder, from its recipe; `run` below is the way in."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.recipe, self.settings, self.folder = recipe, recipe.train, folder
        prepared = prepare(recipe, folder)
        self.objective, self.tokenizer = prepared.objective, prepared.objective.tokenizer
        self.spec = recipe.architecture(self.tokenizer.vocab_size)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.precision = choose_precision(self.settings.precision, self.device)
        self.model = build(self.spec, device=self.device, seed=self.settings.seed)
        if self.settings.start is not None:
            hub.read_weights(self.model, Path(self.settings.start) / "model.safetensors", head=False)
        self.optimizer = Optimizer(self.model, self.settings)
        self.train = Batches(self.objective, prepared.train, self.settings)
        self.validation = Batches(self.objective, prepared.validation, self.settings) if len(prepared.validation) else None
        self.metrics = Metrics(folder, tensorboard=self.settings.tensorboard)
        self.state: dict[str, Any] = {"step": 0, "seconds": 0.0, "tokens": 0, "flops": 0.0, "best": None, "precision": self.precision}
        self.last: dict[str, Any] = {}

    def resume(self) -> None:
        """Continue from the newest checkpoint, if there is one."""
        found = checkpoints(self.folder / "checkpoints")
        if found:
            self.state = load_checkpoint(found[-1], self.model, self.optimizer)
            self.precision = self.state["precision"]
            self.last = self.state.pop("last", {})
        self.metrics.keep_up_to(self.state["step"])

    def fit(self, report: Report) -> bool:
        """Run the steps that are left. False when interrupted by a signal, with a checkpoint written."""
        self.peak = matmul_peak(self.precision, self.device)
        with _stop_flag() as stopped:
            for step in range(self.state["step"], self.settings.steps):
                self.last |= self._step(step)
                done = step + 1
                end = done == self.settings.steps
                if self.validation is not None and (end or done % self.settings.validate_every == 0):
                    self.last |= self._validate(done)
                report(self.last)
                stop = stopped.is_set()
                if not end and (stop or done % self.settings.checkpoint_every == 0):
                    self._checkpoint()
                if stop and not end:
                    return False
        return True

    def _checkpoint(self) -> None:
        save_checkpoint(self.folder / "checkpoints", self.model, self.optimizer, self.state | {"last": self.last}, self.settings.keep)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16")

    def _step(self, step: int) -> dict[str, Any]:
        start, recipe = time.perf_counter(), self.settings
        torch.manual_seed(recipe.seed * 1_000_003 + step)  # dropout depends on the step alone, so a resumed run draws the same
        self.model.train()
        batches = self.train.step(step)
        count = max(1, sum(batch.count for batch in batches))
        total, sums = 0.0, dict.fromkeys(self.objective.metric_names, 0.0)
        for batch in batches:
            part = batch.count / count
            batch = batch.to(self.device)
            with self._autocast():
                loss = self.objective.loss(self.model, batch, smoothing=recipe.smoothing, z_loss=recipe.z_loss)
            objective = loss.total / count
            if loss.auxiliary:
                extra = recipe.load_balance * loss.auxiliary["load_balance"] + recipe.router_z * loss.auxiliary["router_z"]
                objective = objective + extra * part
            torch.autograd.backward(objective)
            total += float(loss.total.detach())
            for name in sums:
                sums[name] += loss.metrics[name]
        loss_value = total / count
        if not np.isfinite(loss_value):
            raise ValueError(f"the loss is {loss_value} at step {step + 1}, expected a number: lower train.rate or raise train.warmup")
        norm = clip_gradients(self.model, recipe.clip)
        share = schedule(step, recipe)
        self.optimizer.step(share)
        seconds = time.perf_counter() - start
        work = sum(_flops(self.spec, batch) for batch in batches)
        tokens = sum(batch.tokens for batch in batches)
        for key, value in {"step": 1, "seconds": seconds, "tokens": tokens, "flops": work}.items():
            self.state[key] += value
        row = {"step": step + 1, "loss": loss_value, **{name: value / count for name, value in sums.items()}}
        row |= {"rate": recipe.rate * share, "gradient_norm": norm, "tokens": self.state["tokens"]}
        row |= {"tokens_per_second": tokens / seconds, "peak_share": work / seconds / self.peak, "seconds": self.state["seconds"]}
        self.metrics.write(row)
        return row

    @torch.no_grad()
    def _validate(self, step: int) -> dict[str, Any]:
        assert self.validation is not None
        start = time.perf_counter()
        self.model.eval()
        total, count = 0.0, 0
        sums: dict[str, float] = {}
        for batch in self.validation.once(self.settings.validation_batches):
            count += batch.count
            with self._autocast():
                loss = self.objective.loss(self.model, batch.to(self.device))
            total += float(loss.total.detach())
            for name, value in loss.metrics.items():
                sums[name] = sums.get(name, 0.0) + value
        row = {"step": step, "validation_loss": total / max(1, count)}
        row |= {f"validation_{name}": value / max(1, count) for name, value in sums.items()}
        best = self.state["best"]
        if self.settings.export == "best" and (best is None or row["validation_loss"] < best):
            self.export()
        self.state["best"] = row["validation_loss"] if best is None else min(best, row["validation_loss"])
        self.state["seconds"] += time.perf_counter() - start
        self.metrics.write(row)
        return row

    def export(self) -> None:
        """Write the model, its tokenizer and its task to the run's folder `model`."""
        hub.save(self.model, self.tokenizer, self.folder / "model", self.objective.task())

    def result(self, finished: bool) -> Result:
        """What the run has come to so far."""
        state, last = self.state, self.last
        return Result(
            str(self.folder), state["step"], state["seconds"], state["tokens"], state["flops"],
            sum(p.numel() for p in self.model.parameters()), self.precision,
            last.get("loss"), last.get("validation_loss"), last.get("validation_accuracy"), finished,
        )  # fmt: skip


def _flops(spec: config.Model, batch: Batch) -> float:
    target = None if batch.target is None else batch.target.shape[1]
    scored = -(-batch.count // len(batch.inputs))
    return 3.0 * len(batch.inputs) * flops.forward(spec, batch.inputs.shape[1], target, scored)


@contextmanager
def _stop_flag() -> Iterator[threading.Event]:
    """Set by SIGINT or SIGTERM, so that a step ends and a checkpoint is written; a second signal stops at once."""
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def handler(number: int, _: Any) -> None:
        if flag.is_set():
            raise KeyboardInterrupt
        flag.set()

    old = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, previous in old.items():
            signal.signal(number, previous)


def run(recipe: Recipe, folder: str | Path, *, resume: bool = False, report: Report | None = None) -> Result:
    """Train what a recipe describes in a folder; returns what it came to.

    The folder holds recipe.yaml, metrics.jsonl, checkpoints/, model/ (what `hub.load`
    reads), curves.svg and result.json. With `resume` a run goes on from its newest
    checkpoint with the same data order, and one that has finished is left as it is.
    `report` is called with each step's figures; None draws a progress bar. Raises
    ValueError when the folder holds another run, and for whatever is wrong in the recipe.
    """
    folder = Path(folder)
    plain = yaml.safe_dump(config.to_dict(recipe, hint=Recipe), allow_unicode=True, sort_keys=False)
    written = folder / "recipe.yaml"
    if written.exists():
        if not resume:
            raise ValueError(f"{folder}: holds a run already; continue it with --resume, or choose another folder with --out")
        if written.read_text(encoding="utf-8") != plain:
            raise ValueError(f"{folder}: holds a run of another recipe; choose another folder with --out, or change the recipe back")
        if (folder / "result.json").exists():
            return Result(**json.loads((folder / "result.json").read_text(encoding="utf-8")))
    existed = folder.exists()
    try:
        trainer = Trainer(recipe, folder)
    except BaseException:
        if not existed and folder.exists() and not any(folder.iterdir()):
            folder.rmdir()
        raise
    with hub.replacing(written) as file:
        file.write_text(plain, encoding="utf-8")
    trainer.resume()
    with progress_bar(recipe.train.steps, trainer.state["step"], report) as reporter:
        finished = trainer.fit(reporter)
    if not finished:
        return trainer.result(False)
    if recipe.train.export == "last" or trainer.validation is None:
        trainer.export()
    plot_curves(folder)
    result = trainer.result(True)
    with hub.replacing(folder / "result.json") as file:
        file.write_text(json.dumps(asdict(result), indent=2) + "\n", encoding="utf-8")
    return result
