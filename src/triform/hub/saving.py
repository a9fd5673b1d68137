"""Models into folders: in the public layout where there is one for them, else in Triform's own.

Weights go to their file one at a time, converted as they go, so that no second copy of the
model is in memory. All files of a folder change together (`config.files.replacing_all`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from triform import config
from triform.config.files import replacing_all
from triform.text import Tokenizer

from . import safetensors, sentence
from .families import read_config, write_config
from .family import Family, NoCounterpart
from .files import INDEX, SINGLE
from .function import differences
from .public import OWN, Module, outgoing, weights
from .rules import Match

_OWNED = re.compile(
    r"(config|triform|task|generation_config|modules|sentence_bert_config)\.json|model(-\d+-of-\d+)?\.safetensors(\.index\.json)?|"
    r"adapter_config\.json|adapter_model\.(safetensors|bin)|"
    r"(tokenizer|tokenizer_config|special_tokens_map|added_tokens|training|chat_template)\.json|chat_template\.jinja"
)
_BODIES: tuple[config.Head | None, ...] = (None, config.Embed(pool="first", transform="tanh"))
_POOLED = ("mean", "first", "last")


def save(
    model: Module,
    tokenizer: Tokenizer | None,
    folder: str | Path,
    task: Mapping[str, Any] | None = None,
    *,
    shard_bytes: int = 5 * 2**30,
) -> None:
    """Write a model, its tokenizer and its task to a folder that `load` reads, and `transformers` wherever it knows such a model.

    task: plain data, such as {"labels": ["negative", "positive"]}. shard_bytes: weights
    beyond this are written as several files and their index.

    The folder has the layout of Hugging Face's hub: config.json, model.safetensors,
    generation_config.json and the tokenizer's files; what else is known of the task is in
    task.json. A model without a counterpart there (`hub.NoCounterpart` says why) is written
    as triform.json, with Triform's names. Files of an older model in the folder are replaced
    all together or, when anything fails, not at all; other files stay.
    """
    if shard_bytes < 1:
        raise ValueError(f"shard_bytes: expected at least 1, got {shard_bytes}")
    files, family = _files(model, tokenizer, dict(task or {}))
    with replacing_all(Path(folder), owned) as temporary:
        write_weights(model, family, temporary, shard_bytes=shard_bytes)
        if tokenizer is not None:
            tokenizer.save(temporary)
        write_files(temporary, files)


def owned(name: str) -> bool:
    """Whether a file of this name belongs to a model in its folder, and goes when another model takes its place."""
    return _OWNED.fullmatch(name) is not None


def write_files(folder: Path, files: Mapping[str, Any]) -> None:
    """Write JSON files by name."""
    for name, data in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(data, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _files(model: Module, tokenizer: Tokenizer | None, task: dict[str, Any]) -> tuple[dict[str, Any], Family]:
    """The JSON files of a model's folder by name, and what its weights are called."""
    try:
        files, family = public_files(model.config, tokenizer)
    except NoCounterpart:
        return {"triform.json": config.to_dict(model.config, hint=config.Model), "task.json": task}, OWN
    data = files["config.json"]
    labels = task.get("labels")
    if isinstance(labels, list) and "id2label" in data and len(labels) == len(data["id2label"]) == len(set(labels)):
        data |= {"id2label": {str(i): label for i, label in enumerate(labels)}, "label2id": {label: i for i, label in enumerate(labels)}}
        task = {name: value for name, value in task.items() if name != "labels"}
    if "id2label" in data and task.get("problem_type") is not None:
        data["problem_type"] = task["problem_type"]
        task = {name: value for name, value in task.items() if name != "problem_type"}
    marks = marks_of(model.config, tokenizer)
    # ids that the family computes with stay as they are: RoBERTa counts positions from its padding id
    heeded = differences(read_config(data)[0], read_config(data | marks)[0])
    data |= {name: i for name, i in marks.items() if not (heeded and name in data)} | {"torch_dtype": _dtype(model)}
    if isinstance(getattr(model.config, "head", None), config.LanguageModel) and getattr(model.config, "decoder", None):
        files["generation_config.json"] = marks
    if task:
        files["task.json"] = task
    return files, family


