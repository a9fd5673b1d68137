"""Functions that judge answers, and how those that a recipe names are found.

A recipe names one as "module:name", such as "triform.objectives.rewards:exact_match", or as "file.py:name". Such a name is code that
the run imports and calls: train with recipes of people whose programs you would run.

A function takes lists with an item for each answer, and gives a list of numbers, None where it has nothing to say of an answer:

    def short(completions, **columns):
        return [1.0 if len(text) < 100 else 0.0 for text in completions]

By name it is given `prompts` and `completions` (texts, without special tokens), `completion_ids` (with them), and every column
of the data (`answer`, say); of these what it has parameters for, or all where it has `**columns`. TRL's functions take the same.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

RewardFunction = Callable[..., Sequence[float | None]]

_NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?")


def exact_match(completions: Sequence[str], answer: Sequence[Any]) -> list[float]:
    """1 for an answer that is the column `answer`, white space around it aside, else 0."""
    return [float(text.strip() == str(wanted).strip()) for text, wanted in zip(completions, answer, strict=True)]


def number_match(completions: Sequence[str], answer: Sequence[Any]) -> list[float]:
    """1 for an answer whose last number is the last one in the column `answer`, as in GSM8K, else 0."""
    pairs = zip(map(_last_number, completions), (_last_number(str(wanted)) for wanted in answer), strict=True)
    return [float(told is not None and told == wanted) for told, wanted in pairs]


def _last_number(text: str) -> float | None:
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def find_function(name: str) -> RewardFunction:
    """The function of a name: imports its module, or runs its file. Raises ValueError where there is no such function."""
    place, _, attribute = name.rpartition(":")
    if not place or not attribute:
        raise ValueError(f'{name}: expected a function as "module:name" or "file.py:name"')
    try:
        module = _from_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except Exception as error:  # whatever the code that is imported does
        raise ValueError(f"{name}: cannot be imported ({type(error).__name__}: {error})") from error
    found = getattr(module, attribute, None)
    if not callable(found):
        raise ValueError(f"{name}: expected a function {attribute} in {place}, found {'none' if found is None else type(found).__name__}")
    function: RewardFunction = found
    return function


def _from_file(file: Path) -> Any:
    if not file.is_file():
        raise ValueError("there is no such file")
    described = importlib.util.spec_from_file_location(f"triform_rewards_{file.stem}", file)
    assert described is not None
    assert described.loader is not None
    module = importlib.util.module_from_spec(described)
    described.loader.exec_module(module)
    return module


def ask(name: str, function: RewardFunction, given: Mapping[str, Sequence[Any]]) -> list[float]:
    """What a function says of answers: a number each, NaN where it says nothing.

    given: its arguments by name, lists of one length. Raises ValueError, with the function's name, for a function that fails, or
    that gives something else.
    """
    count = len(given["completions"])
    parameters = inspect.signature(function).parameters.values()
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    wanted = {parameter.name for parameter in parameters}
    if missing := [each.name for each in parameters if each.default is each.empty and each.kind in _NAMED and each.name not in given]:
        raise ValueError(f"the reward {name} wants {', '.join(missing)}, and the data have the columns {', '.join(given)}")
    try:
        found = list(function(**{key: value for key, value in given.items() if takes_all or key in wanted}))
    except Exception as error:  # whatever somebody's function does
        raise ValueError(f"the reward {name} failed ({type(error).__name__}: {error})") from error
    if len(found) != count:
        raise ValueError(f"the reward {name}: expected {count} numbers, one for each answer, got {len(found)}")
    try:
        numbers = [math.nan if each is None else float(each) for each in found]
    except (TypeError, ValueError):
        raise ValueError(f"the reward {name}: expected numbers or None, got {found[:3]}") from None
    if bad := [each for each, number in zip(found, numbers, strict=True) if each is not None and not math.isfinite(number)]:
        raise ValueError(f"the reward {name}: expected finite numbers or None, got {bad[0]}")
    return numbers


_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
