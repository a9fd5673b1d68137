"""From a recipe to an objective and its samples: tokenizer, splits, shards; what exists and still fits is used again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from triform import config
from triform.config.files import replacing
from triform.data.shards import fingerprint
from triform.data.shards import prepare as prepare_shards
from triform.data.sources import Source, open_source
from triform.data.split import split
from triform.data.transform import Transformed
from triform.objectives import Objective, Samples, build_objective, reads_text
from triform.text import Tokenizer, train_tokenizer

from .recipe import DataRecipe, Recipe

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Prepared:
    """What the loop works on."""

    objective: Objective
    train: Samples
    validation: Samples


def _sources(data: DataRecipe) -> tuple[Source, Source | None]:
    held = None if data.validation_source is None else open_source(data.validation_source, text=None, by=data.by)
    return open_source(data.source, text=None, by=data.by), held


def text_fingerprint(data: DataRecipe) -> str:
    """SHA-256 of the text that a run reads and of what happens to it. Raises ValueError for a source that cannot be read."""
    sources = [None if source is None else source.fingerprint() for source in _sources(data)]
    return fingerprint({"sources": sources, "data": config.to_dict(data, defaults=True)})


def splits(data: DataRecipe) -> tuple[Iterable[Row], Iterable[Row] | None]:
    """The training rows and the validation rows, None where none is held out; both can be read again."""
    rows, held = _sources(data)
    if held is not None:
        return Transformed(rows, data.transform), Transformed(held, data.transform)
    parts = split(rows, validation=data.validation, seed=data.seed, tail=data.tail)
    return Transformed(parts.train, data.transform), None if parts.validation is None else Transformed(parts.validation, data.transform)


def _texts(rows: Iterable[Row], fields: Iterable[str]) -> Iterator[str]:
    for row in rows:
        for name in fields:
            if isinstance(row.get(name), str):
                yield row[name]


def _tokenizer(recipe: Recipe, rows: Iterable[Row], text: str, folder: Path) -> Tokenizer:
    wanted = recipe.tokenizer
    if wanted.path is not None:
        return _with_added(Tokenizer.load(wanted.path), wanted.add)
    fields = [getattr(recipe.objective, name) for name in ("text", "source", "target") if hasattr(recipe.objective, name)]
    note = folder / "settings.json"
    made_from = {"tokenizer": config.to_dict(wanted, defaults=True), "fields": fields, "text": text}
    if note.exists() and json.loads(note.read_text(encoding="utf-8")) == made_from:
        return Tokenizer.load(folder)
    trained = train_tokenizer(
        _texts(rows, fields),
        kind=wanted.kind,
        vocab_size=wanted.vocab_size,
        min_frequency=wanted.min_frequency,
        sentinels=wanted.sentinels,
    )
    _with_added(trained, wanted.add).save(folder)
    with replacing(note) as file:
        file.write_text(json.dumps(made_from), encoding="utf-8")
    return trained


def _with_added(tokenizer: Tokenizer, names: Iterable[str]) -> Tokenizer:
    """A fresh tokenizer with more special tokens after its last one."""
    tokenizer.backend.add_special_tokens([name for name in names if tokenizer.id(name) is None])
    return tokenizer


def check_length(recipe: Recipe) -> None:
    """Raise ValueError, before anything is read or made, for sequences longer than the model's learned positions."""
    longest, model = recipe.objective.longest(), recipe.architecture()
    for side in ("encoder", "decoder"):
        stack = getattr(model, side, None)
        if side not in longest or stack is None or not isinstance(stack.input, config.Tokens):
            continue
        name, tokens = longest[side]
        if isinstance(stack.input.position, config.Learned) and tokens > stack.input.position.length:
            raise ValueError(
                f"objective.{name}: expected rows of at most the {stack.input.position.length} learned positions of the {side}, "
                f"got up to {tokens} tokens; shorten it, or set model.{side}.input.position.length"
            )


def prepare(recipe: Recipe, folder: Path, text: str, *, progress: bool = True) -> Prepared:
    """Tokenizer and shards of a recipe under `folder`, and the samples they hold.

    text: the `text_fingerprint` of the recipe's data; what was made of the same text is used again. `progress`
    draws a bar on standard error where that is a terminal.

    Raises ValueError for a source that cannot be read or is empty, a vocabulary larger than
    the text allows, or a model that cannot be trained so.
    """
    train, validation = splits(recipe.data)
    tokenizer = _tokenizer(recipe, train, text, folder / "tokenizer") if reads_text(recipe.objective) else None
    objective = build_objective(recipe.objective, tokenizer)
    objective.check(recipe.architecture(objective.vocab_size))
    settings = config.to_dict(recipe.objective, defaults=True)
    parts = {}
    for name, rows in (("train", train), ("validation", validation)):
        if rows is None:
            parts[name] = Samples(np.zeros(0, dtype=np.int64), lambda index: {})
            continue
        made_from = {"text": text, "part": name, "tokenizer": objective.fingerprint, "objective": settings}
        sizes = objective.sizes()
        shards = prepare_shards(rows, objective.encode, folder / "data" / name, made_from, vocab_size=sizes, progress=progress)
        parts[name] = objective.samples(shards)
    return Prepared(objective, parts["train"], parts["validation"])
