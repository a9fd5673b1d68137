"""What was measured before, beside the model, and a picture of it."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from triform.config.files import replacing

_NAME = "evaluations.jsonl"


def history_file(place: Path) -> Path:
    """Where the evaluations of a model's folder, or of a file's, are kept."""
    return (place if place.is_dir() else place.parent) / _NAME


def now() -> str:
    """The time, as the history has it."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def add(place: Path, results: Sequence[dict[str, Any]], when: str | None = None) -> None:
    """Write results to the model's history, a line each. A line that was cut off before is ended first.

    when: the time by which results of one evaluation belong together; left out, `now`.
    """
    file = history_file(place)
    told = {"time": when or now(), "model": place.name}
    lines = [json.dumps(told | one, ensure_ascii=False) + "\n" for one in results]
    torn = file.is_file() and not file.read_bytes().endswith(b"\n") and file.stat().st_size > 0
    with file.open("a", encoding="utf-8", newline="") as stream:
        stream.write("\n" * torn + "".join(lines))


def history(place: Path) -> list[dict[str, Any]]:
    """The results of a model so far, the oldest first; what a cut-off left is passed over."""
    file = history_file(place)
    found = []
    for line in file.read_text("utf-8", errors="replace").splitlines() if file.is_file() else ():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and row.get("model") == place.name and isinstance(row.get("metrics"), dict):
            found.append(row)
    return found


def plot(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Draw the figures of results (rows of `history`) as .svg, .png or .pdf: a panel for a task's figure, its values with their
    intervals in the order of time; a line joins results of the same model, data and setting. Raises ValueError for another ending."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    if file.suffix not in (".svg", ".png", ".pdf"):
        raise ValueError(f"{file}: expected a picture to end in .svg, .png or .pdf")
    models = list(dict.fromkeys(str(row.get("model")) for row in rows))
    panels: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    for row in rows:
        alike = json.dumps([row.get("model"), row.get("data"), row.get("setting"), row.get("items")], sort_keys=True)
        for name in row["metrics"]:
            panels.setdefault((str(row.get("task")), name), {}).setdefault(alike, []).append(row)
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    figure = Figure(figsize=(4.2 * across, 3 * down), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for axis, ((task, name), lines) in zip(axes, panels.items(), strict=False):
        for own in lines.values():
            _line(axis, rows, own, name, f"C{models.index(str(own[0].get('model')))}" if len(models) > 1 else None)
        axis.set_title(f"{task}: {name.replace('_', ' ')}", fontsize=9)
        axis.grid(alpha=0.3)
        axis.set_xlabel("evaluation")
        axis.xaxis.get_major_locator().set_params(integer=True)
    for axis in axes[len(panels) :]:
        axis.remove()
    if len(models) > 1:
        handles = [Line2D([], [], color=f"C{number}", marker="o") for number in range(len(models))]
        figure.legend(handles, models, loc="outside lower center", fontsize=8)
    save(figure, file)


def _line(axis: Any, rows: Sequence[dict[str, Any]], own: list[dict[str, Any]], name: str, color: str | None) -> None:
    times = sorted({row["time"] for row in rows})
    found = [row["metrics"][name] for row in own]
    values = [one["value"] for one in found]
    spread = [[max(0.0, one["value"] - (one["value"] if one["low"] is None else one["low"])) for one in found],
              [max(0.0, (one["value"] if one["high"] is None else one["high"]) - one["value"]) for one in found]]  # fmt: skip
    axis.errorbar([times.index(row["time"]) + 1 for row in own], values, yerr=spread, marker="o", capsize=3, color=color)


def save(figure: Any, file: Path) -> None:
    """Write a figure whole or not at all."""
    import matplotlib

    style: Any = {"svg.hashsalt": "triform", "svg.fonttype": "none"}
    with matplotlib.rc_context(style), warnings.catch_warnings(), replacing(file) as temporary:
        warnings.filterwarnings("ignore", message="Glyph")  # the viewer's fonts draw the text, and have Chinese
        figure.savefig(temporary, format=file.suffix[1:], dpi=150)
