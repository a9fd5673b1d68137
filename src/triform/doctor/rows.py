"""What the rows of the data tell before any of them is a token: duplicates, labels, and what training and held-out text share."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from triform.data.duplicates import digest
from triform.data.ngrams import Hashes, ngram_hashes, unit_hashes, units
from triform.data.rows import BadRows
from triform.data.sources import open_source
from triform.objectives import Objective
from triform.train.recipe import DataRecipe

from .findings import Finding, graded, listed, percent
from .labels import unknown_finding
from .subject import Part, Row, Subject, encoded, one_by_one, read_part, texts, without_limits

NGRAM = 13  # words, or characters of Chinese (Brown et al. 2020, appendix C)
_COPIED = 0.5  # of a text's n-grams: it is a copy, or nearly so

Report = Callable[[int, int], None]


def _key(row: Row) -> bytes:
    """What tells equal rows: their texts, or all of a row without text."""
    found = "\n".join(texts(row))
    return digest(found if found else json.dumps(dict(row), sort_keys=True, default=str))


def check_duplicates(part: Part, data: DataRecipe) -> Iterator[Finding]:
    """Rows that are there more than once, though the weights of their sources do not ask for it."""
    counts = Counter(map(_key, part.rows))
    again = len(part.rows) - len(counts)
    share = again / max(1, len(part.rows))
    says = f"{percent(share)} of {part.said} repeat an earlier one"
    severity, advice = graded(share, 0.05), ""
    if severity != "fine" and any(each.weight > 1 for each in data.sources):
        severity, says = "note", f"{says}, as the weights of the sources ask"
    elif severity != "fine" and data.transform:
        advice = "they come of data.transform: short pieces of a text repeat; look at `overlap`, or make longer pieces"
    elif severity != "fine":
        advice = "set data.clean: {filter: null} to keep each once, and {deduplicate: {near: 0.8}} in it for near copies"
    yield Finding("duplicates", severity, says, advice, {"share": share, "rows": again})


def check_classes(subject: Subject, train: Part, validation: Part) -> Iterator[Finding]:
    """How often each label comes, and whether equal texts have different ones."""
    spec = subject.objective.spec
    name, names = getattr(spec, "label", None), getattr(spec, "labels", ())
    if name is None or not names or any(not isinstance(row.get(name), (str, int, float, bool)) for row in train.rows):
        return
    counts = Counter(str(row[name]) for row in train.rows)
    held = Counter(str(row.get(name)) for row in validation.rows)
    total = max(1, counts.total())
    told = ", ".join(f"{label} {percent(counts[label] / total)}" for label in names[:8])
    figures = {"training": {label: counts[label] for label in names}, "validation": {label: held[label] for label in names}}
    if never := [label for label in names if not counts[label]]:
        advice = "take them out of objective.labels, or add examples of them"
        yield Finding("classes", "error", f"{train.said} have no example of {listed(never)}", advice, figures)
    elif (most := max(counts.values()) / total) >= 0.95:
        advice = "look at the F1 of each class and not at accuracy, and sample the rare ones more often (a weight of their source)"
        yield Finding("classes", "warning", f"one class makes up {percent(most)}: {told}", advice, figures)
    else:
        yield Finding("classes", "fine", told, figures=figures)
    yield from _contradictions(name, train)


def _contradictions(name: str, part: Part) -> Iterator[Finding]:
    labels: defaultdict[bytes, set[str]] = defaultdict(set)
    for row in part.rows:
        labels[_key({key: value for key, value in row.items() if key != name})].add(str(row[name]))
    share = sum(len(found) > 1 for found in labels.values()) / max(1, len(labels))
    if share:
        advice = "decide which label is right, or leave these rows out"
        says = f"{percent(share)} of the examples are there with different labels"
        yield Finding("contradictions", graded(share, 0.005), says, advice, {"share": share})


def check_truncation(objective: Objective, rows: Sequence[Row], folder: Path) -> Iterator[Finding]:
    """How many tokens the objective's lengths cut off."""
    if objective.cuts_rows:
        yield Finding("truncation", "fine", "rows are cut from the stream of all text, and none of it is lost")
        return
    cut = one_by_one(objective)
    free = without_limits(cut)
    if free is None or not rows:
        return
    bad = BadRows(skip=True)
    kept, whole = (encoded(each, rows, folder / name, bad).lengths for each, name in ((cut, "cut"), (free, "whole")))
    share = max(0.0, 1 - float(kept.sum()) / max(1.0, float(whole.sum())))
    figures: dict[str, float] = {"share": share, "longest": int(whole.max(initial=0)), "p95": float(np.percentile(whole, 95))}
    short = float(np.mean(kept < whole)) if len(kept) == len(whole) else max(0.0, 1 - len(kept) / len(whole))
    figures["samples"] = short
    severity = graded(share, 0.1, 0.5)
    says = f"{percent(share)} of the tokens are cut off" + (f", from {percent(short)} of the samples" if share and short else "")
    advice = f"raise the objective's lengths ({figures['p95']:.0f} tokens hold 95 % of the samples), or cut the data into shorter pieces"
    yield Finding("truncation", severity, says, "" if severity == "fine" else advice, figures)


