from __future__ import annotations

from functools import lru_cache

import pytest
from recipes import LINES

from triform.text import Tokenizer, train_tokenizer


@lru_cache
def trained(kind: str, sentinels: int = 0) -> Tokenizer:
    size = {"characters": 150, "bpe": 560, "wordpiece": 261, "all characters": 261}[kind]
    return train_tokenizer(LINES, kind=kind.removeprefix("all "), vocab_size=size, min_frequency=1, sentinels=sentinels)


@pytest.fixture(params=["characters", "bpe", "wordpiece"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """Tokenizers of three kinds trained on the same Chinese text."""
    return trained(request.param)


@pytest.fixture
def characters() -> Tokenizer:
    return trained("characters")


@pytest.fixture
def every_character() -> Tokenizer:
    """A token a character, and none unknown."""
    return trained("all characters")


@pytest.fixture
def words() -> Tokenizer:
    return trained("bpe")


@pytest.fixture
def sentinels() -> Tokenizer:
    return trained("bpe", 20)
