"""What a run says of itself: a line of JSON a step, a progress bar, TensorBoard, and a plot of the curves."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from triform.hub import replacing


class Metrics:
    """`metrics.jsonl` in a run's folder, and TensorBoard's files beside it on request."""

    def __init__(self, folder: Path, *, tensorboard: bool = False) -> None:
        self.file = folder / "metrics.jsonl"
        self.writer: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise ValueError('train.tensorboard needs tensorboard; pip install "triform[tensorboard]"') from None
            self.writer = SummaryWriter(str(folder / "tensorboard"))

    def write(self, row: dict[str, Any]) -> None:
        """Append one row."""
        with self.file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")
        if self.writer is not None:
            for name, value in row.items():
                if name != "step":
                    self.writer.add_scalar(name, value, row["step"])

    def keep_up_to(self, step: int) -> None:
        """Drop rows after a step, and a row cut short, as a run that goes on from there will write them again."""
        rows = [row for row in read_metrics(self.file) if row["step"] <= step]
        with replacing(self.file) as file:
            file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file; a last line cut short is left out."""
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


@contextmanager
def progress_bar(steps: int, done: int, report: Callable[[dict[str, Any]], None] | None) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function to call with each step's figures: `report`, or one that draws a bar on standard error."""
    if report is not None:
        yield report
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[figures]}"), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("training", total=steps, completed=done, figures="")
        yield lambda row: progress.update(task, completed=row["step"], figures=figures(row))


def figures(row: dict[str, Any]) -> str:
    """A step's figures in a few words."""
    parts = [f"loss {row['loss']:.3f}"]
    if "validation_loss" in row:
        parts.append(f"validation {row['validation_loss']:.3f}")
    if "validation_accuracy" in row:
        parts.append(f"accuracy {100 * row['validation_accuracy']:.1f} %")
    parts.append(f"{row['tokens_per_second']:,.0f} tokens/s")
    parts.append(f"{100 * row['peak_share']:.0f} % of peak")
    return "  ".join(parts)


def plot_curves(folder: Path) -> Path:
    """Draw the curves of a run's metrics to `curves.svg` in its folder."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = read_metrics(folder / "metrics.jsonl")
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for axis, names, title in (
        (left, ("loss", "validation_loss"), "loss (nats a label)"),
        (right, ("tokens_per_second",), "tokens a second"),
    ):
        for name in names:
            points = [(row["step"], row[name]) for row in rows if name in row]
            if points:
                axis.plot(*zip(*points, strict=True), label=name.replace("_", " "), marker="o" if len(points) == 1 else None)
        axis.set_xlabel("step")
        axis.set_title(title)
        axis.grid(alpha=0.3)
        axis.legend()
    with replacing(folder / "curves.svg") as file:
        figure.savefig(file, format="svg")
    pyplot.close(figure)
    return folder / "curves.svg"
