"""Answers that stand in a passage: the span whose start and end the model finds most probable (Rajpurkar et al. 2016, 2018).

Shapes: N tokens of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from tokenizers import Encoding
from torch import Tensor

from triform.nn import Transformer
from triform.text import Tokenizer
from triform.text.framing import pair, windows

from .forms import Module, expect, listed
from .judging import longest_row, outputs

_TOKENS = 32  # spans of tokens that may be one of characters: of the bytes of a character each may begin it, and end it


@dataclass(frozen=True)
class Answer:
    """A span of a passage, its characters from `start` up to `end`, and the product of the probabilities that it starts and ends there.

    An empty text: that the passage holds no answer.
    """

    text: str
    score: float
    start: int
    end: int


@dataclass
class _Found:
    """Spans by their characters, and the least probability of there being no answer, over the windows of a passage."""

    spans: dict[tuple[int, int], float] = field(default_factory=dict)
    none: float = 1.0


@dataclass(frozen=True)
class Answering:
    """How answers are looked for.

    top: so many to each question, the best first.
    may_abstain: an answer may be that there is none, which models trained so say at the first token (SQuAD 2).
    longest: tokens of an answer. length: tokens of a row, at most those that the model takes; a longer passage is read in
        windows, each of which repeats `overlap` tokens of the one before, or half of the window where that is less.

    Raises ValueError for a number out of range.
    """

    top: int = 1
    may_abstain: bool = False
    longest: int = 30
    length: int | None = None
    overlap: int = 128

    def __post_init__(self) -> None:
        for name in ("top", "longest"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")


def answer(
    model: Module,
    tokenizer: Tokenizer,
    questions: str | Sequence[str],
    passages: str | Sequence[str],
    how: Answering | None = None,
    *,
    batch_size: int = 32,
    on_batch: Callable[[int], None] | None = None,
) -> list[list[Answer]]:
    """The best answers to each question, by a model that has an AnswerSpan head.

    passages: one for all questions, or one for each.
    on_batch: called with the number of windows done, after each batch.

    Raises ValueError for a model without such a head, and for a question that leaves the passage no room.
    """
    net, how = expect(model, "answer"), how or Answering()
    asked, texts = listed(questions), listed(passages)
    texts = texts * len(asked) if len(texts) == 1 else texts
    if len(texts) != len(asked):
        raise ValueError(f"passages: expected one, or one for each of the {len(asked)} questions, got {len(texts)}")
    frame = pair(tokenizer)
    if how.may_abstain and not frame.before:
        raise ValueError("may_abstain: expected a tokenizer that begins a row with [CLS], where a model says that there is no answer")
    windows_of = _windows(net, tokenizer, tokenizer.encodings(asked, plain=True), tokenizer.encodings(texts, plain=True), how)
    found = [_Found() for _ in asked]
    done = 0
    rows, segments = [one.ids for one in windows_of], [one.segments for one in windows_of]
    for numbers, scores in outputs(net, tokenizer, rows, batch_size, segments):
        for row, own in zip(numbers, scores.float().cpu(), strict=True):
            one = windows_of[row]
            _look(own, one, texts[one.number], found[one.number], how, bool(frame.before))
        done += len(numbers)
        if on_batch is not None:
            on_batch(done)
    return [_best(one, text, how) for one, text in zip(found, texts, strict=True)]


@dataclass(frozen=True)
class _Window:
    """A question and a part of its passage: which question, the row and its segments, where the passage begins, its tokens' characters."""

    number: int
    ids: list[int]
    segments: list[int]
    lead: int
    offsets: list[tuple[int, int]]


def _windows(
    net: Transformer, tokenizer: Tokenizer, questions: list[Encoding], passages: list[Encoding], how: Answering
) -> list[_Window]:
    limit, frame = longest_row(net, tokenizer, how.length), pair(tokenizer)
    found = []
    for number, (question, passage) in enumerate(zip(questions, passages, strict=True)):
        lead = len(frame.before) + len(question.ids) + len(frame.between)
        room = max(1, len(passage.ids)) if limit is None else limit - lead - len(frame.after)
        if room < 1:
            raise ValueError(f"question {number + 1} has {len(question.ids):,} tokens, which leaves no room for a passage; shorten it")
        for start, end in windows(len(passage.ids), room, min(max(0, how.overlap), room // 2)):
            row = frame.joined(question.ids, passage.ids[start:end])
            found.append(_Window(number, *row, lead, passage.offsets[start:end]))
    return found


def _look(scores: Tensor, window: _Window, text: str, found: _Found, how: Answering, may_be_none: bool) -> None:
    """Add the best spans of a window; scores (N, 2) are of its row."""
    passage = slice(window.lead, window.lead + len(window.offsets))
    seen = torch.zeros(len(scores), dtype=torch.bool)
    seen[passage] = True
    seen[0] = seen[0] or may_be_none
    start, end = scores.masked_fill(~seen[:, None], -torch.inf).softmax(0).unbind(-1)
    if may_be_none:
        found.none = min(found.none, float(start[0] * end[0]))
    if not window.offsets:
        return
    both = (start[passage, None] * end[None, passage]).triu().tril(how.longest - 1)
    best = both.flatten().topk(min(_TOKENS * how.top, both.numel()))
    for place, chance in zip(best.indices.tolist(), best.values.tolist(), strict=True):
        first, last = divmod(place, len(window.offsets))
        span = _trimmed(text, window.offsets[first][0], window.offsets[last][1])
        if span[0] < span[1]:
            found.spans[span] = max(chance, found.spans.get(span, 0.0))


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """A span without the spaces around it, which belong to some tokenizers' tokens."""
    whole = text[start:end]
    return start + len(whole) - len(whole.lstrip()), start + len(whole.rstrip())


def _best(found: _Found, text: str, how: Answering) -> list[Answer]:
    answers = [Answer(text[start:end], chance, start, end) for (start, end), chance in found.spans.items()]
    if how.may_abstain or not answers:
        answers.append(Answer("", found.none, 0, 0))
    return sorted(answers, key=lambda one: -one.score)[: how.top]
