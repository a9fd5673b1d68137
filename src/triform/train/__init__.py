"""Training: recipes and the one loop."""

from .loop import Result, run
from .metrics import read_metrics
from .recipe import DataRecipe, Recipe, TokenizerRecipe, TrainRecipe, read_recipe

__all__ = ["DataRecipe", "Recipe", "Result", "TokenizerRecipe", "TrainRecipe", "read_metrics", "read_recipe", "run"]
