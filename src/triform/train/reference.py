"""What the model that a run begins with says of the run's samples: worked out before the first step and kept in the run's folder.

So an objective that compares with that model needs no second copy of it, and with an adapter it is the frozen model itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from triform.config.files import replacing
from triform.nn import without_adapter
from triform.objectives import Samples

from .batches import Batches

Columns = dict[str, np.ndarray]


def weights_hash(model: torch.nn.Module) -> str:
    """SHA-256 (hexadecimal) of a model's weights, an adapter's left out."""
    found = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if ".adapter." not in name:
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def read_reference(file: Path, fingerprint: str) -> Columns | None:
    """What `write_reference` wrote under this fingerprint; None where something else or nothing is there."""
    try:
        with safe_open(file, "numpy") as stored:
            if (stored.metadata() or {}).get("fingerprint") != fingerprint:
                return None
            return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return None


def write_reference(file: Path, columns: Columns, fingerprint: str) -> None:
    """Write columns whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        save_file(columns, temporary, {"fingerprint": fingerprint})


def with_columns(samples: Samples, columns: Columns) -> Samples:
    """Samples with a number more of each column."""
    return Samples(samples.lengths, lambda index: samples[index] | {name: values[index] for name, values in columns.items()})


@torch.no_grad()
def reference(
    batches: Batches,
    which: np.ndarray,
    model: torch.nn.Module,
    autocast: Callable[[], AbstractContextManager[object]],
    *,
    name: str,
    progress: bool,
) -> Columns:
    """What a model, without its adapter, says of some samples: by column a number for each sample, NaN for the others.

    autocast: makes a context for a pass. name: of the samples, for the bar on standard error.
    """
    objective, samples, size = batches.objective, batches.samples, batches.recipe.batch
    device = next(model.parameters()).device
    ranked = which[np.argsort(samples.lengths[which], kind="stable")]
    columns: Columns = {}
    was_training = model.training
    model.eval()
    with _bar(f"reference on {name} data", len(ranked), progress) as bar, without_adapter(model):
        task = bar.add_task(name, total=len(ranked))
        for start in range(0, len(ranked), size):
            chosen = ranked[start : start + size]
            batch = objective.collate([samples[i] for i in chosen], [(batches.recipe.seed, int(i)) for i in chosen]).to(device)
            with autocast():
                found = objective.reference(model, batch)
            for column, values in found.items():
                columns.setdefault(column, np.full(len(samples), np.nan, dtype=np.float32))[chosen] = values.float().cpu().numpy()
            bar.update(task, completed=start + len(chosen))
    model.train(was_training)
    return columns


def _bar(told: str, total: int, progress: bool) -> Progress:
    console = Console(stderr=True)
    shown = (TextColumn(told), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*shown, console=console, transient=True, disable=not (progress and total and console.is_terminal))
