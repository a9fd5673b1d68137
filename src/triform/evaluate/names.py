"""Names in texts: entities that models tag."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from triform.generate.tag import tag
from triform.text.segment import joined

from .classes import told
from .files import BadLine, Line, found_in, read, records, some, text_of
from .statistics import Array, Metric
from .task import Judged, Result, Settings, fingerprint

Span = tuple[str, int, int]  # a type, and where it begins and ends
_COLUMNS = (".txt", ".conll", ".bio")  # files with a token and its label on each line


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
    """Names in texts, in IOB2: `tokens` and `labels` in rows, such as those of .jsonl or those that a recipe holds out, or a token and
    its label a line in .txt, .conll or .bio, texts apart by empty lines.

    Precision, recall and F1 of whole entities, by type and bounds (conlleval's, seqeval's), and F1 of each type.
    """
    files = found_in(place, "*.jsonl", "*.conll", "*.bio", "*.txt")
    lines = chain.from_iterable((_columns if file.suffix in _COLUMNS else records)(file) for file in files)
    asked, bad = read(lines, _labelled, skip_bad=settings.skip_bad, limit=settings.limit)
    some(asked, place)
    written = [joined(tokens) for tokens, _ in asked]
    answers = tag(
        judged.model, judged.tokenizer, [text for text, _ in written], judged.task.get("labels"), length=judged.task.get("length"),
        on_batch=told(settings, len(asked)),
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
