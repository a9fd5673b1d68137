"""The catalogue of cards is whole and plausible, and names are read as people write them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triform.planner.hardware import FIGURES, Card, card, cards, hardware

CARDS = {card.name: card for card in cards()}


@pytest.mark.parametrize(
    ("text", "count", "name"),
    [
        ("8xA100-80G", 8, "A100-80G-SXM"),
        ("2 x RTX4090", 2, "RTX-4090"),
        ("1x RTX3090", 1, "RTX-3090"),
        ("16×h100", 16, "H100-SXM"),
        ("rtx 3090", 1, "RTX-3090"),
        ("4090", 1, "RTX-4090"),
        ("4060 Ti 16G", 1, "RTX-4060-Ti-16G"),
        ("昇腾910B", 1, "Ascend-910B3"),
        ("M2 Ultra", 1, "Apple-M2-Ultra"),
        ("NVIDIA A100-SXM4-80GB", 1, "A100-80G-SXM"),
        ("NVIDIA H100 80GB HBM3", 1, "H100-SXM"),
        ("Tesla V100-SXM2-32GB", 1, "V100-32G"),
        ("NVIDIA GeForce RTX 3090", 1, "RTX-3090"),
        ("AMD Instinct MI300X", 1, "MI300X"),
    ],
)
def test_names_as_people_and_drivers_write_them(text: str, count: int, name: str) -> None:
    fleet = hardware(text)
    assert (fleet.count, fleet.card.name) == (count, name)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("RTX3900", "did you mean RTX-3090"),
        ("A110", "A100"),
        ("zzz", "there are A100-80G-SXM"),
        ("0xA100", "whole number of cards from 1"),
        ("-2xA100", "whole number of cards from 1"),
        ("1.5xA100", "whole number of cards from 1"),
        ("2xthis", "is one machine"),
        ("", "expected a card"),
    ],
)
def test_nonsense_is_refused_in_one_line_that_helps(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        hardware(text)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=20))
def test_any_text_is_a_fleet_or_a_message(text: str) -> None:
    if text.strip().casefold().endswith("this"):
        return
    said = "hardware: "
    try:
        assert hardware(text).count >= 1
    except ValueError as error:
        said = str(error)
    assert said.startswith("hardware: ")


@given(st.sampled_from(sorted(CARDS)), st.integers(1, 1_000_000))
def test_a_fleet_is_read_back_from_its_name(name: str, count: int) -> None:
    fleet = hardware(f"{count}x{name}")
    assert hardware(fleet.name) == fleet
    assert fleet.peak("fp32") == count * CARDS[name].peak["fp32"]


@pytest.mark.parametrize("card", cards(), ids=lambda card: card.name)
def test_every_figure_has_a_source_with_an_address_and_is_plausible(card: Card) -> None:
    for figure in FIGURES:
        assert (figure in card.sources) == (getattr(card, figure) is not None)
    assert all("https://" in text for text in card.sources.values())
    assert 1e12 < card.peak["fp32"] < 2e14
    assert all(a <= b for a, b in zip(card.peak.values(), list(card.peak.values())[1:], strict=False))  # lower precisions are no slower
    assert 8 * 2**30 <= card.memory <= 512 * 2**30
    assert 5e10 < card.bandwidth < 1e13
    assert card.power is not None
    assert 20 < card.power <= 1000
    # Training cards do 10 to 1,000 operations for a byte of memory; a slip of units would be far outside.
    assert 10 < card.peak["fp16"] / card.bandwidth < 1000


@pytest.mark.parametrize(
    ("name", "precision", "teraflops"),
    [  # dense, fp32 accumulation: the figures that are most often quoted twice as high
        ("A100-80G", "bf16", 312),
        ("H100", "bf16", 989.4),
        ("H100", "fp8", 1978.9),
        ("B200", "bf16", 2250),
        ("L4", "bf16", 121),
        ("RTX 3090", "bf16", 71),
        ("RTX 4090", "bf16", 165.2),
        ("RTX 5090", "bf16", 209.5),
        ("RTX 4060 Ti", "bf16", 44.1),
        ("V100", "fp16", 125),
        ("T4", "fp16", 65),
        ("MI300X", "bf16", 1307.4),
    ],
)
def test_peaks_are_dense(name: str, precision: str, teraflops: float) -> None:
    peak = card(name).at(precision)
    assert peak == pytest.approx(teraflops * 1e12, rel=1e-6)
    assert peak != pytest.approx(2 * teraflops * 1e12, rel=0.1)


@pytest.mark.parametrize("name", ["V100", "T4"])
def test_a_precision_that_a_card_lacks_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"has no bf16; choose one of fp32, fp16"):
        hardware(name).peak("bf16")
