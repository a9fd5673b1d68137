"""Tasks of models that judge texts: classes, names in texts."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from triform.generate.classify import classify as judge
from triform.generate.tag import tag
from triform.text.segment import joined

from .files import BadLine, Line, found_in, read, records, some, text_of
from .statistics import Array, Metric
from .task import Judged, Result, Settings, fingerprint

Span = tuple[str, int, int]  # a type, and where it begins and ends


def classification(judged: Judged, place: Path, settings: Settings) -> Result:
    """Texts and labels, `text` and `label` in .jsonl, or in the head of a .csv or .tsv: accuracy, macro F1, the confusion matrix.

    A label is the model's name of it, or its number. Raises ValueError for one that the model does not have.
    """
    files = found_in(place, "*.jsonl", "*.csv", "*.tsv")
    names = list(judged.task.get("labels") or [])
    if judged.task.get("problem_type") is not None:
        raise ValueError(f"classification measures one label a text, and this model's problem_type is {judged.task['problem_type']}")
    if not names:
        head = getattr(judged.model.config, "head", None)
        names = [str(number) for number in range(getattr(head, "labels", 0))]

    def make(line: Line) -> tuple[str, str]:
        label = line.fields.get("label")
        label = str(label) if isinstance(label, int) and not isinstance(label, bool) else line.text("label").strip()
        if label not in names:
            if not (label.isdecimal() and int(label) < len(names)):
                raise line.error(f"expected a label of the model's ({', '.join(names[:12])}), got {label[:40]!r}")
            label = names[int(label)]
        return line.text("text", "sentence"), label

    asked, bad = read(chain.from_iterable(map(records, files)), make, skip_bad=settings.skip_bad, limit=settings.limit)
    some(asked, place)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        answers = judge(
            judged.model, judged.tokenizer, [text for text, _ in asked], names, length=judged.task.get("length"),
            on_batch=_told(settings, len(asked)),
        )  # fmt: skip
    gold, chosen = [names.index(label) for _, label in asked], [names.index(one.label) for one in answers]
    metrics = [
        Metric.right("accuracy", [a == b for a, b in zip(gold, chosen, strict=True)]),
        Metric("macro_f1", _outcomes(gold, chosen, len(names)), macro_f1),
    ]
    matrix = np.zeros((len(names), len(names)), dtype=int)
    np.add.at(matrix, (gold, chosen), 1)
    items = [
        {"text": text, "answer": label, "chosen": one.label, "score": one.score, "right": label == one.label}
        for (text, label), one in zip(asked, answers, strict=True)
    ]
    details = {"confusion": {"labels": names, "counts": matrix.tolist()}}
    notes = [str(one.message) for one in told]
    return Result("classification", place.stem, metrics, {}, fingerprint(files), bad=bad, items=items, notes=notes, details=details)


def _told(settings: Settings, total: int) -> Callable[[int], None] | None:
    show = settings.on_progress
    return None if show is None else lambda done: show(min(done, total), total)


def _outcomes(gold: Sequence[int], chosen: Sequence[int], labels: int) -> Array:
    """Of each item, (N, 3 labels): for each label whether it is a true positive, a false positive, a false negative."""
    rows = np.zeros((len(gold), labels, 3))
    for row, (a, b) in enumerate(zip(gold, chosen, strict=True)):
        if a == b:
            rows[row, a, 0] = 1
        else:
            rows[row, b, 1] = rows[row, a, 2] = 1
    return rows.reshape(len(gold), -1)


def macro_f1(sums: Array, count: int) -> Array:
    """The mean F1 of the labels that are there or were chosen, by sums (..., 3 labels) of `_outcomes`."""
    found = sums.reshape(*sums.shape[:-1], -1, 3)
    total = 2 * found[..., 0] + found[..., 1] + found[..., 2]
    there = total > 0
    scores = np.where(there, 2 * found[..., 0] / np.maximum(total, 1), 0)
    mean: Array = scores.sum(-1) / np.maximum(there.sum(-1), 1)
    return mean


def entities(labels: Sequence[str]) -> list[Span]:
    """The entities that labels in IOB2 name, as conlleval and seqeval read them: I-X without X before it begins an entity too.

    Returns type, first token, and the token after the last.
    """
    found: list[Span] = []
    start, kind = 0, ""
    for place, label in enumerate([*labels, "O"]):
        mark, _, own = label.partition("-")
        goes_on = mark == "I" and own == kind and kind != ""
        if kind and not goes_on:
            found.append((kind, start, place))
            kind = ""
        if mark in ("B", "I") and not goes_on:
            start, kind = place, own
    return found


def ner(judged: Judged, place: Path, settings: Settings) -> Result:
    """Names in texts, in IOB2: `tokens` and `labels` in .jsonl, or a token and its label a line in .txt, .conll or .bio, texts apart
    by empty lines. Precision, recall and F1 of whole entities, by type and bounds (conlleval's, seqeval's), and F1 of each type."""
    files = found_in(place, "*.jsonl", "*.conll", "*.bio", "*.txt")
    lines = chain.from_iterable(records(file) if file.suffix == ".jsonl" else _columns(file) for file in files)
    asked, bad = read(lines, _labelled, skip_bad=settings.skip_bad, limit=settings.limit)
    some(asked, place)
    written = [joined(tokens) for tokens, _ in asked]
    answers = tag(
        judged.model, judged.tokenizer, [text for text, _ in written], judged.task.get("labels"), length=judged.task.get("length"),
        on_batch=_told(settings, len(asked)),
    )  # fmt: skip
    gold, chosen, items = [], [], []
    for (text, places), (_, labels), named in zip(written, asked, answers, strict=True):
        own = {(kind, places[start][0], places[end - 1][1]) for kind, start, end in entities(labels)}
        mine = {(one.label, one.start, one.end) for one in named}
        gold.append(own)
        chosen.append(mine)
        items.append({"text": text, "answer": sorted(own, key=_by_place), "chosen": sorted(mine, key=_by_place), "right": own == mine})
    kinds = sorted({kind for spans in (*gold, *chosen) for kind, _, _ in spans})
    counts = _counts(gold, chosen)
    metrics = [Metric("f1", counts, f1), Metric("precision", counts, precision), Metric("recall", counts, recall)]
    if len(kinds) > 1:
        metrics += [Metric(f"f1 {kind}", _counts(_of(gold, kind), _of(chosen, kind)), f1) for kind in kinds]
    return Result("ner", place.stem, metrics, {}, fingerprint(files), bad=bad, items=items)


def _by_place(span: Span) -> tuple[int, int, str]:
    return span[1], span[2], span[0]


def _of(spans: Sequence[set[Span]], kind: str) -> list[set[Span]]:
    return [{span for span in own if span[0] == kind} for own in spans]


def _counts(gold: Sequence[set[Span]], chosen: Sequence[set[Span]]) -> Array:
    return np.array([(len(a & b), len(b), len(a)) for a, b in zip(gold, chosen, strict=True)], dtype=np.float64)


def precision(sums: Array, count: int) -> Array:
    """By sums (..., 3) of right, named and true entities; 0 where none is named."""
    found: Array = sums[..., 0] / np.maximum(sums[..., 1], 1)
    return found


def recall(sums: Array, count: int) -> Array:
    """By sums (..., 3) of right, named and true entities; 0 where there is none."""
    found: Array = sums[..., 0] / np.maximum(sums[..., 2], 1)
    return found


def f1(sums: Array, count: int) -> Array:
    """By sums (..., 3) of right, named and true entities; 0 where there is none."""
    found: Array = 2 * sums[..., 0] / np.maximum(sums[..., 1] + sums[..., 2], 1)
    return found


def _columns(file: Path) -> Iterator[Line | BadLine]:
    """The texts of a file with a token and its label on each line; columns between them are passed over."""
    tokens: list[str] = []
    labels: list[str] = []
    first = 1
    for number, line in enumerate([*text_of(file).split("\n"), ""], 1):
        if line.strip():
            parts = line.split()
            if len(parts) < 2:
                yield BadLine(ValueError(f"{file}:{number}: expected a token and its label, got {line.strip()[:40]!r}"))
                continue
            if not tokens:
                first = number
            tokens.append(parts[0])
            labels.append(parts[-1])
        elif tokens:
            yield Line(file, first, {"tokens": tokens, "labels": labels})
            tokens, labels = [], []


def _labelled(line: Line) -> tuple[list[str], list[str]]:
    tokens, labels = line.fields.get("tokens"), line.fields.get("labels") or line.fields.get("tags") or line.fields.get("ner_tags")
    if not isinstance(tokens, list) or not tokens or not all(isinstance(one, str) and one for one in tokens):
        raise line.error("expected a list of texts in 'tokens'")
    if not isinstance(labels, list) or len(labels) != len(tokens):
        raise line.error(f"expected {len(tokens)} labels, one for each token, got {len(labels) if isinstance(labels, list) else 'none'}")
    for label in labels:
        if not isinstance(label, str) or not re.fullmatch(r"O|[BI]-.+", label):
            raise line.error(f"expected labels such as O, B-PER and I-PER, got {str(label)[:40]!r}")
    return tokens, labels


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
