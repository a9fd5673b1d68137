"""Steps whose loss or gradient is no number, or far above those before: they are left out, and after several the weights go back."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from triform.objectives import Batch
from triform.text import Tokenizer

from .recipe import Guard

_TOKENS = 40  # of each text that is shown


def fresh() -> dict[str, Any]:
    """What a `Watch` remembers at the start: figures of good steps, the steps done at the last, bad ones since, where it went back to."""
    return {"losses": [], "norms": [], "good": 0, "bad": 0, "returned": None}


class Watch:
    """Judges steps by their loss and gradient norm; `memory` is what it remembers, which belongs into the checkpoint."""

    def __init__(self, settings: Guard, memory: dict[str, Any]) -> None:
        self.settings, self.memory = settings, memory

    def judge(self, step: int, loss: float, norm: float) -> str | None:
        """Why a step, counted from 0, must not be taken, or None for a good one, which is remembered."""
        found = None
        for name, value, before in (("loss", loss, self.memory["losses"]), ("gradient's norm", norm, self.memory["norms"])):
            if not math.isfinite(value):
                found = found or f"the {name} is {value}"
            elif (limit := self._limit(before)) is not None and value > limit:
                found = found or f"the {name} is {value:.4g}, above {limit:.4g}"
        if found:
            self.memory["bad"] += 1
            return found
        self.memory |= {"good": step + 1, "bad": 0, "returned": None}
        for value, before in ((loss, self.memory["losses"]), (norm, self.memory["norms"])):
            before.append(value)
            del before[: -self.settings.window]
        return None

    def _limit(self, before: list[float]) -> float | None:
        """`spike` standard deviations above the mean of what came before, once half a window did."""
        if self.settings.spike is None or len(before) < max(2, self.settings.window // 2):
            return None
        return float(np.mean(before) + self.settings.spike * np.std(before))

    def goes_back(self) -> bool:
        """Whether there were so many bad steps in a row that the weights are to go back."""
        return bool(self.memory["bad"] >= self.settings.roll_back_after)


def write_skipped(file: Path, row: dict[str, Any], samples: Iterable[int], batches: Sequence[Batch], tokenizer: Tokenizer | None) -> None:
    """Append a line of JSON on a step that was left out: `row`, its samples by index, and how the texts of each begin."""
    texts = []
    for batch in batches:
        if tokenizer is not None and not batch.inputs.is_floating_point():
            texts += [tokenizer.decode(ids[:_TOKENS].tolist()) for ids in batch.inputs]
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps({**row, "samples": [int(i) for i in samples], "texts": texts}, ensure_ascii=False) + "\n")

