"""Losses, optima and the worth of repeated text against the figures that the papers print."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triform.planner import scaling

# Hoffmann et al. 2022, tables 3 (approach 1) and A3 (approach 3): parameters, FLOPs, tokens. Their rows print two or three digits.
TABLE_3 = [(400e6, 1.92e19, 8.0e9), (1e9, 1.21e20, 20.2e9), (10e9, 1.23e22, 205.1e9), (67e9, 5.76e23, 1.5e12), (175e9, 3.85e24, 3.7e12),
           (280e9, 9.90e24, 5.9e12), (520e9, 3.43e25, 11.0e12), (1e12, 1.27e26, 21.2e12), (10e12, 1.30e28, 216.2e12)]  # fmt: skip
TABLE_A3 = [(400e6, 2.21e19, 9.2e9), (1e9, 1.62e20, 27.1e9), (10e9, 2.46e22, 410.1e9), (67e9, 1.71e24, 4.1e12), (175e9, 1.26e25, 12.0e12),
            (520e9, 1.36e26, 43.5e12), (1e12, 5.65e26, 94.1e12), (10e12, 8.55e28, 1425.5e12)]  # fmt: skip
SIZES = st.floats(1e5, 1e14)


@pytest.mark.parametrize(("parameters", "flops", "tokens"), TABLE_3)
def test_twenty_tokens_a_parameter_is_table_3(parameters: float, flops: float, tokens: float) -> None:
    found = scaling.optimal(flops)
    assert found.parameters == pytest.approx(parameters, rel=0.05)
    assert found.tokens == pytest.approx(tokens, rel=0.10)  # the table's own ratio runs from 20.0 to 22.4
    assert found.tokens != pytest.approx(scaling.TOKENS_A_PARAMETER * parameters * 1.7, rel=0.10)


@pytest.mark.parametrize(("parameters", "flops", "tokens"), TABLE_A3)
def test_the_closed_form_is_table_a3(parameters: float, flops: float, tokens: float) -> None:
    found, other = scaling.HOFFMANN_DIGITS.optimal(flops)
    assert found == pytest.approx(parameters, rel=0.08)
    assert other == pytest.approx(tokens, rel=0.09)


def test_the_two_digits_that_the_paper_prints_do_not_give_its_table() -> None:
    parameters, flops, _ = TABLE_A3[-1]
    assert scaling.HOFFMANN.optimal(flops)[0] < 0.75 * parameters


@pytest.mark.parametrize("law", [*scaling.LAWS.values(), scaling.MUENNIGHOFF], ids=lambda law: law.name)
@given(flops=st.floats(1e15, 1e28), factor=st.floats(1.05, 20))
def test_no_other_split_of_a_budget_does_better(law: scaling.Law, flops: float, factor: float) -> None:
    parameters, tokens = law.optimal(flops)
    assert 6 * parameters * tokens == pytest.approx(flops, rel=1e-9)
    best = law.loss(parameters, tokens)
    assert best < law.loss(parameters * factor, tokens / factor)
    assert best < law.loss(parameters / factor, tokens * factor)
    assert law.parameters_for(tokens) == pytest.approx(parameters, rel=1e-9)


def test_chinchilla() -> None:
    """70B on 1.4T tokens: near the optimum, and the losses of the two fits, worked out by hand."""
    band = scaling.loss(70e9, 1.4e12)
    assert [line.value for line in band.lines] == pytest.approx([1.9367, 1.9208, 1.9739], abs=5e-4)
    assert (band.low, band.high) == (band.lines[1].value, band.lines[2].value)
    far = scaling.distance(70e9, 1.4e12)
    assert far.tokens_a_parameter == pytest.approx(20)
    assert far.optimum.parameters == pytest.approx(70e9, rel=1e-6)
    assert far.extra_loss < 0.02
    gopher = scaling.distance(280e9, 300e9)  # the same budget, spent on size
    assert gopher.extra_loss > 2 * far.extra_loss
    assert "too little text" in gopher.advice
    assert "small model" in scaling.distance(7e9, 2e12).advice


def test_the_refit_is_about_twenty_tokens_a_parameter() -> None:
    parameters, tokens = scaling.BESIROGLU.optimal(5.76e23)
    assert 17 < tokens / parameters < 23
    assert scaling.HOFFMANN_DIGITS.optimal(5.76e23)[1] / scaling.HOFFMANN_DIGITS.optimal(5.76e23)[0] > 35  # the fit that the refit corrects


def test_repeated_text() -> None:
    unique = 100e9
    assert scaling.repeated(unique, 4 * unique) == pytest.approx(3.7265 * unique, rel=1e-3)  # four epochs: 93 % of new text
    assert scaling.repeated(unique, 1e6 * unique) == pytest.approx((1 + 15.387756) * unique, rel=1e-6)
    assert scaling.repeated(unique, 0.5 * unique) == 0.5 * unique
    few, many = scaling.repetition(1e9, unique, 4 * unique), scaling.repetition(1e9, unique, 40 * unique)
    assert few.share == pytest.approx(0.9316, abs=1e-3)
    assert many.share < 0.4
    assert 0 < few.extra_loss < 0.01 < many.extra_loss
    assert scaling.repetition(1e9, unique, unique).extra_loss == 0


@given(unique=SIZES, epochs=st.floats(0.1, 1000), more=st.floats(1.01, 10))
def test_more_reading_is_worth_more_but_never_as_much_as_new_text(unique: float, epochs: float, more: float) -> None:
    worth, further = scaling.repeated(unique, epochs * unique), scaling.repeated(unique, epochs * more * unique)
    assert worth <= further * (1 + 1e-12)
    assert worth <= epochs * unique * (1 + 1e-12)
    assert worth <= (1 + scaling.REPEAT_TOKENS) * unique


def test_parameters_beyond_what_the_text_can_use() -> None:
    useful = scaling.MUENNIGHOFF.parameters_for(100e9)
    assert 100e9 / useful == pytest.approx(19.6, rel=0.02)
    assert scaling.effective_parameters(useful / 2, 100e9) == pytest.approx(useful / 2)
    assert scaling.effective_parameters(1e6 * useful, 100e9) == pytest.approx((1 + scaling.REPEAT_PARAMETERS) * useful, rel=1e-6)


def test_the_copied_formula_is_wrong() -> None:
    """N = 20 D^0.7 makes no sense in tokens and parameters: it has the 20 on the wrong side and gives neither Chinchilla nor any row."""
    copied = 20 * 1.4e12**0.7
    assert copied / 70e9 < 0.15
    for parameters, _, tokens in TABLE_3:
        assert not math.isclose(20 * tokens**0.7, parameters, rel_tol=0.3)
        assert math.isclose(tokens / 20, parameters, rel_tol=0.15)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.inf, math.nan])
def test_nonsense_is_refused(bad: float) -> None:
    for call in (lambda: scaling.loss(bad, 1e9), lambda: scaling.loss(1e9, bad), lambda: scaling.optimal(bad),
                 lambda: scaling.repeated(bad, 1e9), lambda: scaling.repetition(1e9, 1e9, bad)):  # fmt: skip
        with pytest.raises(ValueError, match="expected a number above 0"):
            call()


def test_the_lines_say_what_was_put_in() -> None:
    for line in (*scaling.loss(1e9, 2e10).lines, *scaling.optimal(1e20).lines, scaling.repetition(1e9, 1e9, 4e9).line):
        assert line.source.count("https://") >= 1
        assert line.numbers
    changed = replace(scaling.HOFFMANN, a=500.0)
    assert changed.loss(1e9, 1e10) > scaling.HOFFMANN.loss(1e9, 1e10)
