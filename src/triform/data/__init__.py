"""Data: the catalogue, sources, cleaning, token shards, packing and the order of samples."""

from importlib import import_module
from typing import Any

_EXPORTS = {
    "Clean": "cleaning",
    "Deduplicate": "cleaning",
    "Filter": "cleaning",
    "Normalize": "cleaning",
    "Overlap": "cleaning",
    "WeightedSource": "cleaning",
    "prepare": "pipeline",
}
__all__ = ["Clean", "Deduplicate", "Filter", "Normalize", "Overlap", "WeightedSource", "prepare"]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f"triform.data.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module 'triform.data' has no attribute {name!r}")
