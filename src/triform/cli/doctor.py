"""`triform doctor`: a recipe or a model examined before time is lost."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .models import MODEL

if TYPE_CHECKING:
    from triform.doctor import Examination

app = typer.Typer(add_completion=False)
_MARKS = {"fine": ("✓", "green"), "note": ("·", "cyan"), "warning": ("!", "yellow"), "error": ("✗", "red")}


@app.command(
    epilog="Examples: triform doctor examples/storyteller.yaml --overfit  ·  triform doctor my.yaml --against mmlu/test  ·  "
    "triform doctor runs/story/model"
)
def doctor(
    what: Annotated[str, typer.Argument(metavar="RECIPE|MODEL", help=f"A YAML recipe; or a model: {MODEL}.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Fields of the recipe by path, such as train.rate=1e-4.")] = None,
    overfit: Annotated[bool, typer.Option("--overfit", help="Learn ten examples by heart; the loss must come near zero.")] = False,
    against: Annotated[
        list[str] | None, typer.Option(metavar="SOURCE", help="An evaluation set that training text must not hold; give several.")
    ] = None,
    rows: Annotated[int, typer.Option(help="Rows of each part of the data that are read; 0: all.", min=0)] = 50_000,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Look for what would spoil a run, or a model's answers, and say what to do. Exit code 1 if something would, else 0."""
    recipe = Path(what).suffix in (".yaml", ".yml")
    if not recipe and (overrides or overfit or against):
        raise ValueError(f"{what}: overrides, --overfit and --against go with a recipe, a .yaml file")
    with _stages() as report:
        found = _recipe(what, overrides or [], overfit, against or [], rows, report) if recipe else _model(what, report)
    if as_json:
        print(json.dumps(found.to_dict(), ensure_ascii=False, indent=2))
    else:
        _print(found)
    return found.exit_code


def _recipe(
    what: str, overrides: list[str], overfit: bool, against: list[str], rows: int, report: Callable[[str, int, int], None]
) -> Examination:
    from triform.doctor import Examiner
    from triform.train import read_recipe

    return Examiner(against=against, rows=rows, overfit=overfit, report=report).examine(read_recipe(what, overrides), what)


def _model(what: str, report: Callable[[str, int, int], None]) -> Examination:
    from triform.doctor import examine_model

    return examine_model(what, report=lambda done, total: report("reading weights", done, total))


@contextmanager
def _stages() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on standard error, on a terminal; gives a function to call with a stage, and how much of it is done, of how much (or 0)."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    told = (TaskProgressColumn(show_speed=True), TimeElapsedColumn(), TimeRemainingColumn())
    columns = (TextColumn("{task.description}"), BarColumn(), *told)
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as shown:
        task = shown.add_task("reading", total=None)
        yield lambda stage, done, total: shown.update(task, description=stage, completed=done, total=total or None)


def _print(found: Examination) -> None:
    """The findings, the worst last, each with what to do below it."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, emoji=False, markup=False)
    if not console.is_terminal:
        console.width = 400
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()
    order = list(_MARKS)
    for each in sorted(found.findings, key=lambda one: order.index(one.severity)):
        mark, style = _MARKS[each.severity]
        said = Text(each.says)
        if each.advice:
            said.append(f"\n→ {each.advice}", style="bold")
        table.add_row(Text(mark, style=style), Text(each.check, style=style), said)
    console.print(table)
    tally = (("error", found.count("error")), ("warning", found.count("warning")))
    counts = [f"{count:,} {name}{'' if count == 1 else 's'}" for name, count in tally if count]
    verdict = f"{' and '.join(counts)} in {found.name}" if counts else f"nothing wrong found in {found.name}"
    console.print(Text(verdict, style="red" if found.count("error") else "yellow" if counts else "green"))
