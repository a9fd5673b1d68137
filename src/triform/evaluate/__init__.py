"""Models measured by tasks: figures with their intervals, two models compared, and what was measured before."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .likelihood import Likelihood as Likelihood
    from .likelihood import log_likelihoods as log_likelihoods
    from .run import TASKS as TASKS
    from .run import Comparison as Comparison
    from .run import compare_results as compare_results
    from .run import evaluate as evaluate
    from .statistics import Difference as Difference
    from .statistics import Estimate as Estimate
    from .statistics import Metric as Metric
    from .task import Judged as Judged
    from .task import Result as Result
    from .task import Settings as Settings

_EXPORTS = {
    "TASKS": "run", "Comparison": "run", "compare_results": "run", "evaluate": "run",
    "Likelihood": "likelihood", "log_likelihoods": "likelihood",
    "Difference": "statistics", "Estimate": "statistics", "Metric": "statistics",
    "Judged": "task", "Result": "task", "Settings": "task",
}  # fmt: skip

__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f"triform.evaluate.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module 'triform.evaluate' has no attribute {name!r}")
