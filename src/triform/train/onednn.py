"""Which products linear layers take in fp32 on a CPU: torch's own, or oneDNN's, which are faster on many processors."""

from __future__ import annotations

import json
import statistics
import time
from functools import lru_cache

import torch

from triform.config.files import cache_folder, replacing
from triform.nn.products import Products, works
from triform.planner.machine import fingerprint, read_json

_GAIN = 1.05  # how much faster it must be to be chosen
_SHAPES = ((1024, 768, 2048), (2048, 1024, 768))  # of a layer's product, and of its weight's gradient
_ROUNDS = 5


def check_onednn() -> None:
    """Raise ValueError where this torch has no such operator, or it does not give what torch's own product does."""
    if not works():
        raise ValueError("train.linear: this torch has no working oneDNN product; choose torch")


def choose_linear(wanted: str, device: str = "cpu", precision: str = "fp32") -> str:
    """torch or onednn as wanted; for auto, what multiplies faster here in fp32, as measured once and then remembered."""
    if device != "cpu" or precision != "fp32":
        return "torch"
    return wanted if wanted != "auto" else "onednn" if _gain() > _GAIN else "torch"


@lru_cache(maxsize=1)
def _gain() -> float:
    """How many times as fast oneDNN's products are as torch's own: from the cache folder, or measured in some 0.2 seconds."""
    if not works():
        return 0.0
    file = cache_folder() / "machine" / f"{fingerprint()}.products.json"
    found = read_json(file)
    if isinstance(found, dict) and isinstance(found.get("onednn_gain"), float):
        return float(found["onednn_gain"])
    gain = _measured()
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        temporary.write_text(json.dumps({"onednn_gain": gain}) + "\n", encoding="utf-8")
    return gain


def _measured() -> float:
    """The two take turns, so that what else the machine does falls on both."""
    ways, ratios = (Products(), Products(onednn=True)), []
    for rows, inner, columns in _SHAPES:
        a, b = torch.randn(rows, inner), torch.randn(columns, inner).t()
        for round_number in range(_ROUNDS + 1):
            plain, other = (_seconds(way, a, b) for way in ways)
            if round_number:
                ratios.append(plain / other)
    return statistics.median(ratios)


def _seconds(way: Products, a: torch.Tensor, b: torch.Tensor) -> float:
    start = time.perf_counter()
    way.multiply(a, b)
    return time.perf_counter() - start
