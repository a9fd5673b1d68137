"""Triform: one configurable Transformer core, from raw text to a model that runs.

Everything here is imported on first use, so that `import triform` does not load torch.
"""

from importlib import import_module
from importlib.metadata import version
from typing import Any

_EXPORTS = {
    "build": "nn",
    "Cache": "nn",
    "Layout": "nn",
    "Trace": "nn",
    "load": "hub",
    "plan": "planner",
    "save": "hub",
}
_PACKAGES = ("config", "data", "generate", "hub", "nn", "objectives", "planner", "serve", "text", "train")

__version__ = version("triform")
__all__ = [
    "Cache", "Layout", "Trace", "build", "config", "data", "generate", "hub", "load", "nn", "objectives", "plan", "planner", "save",
    "serve", "text", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f"triform.{_EXPORTS[name]}"), name)
    if name in _PACKAGES:
        return import_module(f"triform.{name}")
    raise AttributeError(f"module 'triform' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
