"""One server for all tests that leave it as it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from served import Running, judge, random_writer, serving, viewer

from triform import config


@pytest.fixture(scope="session")
def server() -> Iterator[Running]:
    """A writer with random weights and a judge of every kind."""
    models = (
        random_writer(),
        judge("judge", config.Classify(labels=3)),
        judge("vectors", config.Embed(pool="mean", normalize=True)),
        judge("filler", config.LanguageModel()),
        judge("tagger", config.ClassifyTokens(labels=3)),
        judge("reader", config.AnswerSpan()),
        viewer("seer", ["round", "square"]),
    )
    with serving(*models, moderator="judge", answers=16, new_tokens=256) as running:
        yield running
