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
from safetensors.torch import load_file, save_file

from triform.hub import read_weights
from triform.hub.folder import weights

from .optimizer import Optimizer

_NAME = re.compile(r"step-(\d{8})")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    return sorted(p for p in folder.glob("step-*") if _NAME.fullmatch(p.name))


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
        for file in temporary.iterdir():
            _sync(file)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temporary, final)
        _sync(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def load_checkpoint(path: Path, model: torch.nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Take up weights and optimizer state from a checkpoint; returns its `state`."""
    read_weights(model, path / "model.safetensors")
    optimizer.load(load_file(path / "optimizer.safetensors"))
    found: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
    return found
