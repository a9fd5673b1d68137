"""Runs as people read them: a line of words for each figure, a table, and a page with their curves."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from html import escape
from pathlib import PurePath
from typing import Any

from triform.planner.describe import short
from triform.planner.page import document
from triform.planner.quantities import data_size, duration

from .metrics import points
from .runs import Comparison, Run

_PANELS = (
    ("training loss (nats a label)", "loss", "step"), ("validation loss (nats a label)", "validation_loss", "step"),
    ("validation loss over time", "validation_loss", "seconds"), ("tokens a second", "tokens_per_second", "step"),
)  # fmt: skip


def _against(measured: float | None, forecast: float | None, words: Callable[[float], str]) -> str:
    """A figure beside its forecast."""
    parts = [words(measured)] if measured is not None else []
    return " ".join([*parts, f"({words(forecast)} forecast)"] if forecast is not None else parts)


def _state(run: Run) -> str:
    return run.state if run.left is None else f"running, {duration(run.left)} left"


FIGURES: dict[str, Callable[[Run], str]] = {
    "state": _state,
    "form": lambda run: run.form or "",
    "objective": lambda run: run.objective or "",
    "parameters": lambda run: "" if run.parameters is None else short(run.parameters),
    "steps": lambda run: f"{run.step:,}" + ("" if run.steps is None else f" of {run.steps:,}"),
    "loss": lambda run: "" if run.loss is None else f"{run.loss:.3f}",
    "validation": lambda run: "" if run.validation_loss is None else f"{run.validation_loss:.3f}",
    "best": lambda run: "" if run.best is None else f"{run.best:.3f}",
    "tokens": lambda run: "" if run.tokens is None else short(run.tokens),
    "tokens/s": lambda run: "" if run.tokens_per_second is None else f"{run.tokens_per_second:,.0f}",
    "MFU": lambda run: "" if run.peak_share is None else f"{run.peak_share:.0%}",
    "time": lambda run: _against(run.seconds, run.forecast_seconds, duration),
    "memory": lambda run: _against(run.memory, run.forecast_memory, data_size),
    "energy": lambda run: _against(run.energy_kwh, run.forecast_energy_kwh, lambda kwh: f"{kwh:.3g} kWh"),
}


def page(found: Comparison) -> str:
    """The comparison as one HTML page that needs nothing from elsewhere."""
    return document("Runs compared", "\n".join(_sections(found)))


def _sections(found: Comparison) -> Iterator[str]:
    names = labels(found)
    yield "<h1>Runs compared</h1>"
    yield f'<div class="scroll">{curves(found)}</div>'
    yield "<h2>Figures</h2>" + _table(names, {name: [words(run) for run in found.runs] for name, words in FIGURES.items()})
    yield "<h2>What differs in the recipes</h2>"
    yield _table(names, {name: list(map(value, values)) for name, values in found.differences.items()}) if found.differences else (
        "<p>Nothing: they are runs of the same recipe.</p>"
    )


def labels(found: Comparison) -> list[str]:
    """The runs' names as short as they can be told apart by."""
    parts = [PurePath(run.name).parts for run in found.runs]
    for count in range(1, max(map(len, parts)) + 1):
        short_names = ["/".join(part[-count:]) for part in parts]
        if len(set(short_names)) == len(parts):
            return short_names
    return [run.name for run in found.runs]


def value(given: Any) -> str:
    """A field of a recipe in words; the default where a recipe does not name it."""
    return "default" if given is None else str(given)


def _table(names: list[str], rows: dict[str, list[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in ("", *names))
    cells = ("".join(f"<td>{escape(text)}</td>" for text in (name, *texts)) for name, texts in rows.items())
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(f"<tr>{row}</tr>" for row in cells)}</table></div>'


def curves(found: Comparison) -> str:
    """The runs' curves over each other, as SVG."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6.8), layout="constrained")
    for axis, (title, name, along) in zip(figure.subplots(2, 2).flat, _PANELS, strict=True):
        for label, rows in zip(labels(found), found.rows, strict=True):
            x, y = points(_timed(rows), name, along)
            if x:
                axis.plot(x, y, label=label, marker="o" if len(x) == 1 else None)
        axis.set_xlabel({"seconds": "seconds"}.get(along, "step"))
        axis.set_title(title)
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend()
    out = io.StringIO()
    style: Any = {"svg.hashsalt": "triform", "svg.fonttype": "none"}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the viewer's fonts draw the text, and have Chinese
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def _timed(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows of validation with the seconds of the step before them."""
    seconds = 0.0
    for row in rows:
        seconds = row.get("seconds", seconds)
        yield {"seconds": seconds, **row}
