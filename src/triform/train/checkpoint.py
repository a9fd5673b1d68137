"""Checkpoints: complete or absent, and known to be what was written.

A checkpoint is a folder `step-00000100` with the weights (with an adapter, those that are trained), the optimizer's state by
parameter name, the averaged weights if there are any, `state.json`, and `SHA256SUMS` of these
files. It is written under a temporary name, synced and renamed, so that a run killed at
any instant leaves only whole ones.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from triform.config.files import sync
from triform.hub import read_weights
from triform.hub.public import weights
from triform.hub.safetensors import write
from triform.nn.adapter import adapter_names, trainable

from .average import Average
from .optimizer import Optimizer
from .recipe import TrainRecipe

_NAME = re.compile(r"step-\d{8,}")
_SUMS = "SHA256SUMS"
Parts = dict[str, dict[str, Tensor]]


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run that were written to the end, oldest first."""
    return sorted((p for p in folder.glob("step-*") if _NAME.fullmatch(p.name)), key=step_of)


def step_of(checkpoint: Path) -> int:
    """The steps that had been done."""
    return int(checkpoint.name[5:])


def kept(model: torch.nn.Module) -> dict[str, Tensor]:
    """The weights that a checkpoint holds, by name: all, or with an adapter what is trained."""
    return trainable(model) if adapter_names(model) else weights(model)


def parts_of(model: torch.nn.Module, optimizer: Optimizer, average: Average | None) -> Parts:
    """The tensors of a checkpoint, by file."""
    parts = {"model.safetensors": kept(model), "optimizer.safetensors": optimizer.state()}
    return parts if average is None else parts | {"average.safetensors": average.values}


def verify(path: Path) -> None:
    """Raise ValueError when a checkpoint's files are not those that were written."""
    try:
        *lines, end = (path / _SUMS).read_bytes().decode().split("\n")
        if end or not lines or not lines[-1].endswith("  state.json"):
            raise ValueError(f"{_SUMS} is cut short")
        for wanted, _, name in (line.partition("  ") for line in lines):
            if _sum(path / Path(name).name) != wanted:
                raise ValueError(f"{name} is not what was written")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: damaged ({error})") from None


def read_state(path: Path) -> dict[str, Any]:
    """The `state` that a checkpoint was saved with."""
    found: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
    return found


def load_checkpoint(path: Path, model: torch.nn.Module, optimizer: Optimizer, average: Average | None = None) -> None:
    """Take up weights, averages and optimizer state. Raises ValueError when they are of another model or optimizer."""
    try:
        read_weights(model, path / "model.safetensors", kept(model))
        optimizer.load(load_file(path / "optimizer.safetensors"))
        if average is not None:
            average.load(load_file(path / "average.safetensors"))
    except (OSError, SafetensorError, ValueError) as error:
        raise ValueError(f"{path}: cannot be taken up ({error}); delete this folder to go on from the checkpoint before it") from None


class Checkpoints:
    """The checkpoints of a run in their folder.

    Those of every `checkpoint_every` steps are kept as long as they are among the newest `keep`, and the one whose
    validation loss was lowest; one of another step, which a signal asked for, until the next is written.
    """

    def __init__(self, folder: Path, settings: TrainRecipe) -> None:
        self.folder, self.settings = folder, settings
        self._writer: threading.Thread | None = None
        self._failed: BaseException | None = None

    def newest(self, until: int | None = None) -> Path | None:
        """The newest undamaged checkpoint; None where there is none.

        until: of the regular ones, of at most so many steps, so that a run that was stopped in between finds the
        same one. Damaged ones are set aside with a line on standard error. Raises ValueError when no other is left.
        """
        self.wait()
        every, damaged = self.settings.checkpoint_every, dict[Path, ValueError]()
        for path in reversed(checkpoints(self.folder)):
            if until is not None and (step_of(path) > until or step_of(path) % every):
                continue
            try:
                verify(path)
            except ValueError as error:
                damaged[path] = error
                continue
            for bad, why in damaged.items():
                _say(f"{why}; going on from {path.name}")
                os.replace(bad, bad.with_name(f".{bad.name}.damaged"))
            return path
        if damaged:
            raise ValueError(f"{next(iter(damaged.values()))}, and no older one is whole; delete {self.folder} to begin again")
        return None

    def save(self, parts: Parts, state: Mapping[str, Any], *, background: bool = False) -> None:
        """Write the checkpoint of `state["step"]`, then drop those that need not be kept.

        background: from a copy of the tensors, by a thread, one checkpoint at a time. A full disk leaves what was there and is
        told in a line on standard error.
        """
        self.wait()
        text = json.dumps(state)
        if not background:
            self._write(parts, text, int(state["step"]))
            self.wait()
            return
        copies = {file: {name: t.detach().to("cpu", copy=True) for name, t in tensors.items()} for file, tensors in parts.items()}
        self._writer = threading.Thread(target=self._write, args=(copies, text, int(state["step"])), name="checkpoint")
        self._writer.start()

    def wait(self) -> None:
        """Wait for the checkpoint that is being written. Raises what went wrong with it, other than a full disk and the like."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        failed, self._failed = self._failed, None
        if isinstance(failed, OSError):
            there = checkpoints(self.folder)
            newest = f"the newest there is is of step {step_of(there[-1])}" if there else "there is none yet"
            _say(f"{self.folder}: a checkpoint could not be written ({failed.strerror or failed}); {newest}")
        elif failed is not None:
            raise failed

    def _write(self, parts: Parts, state: str, step: int) -> None:
        final = self.folder / f"step-{step:08d}"
        temporary = self.folder / f".{final.name}.tmp"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            for file, tensors in parts.items():
                write(temporary / file, {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()}, tensors.items())
            (temporary / "state.json").write_text(state, encoding="utf-8")
            sums = "".join(f"{_sum(file)}  {file.name}\n" for file in sorted(temporary.iterdir()))
            (temporary / _SUMS).write_text(sums, encoding="utf-8")
            for path in (*temporary.iterdir(), temporary):
                sync(path)
            if final.exists():
                _remove(final)
            os.replace(temporary, final)
            sync(self.folder)
            self._drop(final)
        except BaseException as error:
            self._failed = error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _drop(self, new: Path) -> None:
        there = checkpoints(self.folder)
        regular = [path for path in there if step_of(path) % self.settings.checkpoint_every == 0]
        keep = {new, *regular[-self.settings.keep :]}
        losses = {path: loss for path in regular if (loss := _validation_loss(path)) is not None}
        if losses:
            keep.add(min(losses, key=lambda path: losses[path]))
        for path in there:
            if path not in keep:
                _remove(path)


def _validation_loss(path: Path) -> float | None:
    """The validation loss at a checkpoint's own step, if it was taken there and is a number."""
    try:
        step, loss = read_state(path)["validated"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return float(loss) if step == step_of(path) and math.isfinite(loss) else None


def _remove(checkpoint: Path) -> None:
    """Delete a checkpoint; under its own name it is whole until it is gone."""
    hidden = checkpoint.with_name(f".{checkpoint.name}.old")
    os.replace(checkpoint, hidden)
    shutil.rmtree(hidden)


def _sum(file: Path) -> str:
    with file.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
