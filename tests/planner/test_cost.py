"""Money, energy and CO2 beside what a paper reports, and grids by the names that people use."""

import math

import pytest

from triform.planner import cost
from triform.planner.hardware import Card, Fleet, hardware


def test_llama_7b_as_its_paper_counts() -> None:
    """Touvron et al. 2023, table 15: 82,432 hours of A100-80GB at 400 W, PUE 1.1, 385 g/kWh: 36 MWh, 14 t."""
    found = cost.estimate(82432 * 3600, hardware("A100-80G"), pue=1.1, region=385, draw=1.0)
    assert found.energy_kwh == pytest.approx(36_000, rel=0.01)
    assert found.co2_kg == pytest.approx(14_000, rel=0.01)
    assert found.card_hours == pytest.approx(82432)
    assert found.money == pytest.approx(82432 * 1.39)
    assert cost.estimate(82432 * 3600, hardware("A100-80G"), region=385, draw=1.0).energy_kwh > 1.3 * found.energy_kwh  # PUE 1.56


def test_cards_and_hours_multiply() -> None:
    one, eight = (cost.estimate(3600, hardware(f"{count}xH100"), price=2.0) for count in (1, 8))
    assert (one.money, eight.money) == (2.0, 16.0)
    assert eight.energy_kwh == pytest.approx(8 * one.energy_kwh)
    assert one.energy_kwh == pytest.approx(0.7 * 1.56)  # at the default half of the peak it draws its full power


def test_an_idle_card_draws_less() -> None:
    draws = [cost.estimate(3600, hardware("H100"), utilisation=u, pue=1.0).energy_kwh for u in (0.0, 0.25, 0.5, 1.0)]
    assert draws == pytest.approx([0.14, 0.42, 0.7, 0.7])


def test_what_is_not_known_is_none_and_not_nought() -> None:
    bare = Fleet(count=1, card=Card(name="x", kind="gpu", peak={"fp32": 1e12}, memory=2**30, bandwidth=1e9))
    found = cost.estimate(3600, bare)
    assert (found.money, found.energy_kwh, found.co2_kg) == (None, None, None)
    assert cost.estimate(3600, bare, price=0.0).money == 0.0
    assert [line.name for line in found.lines] == ["card hours"]


GRIDS = {"world": 480, "cn": 536.6, "中国": 536.6, "华北": 677.6, "四川": 156.4, "Inner Mongolia": 647.9, "cn-guizhou": 568.3, "DE": 380.9,
         "France": 56, "no": 30.1, "uk": 237.6, "California": 179.1, "123.5": 123.5}  # fmt: skip


@pytest.mark.parametrize(("name", "grams"), GRIDS.items())
def test_grids(name: str, grams: float) -> None:
    assert cost.find_region(name).grams == pytest.approx(grams, abs=0.06)


def test_every_grid_has_a_source_and_a_plausible_figure() -> None:
    assert len(cost.regions()) > 60
    for region in cost.regions().values():
        assert 20 < region.grams < 900
        assert region.year in (2022, 2023)
        assert "https://" in region.source
    assert cost.find_region("cn-yunnan").grams < cost.find_region("cn-tianjin").grams / 4


@pytest.mark.parametrize(
    ("field", "value"),
    [("price", -1.0), ("pue", 0.9), ("draw", -0.1), ("utilisation", math.nan), ("region", "atlantis"), ("region", -5)],
)
def test_nonsense_is_refused_in_one_line(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{field}: ") as caught:
        cost.estimate(3600, hardware("A100"), **{field: value})
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="did you mean cn-guizhou"):
        cost.find_region("guizou")
    with pytest.raises(ValueError, match="seconds: expected"):
        cost.estimate(-1, hardware("A100"))
