"""From a recipe to an objective and its samples: tokenizer, splits, shards; what exists and still fits is used again."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from triform import config, hub
from triform.config.files import cache_folder, replacing
from triform.data.card import DataCard
from triform.data.mixture import Mixture
from triform.data.normalize import Normalized
from triform.data.pipeline import Cleaned
from triform.data.pipeline import prepare as clean_text
from triform.data.rows import BadRows
from triform.data.shards import find, fingerprint
from triform.data.shards import prepare as prepare_shards
from triform.data.sources import open_source
from triform.data.split import split
from triform.data.transform import Transformed
from triform.objectives import Objective, Samples, build_objective, reads_text
from triform.objectives.on_policy import longest_rows
from triform.text import Tokenizer, train_tokenizer
from triform.text.templates import read_template

from .folder import BAD, sweep
from .recipe import DataRecipe, Recipe, TokenizerRecipe

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


def bad_rows(data: DataRecipe, folder: Path | None = None) -> BadRows:
    """Who is told of a recipe's bad rows, and leaves them out where it says so, listed in a folder."""
    advice = "; mend it, or leave such rows out with data.skip_bad=true"
    return BadRows(data.skip_bad, advice, None if folder is None else folder / BAD)


def cleaned(
    data: DataRecipe, text: str | None = None, *, workers: int = 1, progress: bool = True, bad: BadRows | None = None
) -> Cleaned | None:
    """The cleaned documents of a recipe, made where they are not there yet; None where it does not ask for cleaning."""
    if data.clean is None:
        return None
    folder, bad = prepared_folder(data, text), bad_rows(data) if bad is None else bad
    return clean_text(data.sources, folder, data.clean, by=data.by, workers=workers, progress=progress, bad=bad)


def splits(
    data: DataRecipe, text: str | None = None, *, progress: bool = True, bad: BadRows | None = None
) -> tuple[Iterable[Row], Iterable[Row] | None]:
    """The training rows and the validation rows, None where none is held out; both can be read again.

    text: the data's `text_fingerprint`, where it is known already. bad: who is told of rows that cannot be read.
    """
    bad = bad_rows(data) if bad is None else bad
    made = cleaned(data, text, progress=progress, bad=bad)
    opened = [open_source(each.source, text=None, by=data.by, bad=bad) for each in data.sources] if made is None else made.parts()
    weights = [each.weight for each in data.sources]
    rows: Iterable[Row] = opened[0] if weights == [1] else Mixture(list(zip(opened, weights, strict=True)), data.seed)
    if data.validation_source is not None:
        held: Iterable[Row] = open_source(data.validation_source, text=None, by=data.by, bad=bad)
        if data.clean is not None and data.clean.normalize is not None:
            held = Normalized(held, data.clean.normalize, data.clean.columns)
        return Transformed(rows, data.transform), Transformed(held, data.transform)
    parts = split(rows, validation=data.validation, seed=data.seed, tail=data.tail)
    return Transformed(parts.train, data.transform), None if parts.validation is None else Transformed(parts.validation, data.transform)


def _fields(objective: Any) -> list[str]:
    """The fields of text that an objective names; its own name where it says itself which texts a row has."""
    if hasattr(objective, "texts"):
        return [type(objective).__name__]
    return [getattr(objective, name) for name in ("text", "source", "target") if hasattr(objective, name)]


def _texts(rows: Iterable[Row], objective: Any, bad: BadRows) -> Iterator[str]:
    """The texts of rows, for a tokenizer to be trained on."""
    own, fields = getattr(objective, "texts", None), _fields(objective)
    for row in rows:
        if own is not None:
            yield from bad.made([row], lambda some: own(some[0]))
        else:
            yield from (row[name] for name in fields if isinstance(row.get(name), str))


