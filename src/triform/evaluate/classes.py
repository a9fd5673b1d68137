"""Classes of texts, as classifiers judge them: one label a text, several, or numbers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from triform.generate.classify import Judgement
from triform.generate.classify import classify as judge

from .files import Line, found_in, read, records, some
from .statistics import Array, Metric
from .task import Judged, Result, Settings, fingerprint


def classification(judged: Judged, place: Path, settings: Settings) -> Result:
    """Texts and labels, `text` and `label` in .jsonl, or in the head of a .csv or .tsv, by the model's `problem_type`.

    One label a text (the model's name of it, or its number): accuracy, macro F1, the confusion matrix. Several (a list of names, or
    commas between them): the share of texts that have all right, micro and macro F1, with labels of a probability above one half.
    Numbers (one, or a list): Pearson's correlation, mean absolute and squared error of each.
    Raises ValueError for a label that the model does not have, and for what is no number.
    """
    files = found_in(place, "*.jsonl", "*.csv", "*.tsv")
    names = list(judged.task.get("labels") or [])
    if not names:
        head = getattr(judged.model.config, "head", None)
        names = [str(number) for number in range(getattr(head, "labels", 0))]
    problem = judged.task.get("problem_type") or "single_label_classification"
    reader, figures = _PROBLEMS[problem]
    lines = chain.from_iterable(map(records, files))
    asked, bad = read(
        lines, lambda line: (line.text("text", "sentence"), reader(line, names)), skip_bad=settings.skip_bad, limit=settings.limit
    )
    some(asked, place)
    with _warnings() as notes:
        answers = judge(
            judged.model, judged.tokenizer, [text for text, _ in asked], names, problem=judged.task.get("problem_type"),
            length=judged.task.get("length"), on_batch=told(settings, len(asked)),
        )  # fmt: skip
    metrics, chosen, details = figures([label for _, label in asked], answers, names)
    items = [
        {"text": text, "answer": label, "chosen": own, "score": one.score, **({} if problem == "regression" else {"right": label == own})}
        for (text, label), one, own in zip(asked, answers, chosen, strict=True)
    ]
    return Result("classification", place.stem, metrics, {}, fingerprint(files), bad=bad, items=items, notes=notes, details=details)


def told(settings: Settings, total: int) -> Callable[[int], None] | None:
    """What a model that judges tells of how many texts are done."""
    show = settings.on_progress
    return None if show is None else lambda done: show(min(done, total), total)


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """What is warned of meanwhile, to be noted."""
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", UserWarning)
        yield notes
    notes += [str(one.message) for one in found]


def _label(line: Line, names: Sequence[str]) -> str:
    label = line.fields.get("label")
    label = str(label) if isinstance(label, int) and not isinstance(label, bool) else line.text("label").strip()
    return _known(line, label, names)


def _known(line: Line, label: str, names: Sequence[str]) -> str:
    if label in names:
        return label
    if label.isdecimal() and int(label) < len(names):
        return names[int(label)]
    raise line.error(f"expected a label of the model's ({', '.join(names[:12])}), got {label[:40]!r}")


def _several(line: Line, names: Sequence[str]) -> list[str]:
    found = line.fields.get("labels", line.fields.get("label"))
    found = [part.strip() for part in found.split(",") if part.strip()] if isinstance(found, str) else found
    if not isinstance(found, list):
        raise line.error(f"expected a list of labels in 'label', got {str(found)[:40]!r}")
    own = {_known(line, str(one), names) for one in found}
    return [name for name in names if name in own]


def _numbers(line: Line, names: Sequence[str]) -> list[float]:
    found = line.fields.get("label")
    try:
        numbers = [float(one) for one in (found if isinstance(found, list) else [found])]  # type: ignore[arg-type]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != len(names) or not all(map(math.isfinite, numbers)):
        raise line.error(f"expected {len(names)} finite numbers in 'label', got {str(found)[:40]!r}")
    return numbers


Figures = tuple[list[Metric], Sequence[Any], dict[str, Any]]  # and what was chosen, and what is no figure


def _of_one(gold: Sequence[str], answers: Sequence[Judgement], names: Sequence[str]) -> Figures:
    mine = [one.label for one in answers]
    true, chosen = [names.index(label) for label in gold], [names.index(label) for label in mine]
    metrics = [
        Metric.right("accuracy", [a == b for a, b in zip(true, chosen, strict=True)]),
        Metric("macro_f1", outcomes(_chosen(true, len(names)), _chosen(chosen, len(names))), macro_f1),
    ]
    matrix = np.zeros((len(names), len(names)), dtype=int)
    np.add.at(matrix, (true, chosen), 1)
    return metrics, mine, {"confusion": {"labels": list(names), "counts": matrix.tolist()}}


def _of_several(gold: Sequence[list[str]], answers: Sequence[Judgement], names: Sequence[str]) -> Figures:
    mine = [[name for name in names if one.scores[name] > 0.5] for one in answers]
    true, chosen = (np.array([[name in own for name in names] for own in each], dtype=bool) for each in (gold, mine))
    rows = outcomes(true, chosen)
    right = [a == b for a, b in zip(gold, mine, strict=True)]
    return [Metric.right("all_right", right), Metric("micro_f1", rows, micro_f1), Metric("macro_f1", rows, macro_f1)], mine, {}


def _of_numbers(gold: Sequence[list[float]], answers: Sequence[Judgement], names: Sequence[str]) -> Figures:
    mine = [[one.scores[name] for name in names] for one in answers]
    metrics = []
    for number, name in enumerate(names):
        a, b = (np.array([own[number] for own in each]) for each in (gold, mine))
        end = f" {name}" if len(names) > 1 else ""
        metrics += [
            Metric(f"pearson{end}", np.stack([a, b, a * a, b * b, a * b], 1), pearson),
            Metric.average(f"absolute_error{end}", list(abs(a - b)), higher_is_better=False),
            Metric.average(f"squared_error{end}", list((a - b) ** 2), higher_is_better=False),
        ]
    return metrics, mine, {}


_PROBLEMS: dict[str, tuple[Callable[[Line, Sequence[str]], Any], Callable[[Any, Sequence[Judgement], Sequence[str]], Figures]]] = {
    "single_label_classification": (_label, _of_one),
    "multi_label_classification": (_several, _of_several),
    "regression": (_numbers, _of_numbers),
}


def _chosen(numbers: Sequence[int], labels: int) -> Array:
    """Of each item which label it has, (N, labels)."""
    found: Array = np.asarray(numbers)[:, None] == np.arange(labels)
    return found


def outcomes(true: Array, chosen: Array) -> Array:
    """Of items, by which labels are true and which are chosen (N, labels): (N, 3 labels), for each label whether it is a true
    positive, a false positive, a false negative."""
    found = np.stack([true & chosen, chosen & ~true, true & ~chosen], -1)
    return found.reshape(len(true), -1).astype(np.float64)


def macro_f1(sums: Array, count: int) -> Array:
    """The mean F1 of the labels that are there or were chosen, by sums (..., 3 labels) of `outcomes`."""
    found = sums.reshape(*sums.shape[:-1], -1, 3)
    total = 2 * found[..., 0] + found[..., 1] + found[..., 2]
    there = total > 0
    scores = np.where(there, 2 * found[..., 0] / np.maximum(total, 1), 0)
    mean: Array = scores.sum(-1) / np.maximum(there.sum(-1), 1)
    return mean


def micro_f1(sums: Array, count: int) -> Array:
    """F1 of all labels together, by sums (..., 3 labels) of `outcomes`; 0 where none is there or chosen."""
    found = sums.reshape(*sums.shape[:-1], -1, 3).sum(-2)
    scores: Array = 2 * found[..., 0] / np.maximum(2 * found[..., 0] + found[..., 1] + found[..., 2], 1)
    return scores


def pearson(sums: Array, count: int) -> Array:
    """Pearson's correlation, by sums (..., 5) of x, y, their squares and their product; 0 where one of them does not vary."""
    x, y, xx, yy, xy = np.moveaxis(sums / count, -1, 0)
    spread = np.sqrt(np.maximum(xx - x * x, 0) * np.maximum(yy - y * y, 0))
    found: Array = np.where(spread > 1e-12, (xy - x * y) / np.maximum(spread, 1e-12), 0)
    return found


def confusion_plot(result: Result, file: Path) -> None:
    """Draw the confusion matrix of a classification: true labels down, chosen ones across, shares of each row."""
    from matplotlib.figure import Figure

    from .history import save

    names, counts = result.details["confusion"]["labels"], np.array(result.details["confusion"]["counts"])
    size = max(3.2, 0.5 * len(names) + 1.6)
    figure = Figure(figsize=(size, size), layout="constrained")
    axis = figure.subplots()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(*counts.shape):
        dark = shares[row, column] > 0.5
        axis.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", color="white" if dark else "black")
    axis.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axis.set_yticks(range(len(names)), names)
    axis.set_xlabel("chosen")
    axis.set_ylabel("true")
    axis.set_title(f"{result.name}: accuracy {result.metrics[0].value:.1%}", fontsize=10)
    save(figure, file)
