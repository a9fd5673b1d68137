"""Conversations: whether a model meets in training what it will read when it is used, and what its own answers tell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from triform import hub
from triform.data.conversations import Conversation, Messages, conversation, preference, prompt
from triform.objectives.on_policy import OnPolicy
from triform.text import Tokenizer
from triform.text.turns import encode_dialogue, encode_prompt
from triform.train.loop import Trainer
from triform.train.rollouts import Rollouts

from .findings import Finding, graded, percent
from .subject import Row, Subject, without_limits

_COLUMNS = ("text", "source", "prompt")  # of which one begins with what the model reads before it answers


def check_serving(subject: Subject, rows: Sequence[Row]) -> Iterator[Finding]:
    """What stands before an answer in training is what the model reads when it is asked: the same ids."""
    tokenizer = subject.tokenizer
    if tokenizer is None or not subject.converses or not subject.writes:
        return
    yield from _other_template(subject, tokenizer)
    first = later = seen = turns = 0
    uncut = without_limits(subject.objective) or subject.objective
    for row in rows:
        try:
            found, columns = _conversation(row), uncut.encode([row])
        except ValueError:
            continue  # said of bad rows
        trained = next((list(columns[0][name]) for name in _COLUMNS if columns and name in columns[0]), None)
        if trained is None:
            continue
        places = [number for number, message in enumerate(found.messages) if message["role"] == "assistant"] or [len(found.messages)]
        seen += 1
        first += _agrees(subject, tokenizer, (found.messages[: places[0]], found.tools), trained)
        if len(places) > 1 and "text" in columns[0]:
            turns += 1
            once = encode_dialogue(tokenizer, found.messages[: places[0] + 1], tools=found.tools).ids
            same = _agrees(subject, tokenizer, (found.messages[: places[-1]], found.tools), trained)
            later += same and trained[: len(once)] == once
    yield from _serving(seen, first, turns, later)


def _serving(seen: int, first: int, turns: int, later: int) -> Iterator[Finding]:
    if not seen:
        return
    if first < seen:
        says = f"{percent(1 - first / seen)} of {seen} conversations begin otherwise in training than when the model is asked"
        advice = "let the chat template write a turn alike with add_generation_prompt and with the answer there"
        yield Finding("template in use", "error", says, advice, {"share": 1 - first / seen})
    elif later < turns:
        says = f"in {percent(1 - later / turns)} of the longer conversations earlier turns are written otherwise once others follow"
        advice = "train on each answer with the turns before it as the template then writes them, or take a template that changes none"
        yield Finding("template in use", "warning", says, advice, {"share": 1 - later / turns})
    else:
        yield Finding("template in use", "fine", f"{seen} conversations are written in training as when the model is asked")


def _agrees(subject: Subject, tokenizer: Tokenizer, asked: tuple[Messages, Any], trained: list[int]) -> bool:
    """Whether what is trained on begins with what is read when the model is asked."""
    served = encode_prompt(tokenizer, asked[0], tools=asked[1], encodes=subject.spec.form == "encoder-decoder")
    return trained[: len(served)] == served


def _conversation(row: Mapping[str, Any]) -> Conversation:
    """A row as messages: a conversation, or the prompt of two answers, or a prompt alone."""
    for read in (conversation, preference, prompt):
        try:
            found = read(row)
        except ValueError:
            continue
        return found if isinstance(found, Conversation) else Conversation(found.prompt, found.tools)
    raise ValueError("no conversation")


def _other_template(subject: Subject, tokenizer: Tokenizer) -> Iterator[Finding]:
    """The model that the run begins from was taught another template."""
    start = subject.recipe.train.start
    base = None if start is None else hub.Checkpoint.open(start).tokenizer()
    if base is not None and base.chat_template is not None and base.chat_template != tokenizer.chat_template:
        says = "the model that the run begins from has another chat template, which it was taught"
        yield Finding("template of the base", "warning", says, "leave tokenizer.chat_template out to keep it, unless the change is meant")


def rolls(subject: Subject) -> bool:
    """Whether the batches are made of the model's own answers."""
    return isinstance(subject.recipe.objective, OnPolicy)


def check_rollout(subject: Subject, trainer: Trainer) -> Iterator[Finding]:
    """What the first rollout's rewards and lengths tell: answers of a group that all have one reward teach nothing."""
    source = trainer.train
    if not isinstance(source, Rollouts):
        return
    source.step(0)
    figures: dict[str, Any] = dict(source.figures)
    alike, ended, reward = (figures.get(name) for name in ("alike_share", "ended_share", "reward"))
    if alike is not None and subject.recipe.objective.group > 1:  # type: ignore[union-attr]
        severity = graded(alike, 0.8, 1)
        help_ = "take easier prompts or a partial reward, draw more answers (objective.group) or warmer ones, or train on examples first"
        advice = "" if severity == "fine" else help_
        says = f"the mean reward is {reward:.3g}, and all answers are judged alike for {percent(alike)} of the prompts"
        yield Finding("first answers", severity, says, advice, figures)
    elif reward is not None:
        yield Finding("first answers", "fine", f"the mean reward is {reward:.3g}", figures=figures)
    if ended is not None and ended < 0.5:
        says = f"{percent(1 - ended)} of the answers are cut off at {subject.recipe.objective.max_new_tokens} tokens"  # type: ignore[union-attr]
        yield Finding("length of answers", "warning", says, "raise objective.max_new_tokens, or teach the model to stop by examples first")
