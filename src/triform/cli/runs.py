"""`triform runs`: what was trained, how far it has come, and how runs differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from .models import print_table

if TYPE_CHECKING:
    from triform.train.runs import Run


class _ListsByDefault(TyperGroup):
    """`triform runs FOLDER` is `triform runs list FOLDER`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] != "--help"):
            args = ["list", *args]
        return list(super().parse_args(ctx, args))


app = typer.Typer(add_completion=False, cls=_ListsByDefault, help="List training runs, or compare them; `list` may be left out.")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list", epilog="Example: triform runs list runs --sort best")
def list_(
    folders: Annotated[list[Path] | None, typer.Argument(metavar="FOLDER...", help="Where to look, four folders deep; runs.")] = None,
    sort: Annotated[str, typer.Option(help="A figure of the JSON, such as best, step, seconds or name; the newest first.")] = "updated",
    as_json: AsJson = False,
) -> None:
    """List the runs below folders: how far each has come, its losses, speed, time and energy, and what its plan said."""
    from triform.train.runs import SORTS, find_runs

    if sort not in SORTS:
        raise ValueError(f"--sort: expected one of {', '.join(SORTS)}, got {sort!r}")
    places = list(folders or [Path("runs")])
    found = find_runs(*places)
    if not found:
        raise ValueError(f"{', '.join(map(str, places))}: no runs here; `triform train RECIPE` makes one")
    if sort != "updated":
        found.sort(key=lambda run: _key(getattr(run, sort)))
    if as_json:
        print(json.dumps([vars(run) for run in found], indent=2, ensure_ascii=False))
    else:
        _print(found)


def _key(value: Any) -> tuple[bool, Any]:
    """What is not known comes last."""
    return value is None, 0 if value is None else value


def _print(found: list[Run]) -> None:
    from triform.train.comparison import FIGURES

    print_table(("run", *FIGURES), [(run.name, *(words(run) for words in FIGURES.values())) for run in found])


@app.command(epilog="Example: triform runs compare runs/small runs/storyteller --html compared.html")
def compare(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN...", help="The folders of two runs and more.")],
    html: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Write a page with the curves over each other.")] = None,
    as_json: AsJson = False,
) -> None:
    """Set runs beside each other: their figures, and the fields in which their recipes differ."""
    from triform.planner.page import write_html
    from triform.train import comparison
    from triform.train.runs import compare as compared

    found = compared(folders)
    if html is not None:
        write_html(comparison.page(found), html)
    if as_json:
        print(json.dumps(found.to_dict(), indent=2, ensure_ascii=False))
        return
    names = comparison.labels(found)
    print_table(("", *names), [(name, *(words(run) for run in found.runs)) for name, words in comparison.FIGURES.items()])
    print()
    if found.differences:
        rows = [(name, *map(comparison.value, values)) for name, values in found.differences.items()]
        print_table(("recipe", *names), rows)
    else:
        print("The recipes are the same.")
    if html is not None:
        print(f"The curves are in {html}")
