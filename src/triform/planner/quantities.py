"""Numbers as people write them: 1.2B tokens, 24GB, 36h."""

from __future__ import annotations

import math
import re

_TIMES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}
_BYTES = {f"{prefix}b": 1000**power for power, prefix in enumerate(("", "k", "m", "g", "t"))}
_BYTES |= {f"{prefix}ib": 1024**power for power, prefix in enumerate(("", "k", "m", "g", "t"))}
_SECONDS = {"s": 1, "min": 60, "m": 60, "h": 3600, "d": 86400, "day": 86400, "days": 86400, "hour": 3600, "hours": 3600, "w": 604800}
_NUMBER = re.compile(r"\s*([+-]?(?:\d[\d,_]*\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)


def _read(text: str, units: dict[str, int], name: str, example: str) -> float:
    found = _NUMBER.fullmatch(text)
    scale = units.get(found[2].lower()) if found else None
    if found is None or scale is None:
        raise ValueError(f"{name}: expected {example}, got {text!r}")
    value = float(found[1].replace(",", "").replace("_", "")) * scale
    if not math.isfinite(value) or value <= 0:
        raise ValueError(f"{name}: expected {example}, above 0, got {text!r}")
    return value


def count(text: str | float, name: str = "number") -> int:
    """1.2B, 300M, 20_000, 1e9 or "300M tokens" as a whole number. Raises ValueError that names it."""
    plain = re.sub(r"(tokens?|parameters?)\s*$", "", str(text))
    return max(1, round(_read(plain, _TIMES, name, "a number such as 1.2B, 300M or 50000")))


def size(text: str | float, name: str = "size") -> int:
    """24GB (10^9), 24GiB (2^30) or plain bytes as a number of bytes."""
    return round(_read(str(text), _BYTES | {"": 1}, name, "a size such as 24GB or 512MiB"))


def seconds(text: str | float, name: str = "time") -> float:
    """24h, 90min, 2d as seconds."""
    return _read(str(text), _SECONDS, name, "a time such as 24h, 90min or 3d")


def is_count(text: str) -> bool:
    """Whether a text is a size such as 120M or 1.5B, rather than a name."""
    found = _NUMBER.fullmatch(text)
    return found is not None and found[2].lower() in ("k", "m", "b", "t")


def is_time(text: str) -> bool:
    """Whether a text is meant as a time, such as 24h, be it a possible one or not."""
    found = _NUMBER.fullmatch(text)
    return found is not None and found[2].lower() in _SECONDS


def duration(value: float) -> str:
    """Seconds in the words of a person: 46 min, 3.2 h, 12 days."""
    for unit, span, least in (("years", 365.25 * 86400, 2), ("days", 86400, 2), ("h", 3600, 2), ("min", 60, 2)):
        if value >= least * span:
            return f"{value / span:,.{0 if value >= 100 * span else 1}f} {unit}"
    return f"{value:.3g} s"


def data_size(value: float) -> str:
    """Bytes in GB (10^9) with three digits, smaller ones in MB, kB."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}" if value < 100 * scale else f"{value / scale:,.0f} {unit}"
    return f"{value:.0f} B"
