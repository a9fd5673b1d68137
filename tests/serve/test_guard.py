"""A server with a content filter: what it does not take, and what it does not say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from openai import BadRequestError, OpenAI
from served import Running, judge, scripted_writer

from triform import config, hub
from triform.cli.serve import _guard
from triform.generate.content_filter import Verdict
from triform.serve import Models, Settings

RUDE = "坏"


def told(text: str) -> Verdict:
    """A filter that flags a character."""
    return Verdict({"rude": RUDE in text}, {"rude": 0.9})


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """One model that is polite, and one that is not."""
    polite = scripted_writer("话说天下大势", "polite")
    other = scripted_writer(lambda request: f"分久{RUDE}必合", "other")
    running = Running(Models([polite, other], guard=told), Settings(drain=1.0))  # type: ignore[arg-type]
    yield running
    running.stop()


@pytest.fixture(scope="module")
def client(server: Running) -> OpenAI:
    return server.client()


def asked(text: Any) -> list[Any]:
    return [{"role": "user", "content": text}]


def test_what_passes_is_answered(client: OpenAI) -> None:
    found = client.chat.completions.create(model="polite", messages=asked("话说"))
    assert (found.choices[0].message.content, found.choices[0].finish_reason) == ("话说天下大势", "stop")
    chunks = list(client.chat.completions.create(model="polite", messages=asked("话说"), stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "话说天下大势"
    assert client.completions.create(model="polite", prompt="话说", max_tokens=99).choices[0].text == "话说天下大势"


@pytest.mark.parametrize("content", [f"你{RUDE}", [{"type": "text", "text": "你"}, {"type": "text", "text": RUDE}]])
def test_a_message_that_is_flagged_is_refused(content: Any, client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="messages: a text is judged rude, 90 %") as error:
        client.chat.completions.create(model="polite", messages=asked(content))
    assert error.value.code == "content_filter"
    earlier = [{"role": "assistant", "content": RUDE}, *asked("话说")]
    with pytest.raises(BadRequestError, match="judged rude"):
        client.chat.completions.create(model="polite", messages=earlier)  # type: ignore[arg-type]


def test_a_prompt_that_is_flagged_is_refused(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="prompt: a text is judged rude"):
        client.completions.create(model="polite", prompt=["话说", RUDE])


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_is_flagged_is_not_said(stream: bool, server: Running) -> None:
    """Neither at once nor piece by piece: not one character of it leaves the server, only why it ended."""
    for path, body in (
        ("chat/completions", {"messages": asked("话说"), "logprobs": True}),
        ("completions", {"prompt": "话说", "logprobs": 1, "max_tokens": 99}),
    ):
        sent = server.post(f"/v1/{path}", {"model": "other", "stream": stream, **body})
        assert sent.status_code == 200
        assert '"finish_reason":"content_filter"' in sent.text.replace(" ", "")
        assert not any(character in sent.text for character in f"分久{RUDE}必合")


def test_the_command_line_needs_a_classifier(tmp_path: Path) -> None:
    made = judge("fine", config.Classify(labels=3, pool="mean"))
    hub.save(made.model, made.tokenizer, tmp_path / "filter", {"labels": ["fine", "rude", "violent"]})
    found = _guard(str(tmp_path / "filter"))
    assert found is not None
    assert found("天下").categories.keys() == {"rude", "violent"}
    assert _guard(None) is None
    hub.save(tiny.build(tiny.decoder()), made.tokenizer, tmp_path / "writer")
    with pytest.raises(ValueError, match="classify needs"):
        _guard(str(tmp_path / "writer"))
