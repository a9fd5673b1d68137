"""Functions that judge answers: found by name, asked with what they take, and their numbers checked."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triform.objectives.rewards import ask, exact_match, find_function, number_match

GIVEN = {"prompts": ["1+1=", "2+2="], "completions": ["2", "5"], "completion_ids": [[1], [2]], "answer": ["2", "4"]}


def test_a_function_is_found_in_a_module_and_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def long(completions, **columns):\n    return [float(len(text)) for text in completions]\n", "utf-8")
    assert find_function("triform.objectives.rewards:exact_match") is exact_match
    assert ask("long", find_function(f"{tmp_path}/mine.py:long"), GIVEN) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("exact_match", "module:name"), ("no_such_module_here:f", "ModuleNotFoundError"), ("math:nothing", "found none"),
        ("math:pi", "found float"), ("{}/none.py:f", "no such file"), ("{}/bad.py:f", "ZeroDivisionError"),
    ],
)  # fmt: skip
def test_a_name_without_a_function_is_refused(name: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("1 / 0\n", "utf-8")
    with pytest.raises(ValueError, match=told) as caught:
        find_function(name.format(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_function_is_given_what_it_takes() -> None:
    seen: dict[str, Any] = {}

    def few(completions: list[str], answer: list[str]) -> list[float]:
        return [float(a == b) for a, b in zip(completions, answer, strict=True)]

    def everything(completions: list[str], **columns: Any) -> list[float | None]:
        seen.update(columns)
        return [None, 1]

    assert ask("few", few, GIVEN) == [1.0, 0.0]
    said = ask("everything", everything, GIVEN)
    assert math.isnan(said[0])
    assert said[1] == 1.0
    assert seen.keys() == {"prompts", "completion_ids", "answer"}


def _failing(completions: list[str]) -> list[float]:
    raise KeyError("x")


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda completions: [1.0], "expected 2 numbers"),
        (lambda completions: ["good", "bad"], "expected numbers"),
        (lambda completions: [1.0, math.inf], "finite"),
        (lambda completions: [1.0, math.nan], "finite"),
        (lambda solution, completions: [1.0, 1.0], "wants solution"),
        (_failing, "KeyError"),
    ],
)
def test_what_is_no_reward_is_told_in_a_line(function: Callable[..., Any], told: str) -> None:
    with pytest.raises(ValueError, match=told) as caught:
        ask("mine", function, GIVEN)
    assert "mine" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "answer", "exact", "number"),
    [
        ("85", "85", 1, 1), (" 85\n", 85, 1, 1), ("58", "85", 0, 0), ("", "85", 0, 0), ("it is 85.", "85", 0, 1),
        ("1,085", "#### 1085", 0, 1), ("-3", "3", 0, 0), ("85 or 86", "85", 0, 0), ("0.50", ".5 0.5", 0, 1), ("eight", "five", 0, 0),
    ],
)  # fmt: skip
def test_answers_are_judged_by_text_and_by_number(text: str, answer: Any, exact: float, number: float) -> None:
    assert exact_match([text], [answer]) == [exact]
    assert number_match([text], [answer]) == [number]


@given(st.text(), st.integers(-(10**9), 10**9))
def test_no_text_breaks_the_judges(text: str, number: int) -> None:
    assert exact_match([text], [number])[0] in (0.0, 1.0)
    assert number_match([f"{text} {number}"], [number]) == [1.0]
