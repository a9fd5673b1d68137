"""The runs below a folder: how far each has come, what it took, and how several differ. Needs no torch.

A run may be in any state: it is read from whatever it has written so far.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from triform.config.files import read_yaml

from .metrics import read_metrics
from .state import is_running

State = Literal["finished", "running", "interrupted"]
DEPTH = 4  # folders below the one that is searched


@dataclass(frozen=True, kw_only=True)
class Run:
    """What is known of a run; None where nothing is yet.

    name: its folder. form, parameters: of its model. step: steps done, of `steps`. loss, validation_loss: the last ones;
    best: the lowest validation loss. tokens_per_second, peak_share (MFU): over all its steps. seconds: in steps, validation and samples;
    left: at the pace so far. memory: bytes at the peak, the process' growth or a GPU's tensors. forecast_*: of its plan.
    """

    name: str
    state: State
    form: str | None = None
    objective: str | None = None
    parameters: int | None = None
    step: int = 0
    steps: int | None = None
    loss: float | None = None
    validation_loss: float | None = None
    best: float | None = None
    tokens: int | None = None
    tokens_per_second: float | None = None
    peak_share: float | None = None
    seconds: float | None = None
    left: float | None = None
    energy_kwh: float | None = None
    memory: int | None = None
    forecast_seconds: float | None = None
    forecast_memory: int | None = None
    forecast_energy_kwh: float | None = None
    updated: float = 0.0


SORTS = tuple(field.name for field in fields(Run))


def find_runs(*folders: str | Path) -> list[Run]:
    """The runs in these folders and below them, the one that was written to last first.

    Raises ValueError for a folder that is not there.
    """
    found: dict[Path, Path] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise ValueError(f"{folder}: expected a folder of runs, found none; `triform train` makes runs/RECIPE")
        found |= {place.resolve(): place for place in _places(folder, DEPTH)}
    return sorted((read_run(place) for place in found.values()), key=lambda run: run.updated, reverse=True)


def _places(folder: Path, depth: int) -> Iterator[Path]:
    if (folder / "recipe.yaml").is_file():
        yield folder
    elif depth:
        for inside in sorted(folder.iterdir()):
            if inside.is_dir() and not inside.name.startswith("."):
                yield from _places(inside, depth - 1)


def read_run(folder: str | Path) -> Run:
    """A run from its folder. Raises ValueError when there is no recipe.yaml in it, or what is there is none."""
    folder = Path(folder)
    recipe, plan = read_settings(folder), _json(folder / "plan.json")
    rows, result, forecast = read_metrics(folder / "metrics.jsonl"), _json(folder / "result.json"), _json(folder / "forecast.json")
    steps = [row for row in rows if "seconds" in row and "tokens" in row]
    held = [row["validation_loss"] for row in rows if "validation_loss" in row]
    last, wanted = (steps[-1] if steps else {}), _number(recipe.get("train", {}), "steps")
    done, seconds = int(last.get("step", 0)), result.get("seconds", last.get("seconds"))
    state: State = "finished" if result else "running" if is_running(folder) else "interrupted"
    left = (wanted - done) * seconds / done if state == "running" and wanted and done and seconds else None
    training = plan.get("memory", {}).get("training", {})
    return Run(
        name=str(folder),
        state=state,
        form=plan.get("form"),
        objective=recipe.get("objective", {}).get("kind"),
        parameters=result.get("parameters", plan.get("parameters", {}).get("total")),
        step=done,
        steps=None if wanted is None else int(wanted),
        loss=next((row["loss"] for row in reversed(steps) if "loss" in row), None),
        validation_loss=held[-1] if held else None,
        best=min(held, default=None),
        tokens=last.get("tokens"),
        tokens_per_second=last["tokens"] / seconds if seconds and last else None,
        peak_share=_mean_share(steps),
        seconds=seconds,
        left=left,
        energy_kwh=forecast.get("energy_kwh", {}).get("measured"),
        memory=forecast.get("memory", {}).get("measured"),
        forecast_seconds=plan.get("time", {}).get("expected_seconds"),
        forecast_memory=training.get("total"),
        forecast_energy_kwh=plan.get("cost", {}).get("energy_kwh"),
        updated=max((folder / name).stat().st_mtime for name in ("recipe.yaml", "metrics.jsonl") if (folder / name).exists()),
    )


def _mean_share(steps: Sequence[Mapping[str, Any]]) -> float | None:
    """The share of the peak over the steps' own time."""
    told = [row for row in steps if "peak_share" in row and row.get("tokens_per_second")]
    before = 0
    work = time = 0.0
    for row in told:
        spent = (row["tokens"] - before) / row["tokens_per_second"]
        before, work, time = row["tokens"], work + row["peak_share"] * spent, time + spent
    return work / time if time else None


def read_settings(folder: Path) -> dict[str, Any]:
    """A run's recipe as plain data, as it was written."""
    file = folder / "recipe.yaml"
    if not file.is_file():
        raise ValueError(f"{folder}: expected the folder of a run, with a recipe.yaml, found none")
    found = read_yaml(file)
    if not isinstance(found, dict):
        raise ValueError(f"{file}: expected a recipe, got {type(found).__name__}")
    return {name: value if isinstance(value, dict) or name in ("model", "set") else {} for name, value in found.items()}


def _json(file: Path) -> dict[str, Any]:
    """What a file holds; nothing where it is absent or cut short."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _number(data: Mapping[str, Any], name: str) -> float | None:
    value = data.get(name)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


@dataclass(frozen=True)
class Comparison:
    """Several runs beside each other.

    differences: the fields of the recipes that differ, by path, with each run's value (None: the default). rows: each
    run's metrics.
    """

    runs: list[Run]
    differences: dict[str, list[Any]]
    rows: list[list[dict[str, Any]]]

    def to_dict(self) -> dict[str, Any]:
        """The figures and the differences as plain data."""
        return {"runs": [vars(run) for run in self.runs], "differences": self.differences}


def compare(folders: Iterable[str | Path]) -> Comparison:
    """Set runs beside each other. Raises ValueError for fewer than two, and for a folder without a run."""
    places = [Path(folder) for folder in folders]
    if len(places) < 2:
        raise ValueError(f"expected at least two runs to compare, got {len(places)}; `triform runs` lists them")
    recipes = [dict(_flat(read_settings(place))) for place in places]
    names = dict.fromkeys(name for recipe in recipes for name in recipe)
    values = {name: [recipe.get(name) for recipe in recipes] for name in names}
    different = {name: found for name, found in values.items() if any(value != found[0] for value in found)}
    return Comparison([read_run(place) for place in places], different, [read_metrics(place / "metrics.jsonl") for place in places])


def _flat(data: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested data, by path; lists are leaves unless they hold parts."""
    inside: Iterable[tuple[str, Any]] = ()
    if isinstance(data, dict) and data:
        inside = ((f"{path}.{name}" if path else str(name), value) for name, value in data.items())
    elif isinstance(data, list) and any(isinstance(value, dict) for value in data):
        inside = ((f"{path}[{place}]", value) for place, value in enumerate(data))
    else:
        yield path, data
        return
    for name, value in inside:
        yield from _flat(value, name)
