"""`triform train`: run a recipe."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from triform.train import Recipe
    from triform.train.loop import Trainer

app = typer.Typer(add_completion=False)


@app.command(epilog="Example: triform train examples/storyteller.yaml train.steps=200 --out runs/first")
def train(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Fields by path, such as train.steps=200 or model.decoder.depth=6.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; runs/RECIPE by default.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in the folder.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Begin even though the plan says that it does not fit into memory.")] = False,
    find_rate: Annotated[bool, typer.Option("--find-rate", help="Suggest a learning rate, draw the loss over it, leave no run.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> int:
    """Train a model from a recipe. Ctrl-C ends the step, writes a checkpoint and stops; --resume goes on from there."""
    from triform.train import read_recipe, run

    folder = out or Path("runs") / recipe.stem
    made = read_recipe(recipe, overrides or ())
    if find_rate:
        return _find_rate(made, folder.with_name(f"{folder.name}-rates.svg"), as_json)
    result = run(made, folder, resume=resume, force=force, begun=_warn)
    if as_json:
        print(json.dumps(asdict(result), indent=2))
    elif result.finished:
        figures = [f"{result.steps} steps", f"{result.seconds:.0f} s", f"loss {result.loss:.3f}"]
        if result.validation_loss is not None:
            figures.append(f"validation {result.validation_loss:.3f}")
        print(f"{', '.join(figures)}; the model is in {folder / 'model'}")
    else:
        again = shlex.join(["triform", "train", str(recipe), *(overrides or ()), "--out", str(folder), "--resume"])
        print(f"stopped after step {result.steps}; go on with: {again}")
    return 0 if result.finished else 130


def _warn(trainer: Trainer) -> None:
    """Say on standard error, a line each, what may spoil the run."""
    from triform.doctor import first_look

    for found in first_look(trainer):
        print(f"warning: {found.line}", file=sys.stderr)


def _find_rate(recipe: Recipe, plot: Path, as_json: bool) -> int:
    from triform.train.find_rate import find_rate, plot_rates

    from .models import progress

    steps = 100
    with progress(steps, "steps") as report:
        found = find_rate(recipe, steps=steps, report=report)
    plot_rates(found, plot)
    if as_json:
        print(json.dumps({**asdict(found), "plot": str(plot)}, indent=2))
    else:
        print(f"train.rate={found.rate:g} (the loss falls fastest at {found.steepest:.1e}); the curve is in {plot}")
    return 0
