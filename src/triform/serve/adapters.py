"""Several adapters on one model: each is a model by its name, and their requests run together in one engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from triform import hub
from triform.hub.adapters import StoredAdapter, families_of, hang, read_adapter
from triform.hub.spec import base_of, is_adapter
from triform.nn.adapter import switch_off

from .models import Model, Writer, name_of, open_model

Loading = Callable[[Path], AbstractContextManager[object]]


def open_models(named: Sequence[tuple[str | None, str]], *, loading: Loading | None = None, **more: Any) -> list[Model]:
    """Load models, each with the name that requests call it by (None: as `open_model` has it) and its place, in this order.

    An adapter whose base is among them, or that shares its base with another adapter, hangs on that base, whose weights are then
    in memory once. Any other is put into its base's weights, as is one that brings a head of its own.
    loading: makes a context for the time that a place is read. more: what `open_model` takes besides.
    Raises ValueError as `open_model` does.
    """
    said = loading or (lambda _: nullcontext())
    places = [(name, place, hub.locate(place)) for name, place in named]
    beneath = {path: _base(path) for _, _, path in places}
    shared = Counter(base for base in beneath.values() if base is not None)
    listed = {path.resolve() for _, _, path in places}
    found: dict[int, Model] = {}
    bases: dict[Path, Writer] = {}
    for number, (name, place, path) in enumerate(places):
        if beneath[path] is None:
            with said(path):
                found[number] = opened = open_model(place, name, **more)
            if isinstance(opened, Writer):
                bases[path.resolve()] = opened
    for number, (name, place, path) in enumerate(places):
        base = beneath[path]
        if base is None:
            continue
        with said(path):
            parts = _parts(path, base) if base in listed or shared[base] > 1 else None
            if parts is not None and base not in bases and isinstance(opened := open_model(str(base), **more), Writer):
                bases[base] = opened
            if parts is None or base not in bases:
                found[number] = open_model(place, name, **more)
            else:
                found[number] = _hung(bases[base], parts, name or name_of(place, path), base in listed)
    return [found[number] for number in range(len(places))]


def _base(path: Path) -> Path | None:
    """Where the model of an adapter lies; None for what is no adapter, and for an adapter of an adapter."""
    if not path.is_dir() or not is_adapter(path):
        return None
    base = hub.locate(base_of(path)).resolve()
    return None if base.is_dir() and is_adapter(base) else base


def _parts(path: Path, base: Path) -> StoredAdapter | None:
    """What an adapter hangs on the layers of its base; None where it brings more than that."""
    under = hub.Checkpoint.open(base)
    if (path / "triform.json").is_file():
        return None
    stored = read_adapter(path, under.spec, families_of(under.spec, under.family))
    return None if stored.whole or any(".layers." not in layer for layer in stored.parts) else stored


def _hung(on: Writer, parts: StoredAdapter, name: str, listed: bool) -> Writer:
    tokenizer = hub.Checkpoint.open(parts.path).tokenizer() or on.tokenizer
    if tokenizer.vocab_size != on.tokenizer.vocab_size:
        raise ValueError(f"{parts.path}: its tokenizer has {tokenizer.vocab_size:,} tokens and its model's {on.tokenizer.vocab_size:,}")
    hang(on.model, parts, name=name)
    switch_off(on.model)
    return Writer(name, on.model, tokenizer, on.engine, adapter=name, parent=on.name if listed else None)