def _tokenizer(recipe: Recipe, rows: Iterable[Row], text: str, places: tuple[Path, Path], bad: BadRows) -> Tokenizer:
    """The tokenizer of a recipe; places: where the run keeps what it trains, and where prepared data have theirs."""
    wanted = recipe.tokenizer
    if wanted.path is not None:
        return _finished(_opened(wanted.path), wanted)
    folder, ready = places
    made_from = {"tokenizer": config.to_dict(wanted, defaults=True), "fields": _fields(recipe.objective), "text": text}
    if _noted(folder) == made_from:
        return Tokenizer.load(folder)
    if _noted(ready) == made_from:
        found = Tokenizer.load(ready)
    else:
        trained = train_tokenizer(
            _texts(rows, recipe.objective, bad),
            kind=wanted.kind,
            vocab_size=wanted.vocab_size,
            min_frequency=wanted.min_frequency,
            sentinels=wanted.sentinels,
        )
        found = _finished(trained, wanted)
    found.save(folder)
    with replacing(folder / _NOTE) as file:
        file.write_text(json.dumps(made_from), encoding="utf-8")
    return found


def _opened(path_or_name: str) -> Tokenizer:
    """The tokenizer of a folder, of a GGUF file, or of a model by its name."""
    place = Path(path_or_name) if Path(path_or_name).exists() else hub.locate(path_or_name, weights=False)
    if place.suffix != ".gguf":
        return Tokenizer.load(place)
    found = hub.Checkpoint.open(place).tokenizer()
    assert found is not None
    return found


def _noted(folder: Path) -> Any:
    """What the tokenizer in a folder was made from; None where there is none."""
    note = folder / _NOTE
    return json.loads(note.read_text(encoding="utf-8")) if note.exists() else None


def _finished(tokenizer: Tokenizer, wanted: TokenizerRecipe) -> Tokenizer:
    """A fresh tokenizer with more special tokens after its last one, and its chat template."""
    tokenizer.backend.add_special_tokens([name for name in wanted.add if tokenizer.id(name) is None])
    if wanted.chat_template is not None:
        tokenizer.chat_template = read_template(wanted.chat_template, tokenizer)
    return tokenizer


def check_length(recipe: Recipe) -> None:
    """Raise ValueError, before anything is read or made, for sequences longer than the model's learned positions."""
    model = recipe.architecture()
    longest = longest_rows(recipe.objective, model.form)
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


def objective_of(recipe: Recipe, rows: Iterable[Row], text: str, folder: Path, bad: BadRows) -> Objective:
    """The objective of a recipe with its tokenizer, held against the model.

    rows: the training rows, which a tokenizer is trained on and then kept under `folder`. text, bad: as in `splits`.
    """
    tokenizer = None
    if reads_text(recipe.objective):
        places = (folder / "tokenizer", prepared_folder(recipe.data, text) / "tokenizer")
        tokenizer = _tokenizer(recipe, rows, text, places, bad)
    objective = build_objective(recipe.objective, tokenizer)
    objective.check(recipe.architecture(objective.vocab_size))
    for name in () if objective.smooths else ("smoothing", "z_loss"):
        if getattr(recipe.train, name):
            raise ValueError(f"train.{name}: expected 0 with the objective {type(recipe.objective).__name__}, which has no place for it")
    return objective


def prepare(recipe: Recipe, folder: Path, text: str, *, progress: bool = True) -> Prepared:
    """Tokenizer and shards of a recipe under `folder`, and the samples they hold.

    text: the `text_fingerprint` of the recipe's data; what was made of the same text is used again, there or in
    the `prepared_folder`. `progress` draws a bar on standard error where that is a terminal.

    Raises ValueError for a source that cannot be read or is empty, a vocabulary larger than
    the text allows, or a model that cannot be trained so.
    """
    ready, bad = prepared_folder(recipe.data, text), bad_rows(recipe.data, folder)
    with bad.explaining():
        found = _prepared(recipe, (folder, ready), text, bad, progress)
    if len(bad):
        print(f"{len(bad):,} bad rows are left out, listed in {folder / BAD}; the first: {bad.first}", file=sys.stderr)
    return found


def _prepared(recipe: Recipe, folders: tuple[Path, Path], text: str, bad: BadRows, progress: bool) -> Prepared:
    folder, ready = folders
    train, validation = splits(recipe.data, text, progress=progress, bad=bad)
    objective = objective_of(recipe, train, text, folder, bad)
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

            def encode(rows: Sequence[Row]) -> list[dict[str, Sequence[int]]]:
                return bad.made(rows, objective.encode)

            shards = prepare_shards(rows, encode, place, made_from, vocab_size=sizes, progress=progress, total=total)
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
