"""The one loop: recipe in, trained model out. It knows neither BERT nor T5, only an objective's batches and losses."""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from triform import config, hub
from triform.data.shards import fingerprint
from triform.nn import Transformer, add_adapter, build
from triform.nn.adapter import build_quantized
from triform.objectives import Batch, Objective
from triform.objectives.on_policy import OnPolicyObjective
from triform.planner.machine import total_memory

from .allocator import keeping_memory
from .batches import Batches
from .checkpoint import Checkpoints, checkpoints, kept, load_checkpoint, parts_of, read_state, step_of
from .folder import ROLLOUTS, SAMPLES, SKIPPED, claim, starting, sweep
from .guard import write_skipped
from .metrics import Metrics, Report, keep_until, plot_curves, progress_bar
from .offload import check_offload
from .onednn import check_onednn
from .outlook import announce, check_memory, measuring, outlook, resident, write_comparison, write_plan
from .peak import check_precision, choose_precision, peak
from .prepare import Prepared, check_length, prepare, text_fingerprint
from .preview import show_example
from .recipe import Recipe
from .reference import read_reference, reference, weights_hash, with_columns, write_reference
from .rewards import Rewards
from .rollouts import Policy, Reference, Rollouts
from .samples import Samples, shown, write_samples
from .signals import stop_flag
from .state import held
from .step import Steps
from .track import Trackers

_OTHER_START = "{}: train.start is not the model this run began with; change it back, or start a new one with --out"


