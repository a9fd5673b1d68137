"""Models in and out of folders."""

from .folder import load, read_weights, save, task

__all__ = ["load", "read_weights", "save", "task"]
