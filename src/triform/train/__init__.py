"""Training: recipes and the one loop. What needs torch is imported on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .loop import Result, run
    from .metrics import read_metrics
    from .recipe import DataRecipe, Recipe, TokenizerRecipe, TrainRecipe, read_recipe
    from .runs import Run, find_runs

_EXPORTS = {
    "Result": "loop", "run": "loop", "read_metrics": "metrics", "DataRecipe": "recipe", "Recipe": "recipe", "TokenizerRecipe": "recipe",
    "TrainRecipe": "recipe", "read_recipe": "recipe", "Run": "runs", "find_runs": "runs",
}  # fmt: skip

__all__ = [
    "DataRecipe", "Recipe", "Result", "Run", "TokenizerRecipe", "TrainRecipe", "find_runs", "read_metrics", "read_recipe", "run",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f"triform.train.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module 'triform.train' has no attribute {name!r}")
