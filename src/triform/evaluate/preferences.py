"""Preferences: of two answers to a prompt, the better one is the more probable, or has the higher reward."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from triform.data.conversations import Preference
from triform.data.conversations import preference as read_preference
from triform.generate.forms import use_of
from triform.generate.judging import longest_row, outputs
from triform.objectives.preference import written
from triform.objectives.reward_model import reward_row

from .files import Line, found_in, read, records, some
from .likelihood import answer_likelihoods
from .statistics import Metric
from .task import Judged, Result, Settings, fingerprint

_BATCH = 16
_LONGEST = 4096  # tokens that a reward model reads where nothing says


def preference(judged: Judged, place: Path, settings: Settings) -> Result:
    """Rows with `chosen` and `rejected` answers (`triform.data.conversations`): the share in which the model prefers the chosen one.

    A language model prefers the answer of the higher log-probability: `accuracy`, and by that over the answer's tokens
    `accuracy_normalised`; `margin` is the mean difference, in nats. A reward model (a Classify head of one label) prefers the one of
    the higher reward. Raises ValueError for another model, and for rows that are none.
    """
    files = found_in(place, "*.jsonl", "*.csv", "*.tsv", "*.parquet")
    rewards = _is_reward_model(judged)
    lines = chain.from_iterable(map(records, files))
    reader = _rewarded if rewards else _written
    pairs, bad = read(lines, lambda line: reader(judged, line), skip_bad=settings.skip_bad, limit=settings.limit)
    some(pairs, place)
    both = [one for _, own in pairs for one in own]
    scores, sizes = _rewards(judged, both, settings) if rewards else _log_probs(judged, both, settings)
    chosen, rejected = scores[::2], scores[1::2]
    margins = [a - b for a, b in zip(chosen, rejected, strict=True)]
    metrics = [Metric.right("accuracy", [one > 0 for one in margins]), Metric.average("margin", margins)]
    if not rewards:
        means = [score / max(1, size) for score, size in zip(scores, sizes, strict=True)]
        right = [a > b for a, b in zip(means[::2], means[1::2], strict=True)]
        metrics.insert(1, Metric.right("accuracy_normalised", right))
    items = [
        {"prompt": list(found.prompt), "chosen": a, "rejected": b, "right": a > b}
        for (found, _), a, b in zip(pairs, chosen, rejected, strict=True)
    ]
    setting = {"by": "reward" if rewards else "log-probability"}
    return Result("preference", place.stem, metrics, setting, fingerprint(files), bad=bad, items=items)


def _is_reward_model(judged: Judged) -> bool:
    if use_of(judged.model.config) != "classify":
        return False
    head: Any = getattr(judged.model.config, "head", None)
    if head.labels != 1:
        raise ValueError(f"preference: expected a language model, or a reward model with one label, got a head of {head.labels} labels")
    return True


def _read(line: Line) -> Preference:
    try:
        return read_preference(line.fields)
    except ValueError as error:
        raise line.error(str(error)) from None


def _written(judged: Judged, line: Line) -> tuple[Preference, tuple[Any, Any]]:
    """The two answers as a language model reads them."""
    found = _read(line)
    encodes = judged.model.config.form == "encoder-decoder"
    try:
        first, second = (
            written(judged.tokenizer, found.prompt, answer, found.tools, encodes=encodes) for answer in (found.chosen, found.rejected)
        )
    except ValueError as error:
        raise line.error(str(error)) from None
    return found, (first, second)


def _rewarded(judged: Judged, line: Line) -> tuple[Preference, tuple[Any, Any]]:
    """The two answers as a reward model reads them, each with its segments."""
    found = _read(line)
    net: Any = judged.model
    length = longest_row(net, judged.tokenizer, judged.task.get("length")) or _LONGEST
    try:
        first, second = (
            reward_row(judged.tokenizer, found.prompt, answer, length, tools=found.tools) for answer in (found.chosen, found.rejected)
        )
    except ValueError as error:
        raise line.error(str(error)) from None
    return found, (first, second)


def _log_probs(judged: Judged, answers: Sequence[Any], settings: Settings) -> tuple[list[float], list[int]]:
    found = answer_likelihoods(judged.model, judged.tokenizer, answers, on_rows=settings.on_progress)
    return [one.log_prob for one in found], [one.tokens for one in found]


def _rewards(judged: Judged, rows: Sequence[Any], settings: Settings) -> tuple[list[float], list[int]]:
    net: Any = judged.model
    scores = [0.0] * len(rows)
    done = 0
    for numbers, found in outputs(net, judged.tokenizer, [ids for ids, _ in rows], _BATCH, [parts for _, parts in rows]):
        for number, score in zip(numbers, found[:, 0].float().tolist(), strict=True):
            scores[number] = score
        done += len(numbers)
        if settings.on_progress is not None:
            settings.on_progress(done, len(rows))
    return scores, [len(ids) for ids, _ in rows]
