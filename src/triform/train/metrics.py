"""What a run says of itself: a line of JSON a step, a progress bar, TensorBoard, and a plot of the curves."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from triform.config.files import replacing

Report = Callable[[dict[str, Any]], None]
_SECONDS_A_LINE = 10.0
_MOST_POINTS = 2000


class Metrics:
    """`metrics.jsonl` in a run's folder, and TensorBoard's files beside it on request.

    A row a step: step (from 1), loss (nats a label, without the experts' losses), what else
    the objective measures (accuracy, a share), rate (of all but Muon), gradient_norm
    (before clipping), tokens (read since the run began, padding left out), tokens_per_second,
    peak_share (achieved FLOP/s to those of a large matrix product on this machine) and
    seconds (since the run began, pauses left out). A row a validation: step,
    validation_loss, and validation_accuracy and the like.
    """

    def __init__(self, folder: Path, *, tensorboard: bool = False) -> None:
        self.folder, self.file = folder, folder / "metrics.jsonl"
        self._writer: Any = None
        self._open: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise ValueError('train.tensorboard needs tensorboard; pip install "triform[tensorboard]"') from None
            self._open = SummaryWriter

    def start(self, step: int) -> None:
        """Drop rows after a step."""
        self.file.touch()
        keep_until(self.file, step)
        if self._open is not None:
            self._writer = self._open(str(self.folder / "tensorboard"), purge_step=step + 1)

    def write(self, row: dict[str, Any]) -> None:
        """Append one row."""
        with self.file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")
        if self._writer is not None:
            for name, value in row.items():
                if name != "step":
                    self._writer.add_scalar(name, value, row["step"])

    def close(self) -> None:
        """Finish TensorBoard's files."""
        if self._writer is not None:
            self._writer.close()


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
            yield lambda row: progress.update(task, completed=row["step"], figures=figures(row))


def _lines(steps: int, done: int) -> Report:
    began = shown = time.monotonic()

    def show(row: dict[str, Any]) -> None:
        nonlocal shown
        now, step = time.monotonic(), row["step"]
        if now - shown >= _SECONDS_A_LINE or step in (done + 1, steps):
            shown = now
            left = int((now - began) / (step - done) * (steps - step))
            print(f"step {step}/{steps}  {figures(row)}  {left // 60}:{left % 60:02d} left", file=sys.stderr, flush=True)

    return show


def figures(row: dict[str, Any]) -> str:
    """A step's figures in a few words."""
    parts = [f"loss {row['loss']:.3f}"] if "loss" in row else []
    if "validation_loss" in row:
        parts.append(f"validation {row['validation_loss']:.3f}")
    if "validation_accuracy" in row:
        parts.append(f"accuracy {100 * row['validation_accuracy']:.1f} %")
    parts.append(f"{row['tokens_per_second']:,.0f} tokens/s")
    parts.append(f"{100 * row['peak_share']:.0f} % of peak")
    return "  ".join(parts)


def plot_curves(folder: Path) -> Path:
    """Draw the curves of a run's metrics to `curves.svg` in its folder; long ones are thinned out evenly."""
    from matplotlib.figure import Figure

    rows = read_metrics(folder / "metrics.jsonl")
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axis, names, title in (
        (left, ("loss", "validation_loss"), "loss (nats a label)"),
        (right, ("tokens_per_second",), "tokens a second"),
    ):
        for name in names:
            points = [(row["step"], row[name]) for row in rows if name in row]
            if points:
                thinned = points[:: -(-len(points) // _MOST_POINTS)]
                axis.plot(*zip(*thinned, strict=True), label=name.replace("_", " "), marker="o" if len(points) == 1 else None)
        axis.set_xlabel("step")
        axis.set_title(title)
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend()
    with replacing(folder / "curves.svg") as file:
        figure.savefig(file, format="svg")
    return folder / "curves.svg"
