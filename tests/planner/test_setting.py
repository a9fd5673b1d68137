"""Settings refuse nonsense; lines explain themselves."""

import json

import pytest

from triform.planner.explain import Line, quantity
from triform.planner.setting import Setting


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("batch", 0, "batch: expected a whole number of at least 1, got 0"),
        ("batch", -3, "got -3"),
        ("batch", True, "got True"),
        ("sequence", 2.5, "sequence: expected a whole number of at least 1, got 2.5"),
        ("target", 0, "target: expected"),
        ("accumulate", 0, "accumulate: expected"),
        ("precision", "fp4", "precision: expected one of fp32, bf16, fp16, fp8, got 'fp4'"),
        ("optimizer", "adam", "optimizer: expected one of adamw, adamw8bit, adafactor, muon, sgd, got 'adam'"),
        ("recompute", None, "recompute: expected one of none, selective, full, got None"),
        ("average", 1, "average: expected true or false, got 1"),
        ("offload", "yes", "offload: expected true or false, got 'yes'"),
        ("rows", "short", "rows: expected one of full, padded, packed, got 'short'"),
        ("scored", 2000, "scored: expected at most the 1,024 positions"),
    ],
)
def test_nonsense_is_refused_in_one_line(field: str, value: object, said: str) -> None:
    with pytest.raises(ValueError, match="expected") as error:
        Setting(**{field: value})
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_valid_is_taken() -> None:
    setting = Setting(batch=2, sequence=64, target=32, scored=32, recompute="full")
    assert (setting.target_length, Setting(sequence=7).target_length) == (32, 7)
    assert hash(setting) != hash(Setting())


def test_a_line_says_formula_numbers_and_source() -> None:
    line = Line(name="weights", formula="4 P", value=4 * 1536, unit="B", numbers={"P": 1536}, source="fp32")
    assert str(line) == "weights: 4 P = 6 KiB with P = 1,536 [fp32]"
    assert json.loads(json.dumps(line.to_dict()))["numbers"] == {"P": 1536}


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(1536, "B", "1.5 KiB"), (8.64e17, "FLOP", "864 PFLOP"), (2769, "s", "2,769 s"), (0.35, "", "0.35"), (0, "B", "0 B")],
)
def test_quantities_read_well(value: float, unit: str, text: str) -> None:
    assert quantity(value, unit) == text
