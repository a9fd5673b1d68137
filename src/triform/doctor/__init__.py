"""The doctor: what would spoil a run, or a model's answers, told before time is lost. What needs torch is imported on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .findings import Examination, Finding
    from .model import examine_model
    from .recipe import Examiner, examine_recipe, first_look

_EXPORTS = {
    "Examination": "findings", "Examiner": "recipe", "Finding": "findings", "examine_model": "model", "examine_recipe": "recipe",
    "first_look": "recipe",
}  # fmt: skip

__all__ = ["Examination", "Examiner", "Finding", "examine_model", "examine_recipe", "first_look"]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f"triform.doctor.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module 'triform.doctor' has no attribute {name!r}")
