"""Accelerators by name, with the source of every figure; the data is in hardware.yaml."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import lru_cache
from importlib.resources import files
from typing import Any, Literal

import yaml

Kind = Literal["gpu", "npu", "apple", "cpu"]
FIGURES = ("peak", "memory", "bandwidth", "power", "link", "price")
_LARGEST_COUNT = 1_000_000
_FLEET = re.compile(r"\s*(?:(?P<count>[-+]?[\d.]+)\s*[x×*]\s*)?(?P<name>\S.*?)\s*")
_NOISE = re.compile(r"NVIDIA|GEFORCE|TESLA|AMD|INSTINCT|HUAWEI|[\s_/-]")


@dataclass(frozen=True, kw_only=True)
class Card:
    """One accelerator, or one machine's processor.

    peak: FLOP/s of dense matrix products by precision (fp32, tf32, bf16, fp16, fp8; OP/s for int8), those it has.
    memory: bytes. bandwidth: of the memory, B/s. power: W at full load. link: B/s in one direction to the other
    cards of a machine. price: USD an hour of rental. None: not known, or not to be had. sources: of each figure.
    """

    name: str
    kind: Kind
    peak: Mapping[str, float]
    memory: int
    bandwidth: float
    power: float | None = None
    link: float | None = None
    price: float | None = None
    sources: Mapping[str, str] = field(default_factory=dict)

    def at(self, precision: str) -> float:
        """FLOP/s at a precision. Raises ValueError with those that there are."""
        if precision not in self.peak:
            raise ValueError(f"precision: {self.name} has no {precision}; choose one of {', '.join(self.peak)}")
        return self.peak[precision]


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """`count` cards of one kind."""

    count: int
    card: Card

    @property
    def name(self) -> str:
        """As `hardware` reads it: 8xA100-80G-SXM."""
        return self.card.name if self.count == 1 else f"{self.count}x{self.card.name}"

    def peak(self, precision: str) -> float:
        """FLOP/s of all cards together. Raises ValueError for a precision that they have not."""
        return self.count * self.card.at(precision)


def hardware(name: str) -> Fleet:
    """The cards that a name such as "8xA100-80G", "2 x RTX 4090", "H100" or "this" stands for.

    "this" is the machine that it runs on, measured once and then remembered (`machine.measure`).
    Raises ValueError for an unknown card, with the nearest names, and for a count that is no whole number above 0.
    """
    found = _FLEET.fullmatch(name)
    if found is None:
        raise ValueError(f"hardware: expected a card such as A100-80G, or several such as 8xA100-80G, got {name!r}")
    count, wanted = found["count"] or "1", found["name"]
    if not count.isdecimal() or not 1 <= int(count) <= _LARGEST_COUNT:
        raise ValueError(f"hardware: expected a whole number of cards from 1 to {_LARGEST_COUNT:,}, got {count} in {name!r}")
    if wanted.casefold() == "this":
        from .machine import measure

        if int(count) != 1:
            raise ValueError(f"hardware: 'this' is one machine with all its cards, got {name!r}; name the card to plan for several")
        return measure()
    return Fleet(count=int(count), card=card(wanted))


def card(name: str) -> Card:
    """The card of a name, an alias, or the name that a driver reports. Raises ValueError with the nearest names."""
    names = _names()
    key = _key(name)
    if key not in names:
        # A short name is nearer to "A100" than to "A100-80G-SXM": compare with the aliases, then give each card once.
        near = list(dict.fromkeys(names[k].name for k in get_close_matches(key, names, 8, 0.5)))[:3]
        hint = f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(c.name for c in cards())}"
        raise ValueError(f"hardware: no card is named {name!r}; {hint}")
    return names[key]


@lru_cache(maxsize=1)
def cards() -> tuple[Card, ...]:
    """All cards of the catalogue, in its order."""
    return tuple(_card(entry) for entry in _catalogue()["cards"])


@lru_cache(maxsize=1)
def _catalogue() -> Any:
    text = files("triform.planner").joinpath("hardware.yaml").read_text(encoding="utf-8")
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


@lru_cache(maxsize=1)
def _names() -> dict[str, Card]:
    found: dict[str, Card] = {}
    for entry, made in zip(_catalogue()["cards"], cards(), strict=True):
        for name in (entry["name"], *entry["aliases"]):
            if found.setdefault(_key(name), made) is not made:
                raise AssertionError(f"two cards are named {name}")
    return found


def _key(name: str) -> str:
    return _NOISE.sub("", name.upper()).replace("GB", "G")


def _card(entry: Mapping[str, Any]) -> Card:
    def scaled(figure: str, unit: float) -> float | None:
        return None if entry[figure] is None else entry[figure] * unit

    return Card(
        name=entry["name"],
        kind=entry.get("kind", "gpu"),
        peak={precision: rate * 1e12 for precision, rate in entry["peak"].items()},
        memory=entry["memory"] * 2**30,
        bandwidth=entry["bandwidth"] * 1e9,
        power=scaled("power", 1.0),
        link=scaled("link", 1e9),
        price=scaled("price", 1.0),
        sources={figure: _source(entry, figure) for figure in FIGURES if entry[figure] is not None},
    )


def _source(entry: Mapping[str, Any], figure: str) -> str:
    document, _, note = str(entry["sources"].get(figure, entry["sources"]["rest"])).partition(": ")
    text = str(_catalogue()["documents"][document])
    return f"{text} ({note})" if note else text