def public_files(spec: config.Model, tokenizer: Tokenizer | None) -> tuple[dict[str, Any], Family]:
    """The files that say in public what a model is."""
    head = getattr(spec, "head", None)
    if not (isinstance(spec, config.Transformer) and isinstance(head, config.Embed)):
        data, family = write_config(spec)
        return {"config.json": data}, family
    try:
        data, family = write_config(spec)
        return {"config.json": data}, family
    except NoCounterpart:
        if head.pool not in _POOLED or head.transform or head.width:
            raise
    for body in _BODIES:
        try:
            data, family = write_config(replace(spec, head=body, sentence_head=None))
        except NoCounterpart as error:
            reason = error
            continue
        family = replace(family, table=tuple(rule for rule in family.table if not rule.ours[0].startswith("head.")))
        length = None if tokenizer is None else tokenizer.length
        return {"config.json": data} | sentence.files(head, spec.last.width, length), family
    raise reason


def marks_of(spec: config.Model, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """The ids that public configurations name: what begins, ends and fills up a sequence, and what a decoder begins with."""
    if tokenizer is None:
        return {}
    marks: dict[str, Any] = {"bos_token_id": tokenizer.bos, "pad_token_id": tokenizer.pad}
    marks["eos_token_id"] = tokenizer.ends[0] if len(tokenizer.ends) == 1 else tokenizer.ends or None
    if getattr(spec, "form", "") == "encoder-decoder":
        start = tokenizer.start or [i for i in (tokenizer.bos, tokenizer.pad) if i is not None][:1]
        marks |= zip(("decoder_start_token_id", "forced_bos_token_id"), start, strict=False)
    return {name: value for name, value in marks.items() if value is not None}


def _dtype(model: Module) -> str:
    """The type that most bytes of the weights have, as transformers calls it."""
    held: dict[str, int] = {}
    for tensor in weights(model).values():
        name = str(tensor.dtype).removeprefix("torch.")
        held[name] = held.get(name, 0) + tensor.nbytes
    return max(held, key=lambda name: held[name], default="float32")


@dataclass(frozen=True)
class _Outgoing:
    """A tensor to be written: type, shape, and the weights of ours that it is made of."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    match: Match

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * torch.Size(self.shape).numel()


def write_weights(model: Module, family: Family, folder: Path, *, shard_bytes: int = 5 * 2**30) -> None:
    """Write a model's weights under a family's names, as model.safetensors or as shards of at most `shard_bytes` and their index.

    Each shared weight is written once. A tensor larger than `shard_bytes` has a shard of its own.
    """
    ours = weights(model)
    described = dict(_described(ours, family))
    shards: list[list[str]] = [[]]
    room = shard_bytes
    for name, tensor in described.items():
        if tensor.nbytes > room and shards[-1]:
            shards.append([])
            room = shard_bytes
        shards[-1].append(name)
        room -= tensor.nbytes
    files = [SINGLE] if len(shards) == 1 else [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    for file, names in zip(files, shards, strict=True):
        held = {name: described[name] for name in names}
        sizes = {name: (tensor.dtype, tensor.shape) for name, tensor in held.items()}
        safetensors.write(folder / file, sizes, _tensors(ours, family, held))
    if len(files) > 1:
        places = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        size = sum(tensor.nbytes for tensor in described.values())
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _stored_name(family: Family, name: str) -> str:
    return name.removeprefix(family.prefix) if family.bare else name


def _described(ours: Mapping[str, Tensor], family: Family) -> Iterator[tuple[str, _Outgoing]]:
    """What each tensor of a family's files will be, without making it."""
    for match in outgoing(family, {name: tensor.shape for name, tensor in ours.items()}):
        made = match.layout.save([torch.empty_like(ours[name], device="meta") for name in match.ours])
        for name, tensor in zip(match.theirs, made, strict=True):
            yield _stored_name(family, name), _Outgoing(tensor.dtype, tuple(tensor.shape), match)


def _tensors(ours: Mapping[str, Tensor], family: Family, held: Mapping[str, _Outgoing]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of one file, those of one rule made at a time."""
    for match in {tensor.match.theirs: tensor.match for tensor in held.values()}.values():
        made = match.layout.save([ours[name] for name in match.ours])
        for name, tensor in zip(match.theirs, made, strict=True):
            if _stored_name(family, name) in held:
                yield _stored_name(family, name), tensor
