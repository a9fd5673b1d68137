"""What the commands that run a model share: opening its folder, reading texts, showing progress."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pathlib import Path

    from triform.text import Tokenizer

Precision = Literal["auto", "fp32", "bf16", "int8", "int4"]

MODEL = "A model's folder, a .gguf file, a name of `triform pull`, or owner/name of a hub"


def open_model(model: str | Path, precision: Precision | None = None) -> tuple[Any, Tokenizer]:
    """The model and the tokenizer of a path or a name (see `hub.locate`). Raises ValueError when one is missing.

    precision: for one that generates, made ready by `generate.prepare`.
    """
    from triform import hub

    place = hub.locate(model)
    with loading(place):
        if precision is None:
            found, tokenizer = hub.load(place)
        else:
            from triform.generate.prepared import load_prepared

            found, tokenizer = load_prepared(place, precision)
    if tokenizer is None:
        from triform.generate import use_of

        if use_of(found.config) == "see":
            raise ValueError(f"{place}: expected a model of texts, and this one judges pictures; `triform classify` fits it")
        raise ValueError(f"{place}: expected the model's tokenizer.json beside it, found none; put it there")
    return found, tokenizer


def loading(place: Path) -> AbstractContextManager[object]:
    """Says on a terminal that a model is being loaded, until it is."""
    from rich.console import Console

    return Console(stderr=True).status(f"loading {place.name}")


def texts_of(arguments: Sequence[str]) -> list[str]:
    """The texts of a command line; "-" stands for standard input, one text a line. Half characters are replaced."""
    from triform.text.training import without_surrogates

    texts: list[str] = []
    for argument in arguments:
        if argument != "-":
            texts.append(without_surrogates(argument))
            continue
        try:
            lines = sys.stdin.buffer.read().decode("utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"standard input: expected text in UTF-8, got other bytes at byte {error.start}; convert it") from None
        if not lines:
            raise ValueError("standard input: expected one text a line, got nothing")
        texts += lines
    return texts


@contextmanager
def bar(unit: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error with rate and time left; gives a function to call with how many are done, of how many."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:,.1f} {unit}/s" if task.speed else "")

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn(unit), Rate(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as shown:
        task = shown.add_task("", total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)


@contextmanager
def progress(total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """A `bar` whose total is known: the function takes how many are done."""
    with bar(unit) as show:
        yield lambda done: show(done, total)

def print_table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Print rows below the names of their columns, but for columns in which no row has anything. A pipe gets whole lines."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, emoji=False, markup=False)
    if not console.is_terminal:
        console.width = 400
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for index, column in enumerate(columns):
        if index == 0 or any(row[index] for row in rows):
            table.add_column(column, no_wrap=not console.is_terminal)
    for row in rows:
        table.add_row(*(cell for index, cell in enumerate(row) if index == 0 or any(other[index] for other in rows)))
    console.print(table)
