"""The learning-rate finder suggests a rate that learns faster than ones far below and far above it."""

from __future__ import annotations

from pathlib import Path

import pytest
from recipes import recipe
from runs import quiet

from triform.train import read_metrics, run
from triform.train.find_rate import find_rate


def test_the_suggestion_learns_faster_than_others(data: Path, tmp_path: Path) -> None:
    made = recipe("Causal", data, steps=60, batch=8, warmup=5, validate_every=60, checkpoint_every=60)
    found = find_rate(made, steps=80)
    assert found == find_rate(made, steps=80)
    assert found.rates[0] == pytest.approx(1e-6)
    assert list(found.rates) == sorted(found.rates)

    def learned(rate: float) -> float:
        folder = tmp_path / f"{rate:g}"
        settings = {"steps": 60, "batch": 8, "warmup": 5, "validate_every": 60, "checkpoint_every": 60}
        run(recipe("Causal", data, rate=rate, **settings), folder, report=quiet)
        return float([row["loss"] for row in read_metrics(folder / "metrics.jsonl") if "loss" in row][-1])

    assert learned(found.rate) < min(learned(found.rate / 100), learned(found.rate * 100)) - 0.1


@pytest.mark.parametrize(("low", "high", "says"), [(0.0, 1.0, "expected 0 < low"), (1e-12, 1e-11, "the loss does not fall")])
def test_what_cannot_be_found(low: float, high: float, says: str, data: Path) -> None:
    with pytest.raises(ValueError, match=says):
        find_rate(recipe("Causal", data), steps=10, low=low, high=high)
