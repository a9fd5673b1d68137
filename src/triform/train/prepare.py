"""From a recipe to an objective and its samples: tokenizer, splits, shards; what exists and still fits is used again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from triform import config
from triform.config.files import cache_folder, replacing
from triform.data.card import DataCard
from triform.data.mixture import Mixture
from triform.data.normalize import Normalized
from triform.data.pipeline import Cleaned
from triform.data.pipeline import prepare as clean_text
from triform.data.shards import find, fingerprint
from triform.data.shards import prepare as prepare_shards
from triform.data.sources import open_source
from triform.data.split import split
from triform.data.transform import Transformed
from triform.objectives import Objective, Samples, build_objective, reads_text
from triform.text import Tokenizer, train_tokenizer

from .folder import sweep
from .recipe import DataRecipe, Recipe

Row = Mapping[str, Any]
_NOTE = "settings.json"


@dataclass(frozen=True)
class Prepared:
    """What the loop works on."""

    objective: Objective
    train: Samples
    validation: Samples


def text_fingerprint(data: DataRecipe) -> str:
    """SHA-256 of the text that a run reads and of what happens to it. Raises ValueError for a source that cannot be read."""
    named = [*(each.source for each in data.sources), data.validation_source]
    sources = [None if name is None else open_source(name, text=None, by=data.by).fingerprint() for name in named]
    clean = data.clean
    held = [] if clean is None or clean.overlap is None else [open_source(name, text=None).fingerprint() for name in clean.overlap.sources]
    settings = config.to_dict(data, defaults=True)
    del settings["folder"]
    return fingerprint({"sources": sources, "overlap": held, "data": settings})


def prepared_folder(data: DataRecipe, text: str | None = None) -> Path:
    """Where the prepared data of a recipe are kept: `data.folder`, or else a folder of the cache. text: their `text_fingerprint`."""
    return Path(data.folder) if data.folder else cache_folder() / "prepared" / (text or text_fingerprint(data))[:16]


def cleaned(data: DataRecipe, text: str | None = None, *, workers: int = 1, progress: bool = True) -> Cleaned | None:
    """The cleaned documents of a recipe, made where they are not there yet; None where it does not ask for cleaning."""
    if data.clean is None:
        return None
    return clean_text(data.sources, prepared_folder(data, text), data.clean, by=data.by, workers=workers, progress=progress)


def splits(data: DataRecipe, text: str | None = None, *, progress: bool = True) -> tuple[Iterable[Row], Iterable[Row] | None]:
    """The training rows and the validation rows, None where none is held out; both can be read again.

    text: the data's `text_fingerprint`, where it is known already.
    """
    made = cleaned(data, text, progress=progress)
    opened = [open_source(each.source, text=None, by=data.by) for each in data.sources] if made is None else made.parts()
    weights = [each.weight for each in data.sources]
    rows: Iterable[Row] = opened[0] if weights == [1] else Mixture(list(zip(opened, weights, strict=True)), data.seed)
    if data.validation_source is not None:
        held: Iterable[Row] = open_source(data.validation_source, text=None, by=data.by)
        if data.clean is not None and data.clean.normalize is not None:
            held = Normalized(held, data.clean.normalize, data.clean.columns)
        return Transformed(rows, data.transform), Transformed(held, data.transform)
    parts = split(rows, validation=data.validation, seed=data.seed, tail=data.tail)
    return Transformed(parts.train, data.transform), None if parts.validation is None else Transformed(parts.validation, data.transform)


def _texts(rows: Iterable[Row], fields: Iterable[str]) -> Iterator[str]:
    for row in rows:
        for name in fields:
            if isinstance(row.get(name), str):
                yield row[name]


def _tokenizer(recipe: Recipe, rows: Iterable[Row], text: str, folder: Path, ready: Path) -> Tokenizer:
    wanted = recipe.tokenizer
    if wanted.path is not None:
        return _with_added(Tokenizer.load(wanted.path), wanted.add)
    fields = [getattr(recipe.objective, name) for name in ("text", "source", "target") if hasattr(recipe.objective, name)]
    made_from = {"tokenizer": config.to_dict(wanted, defaults=True), "fields": fields, "text": text}
    if _noted(folder) == made_from:
        return Tokenizer.load(folder)
    if _noted(ready) == made_from:
        found = Tokenizer.load(ready)
    else:
        trained = train_tokenizer(
            _texts(rows, fields),
            kind=wanted.kind,
            vocab_size=wanted.vocab_size,
            min_frequency=wanted.min_frequency,
            sentinels=wanted.sentinels,
        )
        found = _with_added(trained, wanted.add)
    found.save(folder)
    with replacing(folder / _NOTE) as file:
        file.write_text(json.dumps(made_from), encoding="utf-8")
    return found


def _noted(folder: Path) -> Any:
    """What the tokenizer in a folder was made from; None where there is none."""
    note = folder / _NOTE
    return json.loads(note.read_text(encoding="utf-8")) if note.exists() else None


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

    text: the `text_fingerprint` of the recipe's data; what was made of the same text is used again, there or in
    the `prepared_folder`. `progress` draws a bar on standard error where that is a terminal.

    Raises ValueError for a source that cannot be read or is empty, a vocabulary larger than
    the text allows, or a model that cannot be trained so.
    """
    ready = prepared_folder(recipe.data, text)
    train, validation = splits(recipe.data, text, progress=progress)
    tokenizer = _tokenizer(recipe, train, text, folder / "tokenizer", ready / "tokenizer") if reads_text(recipe.objective) else None
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
        shards = find(ready / "data" / name, made_from, sizes)
        if shards is None:
            total = _expected(recipe.data, ready, name)
            place = folder / "data" / name
            shards = prepare_shards(rows, objective.encode, place, made_from, vocab_size=sizes, progress=progress, total=total)
        parts[name] = objective.samples(shards)
    return Prepared(objective, parts["train"], parts["validation"])


def _expected(data: DataRecipe, ready: Path, name: str) -> int | None:
    """About how many rows a part has, where that is known before they are read."""
    if data.clean is None or data.transform or (name == "validation" and data.validation_source is not None):
        return None
    kept = [each["kept"] for each in Cleaned.open(ready).manifest["sources"]]
    count = sum(each.weight * rows for each, rows in zip(data.sources, kept, strict=True))
    held = data.validation if data.tail is None else data.tail
    held = 0 if data.validation_source is not None else held * count if isinstance(held, float) else held
    return round(held if name == "validation" else count - held)


def prepare_data(recipe: Recipe, *, workers: int = 1, progress: bool = True) -> DataCard:
    """Clean, tokenize and keep the data of a recipe where its runs find them (`prepared_folder`), with a data card.

    workers: processes that clean; with more than one a script needs `if __name__ == "__main__":`. What is there already is
    used, and what a killed process had finished is gone on from.

    Raises ValueError as `prepare` does, and for a folder that holds something else.
    """
    check_length(recipe)
    text = text_fingerprint(recipe.data)
    folder = prepared_folder(recipe.data, text)
    made = cleaned(recipe.data, text, workers=workers, progress=progress)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".shards.lock"):
        sweep(folder)
        prepared = prepare(recipe, folder, text, progress=progress)
        card = DataCard(
            folder=folder,
            recipe={"data": config.to_dict(recipe.data, hint=DataRecipe), "objective": config.to_dict(recipe.objective)},
            sources=[(each.source, each.weight) for each in recipe.data.sources],
            cleaned=None if made is None else made.manifest,
            vocab_size=prepared.objective.vocab_size,
        )
        card.write()
    return card
