"""What the commands that run a model share: opening its folder, reading texts, showing progress."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from triform.text import Tokenizer


def open_model(folder: str) -> tuple[Any, Tokenizer]:
    """The model and the tokenizer in a folder. Raises ValueError when one is missing."""
    from triform import hub

    model, tokenizer = hub.load(folder)
    if tokenizer is None:
        raise ValueError(f"{folder}: expected the model's tokenizer.json beside it, found none; put it there")
    return model, tokenizer


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
def progress(total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """A bar on standard error with rate and time left; gives a function to call with how many are done. No bar where nobody looks."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:,.1f} {unit}/s" if task.speed else "")

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn(unit), Rate(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("", total=total)
        yield lambda done: bar.update(task, completed=done)
