"""A quantity that explains itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

_SCALES = {
    "B": (1024, ("B", "KiB", "MiB", "GiB", "TiB", "PiB")),
    "FLOP": (1000, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP")),
}


@dataclass(frozen=True, kw_only=True)
class Line:
    """One figure with where it comes from.

    name: what it is. formula: as text, in the symbols of `numbers`. numbers: what was put in.
    value: what came out, in `unit` ("B" is bytes). source: the paper, data sheet or file that says so.
    """

    name: str
    formula: str
    value: float
    unit: str = ""
    numbers: Mapping[str, float | int | str] = field(default_factory=dict)
    source: str = ""

    def __str__(self) -> str:
        put_in = ", ".join(f"{name} = {_number(value)}" for name, value in self.numbers.items())
        text = f"{self.name}: {self.formula} = {quantity(self.value, self.unit)}"
        return text + (f" with {put_in}" if put_in else "") + (f" [{self.source}]" if self.source else "")

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self) | {"numbers": dict(self.numbers)}


def quantity(value: float, unit: str = "") -> str:
    """A value with its unit, as a person would write it: 1.5 GiB, 864 PFLOP, 46 s."""
    if unit not in _SCALES:
        return f"{_number(value)} {unit}".strip()
    base, names = _SCALES[unit]
    power = 0
    while abs(value) >= base and power < len(names) - 1:
        value, power = value / base, power + 1
    return f"{value:,.4g} {names[power]}"


def _number(value: float | int | str) -> str:
    if isinstance(value, str):
        return value
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.4g}"
