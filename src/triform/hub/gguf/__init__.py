"""GGUF, the files of llama.cpp and Ollama: read into our models and written from them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .header import Header
from .reader import GGUFFile

if TYPE_CHECKING:
    from .writer import write as write

__all__ = ["GGUFFile", "Header", "write"]


def __getattr__(name: str) -> Any:
    if name == "write":  # needs torch, as reading a configuration does not
        return import_module("triform.hub.gguf.writer").write
    raise AttributeError(f"module 'triform.hub.gguf' has no attribute {name!r}")
