"""A model in a folder: `triform.json`, `model.safetensors`, the tokenizer's files, and `task.json` with what the head's labels mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from triform import config
from triform.config.files import replacing
from triform.nn import DualEncoder, Transformer, build
from triform.text import Tokenizer

Module = Transformer | DualEncoder


def weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, each shared one under its first name only."""
    return {n: t.detach() for n, t in [*model.named_parameters(), *model.named_buffers()]}


def save(model: Module, tokenizer: Tokenizer | None, folder: str | Path, task: dict[str, Any] | None = None) -> None:
    """Write a model, its tokenizer and its task to a folder that `load` reads.

    task: plain data, such as {"labels": ["negative", "positive"]}.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "model.safetensors") as file:
        save_file({n: t.contiguous() for n, t in weights(model).items()}, file, metadata={"format": "pt"})
    if tokenizer is not None:
        tokenizer.save(folder)
    with replacing(folder / "task.json") as file:
        file.write_text(json.dumps(task or {}, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    with replacing(folder / "triform.json") as file:
        config.save(model.config, file)


def read_weights(model: torch.nn.Module, file: Path, *, head: bool = True) -> None:
    """Copy the tensors of a safetensors file into a model, one at a time.

    With `head=False` the heads are left as they are, so that a new head can stand on
    pretrained stacks. Raises ValueError that names what is missing, left over or of
    another shape.
    """
    ours = {n: t for n, t in weights(model).items() if head or not n.startswith(("head.", "sentence_head."))}
    try:
        with safe_open(file, framework="pt") as theirs:
            names = {n for n in theirs.keys() if head or not n.startswith(("head.", "sentence_head."))}  # noqa: SIM118
            if missing := sorted(ours.keys() - names):
                raise ValueError(f"{file}: lacks {', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}")
            if extra := sorted(names - ours.keys()):
                raise ValueError(f"{file}: has {', '.join(extra[:5])}{' ...' if len(extra) > 5 else ''}, which the model has not")
            for name, tensor in ours.items():
                shape = tuple(theirs.get_slice(name).get_shape())
                if shape != tuple(tensor.shape):
                    raise ValueError(f"{file}: {name} is {shape}, and the model's is {tuple(tensor.shape)}")
                with torch.no_grad():
                    tensor.copy_(theirs.get_tensor(name))
    except SafetensorError as error:
        raise ValueError(f"{file}: not a readable safetensors file ({error})") from None


def load(folder: str | Path, *, device: str | torch.device = "cpu") -> tuple[Any, Tokenizer | None]:
    """The model, ready to evaluate, and the tokenizer in a folder written by `save`, or of a public checkpoint (see `load_public`)."""
    folder = Path(folder)
    tokenizer = Tokenizer.load(folder) if (folder / "tokenizer.json").is_file() else None
    if (folder / "config.json").is_file() and not (folder / "triform.json").is_file():
        from .public import load_public

        return load_public(folder, device=device), tokenizer
    for name in ("triform.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder}: expected a model's folder with triform.json and model.safetensors, found no {name}")
    model = build(config.read(folder), device="meta").to_empty(device=device)
    read_weights(model, folder / "model.safetensors")
    return model.eval(), tokenizer


def task(folder: str | Path) -> dict[str, Any]:
    """What `save` was told of the model's task; empty where nothing was."""
    file = Path(folder) / "task.json"
    if not file.is_file():
        return {}
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found
