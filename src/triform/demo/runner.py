"""Runs the demo's stages one after another under one progress bar, and writes the report."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from triform.config.files import replacing

from .report import write_report
from .stages import STAGES, Stage

Say = Callable[[str, str, float], None]

# What each part of a stage took when last measured, in seconds on two cores: how the bar shares out the time.
PARTS: dict[str, dict[str, float]] = {
    "storyteller": {"storyteller": 105, "measure": 12},
    "critic": {"pretrain": 150, "judge": 40, "without-pretraining": 40, "measure": 25},
    "translator": {"translator": 110, "measure": 12},
}


_SECONDS_A_LINE = 15.0


class _Bar:
    """One bar over all stages; a stage's parts move it by their share of the expected time.

    Where standard error is no terminal it is a line now and then.
    """

    def __init__(self, progress: Progress) -> None:
        self.progress, self.done, self.shown, self.began = progress, 0.0, 0.0, time.monotonic()
        self.first: float | None = None  # the share that an earlier run had done
        total = sum(sum(parts.values()) for parts in PARTS.values())
        self.task = progress.add_task("demo", total=total, now="starting")

    def stage(self, name: str) -> Say:
        """What a stage reports to: what it does, and the share of that part that is done."""
        base, parts = self.done, PARTS[name]
        names, sizes = list(parts), list(parts.values())
        self.done += sum(sizes)

        def say(part: str, what: str, share: float) -> None:
            at = names.index(part)
            self.progress.update(self.task, completed=base + sum(sizes[:at]) + share * sizes[at], now=what)
            if self.first is None and part != "measure" and share:
                self.first = self._share()
            self._line(what)

        return say

    def _share(self) -> float:
        return self.progress.tasks[0].completed / (self.progress.tasks[0].total or 1)

    def _line(self, what: str) -> None:
        now = time.monotonic() - self.began
        share = self._share()
        if self.progress.console.is_terminal or now - self.shown < _SECONDS_A_LINE:
            return
        self.shown = now
        new = share - (self.first or 0.0)
        left = f", about {now / new * (1 - share):.0f} s left" if new > 0 else ""
        print(f"{100 * share:3.0f} %  {now:.0f} s{left}  {what}", file=sys.stderr, flush=True)


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
    with replacing(note) as file:
        file.write_text(json.dumps({"quick": quick}) + "\n", encoding="utf-8")
    results: dict[str, Any] = {}
    left = (TextColumn("left"), TimeRemainingColumn())
    columns = (BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), *left, TextColumn("{task.fields[now]}"))
    console = Console(stderr=True)
    with Progress(*columns, console=console, refresh_per_second=4, disable=not console.is_terminal) as progress:
        bar = _Bar(progress)
        for name, stage in STAGES.items():
            say = bar.stage(name)
            place = folder / name
            if not (place / "result.json").exists():
                place.mkdir(exist_ok=True)
                stage(Stage(place, say, quick))
            results[name] = json.loads((place / "result.json").read_text(encoding="utf-8"))
            say("measure", f"{name}: done", 1.0)
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
            lines.append(f"  {mark} {figure['label']:43} {figure['value']:8.2f} {figure['unit']}")
        lines.append(f"    goal: {result['goal']['text']}: {result['goal']['detail']}")
        sample = result["samples"][0]
        lines.append(f"    e.g. {sample['input']} → {' '.join(sample['output'].split())}")
    return "\n".join(lines)