@dataclass(frozen=True)
class Result:
    """What a run came to.

    seconds: time in steps, validation and samples. flops: of forward and backward passes. finished:
    False when interrupted. trained: of the parameters, where an adapter leaves the others as they are.
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
    trained: int | None = None


class Trainer(Steps):
    """A run in a folder, from its recipe; `run` below is the way in. prepared: other data than the recipe's, to try it on."""

    objective: Objective

    def __init__(
        self, recipe: Recipe, folder: Path, *, progress: bool = True, force: bool = False, prepared: Prepared | None = None
    ) -> None:
        self.recipe, self.settings, self.folder = recipe, recipe.train, folder
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self._check(force)
        start = None if self.settings.start is None else _start(self.settings.start)
        trackers = Trackers(self.settings.track, folder, config.to_dict(recipe, hint=Recipe))
        self.metrics = Metrics(folder, trackers)
        self.checkpoints = Checkpoints(folder / "checkpoints", self.settings)
        newest = self.checkpoints.newest()
        saved = None if newest is None else read_state(newest)
        text = text_fingerprint(recipe.data) if prepared is None else ""
        if saved and saved["text"] != text:
            raise ValueError(f"{folder}: the text in {recipe.data.source} has changed since this run began; start a new one with --out")
        prepared = prepared or prepare(recipe, folder, text, progress=progress)
        self.objective, self.tokenizer = prepared.objective, getattr(prepared.objective, "tokenizer", None)
        self.spec = recipe.architecture(self.objective.vocab_size)
        facts = {"text": text, "tokenizer": self.objective.fingerprint, "model": config.to_dict(self.spec, hint=config.Model)}
        for name, value in facts.items():
            if saved and saved[name] != value:
                raise ValueError(f"{folder}: the {name} is not the one this run began with; change it back, or start a new one with --out")
        facts |= self._build(start, saved)
        precision = saved["precision"] if saved else choose_precision(self.settings.precision, self.device)
        # A resumed run goes on with the products it began with: another machine, or another measurement, would choose others.
        ways = {"linear": saved.get("linear", "torch"), "compiled": saved.get("compiled", False)} if saved else {}
        self.objective.attach(self.model)
        super().__init__(self.spec, self.model, self.objective, self.settings, precision=precision, **ways)
        batches: Callable[..., Batches] = partial(Batches, self.objective)
        if isinstance(self.objective, OnPolicyObjective):
            batches = self._rollouts(self.objective)
        self.train = batches(prepared.train, self.settings)
        self.train.check()
        self.validation = batches(prepared.validation, self.settings) if len(prepared.validation) else None
        if self.objective.compares:
            again = start if newest is not None and self.settings.adapter is None else None
            self._refer(facts | {"precision": precision}, again, progress=progress)
        if newest is not None:
            load_checkpoint(newest, self.model, self.optimizer, self.average)
            self.train.take_up(newest)
        self._remember(saved, facts | {"precision": precision, "linear": self.linear, "compiled": self.compiled is not None})
        wanted, labels = self.settings.samples, getattr(recipe.objective, "labels", ())
        chats = self.objective.chats
        self.samples = None if wanted is None else Samples(wanted, self.model, self.tokenizer, labels, self.settings.seed, chats=chats)

    def _check(self, force: bool) -> None:
        """Raise ValueError for what this machine cannot do; by force its memory is not asked."""
        check_precision(self.settings.precision, self.device)
        if self.settings.offload:
            check_offload(self.device)
        if self.settings.linear == "onednn":
            check_onednn()
        check_length(self.recipe)
        if not force:
            check_memory(self.recipe, total_memory(self.device))

    def _build(self, start: hub.Checkpoint | None, saved: dict[str, Any] | None) -> dict[str, Any]:
        """Build the model, as `start` has it where the run, its adapter or its reference begins there; what a resume must find again."""
        adapter, found = self.settings.adapter, dict[str, Any]()
        make = build if adapter is None or adapter.quantize is None else build_quantized
        self.model = make(self.spec, device=self.device, seed=self.settings.seed)
        refers = isinstance(self.objective, OnPolicyObjective) and self.objective.needs_reference
        if start is not None and (saved is None or refers or adapter is not None):
            self._begin_from(start)
        if adapter is not None:
            found["base"] = self._base(saved)
            add_adapter(self.model, adapter, seed=self.settings.seed)
        if self.objective.compares or refers:
            found["start"] = saved["start"] if saved else weights_hash(self.model)
        if refers and saved and saved["start"] != weights_hash(self.model):
            raise ValueError(_OTHER_START.format(self.folder))
        return found

    def _remember(self, saved: dict[str, Any] | None, facts: dict[str, Any]) -> None:
        """Take up the counters and what goes on from step to step, or begin them."""
        counts: dict[str, Any] = {"step": 0, "seconds": 0.0, "tokens": 0, "flops": 0.0, "best": None, "validated": None, "last": {}}
        self.state: dict[str, Any] = saved or counts | {"guard": None, **facts}
        self._note_threads()
        if self.watch is not None:
            self.state["guard"] = self.watch.memory = self.state["guard"] or self.watch.memory
        if self.scaling is not None:
            self.state["scaling"] = self.scaling.memory = self.state.get("scaling") or self.scaling.memory
        if isinstance(self.train, Rollouts):
            self.state["rollouts"] = self.train.policy.memory = self.state.get("rollouts") or self.train.policy.memory
        self.last: dict[str, Any] = self.state["last"]

    def _begin_from(self, start: hub.Checkpoint) -> None:
        tokenizer = start.tokenizer()
        if tokenizer is not None and (self.tokenizer is None or tokenizer.fingerprint != self.tokenizer.fingerprint):
            raise ValueError(
                f"train.start: the model in {start.path} has another tokenizer than this run; set tokenizer.path={start.path}"
            )
        start.begin(self.model)

    def _refer(self, facts: dict[str, Any], start: hub.Checkpoint | None, *, progress: bool) -> None:
        """Give the samples what the model that the run begins with says of them, from the folder where it is there.

        start: what to begin from where the model does not have those weights any more.
        """
        parts = {"train": (self.train, self.train.visited())}
        if self.validation is not None:
            parts["validation"] = (self.validation, self.validation.spread(self.settings.validation_batches))
        for name, (batches, which) in parts.items():
            file = self.folder / "reference" / f"{name}.safetensors"
            chosen = hashlib.sha256(which.tobytes()).hexdigest()
            wanted = fingerprint({**facts, "part": name, "batch": self.settings.batch, "samples": chosen})
            columns = read_reference(file, wanted)
            if columns is None:
                if start is not None:
                    self._begin_from(start)
                if weights_hash(self.model) != facts["start"]:
                    raise ValueError(_OTHER_START.format(self.folder))
                columns = reference(batches, which, self.model, self._autocast, name=name, progress=progress)
                write_reference(file, columns, wanted)
            batches.samples = with_columns(batches.samples, columns)

    def _base(self, saved: dict[str, Any] | None) -> str:
        """The hash of the weights beneath the adapter, which no checkpoint holds and which must be those that the run began with."""
        found = weights_hash(self.model)
        if saved and saved["base"] != found:
            raise ValueError(_OTHER_START.format(self.folder))
        return found

    def _rollouts(self, objective: OnPolicyObjective) -> Callable[..., Batches]:
        """What makes the batches of an objective that learns from the model's own answers, by the weights as they are now."""
        assert isinstance(self.model, Transformer)
        rewards = Rewards(objective.spec.judges, self.device)
        policy = Policy(self.model, rewards, self._autocast, "bf16" if self.precision == "bf16" else "auto", file=self.folder / ROLLOUTS)
        policy.reference = Reference(objective, self.model) if objective.needs_reference else None
        return partial(Rollouts, objective, policy=policy)

    def _note_threads(self) -> None:
        """Say so where a run goes on with another number of threads: kernels share sums out among them, and so round otherwise."""
        now = torch.get_num_threads()
        before = self.state.get("threads", now)
        self.state["threads"] = now
        if self.device == "cpu" and before != now:
            told = f"{self.folder}: begun with {before} threads and going on with {now}, so its last bits will not be those of one run"
            print(f"{told}; OMP_NUM_THREADS={before} would keep them", file=sys.stderr)

    def fit(self, report: Report) -> bool:
        """Run the steps that are left. False when interrupted by a signal, with a checkpoint written."""
        self.peak = peak(self.precision, self.device)
        self.metrics.start(self.state["step"])
        for name in (SKIPPED, SAMPLES, ROLLOUTS):
            keep_until(self.folder / name, self.state["step"])
        if self.validation is not None and self.state["step"] == 0 and isinstance(self.train, Rollouts):
            self.last |= self._validate(0)  # how good the answers are before anything is learned from them
        with stop_flag() as stopped:
            for step in range(self.state["step"], self.settings.steps):
                self.last |= self._step(step)
                done = step + 1
                end = done == self.settings.steps
                if self.validation is not None and (end or done % self.settings.validate_every == 0):
                    self.last |= self._validate(done)
                report(dict(self.last) | self._sample(done))
                stop = stopped.is_set()
                if not end and (stop or done % self.settings.checkpoint_every == 0):
                    parts = parts_of(self.model, self.optimizer, self.average) | self.train.parts()
                    self.checkpoints.save(parts, self.state, background=self.settings.background and not stop)
                if stop and not end:
                    return False
        return True

    def _step(self, step: int) -> dict[str, Any]:
        start = time.perf_counter()
        batches = self.train.step(step)
        row = self.take(step, batches)
        if why := row.pop("skipped", None):
            if self.watch is not None:
                self._left_out(step, why, batches)
            row = {name: value for name, value in row.items() if math.isfinite(value)}
        seconds = time.perf_counter() - start
        tokens, work = row.pop("tokens"), row.pop("flops")
        for key, value in {"step": 1, "seconds": seconds, "tokens": tokens, "flops": work}.items():
            self.state[key] += value
        row = {"step": step + 1, **row, **self.train.figures, "tokens": self.state["tokens"]}
        row |= {"tokens_per_second": tokens / seconds, "peak_share": work / seconds / self.peak, "seconds": self.state["seconds"]}
        row |= resident(self.device)
        self.metrics.write(row)
        return row

    def _left_out(self, step: int, why: str, batches: Sequence[Batch]) -> None:
        """Put a step that was not taken on record, and go back to a checkpoint of before where it was one too many."""
        assert self.watch is not None
        back = self._go_back(step, why) if self.watch.goes_back() else None
        row = {"step": step + 1, "why": why, "back_to": back}
        write_skipped(self.folder / SKIPPED, row, self.train.indices(step), batches, self.tokenizer)

    def _go_back(self, step: int, why: str) -> int:
        """Take up the newest checkpoint of before the bad steps, and go on with the data after them; returns its step."""
        assert self.watch is not None
        memory, path = self.watch.memory, self.checkpoints.newest(until=self.watch.memory["good"])
        if path is None or step_of(path) == memory["returned"]:
            there = "there is no checkpoint of before" if path is None else f"going back to {path.name} did not help"
            bad = f"{memory['bad']} bad steps in a row at step {step + 1} ({why})"
            raise ValueError(f"{bad}, and {there}; lower train.rate or raise train.warmup")
        load_checkpoint(path, self.model, self.optimizer, self.average)
        self.watch.memory |= {"bad": 0, "returned": step_of(path)}
        return step_of(path)

    def _validate(self, step: int) -> dict[str, Any]:
        assert self.validation is not None
        start = time.perf_counter()
        found = self.evaluate(self.validation.once(self.settings.validation_batches))
        row = {"step": step, **{f"validation_{name}": value for name, value in found.items()}}
        best, now = self.state["best"], row["validation_loss"]
        self.state["validated"] = [step, now]
        if math.isfinite(now) and (best is None or now < best):
            self.state["best"] = now
            if self.settings.export == "best":
                self.export()
        self.state["seconds"] += time.perf_counter() - start
        self.metrics.write(row)
        return row

    def _sample(self, step: int) -> dict[str, str]:
        """Put on record what the model makes of its prompts, where that is due after a step; the first in a line under "sample"."""
        if self.samples is None or not self.samples.due(step, self.settings.steps):
            return {}
        start = time.perf_counter()
        with self.averaged(), self._autocast():
            rows = self.samples.draw(step)
        write_samples(self.folder, rows)
        self.state["seconds"] += time.perf_counter() - start
        return {"sample": shown(rows[0])}

    def export(self) -> None:
        """Write the model, or its adapter alone, its tokenizer and its task to the run's folder `model`."""
        with self.averaged(), self.objective.detached(self.model):
            if self.settings.adapter is None:
                hub.save(self.model, self.tokenizer, self.folder / "model", self.objective.task())
            else:
                start = self.settings.start
                assert start is not None
                hub.save_adapter(self.model, self.tokenizer, self.folder / "model", start, self.objective.task())

    def result(self, finished: bool) -> Result:
        """What the run has come to so far."""
        state, last = self.state, self.last
        return Result(
            str(self.folder), state["step"], state["seconds"], state["tokens"], state["flops"],
            sum(p.numel() for p in self.model.parameters()), self.precision,
            last.get("loss"), last.get("validation_loss"), last.get("validation_accuracy"), finished,
            None if self.settings.adapter is None else sum(tensor.numel() for tensor in kept(self.model).values()),
        )  # fmt: skip


