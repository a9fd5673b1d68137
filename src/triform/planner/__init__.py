"""What a model is and costs, from its configuration alone: parameters, FLOPs, and a picture. Imports no torch."""

from . import flops
from .diagram import diagram
from .mask import mask_grid, mask_svg
from .parameters import Count, Part, parameters

__all__ = ["Count", "Part", "diagram", "flops", "mask_grid", "mask_svg", "parameters"]
