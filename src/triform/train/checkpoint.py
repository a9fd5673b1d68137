"""Checkpoints: complete or absent.

A checkpoint is a folder `step-00000100` with the weights, the optimizer's state by
parameter name, and `state.json`. It is written under a temporary name, synced and
renamed, so that a run killed at any instant leaves only whole ones.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from triform.hub import read_weights
from triform.hub.folder import weights

from .optimizer import Optimizer

_NAME = re.compile(r"step-\d{8,}")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(checkpoint: Path) -> None:
    """Delete a checkpoint; under its own name it is whole until it is gone."""
    hidden = checkpoint.with_name(f".{checkpoint.name}.old")
    os.replace(checkpoint, hidden)
    shutil.rmtree(hidden)


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    return sorted((p for p in folder.glob("step-*") if _NAME.fullmatch(p.name)), key=lambda p: int(p.name[5:]))


def save_checkpoint(folder: Path, model: torch.nn.Module, optimizer: Optimizer, state: dict[str, Any], keep: int) -> Path:
    """Write the checkpoint of `state["step"]` and drop all but the newest `keep`."""
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{state['step']:08d}"
    temporary = folder / f".{final.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        save_file({n: t.contiguous() for n, t in weights(model).items()}, temporary / "model.safetensors")
        save_file({n: t.contiguous() for n, t in optimizer.state().items()}, temporary / "optimizer.safetensors")
        (temporary / "state.json").write_text(json.dumps(state), encoding="utf-8")
        for path in (*temporary.iterdir(), temporary):
            _sync(path)
        if final.exists():
            _remove(final)
        os.replace(temporary, final)
        _sync(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for old in checkpoints(folder)[:-keep]:
        _remove(old)
    return final


def read_state(path: Path) -> dict[str, Any]:
    """The `state` that a checkpoint was saved with. Raises ValueError when it is damaged."""
    try:
        found: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
        return found
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from None


def load_checkpoint(path: Path, model: torch.nn.Module, optimizer: Optimizer) -> None:
    """Take up weights and optimizer state from a checkpoint. Raises ValueError when it is damaged, or of another model or optimizer."""
    try:
        read_weights(model, path / "model.safetensors")
        optimizer.load(load_file(path / "optimizer.safetensors"))
    except (OSError, SafetensorError, ValueError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path}: cannot be taken up ({error}); delete this folder to go on from the checkpoint before it")
