"""What a run says of itself: a line of JSON a step, a progress bar, and a plot of the curves."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from triform.config.files import replacing
from triform.planner.quantities import data_size

from .track import Trackers

Report = Callable[[dict[str, Any]], None]
_SECONDS_A_LINE = 10.0
_MOST_POINTS = 2000


class Metrics:
    """`metrics.jsonl` in a run's folder, which the trackers are told too.

    A row a step: step (from 1), loss (nats a label, without the experts' losses), what else
    the objective measures (accuracy, a share), rate (of all but Muon), gradient_norm
    (before clipping), tokens (read since the run began, padding left out), tokens_per_second,
    peak_share (achieved FLOP/s to those of a large matrix product on this machine),
    seconds (since the run began, pauses left out), memory and peak_memory (bytes: what the process has resident, or a
    GPU's tensors, now and at most since the process began). A row a validation: step, validation_loss, and validation_accuracy and
    the like.
    """

    def __init__(self, folder: Path, trackers: Trackers) -> None:
        self.file, self.trackers = folder / "metrics.jsonl", trackers

    def start(self, step: int) -> None:
        """Drop rows after a step."""
        self.file.touch()
        keep_until(self.file, step or -1)  # what was measured before the first step is measured again
        self.trackers.start(step)

    def write(self, row: dict[str, Any]) -> None:
        """Append one row."""
        with self.file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")
        self.trackers.write(row)

    def close(self) -> None:
        """Finish what the trackers keep."""
        self.trackers.close()


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file; a last line cut short is left out."""
    rows = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def keep_until(file: Path, step: int) -> None:
    """Drop rows after a step, and a row cut short, as a run that goes on from there will write them again."""
    if file.exists():
        rows = [row for row in read_metrics(file) if row["step"] <= step]
        with replacing(file) as new:
            new.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


@contextmanager
def progress_bar(steps: int, done: int, report: Report | None) -> Iterator[Report]:
    """A function to call with each step's figures: `report`, or one that shows them on standard error.

    That is a bar where standard error is a terminal, and else a line now and then.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if report is not None:
        yield report
    elif not console.is_terminal:
        yield _lines(steps, done)
    else:
        left = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        with Progress(BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[figures]}"), *left, console=console) as progress:
            task = progress.add_task("training", total=steps, completed=done, figures="")

            def show(row: dict[str, Any]) -> None:
                progress.update(task, completed=row["step"], figures=figures(row))
                if "sample" in row:
                    console.print(row["sample"], markup=False, highlight=False)

            yield show


def _lines(steps: int, done: int) -> Report:
    began = shown = time.monotonic()

    def show(row: dict[str, Any]) -> None:
        nonlocal shown
        now, step = time.monotonic(), row["step"]
        if now - shown >= _SECONDS_A_LINE or step in (done + 1, steps):
            shown = now
            left = int((now - began) / (step - done) * (steps - step))
            print(f"step {step}/{steps}  {figures(row)}  {left // 60}:{left % 60:02d} left", file=sys.stderr, flush=True)
        if "sample" in row:
            print(row["sample"], file=sys.stderr, flush=True)

    return show


def figures(row: dict[str, Any]) -> str:
    """A step's figures in a few words."""
    parts = [f"loss {row['loss']:.3f}"] if "loss" in row else []
    if "validation_loss" in row:
        parts.append(f"validation {row['validation_loss']:.3f}")
    if "reward" in row:
        parts.append(f"reward {row['reward']:.3f}")
    if "validation_reward" in row:
        parts.append(f"validation reward {row['validation_reward']:.3f}")
    if "validation_accuracy" in row:
        parts.append(f"accuracy {100 * row['validation_accuracy']:.1f} %")
    parts.append(f"{row['tokens_per_second']:,.0f} tokens/s")
    parts.append(f"{100 * row['peak_share']:.0f} % of peak")
    if "memory" in row:
        parts.append(data_size(row["memory"]))
    return "  ".join(parts)


PANELS: dict[str, tuple[str, ...]] = {
    "loss (nats a label)": ("loss", "validation_loss"),
    "tokens a second": ("tokens_per_second",),
    "gradient's norm": ("gradient_norm",),
    "learning rate": ("rate",),
}


def points(rows: Iterable[dict[str, Any]], name: str, along: str = "step") -> tuple[list[float], list[float]]:
    """A figure over the steps, or over another figure; a long curve is thinned out evenly."""
    found = [(row[along], row[name]) for row in rows if name in row and along in row]
    thinned = found[:: -(-len(found) // _MOST_POINTS) or 1]
    return [x for x, _ in thinned], [y for _, y in thinned]


def plot_curves(folder: Path) -> Path:
    """Draw the curves of a run's metrics to `curves.svg` in its folder."""
    from matplotlib.figure import Figure

    rows = read_metrics(folder / "metrics.jsonl")
    panels = dict(PANELS)
    if any("reward" in row for row in rows):  # a policy's loss says nothing of how good it is
        panels = {"reward": ("reward", "validation_reward")} | {title: names for title, names in PANELS.items() if "loss" not in names}
    figure = Figure(figsize=(10, 6.8), layout="constrained")
    for axis, (title, names) in zip(figure.subplots(2, 2).flat, panels.items(), strict=True):
        for name in names:
            x, y = points(rows, name)
            if x:
                axis.plot(x, y, label=name.replace("_", " "), marker="o" if len(x) == 1 else None)
        axis.set_xlabel("step")
        axis.set_title(title)
        axis.grid(alpha=0.3)
        if len(axis.lines) > 1:
            axis.legend()
    with replacing(folder / "curves.svg") as file:
        figure.savefig(file, format="svg")
    return folder / "curves.svg"
