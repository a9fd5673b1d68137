"""`triform train`: run a recipe."""

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)


@app.command(epilog="Example: triform train examples/storyteller.yaml train.steps=200 --out runs/first")
def train(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Fields by path, such as train.steps=200 or model.decoder.depth=6.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; runs/RECIPE by default.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in the folder.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> int:
    """Train a model from a recipe. Ctrl-C ends the step, writes a checkpoint and stops; --resume goes on from there."""
    from triform.train import read_recipe, run

    folder = out or Path("runs") / recipe.stem
    result = run(read_recipe(recipe, overrides or ()), folder, resume=resume)
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