def check_unknown_text(subject: Subject, part: Part) -> Iterator[Finding]:
    """How much of the text is unknown to the tokenizer, and which characters; how many tokens a character takes."""
    tokenizer = subject.tokenizer
    found = [text for row in part.some(500) for text in texts(row) if text]
    if tokenizer is None or not found:
        return
    unknown: Counter[str] = Counter()
    total = characters = 0
    for text, encoding in zip(found, tokenizer.encodings(found, plain=True), strict=True):
        total, characters = total + len(encoding.ids), characters + len(text)
        if tokenizer.unk is not None and tokenizer.unk not in tokenizer.ends:
            unknown.update(text[a:b] for i, (a, b) in zip(encoding.ids, encoding.offsets, strict=True) if i == tokenizer.unk)
    shown = tuple(text if text.strip() else ascii(text)[1:-1] for text, _ in unknown.most_common(10))
    yield unknown_finding(unknown.total() / max(1, total), total, shown)
    rate = total / max(1, characters)
    if rate > 1.5:
        says = f"the tokenizer takes {rate:.1f} tokens a character, so this script is hardly known to it"
        advice = "training and answers are as much slower; a tokenizer trained on such text, or a base model that knows the script, is not"
        yield Finding("compression", "warning", says, advice, {"tokens_a_character": rate})


def check_overlap(train: Part, validation: Part, report: Report) -> Iterator[Finding]:
    """Whether the held-out text is in the training text too."""
    if not validation.rows:
        advice = "hold some out (data.validation: 0.05), or nobody can tell when the model begins to learn by heart"
        yield Finding("validation", "warning", "nothing is held out", advice)
        return
    seen = set(map(_key, train.rows))
    copied = sum(_key(row) in seen for row in validation.rows)
    shares = _shared(validation, train, report)
    near = int((shares >= _COPIED).sum())
    share, near_share = copied / len(validation.rows), near / len(validation.rows)
    figures = {"copies": share, "near_copies": near_share, "validation": len(validation.rows), "training": len(train.rows)}
    severity = max(graded(share, 0.01, 0.1), graded(near_share, 0.05, 0.3), key=("fine", "warning", "error").index)
    where = f"of {validation.said} held out are in {train.said} of training"
    says = f"{percent(share)} {where}, and {percent(near_share)} share half of their {NGRAM}-grams with them"
    help_ = "validation would measure memory: set data.clean with overlap.sources, or another validation_source"
    advice = "" if severity == "fine" else help_
    yield Finding("overlap", severity, says, advice, figures)


def check_contamination(names: Sequence[str], train: Part, most: int, report: Report) -> Iterator[Finding]:
    """Which share of an evaluation set's items has a 13-gram in common with the training text."""
    for name in names:
        held = read_part(open_source(name, text=None), most)
        shares = _shared(held, train, report)
        long = ~np.isnan(shares)
        hit = float(np.mean(shares[long] > 0)) if long.any() else 0.0
        figures = {"share": hit, "items": len(held.rows), "too_short": int((~long).sum()), "ngram": NGRAM}
        short = f" ({int((~long).sum()):,} are too short to tell)" if not long.all() else ""
        severity = graded(hit, 0.005, 0.1)
        advice = "" if severity == "fine" else f"drop what they share: data.clean.overlap: {{sources: [{name}]}}"
        says = f"{percent(hit)} of {len(held.rows):,} items of {name} share a {NGRAM}-gram with {train.said} of training{short}"
        yield Finding("contamination", severity, says, advice, figures)


def _grams(row: Row) -> Hashes:
    hashes = unit_hashes(units("\n".join(texts(row))))
    return np.unique(ngram_hashes(hashes, NGRAM)) if len(hashes) >= NGRAM else np.empty(0, np.uint64)


def _shared(held: Part, train: Part, report: Report) -> np.ndarray:
    """For each held-out row the share of its n-grams that are in the training rows, (rows,); NaN where it is too short for one."""
    own = [_grams(row) for row in held.rows]
    known = np.unique(np.concatenate([*own, np.empty(0, np.uint64)]))
    seen = np.zeros(len(known), dtype=bool)
    for number, row in enumerate(train.rows if len(known) else ()):
        grams = _grams(row)
        places = np.searchsorted(known, grams)
        places[places == len(known)] = 0
        seen[places[known[places] == grams]] = True
        if number % 256 == 0:
            report(number, len(train.rows))
    return np.array([np.mean(seen[np.searchsorted(known, grams)]) if len(grams) else np.nan for grams in own])
