"""Tasks by their names, and models measured and compared by them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from .statistics import Difference, compare
from .task import Judged, Result, Settings

Measure = Callable[[Judged, Path, Settings], Result]

# kind: module, function; what it measures and by what
TASKS: dict[str, tuple[str, str, str]] = {
    "perplexity": ("perplexity", "perplexity", "perplexity, bits per byte and per character of texts"),
    "blimp": ("choices", "blimp", "minimal pairs: the good sentence is the more probable one"),
    "choice": ("choices", "choice", "multiple choice by likelihood, plain and over the answers' characters"),
    "mmlu": ("choices", "mmlu", "MMLU's files: the letter that is most probable, five worked examples"),
    "cmmlu": ("choices", "cmmlu", "CMMLU's files, as mmlu"),
    "ceval": ("choices", "ceval", "C-Eval's files, as mmlu"),
    "classification": ("classes", "classification", "accuracy, F1, the confusion matrix; of numbers correlation and error"),
    "ner": ("names", "ner", "precision, recall and F1 of whole entities (seqeval's definition)"),
    "squad": ("reading", "squad", "reading comprehension by SQuAD's rules: exact match and F1"),
    "cmrc": ("reading", "cmrc", "reading comprehension by CMRC's rules for Chinese"),
    "translation": ("writing", "translation", "BLEU and chrF of translations, by sacrebleu"),
    "summarisation": ("writing", "summarisation", "ROUGE of summaries, Chinese by characters"),
    "gsm8k": ("writing", "gsm8k", "arithmetic: exact match of the number, five worked examples"),
    "exact": ("writing", "exact", "questions with one right answer: exact match"),
    "preference": ("preferences", "preference", "of two answers the better one is the more probable, or has the higher reward"),
    "humaneval": ("programs", "humaneval", "programs that pass their tests (pass@k), run with limits"),
}


@dataclass(frozen=True)
class Asked:
    """A task: its kind and where its data lies."""

    kind: str
    place: Path

    @classmethod
    def parse(cls, written: str) -> Asked:
        """A task written as KIND=PATH. Raises ValueError for an unknown kind and a path where nothing lies."""
        kind, equals, place = written.partition("=")
        if kind not in TASKS or not equals or not place:
            raise ValueError(f"tasks: expected KIND=PATH with one of {', '.join(TASKS)}, got {written!r}")
        if not Path(place).exists():
            raise ValueError(f"{place}: expected the data of {kind}, found nothing; check the path")
        return cls(kind, Path(place))

    @property
    def measure(self) -> Measure:
        """The function that measures it."""
        module, name, _ = TASKS[self.kind]
        found: Measure = getattr(import_module(f"triform.evaluate.{module}"), name)
        return found


def evaluate(judged: Judged, tasks: Sequence[str | Asked], settings: Settings | None = None) -> list[Result]:
    """Measure a model by tasks, written as KIND=PATH (see `TASKS`).

    Raises ValueError for a task that does not fit the model, and for data that is none, with the file and the line.
    """
    asked = [one if isinstance(one, Asked) else Asked.parse(one) for one in tasks]
    return [one.measure(judged, one.place, settings or Settings()) for one in asked]


@dataclass(frozen=True)
class Comparison:
    """Two models by a task: what the second's figures differ by from the first's, over all items and over each part's."""

    task: str
    differences: dict[str, Difference]
    parts: dict[str, dict[str, Difference]]

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        parts = {part: _plain(own) for part, own in self.parts.items()}
        return {"task": self.task, "differences": _plain(self.differences), "parts": parts}


def _plain(differences: dict[str, Difference]) -> dict[str, Any]:
    return {name: vars(one) for name, one in differences.items()}


def compare_results(first: Result, second: Result, seed: int = 0) -> Comparison:
    """What two models' figures by the same task differ by. Raises ValueError for results of different data or settings."""
    if (first.kind, first.data) != (second.kind, second.data) or len(first.metrics[0].rows) != len(second.metrics[0].rows):
        raise ValueError(f"{first.name}: expected results of the same data to compare, got other ones")
    of_second = {metric.name: metric for metric in second.metrics}
    both = [(metric, of_second[metric.name]) for metric in first.metrics if metric.name in of_second]
    parts = {
        part: {a.name: compare(a.part(items), b.part(items), seed) for a, b in both} for part, items in first.parts().items()
    }  # fmt: skip
    return Comparison(first.name, {a.name: compare(a, b, seed) for a, b in both}, parts)
