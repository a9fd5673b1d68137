"""What a computation costs: money, energy and CO2; the grids are in regions.yaml."""

from __future__ import annotations

import math
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from importlib.resources import files

import yaml

from .explain import Line
from .hardware import Fleet

# The average of the world's data centres, and a computer in a room that is not cooled for it.
PUE = 1.56
_PUE_SOURCE = "default: world average, Uptime Institute Global Data Center Survey 2024, https://uptimeinstitute.com/resources/research-and-reports"
# Power rises with the load from what an idle card takes (Fan, Weber and Barroso 2007) and is full at half of the peak FLOP/s.
IDLE_SHARE, FULL_AT = 0.2, 0.5
_DRAW_SOURCE = "default: idle a fifth of the full power, full at half of the peak, linear between: Fan et al. 2007, https://doi.org/10.1145/1250662.1250665"


@dataclass(frozen=True)
class Region:
    """A grid: grams of CO2 a kilowatt-hour, in which year, by whom."""

    name: str
    grams: float
    year: int | None
    source: str


@dataclass(frozen=True)
class Cost:
    """What some hours of some cards cost.

    money: USD; None where no price is known. energy_kwh: at the meter, cooling included; None where the cards'
    power is not known. co2_kg: of that energy. card_hours: count x hours.
    """

    money: float | None
    energy_kwh: float | None
    co2_kg: float | None
    card_hours: float
    region: Region
    lines: tuple[Line, ...]


def estimate(
    seconds: float, fleet: Fleet, *, price: float | None = None, region: str | float = "world", pue: float | None = None,
    utilisation: float = FULL_AT, draw: float | None = None,
) -> Cost:  # fmt: skip
    """Money, energy and CO2 of `seconds` of all cards of a fleet.

    price: USD an hour of one card; None: the catalogue's. region: a grid's name, or grams of CO2 a kilowatt-hour.
    pue: energy of the building over that of the machines; None: the world's average, 1 for a computer on a desk.
    utilisation: share of the peak FLOP/s, from which the draw follows. draw: share of the full power instead.
    Only the cards are counted, as papers do; what their server takes comes on top. Raises ValueError for a negative
    number, a PUE below 1, or an unknown region with the nearest names.
    """
    for name, value in {"seconds": seconds, "price": price, "utilisation": utilisation, "draw": draw}.items():
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(f"{name}: expected a number of at least 0, got {value}")
    card, grid = fleet.card, find_region(region)
    desk = card.kind in ("cpu", "apple")
    factor = pue if pue is not None else 1.0 if desk else PUE
    if not 1 <= factor < math.inf:
        raise ValueError(f"pue: expected at least 1, got {factor}")
    hours = seconds / 3600
    used = {"count": fleet.count, "T": seconds}
    lines = [Line(name="card hours", formula="count x T / 3600", numbers=used, value=fleet.count * hours, unit="h")]
    rent = card.price if price is None else price
    if rent is not None:
        source = "given" if price is not None else card.sources.get("price", "")
        lines.append(Line(name="money", formula="count x hours x price", numbers={"count": fleet.count, "hours": hours, "price": rent},
                          value=fleet.count * hours * rent, unit="USD", source=source))  # fmt: skip
    energy = None
    if card.power is not None:
        share = min(1.0, IDLE_SHARE + (1 - IDLE_SHARE) * utilisation / FULL_AT) if draw is None else draw
        energy = fleet.count * card.power * share * factor * hours / 1000
        numbers = {"count": fleet.count, "power": card.power, "draw": share, "PUE": factor, "hours": hours}
        said = [card.sources.get("power", ""), "" if draw is not None else _DRAW_SOURCE, _PUE_SOURCE if pue is None and not desk else ""]
        lines.append(Line(name="energy", formula="count x power x draw x PUE x hours / 1000", numbers=numbers, value=energy, unit="kWh",
                          source="; ".join(filter(None, said))))  # fmt: skip
        lines.append(Line(name="CO2", formula="energy x intensity / 1000", numbers={"energy": energy, "intensity": grid.grams},
                          value=energy * grid.grams / 1000, unit="kg", source=grid.source))  # fmt: skip
    money = None if rent is None else fleet.count * hours * rent
    return Cost(money, energy, None if energy is None else energy * grid.grams / 1000, fleet.count * hours, grid, tuple(lines))


@lru_cache(maxsize=1)
def regions() -> dict[str, Region]:
    """All grids by name."""
    return {name: region for name, region in _regions().items() if region.name == name}


def find_region(region: str | float) -> Region:
    """A grid by a name, a Chinese name, or grams of CO2 a kilowatt-hour. Raises ValueError with the nearest names."""
    try:
        grams = float(region)
    except ValueError:
        grams = None
    if grams is not None:
        if not 0 <= grams < 10_000:
            raise ValueError(f"region: expected 0 to 10,000 grams of CO2 a kilowatt-hour, got {region}")
        return Region(f"{grams:g} g/kWh", grams, None, "given")
    names, key = _regions(), str(region).strip().casefold().replace(" ", "-").replace("_", "-")
    if key not in names:
        near = [names[k].name for k in get_close_matches(key, names, 5, 0.5)]
        hint = f"did you mean {', '.join(dict.fromkeys(near))}?" if near else f"there are {', '.join(regions())}"
        raise ValueError(f"region: no grid is named {region!r}; {hint}; or give grams of CO2 a kilowatt-hour")
    return names[key]


@lru_cache(maxsize=1)
def _regions() -> dict[str, Region]:
    text = files("triform.planner").joinpath("regions.yaml").read_text(encoding="utf-8")
    data = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    found: dict[str, Region] = {}
    for name, (grams, year, source, others) in data["regions"].items():
        region = Region(name, float(grams), year, f"{data['sources'][source]}, {year}")
        for key in (name, *others):
            if key in found:
                raise AssertionError(f"two regions are named {key}")
            found[key] = region
    return found
