"""What the doctor found: each check says what is so, how bad that is, and what to do about it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Severity = Literal["fine", "note", "warning", "error"]
SEVERITIES: tuple[Severity, ...] = ("fine", "note", "warning", "error")


@dataclass(frozen=True)
class Finding:
    """What one check found. says: in a sentence. advice: what to do, empty where there is nothing. figures: the numbers behind it.

    An error would spoil the run, or the model's answers; a warning may; a note is worth knowing.
    """

    check: str
    severity: Severity
    says: str
    advice: str = ""
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def line(self) -> str:
        """The finding in one line."""
        return f"{self.check}: {self.says}" + (f"; {self.advice}" if self.advice else "")


@dataclass(frozen=True)
class Examination:
    """All that was found of a recipe or of a model."""

    kind: Literal["recipe", "model"]
    name: str
    findings: tuple[Finding, ...]

    def count(self, severity: Severity) -> int:
        """How many findings are of a severity."""
        return sum(found.severity == severity for found in self.findings)

    @property
    def exit_code(self) -> int:
        """1 where something would spoil the run, else 0."""
        return 1 if self.count("error") else 0

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        counts: dict[str, int] = {severity: self.count(severity) for severity in SEVERITIES}
        found: dict[str, Any] = _plain({"findings": [asdict(found) for found in self.findings]})
        return {"kind": self.kind, "name": self.name, **counts, **found}


def _plain(value: Any) -> Any:
    """Plain data that JSON knows: a number that is none is its name."""
    if isinstance(value, dict):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def graded(value: float, warning: float, error: float | None = None) -> Severity:
    """How bad a share is: from `warning` on a warning, from `error` on an error."""
    if error is not None and value >= error:
        return "error"
    return "warning" if value >= warning else "fine"


def percent(share: float) -> str:
    """A share in per cent, small ones with their first digits."""
    value = 100 * share
    return f"{value:.0f} %" if value == 0 or value >= 10 else f"{value:.2g} %"


def listed(names: Sequence[object], most: int = 3) -> str:
    """The first of some names, and how many more there are."""
    shown = ", ".join(map(str, names[:most]))
    return shown if len(names) <= most else f"{shown} and {len(names) - most:,} more"
