"""Models in and out of folders."""

from triform.config.files import replacing

from .families import read_config
from .family import Family
from .folder import load, read_weights, save, task
from .public import export_weights, load_public, load_weights

__all__ = [
    "Family", "export_weights", "load", "load_public", "load_weights", "read_config", "read_weights", "replacing", "save", "task",
]  # fmt: skip
