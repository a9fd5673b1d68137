"""What a task is given, and what it gives back."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from triform.generate.forms import Module
from triform.text import Tokenizer
from triform.train.prepare import text_fingerprint
from triform.train.recipe import read_recipe

from .statistics import Metric


@dataclass(frozen=True)
class Judged:
    """The model that is evaluated, its tokenizer, and what its folder says of its task (`hub.task`)."""

    model: Module
    tokenizer: Tokenizer
    task: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How tasks are measured. A field that a kind of task does not use changes nothing in it.

    limit: so many items of each task, the first ones.
    shots: so many worked examples before each question, from the files beside the data; None: as is usual for the kind.
    window, stride: of perplexity, in tokens: each window reads so many, and begins so many after the one before.
        None: as many as the model reads, at most 1,024; half a window.
    max_new_tokens: of a written answer; None: as is usual for the kind.
    chat: questions are turns of a conversation, as the chat template writes them.
    prompt: of translation, summarisation and exact, what is written around "{text}".
    samples: of humaneval, programs that are written for each problem.
    temperature: of several samples; None: as is usual for the kind.
    allow_code: programs that the model wrote may be run.
    seed: of resampling, and of samples.
    skip_bad: lines of data that are none are left out and counted, where else the first one is an error.
    on_progress: called with how many are done, of how many.
    """

    limit: int | None = None
    shots: int | None = None
    window: int | None = None
    stride: int | None = None
    max_new_tokens: int | None = None
    chat: bool = False
    prompt: str = "{text}"
    samples: int = 1
    temperature: float | None = None
    allow_code: bool = False
    seed: int = 0
    skip_bad: bool = False
    on_progress: Callable[[int, int], None] | None = None

    def __post_init__(self) -> None:
        lowest = {"limit": 1, "shots": 0, "window": 2, "stride": 1, "max_new_tokens": 1, "samples": 1, "temperature": 0}
        for name, least in lowest.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}: expected at least {least}, got {value}")
        if "{text}" not in self.prompt:
            raise ValueError(f"prompt: expected {{text}} in it, where the text goes, got {self.prompt[:40]!r}")


@dataclass
class Result:
    """What a task measured.

    kind, name: of the task. metrics: over all items. groups: the part that each item belongs to, such as a subject, or none.
    setting: what the figures depend on beside model and data. data: the data's fingerprint. bad: lines that were left out.
    items: what was asked, expected and answered, one mapping an item, for those who want to look.
    notes: what a reader of the figures should know. details: what is no figure, such as a confusion matrix.
    """

    kind: str
    name: str
    metrics: list[Metric]
    setting: dict[str, Any]
    data: str
    groups: Sequence[str] = ()
    bad: int = 0
    items: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    def parts(self) -> dict[str, list[int]]:
        """The items of each part, in order; empty where all are of one."""
        found: dict[str, list[int]] = {}
        for number, group in enumerate(self.groups):
            found.setdefault(group, []).append(number)
        return found if len(found) > 1 else {}

    def to_dict(self, seed: int = 0) -> dict[str, Any]:
        """Everything but the items, as plain data."""
        return {
            "task": self.name, "kind": self.kind, "data": self.data, "setting": self.setting,
            "items": len(self.metrics[0].rows), "bad": self.bad, "metrics": _estimates(self.metrics, seed),
            "parts": {name: {"items": len(own), "metrics": _estimates([metric.part(own) for metric in self.metrics], seed)}
                      for name, own in self.parts().items()},
            "notes": self.notes, **self.details,
        }  # fmt: skip


def _estimates(metrics: Sequence[Metric], seed: int) -> dict[str, Any]:
    return {metric.name: vars(metric.estimate(seed)) | {"higher_is_better": metric.higher_is_better} for metric in metrics}


def fingerprint(files: Sequence[Path]) -> str:
    """Of the contents of files, or of what a recipe (.yaml) reads: the same data has the same fingerprint, wherever it lies."""
    found = hashlib.sha256()
    for file in files:
        if file.suffix in (".yaml", ".yml"):
            found.update(text_fingerprint(read_recipe(file).data).encode())
            continue
        with file.open("rb") as stream:
            found.update(hashlib.file_digest(stream, "sha256").digest())
    return found.hexdigest()[:16]
