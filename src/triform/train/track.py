"""Trackers: services and libraries that are told a run's metrics, on request."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from triform.config.files import replacing

PROJECT = "triform"
IDENTITY = "track.json"
_PACKAGES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "trackio": "trackio"}


class Tracker(Protocol):
    """One of them, once a run has begun."""

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Tell the figures of a step or a validation."""

    def close(self) -> None:
        """Finish."""


class _TensorBoard:
    def __init__(self, package: Any, folder: Path, step: int, settings: Mapping[str, Any]) -> None:
        self.writer = package.SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, row: Mapping[str, float]) -> None:
        for name, value in row.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class _Wandb:
    """A run that goes on writes the steps since its checkpoint again; wandb keeps what it was told last, as `step` is a figure too."""

    def __init__(self, package: Any, folder: Path, step: int, settings: Mapping[str, Any]) -> None:
        name = _identity(folder)
        self.run = package.init(project=PROJECT, id=name, name=name, dir=str(folder), config=dict(settings), resume="allow")
        self.run.define_metric("*", step_metric="step")

    def write(self, step: int, row: Mapping[str, float]) -> None:
        self.run.log({"step": step, **row})

    def close(self) -> None:
        self.run.finish()


class _Trackio:
    def __init__(self, package: Any, folder: Path, step: int, settings: Mapping[str, Any]) -> None:
        self.package, quiet = package, {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
        self.run = package.init(project=PROJECT, name=_identity(folder), config=dict(settings), resume="allow", **quiet)

    def write(self, step: int, row: Mapping[str, float]) -> None:
        self.run.log(dict(row), step=step)

    def close(self) -> None:
        self.package.finish()  # the run's own would be called, and heard, once more at the end of the process


_TRACKERS: dict[str, Callable[[Any, Path, int, Mapping[str, Any]], Tracker]] = {
    "tensorboard": _TensorBoard, "wandb": _Wandb, "trackio": _Trackio,
}  # fmt: skip


class Trackers:
    """Those that a recipe names. Raises ValueError for one that is not installed.

    A tracker that fails once the run has begun is told of in a line and not asked again: the run goes on, and
    `metrics.jsonl` has everything.
    """

    def __init__(self, names: Sequence[str], folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder, self.settings = folder, settings
        self._packages = {name: _package(name) for name in names}
        self._open: dict[str, Tracker] = {}

    def start(self, step: int) -> None:
        """Begin, or go on after a step. Raises ValueError for one that cannot, such as for want of a login."""
        for name, package in self._packages.items():
            try:
                with redirect_stdout(sys.stderr):  # standard output is the command's
                    self._open[name] = _TRACKERS[name](package, self.folder, step, self.settings)
            except Exception as error:  # whatever the library or its service answers
                hint = "; WANDB_MODE=offline keeps the run in its folder" if name == "wandb" else ""
                raise ValueError(f"train.track: {name} cannot begin ({_one_line(error)}){hint}") from None

    def write(self, row: Mapping[str, Any]) -> None:
        """Tell the figures of a row of `metrics.jsonl`."""
        figures = {name: value for name, value in row.items() if name != "step"}
        self._each(lambda tracker: tracker.write(row["step"], figures))

    def close(self) -> None:
        """Finish them all."""
        with redirect_stdout(sys.stderr):
            self._each(lambda tracker: tracker.close())
        self._open = {}

    def _each(self, do: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            try:
                do(tracker)
            except Exception as error:
                del self._open[name]
                print(f"train.track: {name} failed ({_one_line(error)}); the run goes on without it", file=sys.stderr, flush=True)


def _package(name: str) -> Any:
    try:
        return import_module(_PACKAGES[name])
    except ImportError:
        raise ValueError(f'train.track: {name} is not installed; pip install "triform[{name}]"') from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _identity(folder: Path) -> str:
    """The name under which a service knows a run, the same when the run goes on and in no other folder."""
    file = folder / IDENTITY
    if not file.exists():
        with replacing(file) as new:
            new.write_text(json.dumps({"id": f"{folder.resolve().name}-{secrets.token_hex(4)}"}) + "\n", encoding="utf-8")
    return str(json.loads(file.read_text(encoding="utf-8"))["id"])
