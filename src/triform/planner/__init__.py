"""What a model is and costs, from its configuration alone: parameters, FLOPs, memory, time, money, and a picture. Imports no torch."""

from . import flops, memory
from .diagram import diagram
from .forecast import Plan, plan
from .hardware import hardware
from .mask import mask_grid, mask_svg
from .parameters import Count, Part, parameters
from .search import Budget, Candidate, fits, read_budget, recipe, search
from .setting import Setting

__all__ = [
    "Budget", "Candidate", "Count", "Part", "Plan", "Setting", "diagram", "fits", "flops", "hardware", "mask_grid", "mask_svg", "memory",
    "parameters", "plan", "read_budget", "recipe", "search",
]  # fmt: skip
