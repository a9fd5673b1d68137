"""The command line as it is promised: a change of a command, an argument, an option or a default shows here."""

from pathlib import Path

import surface

FROZEN = Path(__file__).with_name("surface.txt")


def lines() -> list[str]:
    return [f"{name} {parameter}" for name, parameters in surface.commands().items() for parameter in parameters]


def test_the_surface_is_the_frozen_one() -> None:
    frozen, now = FROZEN.read_text(encoding="utf-8").splitlines(), lines()
    gone, new = [line for line in frozen if line not in now], [line for line in now if line not in frozen]
    assert now == frozen, f"gone: {gone}; new: {new}; if meant, put it into {FROZEN.name} and the guides"


def test_the_surface_sees_types_and_defaults() -> None:
    assert "tokenizer train --kind byte-bpe|bpe|wordpiece|unigram|characters = bpe" in lines()
    assert "generate --top-p float = 1.0" in lines()
    assert "data show NAME str" in lines()
    assert "train --resume flag = False" in lines()
    assert "generate PROMPT str..." in lines()
    assert "inspect --diagram Path = None" in lines()
    assert "data list --json flag = False" in lines()
