"""Tasks of lm-evaluation-harness with a Triform model: its data, prompts and figures, with our intervals and tests."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from .files import library
from .statistics import Array, Metric, mean
from .task import Judged, Result, Settings

_RESAMPLES = 1000  # of the harness' own bootstrap, for figures that are no function of sums
_LOG_2 = math.log(2)


def _perplexity(sums: Array, count: int) -> Array:
    found: Array = np.exp(-sums[..., 0] / count)
    return found


def _weighted_perplexity(sums: Array, count: int) -> Array:
    found: Array = np.exp(-sums[..., 0] / sums[..., 1])
    return found


def _bits_per_byte(sums: Array, count: int) -> Array:
    found: Array = -sums[..., 0] / sums[..., 1] / _LOG_2
    return found


_FORMULAS: dict[int, tuple[Callable[[Array, int], Array], ...]] = {1: (mean, _perplexity), 2: (_weighted_perplexity, _bits_per_byte)}


def harness(judged: Judged, names: Sequence[str], settings: Settings) -> list[Result]:
    """Measure a model by tasks of lm-evaluation-harness: its names of tasks, groups and tags, or .yaml files of tasks.

    A group's tasks are the parts of one result. `shots`, `limit`, `chat` and `allow_code` are as for other tasks.
    Raises ValueError where the harness is not installed, for a name that it does not know, and for data that it cannot get.
    """
    lm_eval = library("lm_eval", "harness")
    from .harness_model import HarnessModel

    model = HarnessModel(judged, chat=settings.chat, seed=settings.seed, on_progress=settings.on_progress)
    with _quiet():
        manager, tasks = _load(names, settings.allow_code)
        found = lm_eval.simple_evaluate(
            model, tasks=tasks, task_manager=manager, num_fewshot=settings.shots, limit=settings.limit, log_samples=True,
            bootstrap_iters=_RESAMPLES, apply_chat_template=settings.chat, fewshot_as_multiturn=settings.chat,
            confirm_run_unsafe_code=settings.allow_code,
        )  # fmt: skip
    return results(found, settings.chat, model.longest)


def _load(names: Sequence[str], allow_code: bool) -> tuple[Any, list[Any]]:
    """The harness' manager of tasks, and the tasks and groups with their data."""
    if allow_code:
        os.environ["HF_ALLOW_CODE_EVAL"] = "1"  # its metrics that run programs ask for it
    files = {name: Path(name) for name in names if Path(name).suffix in (".yaml", ".yml")}
    for file in files.values():
        if not file.is_file():
            raise ValueError(f"{file}: expected a file of a task, found none; check the name")
    groups = {name: group[1] for name, file in files.items() if (group := _GROUP.search(file.read_text("utf-8", errors="replace")))}
    folders = tuple(dict.fromkeys(str(files[name].parent) for name in groups))
    manager = _manager(len(files) < len(names) or bool(groups), folders)
    for name in names:
        if name not in files and not manager.match_tasks([name]):
            raise ValueError(f"harness: expected a task, group or tag of lm-evaluation-harness, or a .yaml file, got {name!r}")
    tasks: list[Any] = []
    for name in names:
        try:
            loaded = manager.load([groups[name]] if name in groups else [name] if name in files else manager.match_tasks([name]))
        except Exception as error:  # whatever tasks, datasets and the hub raise
            told = " ".join(str(error).split())[:300] or type(error).__name__
            raise ValueError(f"{name}: lm-evaluation-harness cannot load it: {told}") from error
        for key, task in loaded["tasks"].items():
            if getattr(task, "UNSAFE_CODE", False) and not allow_code:
                raise ValueError(f"{key} runs programs that the model wrote, and by the harness' own means; allow it by --allow-code")
        within = {child for children in loaded["group_map"].values() for child in children}
        tasks += [one for key, one in {**loaded["groups"], **loaded["tasks"]}.items() if key not in within]
    return manager, tasks


_GROUP = re.compile(r"^group:\s*(\S+)\s*$", re.MULTILINE)


@lru_cache(maxsize=2)
def _manager(known: bool, folders: tuple[str, ...]) -> Any:
    """The harness' manager of tasks: with those that it knows itself, which takes some seconds, and those in folders."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=known, include_path=list(folders))


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing but errors of the harness is told."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def results(found: Mapping[str, Any], chat: bool, window: int) -> list[Result]:
    """What `lm_eval.simple_evaluate` found, with the samples of each task. window: tokens that the model read at a time."""
    parts = {group: _leaves(found["group_subtasks"], group) for group in found.get("group_subtasks", {})}
    grouped = {name for own in parts.values() for name in own}
    within = {name for own in found.get("group_subtasks", {}).values() for name in own}
    groups = {group: own for group, own in parts.items() if own and group not in within}
    alone = {name: [name] for name in found["samples"] if name not in grouped}
    return [_result(name, own, found, {"chat": chat, "window": window}) for name, own in {**groups, **alone}.items()]


def _leaves(groups: Mapping[str, Sequence[str]], name: str) -> list[str]:
    """The tasks of a group and of the groups in it; a task's own name is none."""
    found: list[str] = []
    for one in groups.get(name, ()):
        found += _leaves(groups, one) if groups.get(one) else [one]
    return list(dict.fromkeys(found))