def _start(path_or_name: str) -> hub.Checkpoint:
    try:
        return hub.Checkpoint.open(path_or_name)
    except ValueError as error:
        raise ValueError(f"train.start: {error}") from None


def run(
    recipe: Recipe, folder: str | Path, *, resume: bool = False, force: bool = False, report: Report | None = None,
    begun: Callable[[Trainer], None] | None = None,
) -> Result:  # fmt: skip
    """Train what a recipe describes in a folder; returns what it came to.

    The folder holds recipe.yaml, plan.json, metrics.jsonl, samples.jsonl where samples are asked for, checkpoints/, model/ (what `hub.load`
    reads), curves.svg, result.json and forecast.json, the plan beside what was measured. With `resume` a run goes on from its newest
    checkpoint with the same data order, and one that has finished is left as it is.
    What the plan says cannot fit is refused, unless by `force`. `report` is called with each
    step's figures; None prints the plan and draws a progress bar. `begun` is called with the trainer of a new run before its
    first step. Raises ValueError when the folder holds another run, and for whatever is wrong in the recipe.
    """
    folder = Path(folder)
    going_on = claim(folder, recipe, resume=resume)
    if going_on and (folder / "result.json").exists():
        return Result(**json.loads((folder / "result.json").read_text(encoding="utf-8")) | {"folder": str(folder)})
    with ExitStack() as alone:
        if going_on:
            alone.enter_context(held(folder))
            sweep(folder)
            trainer = Trainer(recipe, folder, progress=report is None, force=force)
        else:
            with starting(folder, recipe):
                alone.enter_context(held(folder))
                trainer = Trainer(recipe, folder, progress=report is None, force=force)
                if begun is not None:
                    begun(trainer)
        return _finished(trainer, report)


