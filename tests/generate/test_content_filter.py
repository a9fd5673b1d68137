"""A classifier as a filter: what it flags, how long texts are read, and what passes it in a conversation."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from generate.conftest import LINES, built, decoder_only

from triform import config, hub, nn
from triform.cli import run
from triform.generate import Judgement, Sampling, classify
from triform.generate.chat import Chat
from triform.generate.content_filter import ContentFilter, Verdict, verdict
from triform.text import Tokenizer, train_tokenizer

BAD = "坏"
LABELS = ["fine", "bad"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([*LINES, BAD * 9] * 2, kind="characters", vocab_size=None, min_frequency=1)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Any:
    """A classifier that has learned, in a second, to flag texts in which one character is frequent."""
    spec = config.with_overrides(
        config.Model,
        tiny.encoder(head=config.Classify(labels=2, pool="mean")),
        {"encoder.input.vocab_size": tokenizer.vocab_size, "encoder.input.segments": 0},
    )
    made, generator = nn.build(spec, seed=0), torch.Generator().manual_seed(0)
    optimizer, bad = torch.optim.Adam(made.parameters(), 0.02), tokenizer.id(BAD)
    for _ in range(200):
        ids = torch.randint(7, tokenizer.vocab_size, (32, 16), generator=generator)
        ids[ids == bad] = 8
        ids[:16, 3:6] = bad
        loss = F.cross_entropy(made(ids).logits, (torch.arange(32) < 16).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.1
    return made.eval()


@pytest.fixture(scope="module")
def judge(model: Any, tokenizer: Tokenizer) -> ContentFilter:
    return ContentFilter(model, tokenizer, LABELS, length=20)


def test_a_text_is_flagged_by_every_label_but_the_first(judge: ContentFilter) -> None:
    fine, bad = judge(LINES[0][:12]), judge(LINES[0][:10] + BAD * 3)
    assert (fine.flagged, bad.flagged) == (False, True)
    assert fine.categories.keys() == bad.scores.keys() == {"bad"}
    assert bad.scores["bad"] > 0.5 > fine.scores["bad"]
    assert bad.reason == f"bad, {100 * bad.scores['bad']:.0f} %"
    assert not fine.reason


def test_a_long_text_is_read_to_its_end(judge: ContentFilter, model: Any, tokenizer: Tokenizer) -> None:
    """Nothing is hidden behind what the classifier reads at once: read as it is, cut, the same text passes."""
    long = "".join(LINES)[:200]
    assert not judge(long).flagged
    hidden = long + BAD * 4
    with pytest.warns(UserWarning, match="were cut"):
        assert classify(model, tokenizer, [hidden], LABELS, length=20)[0].label == "fine"
    assert judge(hidden).flagged


@pytest.mark.parametrize("text", ["", " \n"])
def test_nothing_said_passes(text: str, judge: ContentFilter) -> None:
    assert judge(text) == Verdict({"bad": False}, {"bad": 0.0})


def test_labels_of_which_several_may_fit() -> None:
    """Each is flagged that is more probable than not; of labels that exclude each other only the most probable one."""
    scores = {"fine": 0.9, "rude": 0.6, "violent": 0.2}
    judgement = Judgement("fine", 0.9, scores)
    assert verdict(judgement, "multi_label_classification").categories == {"rude": True, "violent": False}
    assert not verdict(judgement, None).flagged
    assert verdict(Judgement("rude", 0.5, scores), None).categories == {"rude": True, "violent": False}


@pytest.mark.parametrize(("labels", "problem"), [(1, None), (2, "regression")])
def test_models_that_are_no_filters(labels: int, problem: Any, tokenizer: Tokenizer) -> None:
    made = tiny.build(tiny.encoder(head=config.Classify(labels=labels)))
    with pytest.raises(ValueError, match="expected a classifier of two labels or more"):
        ContentFilter(made, tokenizer, problem=problem)
    with pytest.raises(ValueError, match="classify needs"):
        ContentFilter(tiny.build(tiny.decoder()), tokenizer)


class Told:
    """A filter that flags texts with a word in them, and remembers what it was asked."""

    def __init__(self, word: str) -> None:
        self.word, self.asked = word, list[str]()

    def __call__(self, text: str) -> Verdict:
        self.asked.append(text)
        return Verdict({"bad": self.word in text}, {"bad": 0.9})


@pytest.fixture(scope="module")
def talker() -> tuple[Any, Tokenizer]:
    tokenizer = train_tokenizer(LINES * 4, kind="byte-bpe", vocab_size=330)
    return built(decoder_only(tokenizer.vocab_size)), tokenizer


def test_messages_and_answers_are_judged(talker: tuple[Any, Tokenizer]) -> None:
    heard: list[str] = []
    with Chat(*talker, Sampling(max_new_tokens=8, temperature=0)) as free:
        said = free.ask("话说").text
    with Chat(*talker, Sampling(max_new_tokens=8, temperature=0), guard=Told("天下")) as talk:  # type: ignore[arg-type]
        reply = talk.ask("话说天下", heard.append)
        assert reply.refused == "the message is judged bad, 90 %"
        assert (reply.text, reply.tokens, talk.messages, heard) == ("", 0, [], [])
        assert talk.ask("话说", heard.append).text == said
        assert heard == [said]
    with Chat(*talker, Sampling(max_new_tokens=8, temperature=0), guard=Told(said)) as talk:  # type: ignore[arg-type]
        reply = talk.ask("话说", heard.append)
        assert reply.refused == "the answer is judged bad, 90 %"
        assert (reply.text, talk.messages, len(heard)) == ("", [], 1)


def test_an_answer_that_is_refused_on_a_second_try_leaves_the_first(talker: tuple[Any, Tokenizer]) -> None:
    guard = Told("nothing like it")
    with Chat(*talker, Sampling(max_new_tokens=8, temperature=0), guard=guard) as talk:  # type: ignore[arg-type]
        talk.ask("话说")
        before = list(talk.messages)
        guard.word = before[1]["content"]
        assert talk.retry().refused
        assert talk.messages == before


def test_chat_at_the_command_line(
    model: Any, tokenizer: Tokenizer, talker: tuple[Any, Tokenizer], tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    hub.save(model, tokenizer, tmp_path / "filter", {"labels": LABELS, "length": 20})
    hub.save(*talker, tmp_path / "talker")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"话说\n{BAD * 6}\n/save {tmp_path}/talk.json\n".encode())))
    arguments = ["chat", str(tmp_path / "talker"), "--max-new-tokens", "4", "--temperature", "0", "--guard"]
    assert run([*arguments, str(tmp_path / "filter")]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[-1].startswith("(refused: the message is judged bad, ")
    assert BAD not in (tmp_path / "talk.json").read_text("utf-8")
    assert run([*arguments, str(tmp_path / "talker")]) == 2
    assert "classify needs" in capsys.readouterr().err