def _result(name: str, tasks: Sequence[str], found: Mapping[str, Any], setting: Mapping[str, Any]) -> Result:
    metrics: list[Metric] = []
    own = [_metrics(task, found) for task in tasks]
    if len(tasks) == 1:
        metrics = list(own[0].values())
    else:  # figures that all tasks have, over the items of all of them
        for key, first in own[0].items():
            alike = [each[key] for each in own if key in each]
            if len(alike) == len(own) and all(each.error is None and each.of is first.of for each in alike):
                rows = np.concatenate([each.rows for each in alike])
                share = all(each.share for each in alike)
                metrics.append(Metric(key, rows, first.of, share, first.higher_is_better))
    samples = [sample for task in tasks for sample in _documents(found["samples"][task])]
    if not metrics:
        raise ValueError(f"{name}: its tasks have no figure in common; ask for them one by one ({', '.join(tasks[:5])}, …)")
    shots = sorted({found["n-shot"].get(task, 0) for task in tasks})
    setting = {"shots": shots[0] if len(shots) == 1 else shots, "version": found["versions"].get(tasks[0]), **setting}
    counts = [len(_documents(found["samples"][task])) for task in tasks]
    groups = [task for task, count in zip(tasks, counts, strict=True) for _ in range(count)]
    items = [{"task": group, **_item(sample)} for group, sample in zip(groups, samples, strict=True)]
    return Result("harness", name, metrics, setting, _fingerprint(samples), groups, items=items, notes=_notes(name, metrics, found))


def _metrics(task: str, found: Mapping[str, Any]) -> dict[str, Metric]:
    """The figures of a task, each by its name, with its filter's where there are several."""
    told, metrics = found["results"][task], {}
    samples = found["samples"][task]
    filters = list(dict.fromkeys(sample["filter"] for sample in samples))
    for chosen in filters:
        rows = [sample for sample in samples if sample["filter"] == chosen]
        for name in dict.fromkeys(name for sample in rows for name in sample["metrics"]):
            value = told.get(f"{name},{chosen}")
            if not isinstance(value, int | float):
                continue
            error = told.get(f"{name}_stderr,{chosen}")
            better = bool(found.get("higher_is_better", {}).get(task, {}).get(name, True))
            key = name if len(filters) == 1 else f"{name} {chosen}"
            metrics[key] = metric(key, [sample.get(name) for sample in rows], (float(value), error), better)
    return metrics


def metric(name: str, values: Sequence[Any], told: tuple[float, Any], higher_is_better: bool = True) -> Metric:
    """A figure of the harness by what each item adds to it, where that gives just the figure; else the figure as it is told.

    values: of the items, numbers or pairs. told: the figure and its standard error ("N/A" where the harness has none).
    """
    value, error = told
    try:
        rows = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        rows = np.zeros((0, 0, 0))
    rows = rows[:, None] if rows.ndim == 1 else rows
    for formula in _FORMULAS.get(rows.shape[-1], ()) if rows.ndim == 2 else ():
        with np.errstate(all="ignore"):
            mine = float(formula(rows.sum(0), len(rows)))
        if math.isclose(mine, value, rel_tol=1e-9, abs_tol=1e-12):
            share = formula is mean and bool(np.isin(rows, (0, 1)).all())
            return Metric(name, rows, formula, share, higher_is_better)
    known = isinstance(error, int | float) and math.isfinite(error)
    return Metric.given(name, value, float(error) if known else math.nan, len(values), higher_is_better=higher_is_better)


def _documents(samples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """One sample for each document, that of the first filter."""
    return [sample for sample in samples if sample["filter"] == samples[0]["filter"]]


def _item(sample: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked, expected and answered, as plain data."""
    kept = {
        "document": sample["doc_id"], "asked": sample["arguments"], "answer": sample["target"], "answered": sample["filtered_resps"],
        **{name: sample.get(name) for name in sample["metrics"]},
    }  # fmt: skip
    plain: dict[str, Any] = json.loads(json.dumps(kept, default=str))
    return plain


def _fingerprint(samples: Sequence[Mapping[str, Any]]) -> str:
    text = json.dumps([sample.get("doc_hash", sample["doc_id"]) for sample in samples])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _notes(name: str, metrics: Sequence[Metric], found: Mapping[str, Any]) -> list[str]:
    """Where the harness has another figure for a group, as it weighs its tasks alike."""
    told, notes = found["results"].get(name, {}), []
    for one in metrics:
        other = next((value for key, value in told.items() if key.split(",")[0] == one.name and isinstance(value, float)), None)
        if other is not None and not math.isclose(other, one.value, rel_tol=1e-6, abs_tol=1e-9):
            notes.append(f"{one.name} is over all items; the harness' own figure of the group is {other:.4f}")
    return notes
