"""From a recipe to an objective and its samples: tokenizer, splits, shards; what exists and still fits is used again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from triform import config
from triform.data.shards import prepare as prepare_shards
from triform.data.sources import open_source
from triform.data.split import split
from triform.data.transform import Transformed
from triform.objectives import Objective, Samples, build_objective
from triform.text import Tokenizer, train_tokenizer

from .recipe import DataRecipe, Recipe, TokenizerRecipe

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Prepared:
    """What the loop works on."""

    objective: Objective
    train: Samples
    validation: Samples


def splits(data: DataRecipe) -> tuple[Iterable[Row], Iterable[Row] | None]:
    """The training rows and the validation rows, None where none is held out; both can be read again."""
    rows = open_source(data.source, text=None, by=data.by)
    if data.validation_source is not None:
        held = open_source(data.validation_source, text=None, by=data.by)
        return Transformed(rows, data.transform), Transformed(held, data.transform)
    parts = split(rows, validation=data.validation, seed=data.seed, tail=data.tail)
    return Transformed(parts.train, data.transform), None if parts.validation is None else Transformed(parts.validation, data.transform)


def _texts(rows: Iterable[Row], fields: Iterable[str]) -> Iterator[str]:
    for row in rows:
        for name in fields:
            if isinstance(row.get(name), str):
                yield row[name]


def _fields(spec: Any) -> list[str]:
    return [getattr(spec, name) for name in ("text", "source", "target") if hasattr(spec, name)]


def _tokenizer(recipe: TokenizerRecipe, rows: Iterable[Row], fields: list[str], folder: Path) -> Tokenizer:
    if recipe.path is not None:
        return Tokenizer.load(recipe.path)
    note, wanted = folder / "settings.json", config.to_dict(recipe, defaults=True, hint=TokenizerRecipe) | {"fields": fields}
    if note.exists() and json.loads(note.read_text(encoding="utf-8")) == wanted:
        return Tokenizer.load(folder)
    trained = train_tokenizer(
        _texts(rows, fields),
        kind=recipe.kind,
        vocab_size=recipe.vocab_size,
        min_frequency=recipe.min_frequency,
        sentinels=recipe.sentinels,
    )
    trained.save(folder)
    note.write_text(json.dumps(wanted), encoding="utf-8")
    return trained


def _check_length(spec: Any, model: config.Model) -> None:
    if not isinstance(model, config.Transformer):
        return
    for side, stack in (("encoder", model.encoder), ("decoder", model.decoder)):
        if stack is None or not isinstance(stack.input, config.Tokens) or not isinstance(stack.input.position, config.Learned):
            continue
        name = "target_length" if side == "decoder" and model.encoder is not None and hasattr(spec, "target_length") else "length"
        if getattr(spec, name) > stack.input.position.length:
            raise ValueError(
                f"objective.{name}: expected at most the {stack.input.position.length} learned positions of the {side}, "
                f"got {getattr(spec, name)}; shorten it, or set model.{side}.input.position.length"
            )


def prepare(recipe: Recipe, folder: Path) -> Prepared:
    """Tokenizer and shards of a recipe under `folder`, and the samples they hold.

    Raises ValueError for a source that cannot be read or is empty, a vocabulary larger than
    the text allows, a model that cannot be trained so, or sequences longer than its positions.
    """
    _check_length(recipe.objective, recipe.architecture())
    train, validation = splits(recipe.data)
    tokenizer = _tokenizer(recipe.tokenizer, train, _fields(recipe.objective), folder / "tokenizer")
    objective = build_objective(recipe.objective, tokenizer)
    objective.check(recipe.architecture(tokenizer.vocab_size))
    settings, data = config.to_dict(recipe.objective, defaults=True), config.to_dict(recipe.data, defaults=True)
    parts = {}
    for name, rows in (("train", train), ("validation", validation)):
        if rows is None:
            parts[name] = Samples(np.zeros(0, dtype=np.int64), None)
            continue
        shards = prepare_shards(
            rows, objective.encode, folder / "data" / name,
            {"data": data, "part": name, "tokenizer": tokenizer.fingerprint, "objective": settings}, vocab_size=objective.sizes(),
        )  # fmt: skip
        parts[name] = objective.samples(shards)
    return Prepared(objective, parts["train"], parts["validation"])



