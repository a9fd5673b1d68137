"""The first example as the model will learn it, shown before training starts: what is learned stands out."""

from __future__ import annotations

from collections.abc import Sequence

from triform.objectives import Objective, Samples

_SHOWN = 1500  # characters


def show_example(objective: Objective, samples: Samples) -> None:
    """Print the first sample on standard error, what is learned in colour, or between 【 and 】 where there are no colours.

    Nothing is printed for an objective whose examples say nothing.
    """
    from rich.console import Console
    from rich.text import Text

    runs = objective.example(samples[0]) if len(samples) else None
    if runs is None:
        return
    console = Console(stderr=True)
    shown = Text("the first example, of which the model learns what ")
    shown.append("stands out" if console.color_system else "is between 【 and 】", style="bold green")
    shown.append(":\n")
    for text, learned in _cut(runs):
        if console.color_system:
            shown.append(text, style="bold green" if learned else "dim")
        else:
            shown.append(f"【{text}】" if learned else text)
    console.print(shown, highlight=False, soft_wrap=True)


def _cut(runs: Sequence[tuple[str, bool]]) -> list[tuple[str, bool]]:
    """The runs as far as they are shown."""
    kept: list[tuple[str, bool]] = []
    room = _SHOWN
    for text, learned in runs:
        if room <= 0:
            return [*kept, ("…", False)]
        kept.append((text[:room], learned))
        room -= len(text)
    return kept
