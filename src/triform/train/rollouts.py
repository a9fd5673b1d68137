"""Batches that are made of the model's own answers: prompts drawn, answered by the generation engine, judged, and trained on.

A rollout serves `iterations` times `minibatches` steps. Which prompts it has, how its answers are drawn and which of them a step
sees follow from the seed and the step's number, and the answers from these and the weights; a checkpoint in the midst of a rollout
holds it, as the weights that made it are gone.

Shapes: N answers of a rollout, R rewards.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from triform.data.conversations import prompt
from triform.generate import Request, Sampling, TokenRun
from triform.generate.batch import run_together
from triform.generate.forms import evaluating
from triform.generate.prepared import Precision, packed_copy
from triform.nn import IGNORE, Transformer
from triform.nn.adapter import adapter_names, without_adapter
from triform.objectives import Batch, Samples
from triform.objectives.base import Sample
from triform.objectives.on_policy import OnPolicyObjective, asked_text

from .batches import Batches
from .recipe import TrainRecipe
from .rewards import Answered, Rewards

PART = "rollout.safetensors"
ROWS_AT_ONCE = 64  # answers that are written at once
_SHOWN = 2000  # characters of a prompt or an answer on record


class Reference:
    """The model that a run began with: the frozen one beneath an adapter, else a copy."""

    def __init__(self, objective: OnPolicyObjective, model: Transformer) -> None:
        self.objective, self.model = objective, model
        self.copy = None if adapter_names(model) else deepcopy(model).requires_grad_(False).eval()

    @contextmanager
    def used(self) -> Iterator[Transformer]:
        """The reference."""
        if self.copy is not None:
            yield self.copy
            return
        with self.objective.detached(self.model), without_adapter(self.model):
            yield self.model


@dataclass
class Policy:
    """What rollouts are made with.

    autocast: makes the context that the model's passes of training run in. precision: of the weights when answers are written.
    memory: what goes on from rollout to rollout, plain data that belongs into the checkpoint.
    """

    model: Transformer
    rewards: Rewards
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    precision: Precision = "auto"
    reference: Reference | None = None
    memory: dict[str, Any] = field(default_factory=dict)
    file: Path | None = None


class Rollouts(Batches):
    """The batches of a split of prompts under a recipe, made of the answers to them."""

    objective: OnPolicyObjective

    def __init__(self, objective: OnPolicyObjective, samples: Samples, recipe: TrainRecipe, policy: Policy) -> None:
        super().__init__(objective, samples, recipe)
        self.policy, self.spec = policy, objective.spec
        self.held: list[Sample] | None = None
        self.seconds: float | None = None  # that the last step's rollout took, where it made one

    @property
    def figures(self) -> dict[str, float]:
        """Of the rollout that the last step was made of: reward (mean), reward_NAME of each judge, answer_tokens (mean), ended_share
        (answers that were not cut off), and what the objective adds; rollout_seconds, where the step made it."""
        found: dict[str, float] = self.policy.memory.get("figures", {})
        return found if self.seconds is None else found | {"rollout_seconds": self.seconds}

    def check(self) -> None:
        """Raise ValueError for settings that mean nothing for answers."""
        for name, plain in (("bucket", 1), ("curriculum", None)):
            if getattr(self.recipe, name) != plain:
                raise ValueError(f"train.{name}: {type(self.spec).__name__} trains on the model's own answers, as they come; leave it out")

    def indices(self, step: int) -> np.ndarray:
        """The prompts of a step."""
        number, turn, part = self._place(step)
        size = self.recipe.batch * self.recipe.accumulate
        chosen = np.asarray(self.order.indices(number * size * self.spec.minibatches, size * self.spec.minibatches))
        found: np.ndarray = chosen[self._share(number, turn, part)]
        return found

    def step(self, step: int) -> list[Batch]:
        """The micro-batches of a step; the first of a rollout has it made."""
        number, turn, part = self._place(step)
        begin, fresh = time.perf_counter(), turn == part == 0
        if fresh:
            self.held = self._roll_out(number, step)
        self.seconds = time.perf_counter() - begin if fresh else None
        assert self.held is not None
        group, size = self.spec.group, self.recipe.batch
        chosen = [place * group + i for place in self._share(number, turn, part) for i in range(group)]
        rows = [[self.held[place] for place in chosen[at : at + size * group]] for at in range(0, len(chosen), size * group)]
        if (step + 1) % self.spec.updates == 0:
            self.held = None
        return [self.objective.collate(samples, ()) for samples in rows]

    def once(self, most: int | None) -> Iterator[Batch]:
        """All prompts once, answered with the likeliest tokens, or `most` batches spread evenly over them."""
        size = self.recipe.batch
        rows = [self.samples[i] for i in self.spread(most)]
        runs = self._answers(rows, Sampling(max_new_tokens=self.spec.max_new_tokens), None)
        scores = self._judged(rows, runs)
        for at in range(0, len(rows), size):
            part = zip(rows[at : at + size], runs[at : at + size], scores[at : at + size], strict=True)
            yield self.objective.collate([_answered(row, run) | {"scores": said} for row, run, said in part], ())

    def parts(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint must hold of a rollout that is not trained on to its end."""
        if self.held is None:
            return {}
        found = {}
        for name in self.held[0]:
            if name != "row":
                values = [np.atleast_1d(sample[name]) for sample in self.held]
                found[name] = torch.from_numpy(np.concatenate(values))
                found[f"{name}.lengths"] = torch.tensor([len(value) for value in values])
        return {PART: found}

    def take_up(self, checkpoint: Path) -> None:
        """Go on with the rollout that a checkpoint holds, if any."""
        self.held = None
        if not (checkpoint / PART).exists():
            return
        found = {name: tensor.numpy() for name, tensor in load_file(checkpoint / PART).items()}
        names = [name for name in found if not name.endswith(".lengths")]
        columns = {name: np.split(found[name], found[f"{name}.lengths"].cumsum()[:-1]) for name in names}
        self.held = [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def _place(self, step: int) -> tuple[int, int, int]:
        """The rollout of a step, which pass over it that is, and which part of it."""
        number, place = divmod(step, self.spec.updates)
        return number, *divmod(place, self.spec.minibatches)

    def _share(self, number: int, turn: int, part: int) -> np.ndarray:
        """Which prompts of a rollout, counted within it, are in a part of a pass."""
        size = self.recipe.batch * self.recipe.accumulate
        order = np.random.default_rng((self.recipe.seed, number, turn)).permutation(size * self.spec.minibatches)
        return order[part * size : (part + 1) * size]

    def _roll_out(self, number: int, step: int) -> list[Sample]:
        spec = self.spec
        size = self.recipe.batch * self.recipe.accumulate * spec.minibatches
        rows = [self.samples[i] for i in self.order.indices(number * size, size) for _ in range(spec.group)]
        how = Sampling(max_new_tokens=spec.max_new_tokens, temperature=spec.temperature, top_p=spec.top_p)
        seeds = np.random.default_rng((self.recipe.seed, number)).integers(2**62, size=len(rows)).tolist()
        runs = self._answers(rows, how, seeds)
        scores = self._judged(rows, runs)
        samples = [_answered(row, run) for row, run in zip(rows, runs, strict=True)]
        self._score(samples)
        found = self.objective.judge(samples, scores[:, 0], self.policy.memory)
        self._record(step + 1, rows, runs, scores)
        said = zip(self.objective.figures, np.nansum(scores, axis=0), (~np.isnan(scores)).sum(0), strict=True)
        figures = {name: float(total / count) for name, total, count in said if count} | found
        figures["answer_tokens"] = float(np.mean([len(run.ids) for run in runs]))
        figures["ended_share"] = float(np.mean([run.finish_reason == "stop" for run in runs]))
        self.policy.memory["figures"] = figures
        return samples

    def _answers(self, rows: Sequence[Sample], how: Sampling, seeds: Sequence[int] | None) -> list[TokenRun]:
        hows = [how] * len(rows) if seeds is None else [replace(how, seed=seed) for seed in seeds]
        requests = [Request(ids=row["prompt"].tolist(), sampling=each) for row, each in zip(rows, hows, strict=True)]
        model = packed_copy(self.policy.model, self.policy.precision)
        return run_together(model, self.objective.tokenizer, requests, rows=min(ROWS_AT_ONCE, len(requests)))

    def _judged(self, rows: Sequence[Sample], runs: Sequence[TokenRun]) -> np.ndarray:
        """What the judges say of answers, (N, 1 + R)."""
        known = [self.objective.row(row) for row in rows]
        asked = [prompt(row) for row in known]
        return self.policy.rewards(Answered(asked, [run.text for run in runs], [run.ids for run in runs], known))

    def _score(self, samples: list[Sample]) -> None:
        """Put into the samples of answers what the policy and the reference say of their tokens, where that is needed."""
        if self.objective.needs_old:
            self._read(self.policy.model, samples, {"old": "old", "values": "values"})
        if self.policy.reference is not None:
            with self.policy.reference.used() as reference:
                self._read(reference, samples, {"old": "reference"})

    def _read(self, model: Transformer, samples: list[Sample], names: Mapping[str, str]) -> None:
        size = self.recipe.batch * self.spec.group
        with evaluating(model) as device, self.policy.autocast():
            for at in range(0, len(samples), size):
                part = samples[at : at + size]
                batch = self.objective.collate([{"prompt": s["prompt"], "completion": s["completion"]} for s in part], ())
                found = self.objective.read(model, batch.to(device))
                for said, name in names.items():
                    if said in found:
                        for sample, values, labels in zip(part, found[said].float().cpu(), batch.labels, strict=True):
                            sample[name] = values[labels != IGNORE].numpy()

    def _record(self, step: int, rows: Sequence[Sample], runs: Sequence[TokenRun], scores: np.ndarray) -> None:
        """Put some answers of a rollout on record, evenly from the lowest reward to the highest."""
        count = min(self.spec.record, len(runs))
        if self.policy.file is None or not count:
            return
        ranked = np.argsort(scores[:, 0], kind="stable")[np.linspace(0, len(runs) - 1, count).round().astype(int)]
        with self.policy.file.open("a", encoding="utf-8") as out:
            for place in ranked:
                asked = asked_text(prompt(self.objective.row(rows[place])))
                said = [None if np.isnan(value) else float(value) for value in scores[place]]
                run = runs[place]
                row = {"step": step, "prompt": _shortened(asked), "text": _shortened(run.text)}
                row |= dict(zip(self.objective.figures, said, strict=True)) | {"tokens": len(run.ids), "ended": run.finish_reason == "stop"}
                out.write(json.dumps(row, ensure_ascii=False) + "\n")


def _answered(row: Sample, run: TokenRun) -> Sample:
    ended = np.asarray([run.finish_reason == "stop"])
    return {"prompt": row["prompt"], "completion": np.asarray(run.ids, dtype=np.int64), "ended": ended}


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
