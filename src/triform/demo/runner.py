"""Runs the demo's stages one after another under one progress bar, and writes the report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .report import write_report
from .stages import STAGES, Stage

# What each part of a stage took when last measured, in seconds on two cores: how the bar shares out the time.
PARTS: dict[str, dict[str, float]] = {
    "storyteller": {"storyteller": 105, "measure": 15},
    "critic": {"pretrain": 105, "judge": 45, "without-pretraining": 45, "measure": 25},
    "translator": {"translator": 65, "measure": 25},
}


class _Bar:
    """One bar over all stages; a stage's parts move it by their share of the expected time."""

    def __init__(self, progress: Progress) -> None:
        self.progress, self.done = progress, 0.0
        total = sum(sum(parts.values()) for parts in PARTS.values())
        self.task = progress.add_task("demo", total=total, now="starting")

    def stage(self, name: str) -> Callable[[str, float], None]:
        parts = PARTS[name]
        base = self.done
        self.done += sum(parts.values())

        def say(what: str, share: float) -> None:
            part = what.split(":")[0]
            names, sizes = list(parts), list(parts.values())
            at = names.index(part if part in parts and (": step" in what or ": preparing" in what) else "measure")
            self.progress.update(self.task, completed=base + sum(sizes[:at]) + share * sizes[at], now=what)

        return say


def run_demo(folder: str | Path = "demo", *, quick: bool = False) -> dict[str, Any]:
    """Train and measure the three models in a folder and write `report.html` there; returns the stages' results by name.

    What an earlier, interrupted demo has finished in the same folder is used again.
    `quick` takes a few steps of each only, to see that everything runs.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / "demo.json"
    if note.exists() and json.loads(note.read_text(encoding="utf-8")) != {"quick": quick}:
        raise ValueError(f"{folder}: holds a demo run {'without' if quick else 'with'} --quick; choose another folder with --out")
    note.write_text(json.dumps({"quick": quick}) + "\n", encoding="utf-8")
    results: dict[str, Any] = {}
    left = (TextColumn("left"), TimeRemainingColumn())
    columns = (BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), *left, TextColumn("{task.fields[now]}"))
    with Progress(*columns, console=Console(stderr=True), refresh_per_second=4) as progress:
        bar = _Bar(progress)
        for name, stage in STAGES.items():
            say = bar.stage(name)
            place = folder / name
            if not (place / "result.json").exists():
                place.mkdir(exist_ok=True)
                stage(Stage(place, say, quick))
            results[name] = json.loads((place / "result.json").read_text(encoding="utf-8"))
            say(f"{name}: done", 1.0)
    write_report(folder)
    return results


def summary(results: dict[str, Any]) -> str:
    """The figures of each stage beside its baselines, as lines of text."""
    lines = []
    for result in results.values():
        size = f"{result['parameters'] / 1e6:.1f}M parameters"
        lines.append(f"{result['title']} ({result['form']}, {size}, {result['seconds']:.0f} s of training)")
        for figure in result["figures"]:
            mark = "*" if figure["ours"] else " "
            lines.append(f"  {mark} {figure['label']:32} {figure['value']:8.2f} {figure['unit']}")
        lines.append(f"    goal: {result['goal']['text']}: {result['goal']['detail']}")
        sample = result["samples"][0]
        lines.append(f"    e.g. {sample['input']} → {' '.join(sample['output'].split())}")
    return "\n".join(lines)


