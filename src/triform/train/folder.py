"""The folder of a run: whose it is, what a failed start must take away again, and what a killed run left behind."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from triform import config
from triform.config.files import replacing

from .recipe import Recipe
from .track import IDENTITY

_PARTS = ("tokenizer", "data", "reference", "checkpoints", "model")
SKIPPED, SAMPLES, ROLLOUTS, BAD = "skipped.jsonl", "samples.jsonl", "rollouts.jsonl", "bad_rows.jsonl"
_FILES = (
    "metrics.jsonl", SKIPPED, SAMPLES, ROLLOUTS, BAD, "curves.svg", "result.json", "plan.json", "forecast.json", "tensorboard", "wandb",
    IDENTITY,
)  # fmt: skip


def claim(folder: Path, recipe: Recipe, *, resume: bool) -> bool:
    """Make sure that a folder may hold a run of a recipe; True when it holds one already, to be continued.

    Raises ValueError when it holds another run, or something that the run would write over.
    """
    written = folder / "recipe.yaml"
    if written.exists():
        if not resume:
            raise ValueError(f"{folder}: holds a run already; continue it with --resume, or choose another folder with --out")
        if written.read_text(encoding="utf-8") != _as_yaml(recipe):
            raise ValueError(f"{folder}: holds a run of another recipe; choose another folder with --out, or change the recipe back")
        return True
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: is a file; choose another folder with --out")
    if taken := [name for name in (*_PARTS, *_FILES) if (folder / name).exists()]:
        raise ValueError(f"{folder}: holds {', '.join(taken)}, which a run would write over; choose another folder with --out")
    return False


@contextmanager
def starting(folder: Path, recipe: Recipe) -> Iterator[None]:
    """A new run's folder with its recipe.yaml. When the block fails, all that came into being in it goes again."""
    existing = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / "recipe.yaml") as file:
            file.write_text(_as_yaml(recipe), encoding="utf-8")
        yield
    except Exception:
        for path in list(folder.iterdir()) if folder.is_dir() else []:
            if path.name not in existing:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in new:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        raise


def sweep(folder: Path) -> None:
    """Delete the temporary files and folders that a killed run left."""
    left = list(folder.glob(".*.tmp"))
    for part in _PARTS:
        left += (folder / part).glob(".*")
    for path in left:
        shutil.rmtree(path) if path.is_dir() else os.unlink(path)


def _as_yaml(recipe: Recipe) -> str:
    return yaml.safe_dump(config.to_dict(recipe, hint=Recipe), allow_unicode=True, sort_keys=False)
