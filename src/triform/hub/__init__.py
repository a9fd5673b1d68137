"""Models in and out of folders and files.

Everything here is imported on first use: a configuration is read without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from triform.config.files import replacing as replacing

    from .adapters import load_adapter as load_adapter
    from .adapters import save_adapter as save_adapter
    from .families import read_config as read_config
    from .families import write_config as write_config
    from .family import Family as Family
    from .family import NoCounterpart as NoCounterpart
    from .folder import Checkpoint as Checkpoint
    from .folder import load as load
    from .folder import load_public as load_public
    from .folder import task as task
    from .names import locate as locate
    from .names import pull as pull
    from .public import export_weights as export_weights
    from .public import load_weights as load_weights
    from .public import read_weights as read_weights
    from .saving import save as save
    from .spec import find_spec as find_spec
    from .spec import read_spec as read_spec

_EXPORTS = {
    "Checkpoint": "triform.hub.folder",
    "Family": "triform.hub.family",
    "NoCounterpart": "triform.hub.family",
    "export_weights": "triform.hub.public",
    "find_spec": "triform.hub.spec",
    "load": "triform.hub.folder",
    "load_adapter": "triform.hub.adapters",
    "locate": "triform.hub.names",
    "load_public": "triform.hub.folder",
    "load_weights": "triform.hub.public",
    "pull": "triform.hub.names",
    "read_config": "triform.hub.families",
    "read_spec": "triform.hub.spec",
    "read_weights": "triform.hub.public",
    "replacing": "triform.config.files",
    "save": "triform.hub.saving",
    "save_adapter": "triform.hub.adapters",
    "task": "triform.hub.folder",
    "write_config": "triform.hub.families",
}

__all__ = [
    "Checkpoint", "Family", "NoCounterpart", "export_weights", "find_spec", "load", "load_public", "load_weights", "locate", "pull",
    "read_config", "read_spec", "read_weights", "replacing", "save", "task", "write_config",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "gguf":
        return import_module("triform.hub.gguf")
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'triform.hub' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