def _finished(trainer: Trainer, report: Report | None) -> Result:
    """Run a trainer's steps, and write what comes of them into its folder."""
    recipe, folder = trainer.recipe, trainer.folder
    try:
        forecast = outlook(recipe, trainer.spec, trainer.precision)
        write_plan(folder, forecast)
        if report is None:
            print(announce(forecast), file=sys.stderr)
            show_example(trainer.objective, trainer.train.samples)
        bar = progress_bar(recipe.train.steps, trainer.state["step"], report)
        with keeping_memory(), measuring(trainer.device) as measured, bar as reporter:
            finished = trainer.fit(reporter)
        trainer.checkpoints.wait()
        plot_curves(folder)
        result = trainer.result(finished)
        if finished:
            if recipe.train.export == "last" or trainer.validation is None:
                trainer.export()
            measured.seconds = result.seconds
            write_comparison(folder, forecast, measured)
            with hub.replacing(folder / "result.json") as file:  # last, as nothing is done any more where it is there
                file.write_text(json.dumps(asdict(result), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        trainer.checkpoints.wait()
        there = checkpoints(folder / "checkpoints")
        saved = f"its newest checkpoint is of step {step_of(there[-1])}" if there else "it has no checkpoint yet"
        raise ValueError(f"{folder}: stopped at step {trainer.state['step']} ({error}); {saved}; go on with --resume") from error
    finally:
        trainer.metrics.close()
        trainer.checkpoints.wait()
    return result
