"""The figures in the documents on planning are those that the code computes with, in both languages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from triform import config
from triform.planner import cost, parameters, scaling
from triform.planner import time as timing
from triform.planner.hardware import card, hardware

DOCS = Path(__file__).parents[2] / "docs"
TEXTS = [(DOCS / name).read_text(encoding="utf-8") for name in ("planning.md", "zh/planning.md")]
DOCUMENTS = pytest.mark.parametrize("text", TEXTS, ids=["en", "zh"])


def rows(text: str, starts: str) -> list[list[str]]:
    """The rows of the table that has a row whose first cell starts so."""
    for found in re.findall(r"(?:^\|.*\|$\n?)+", text, re.MULTILINE):
        table = [[cell.strip() for cell in line.strip("|").split("|")] for line in found.splitlines()[2:]]
        if any(row[0].startswith(starts) for row in table):
            return table
    raise AssertionError(f"no table has a row {starts}")


def number(cell: str) -> float:
    """The one number of a cell."""
    return float(re.findall(r"[\d.]+(?:e\d+)?", cell.replace(",", "").replace("fp16", ""))[0])


@DOCUMENTS
def test_cards(text: str) -> None:
    table = rows(text, "A100-40G-SXM")
    assert len(table) >= 16
    for name, half, single, memory, bandwidth, power in table:
        found = card(name.split("（")[0].split(" (")[0])
        assert found.peak["fp16" if "fp16" in half else "bf16"] == pytest.approx(number(half) * 1e12)
        assert found.peak["fp32"] == pytest.approx(number(single) * 1e12)
        assert (found.memory, found.bandwidth, found.power) == (number(memory) * 2**30, number(bandwidth) * 1e9, number(power))
        for alias in re.findall(r"`([^`]+)`", name):
            assert card(alias) == found


@DOCUMENTS
def test_utilisations(text: str) -> None:
    table = rows(text, "4,096")
    assert [[number(cell) / 100 for cell in row[1:]] for row in table] == [list(row) for row in timing.SHARES]
    for words in table[1:4]:
        assert number(words[0]) in timing.WIDTHS


@DOCUMENTS
def test_laws_losses_and_repeated_text(text: str) -> None:
    for row, law in zip(rows(text, "Besiroglu"), scaling.LAWS.values(), strict=True):
        assert [number(cell) for cell in row[1:]] == [law.e, law.a, law.b, law.alpha, law.beta]
    sizes = {"Chinchilla": (70e9, 1.4e12), "Gopher": (280e9, 300e9)}
    for row in rows(text, "Gopher"):
        size = next((size for name, size in sizes.items() if row[0].startswith(name)), (120e6, 1.2e9))
        band = scaling.loss(*size)
        assert [float(cell) for cell in re.findall(r"[\d.]+", row[4])] == pytest.approx([band.low, band.high], abs=0.006)
        assert number(row[3]) == pytest.approx(size[1] / size[0], abs=0.05)
    for epochs, worth, share in rows(text, "40"):
        assert scaling.repeated(1.0, number(epochs)) == pytest.approx(number(worth), abs=0.006)
        assert number(worth) / number(epochs) == pytest.approx(number(share) / 100, abs=0.006)


@DOCUMENTS
def test_worked_cases(text: str) -> None:
    case = timing.estimate(6 * 120e6 * 1.2e9, hardware("A100"), "bf16", width=768)
    price = cost.estimate(case.expected_seconds, hardware("A100"), utilisation=case.utilisation)
    for figure in (f"{case.ideal_seconds:,.0f}", f"{case.expected_seconds:,.0f}", f"{price.energy_kwh:.1f} kWh", f"{price.co2_kg:.2f} kg"):
        assert figure in text
    for row in rows(text, "GPT-3"):
        if len(row) == 6:
            tokens, size = (300e9, 12288) if row[0] == "GPT-3" else (1.4e12, 8192)
            work = 6 * number(row[1]) * 1e9 * tokens
            assert number(row[3]) == pytest.approx(work, rel=2e-3)
            found = timing.estimate(work, hardware("1024xA100-80G"), "bf16", width=size)
            days = [found.ideal_seconds / 86400, found.expected_seconds / 86400]
            assert [number(row[4]), number(row[5])] == pytest.approx(days, abs=0.06)
    for name, size, figure in (("t5-11b", 2, "22.6 GB"), ("llama-7b", 16, "107.8 GB"), ("gpt3-175b", 0, "3.143e23")):
        count = parameters(config.preset(name)).total
        assert f"{count:,}" in text
        assert figure in text
        if size:
            assert f"{count * size / 1e9:.1f} GB" == figure
    assert 16 * parameters(config.preset("llama-7b")).total > card("A100-80G").memory
