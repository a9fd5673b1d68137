from __future__ import annotations

import pytest
from collating import trained

from triform.text import Tokenizer


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
