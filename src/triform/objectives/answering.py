"""Extractive question answering: where in a passage the answer stands (Rajpurkar et al. 2016; unanswerable questions: 2018).

Shapes: B batch, T tokens of a row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tokenizers import Encoding

from triform import config
from triform.config.spec import spec
from triform.data.shards import Shards
from triform.nn import Layout
from triform.nn.norm import at_least_float
from triform.text.framing import pair, windows

from .base import Batch, Loss, Objective, Sample, Samples, auxiliary, cross_entropy_among, need, stack_rows, texts_of, whole_rows


@spec
class QuestionAnswering:
    """The field `question`, the field `passage`, and in `answers` where it is answered.

    answers: SQuAD's `{"text": [...], "answer_start": [...]}` or a list of `{"text", "answer_start"}`, of which the first is learned; or
    a text. Without a start it is the first place where the passage has the text. No answers: there is none in the passage, which is
    learned as the row's first token ([CLS]). length: tokens of a row; a longer passage is read in windows, each of which repeats
    `overlap` tokens of the one before; those without the whole answer learn that there is none.
    """

    length: int = 384
    overlap: int = 128
    question: str = "question"
    passage: str = "context"
    answers: str = "answers"

    def __post_init__(self) -> None:
        if self.length < 8:
            raise ValueError(f"length: expected at least 8 tokens, got {self.length}")
        if not 0 <= self.overlap < self.length:
            raise ValueError(f"overlap: expected 0 or more tokens, and fewer than a row's {self.length}, got {self.overlap}")

    def longest(self) -> dict[str, tuple[str, int]]:
        """For each stack the field that decides on its longest row, and that row's tokens."""
        return dict.fromkeys(("encoder", "decoder"), ("length", self.length))

    def texts(self, row: Mapping[str, Any]) -> list[str]:
        """The passage and the question of a row. Raises ValueError for a row without them."""
        return [texts_of([row], self.passage, "passage")[0], texts_of([row], self.question, "question")[0]]

    def span(self, row: Mapping[str, Any]) -> tuple[int, int] | None:
        """The characters of the answer in the passage, None where there is none. Raises ValueError for one that is not there."""
        passage = str(row[self.passage])
        if not passage.strip():
            raise ValueError(f"the passage in {self.passage!r} is empty; expected text")
        found = _first_answer(row.get(self.answers), self.answers)
        if found is None:
            return None
        text, start = found
        if not text.strip():
            raise ValueError(f"the answer in {self.answers!r} is empty; expected a text, or no answers where the passage has none")
        if start is None:
            start = passage.find(text)
            if start < 0:
                raise ValueError(f"the answer {text[:40]!r} does not stand in the passage")
        elif start < 0 or passage[start : start + len(text)] != text:
            there = _shown(passage, start, text)
            raise ValueError(f"the answer {text[:40]!r} does not stand at character {start} of the passage, but {there}")
        return start, start + len(text)


def _shown(passage: str, start: int, text: str) -> str:
    there = passage[max(0, start) : max(0, start) + len(text)]
    return repr(there[:40]) if there else "nothing"


def _first_answer(answers: Any, name: str) -> tuple[str, int | None] | None:
    """The first answer's text, and where it starts if that is said; None where there are no answers."""
    if isinstance(answers, Mapping):
        texts, starts = answers.get("text"), answers.get("answer_start")
        texts = [texts] if isinstance(texts, str) else texts
        starts = [starts] if isinstance(starts, int) else starts
        if not isinstance(texts, list | tuple) or (starts is not None and len(starts) != len(texts)):
            raise ValueError(f"expected texts, and as many places where they start, in {name!r}")
        answers = [{"text": text, "answer_start": None if starts is None else starts[i]} for i, text in enumerate(texts)]
    if answers is None or answers == [] or answers == ():
        return None
    first = answers[0] if isinstance(answers, list | tuple) else answers
    text, start = (first.get("text"), first.get("answer_start")) if isinstance(first, Mapping) else (first, None)
    if not isinstance(text, str) or not (start is None or (isinstance(start, int) and not isinstance(start, bool))):
        raise ValueError(f"expected a text, and a whole number where it starts, in {name!r}, got {str(first)[:60]!r}")
    return text, start


class QuestionAnsweringObjective(Objective):
    """In: rows of a question and a window of its passage, framed as the tokenizer's template joins two texts.

    Out: inputs (B, T), mask (B, T), labels (B, 2), the places of the answer's first and last token, and layout.segments (B, T),
    for a model that tells them apart.
    """

    spec: QuestionAnswering
    metric_names = ("exact",)

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Sequence[int]]]:
        """Columns "text", framed, "segment" of each token, and "span", the answer's first and last token; a row a window."""
        questions = self.tokenizer.encodings(texts_of(rows, self.spec.question, "question"), plain=True)
        passages = self.tokenizer.encodings(texts_of(rows, self.spec.passage, "passage"), plain=True)
        spans = [self.spec.span(row) for row in rows]
        return [columns for each in zip(questions, passages, spans, strict=True) for columns in self._rows(*each)]

    def _rows(self, question: Encoding, passage: Encoding, span: tuple[int, int] | None) -> Iterator[dict[str, Sequence[int]]]:
        frame = pair(self.tokenizer)
        lead = len(frame.before) + len(question.ids) + len(frame.between)
        room = self.spec.length - lead - len(frame.after)
        if room < 1:
            raise ValueError(f"the question has {len(question.ids):,} tokens, which leaves no room for a passage; raise objective.length")
        answer = None if span is None else _tokens_of(passage.offsets, span)
        for start, end in windows(len(passage.ids), room, min(self.spec.overlap, room // 2)):
            ids, segments = frame.joined(question.ids, passage.ids[start:end])
            if answer is not None and start <= answer[0] and answer[1] < end:
                yield {"text": ids, "segment": segments, "span": [lead + place - start for place in answer]}
            elif frame.before:
                yield {"text": ids, "segment": segments, "span": [0, 0]}

    def sizes(self) -> dict[str, int]:
        return {"text": self.tokenizer.vocab_size, "segment": 256, "span": self.spec.length}

    def samples(self, shards: Shards) -> Samples:
        return whole_rows(shards, "text")

    def collate(self, samples: Sequence[Sample], seeds: Sequence[tuple[int, ...]]) -> Batch:
        inputs, mask = stack_rows([s["text"] for s in samples], self.tokenizer.pad or 0)
        segments, _ = stack_rows([s["segment"] for s in samples], 0)
        return Batch(inputs, torch.from_numpy(np.stack([s["span"] for s in samples])), mask, layout=Layout(segments=segments))

    def loss(self, model: Any, batch: Batch, *, smoothing: float = 0.0, z_loss: float = 0.0) -> Loss:
        """The cross-entropies over a row's tokens of where the answer starts and where it ends; exact: how many have both right."""
        out = model(batch.inputs, batch.mask, layout=batch.layout if _segments(model) else None)
        scores = at_least_float(out.logits).transpose(1, 2)  # (B, 2, T)
        own = None if batch.mask is None else batch.mask.repeat_interleave(2, 0)
        total = cross_entropy_among(scores.flatten(0, 1), batch.labels.flatten(), own, smoothing)
        if z_loss:
            total = total + z_loss * scores.logsumexp(-1).square().sum()
        right = (scores.argmax(-1) == batch.labels).all(-1)
        return Loss(total, {"exact": float(right.sum())}, auxiliary(out), {"exact": float(len(right))})

    def uniform_loss(self, model: config.Model, batch: Batch) -> float | None:
        return math.log(batch.inputs.shape[1]) if batch.mask is None else float(batch.mask.sum(1).log().mean())

    def check(self, model: config.Model) -> None:
        forms, head = ("encoder-only", "decoder-only"), getattr(model, "head", None)
        need(model.form in forms, "QuestionAnswering", "a model that is encoder-only or decoder-only", f"one that is {model.form}")
        need(isinstance(head, config.AnswerSpan), "QuestionAnswering", "an AnswerSpan head", type(head).__name__)

    def task(self) -> dict[str, Any]:
        return {"objective": "QuestionAnswering", "length": self.spec.length}


def _segments(model: Any) -> bool:
    """Whether a model tells segments apart."""
    spec = model.config.encoder or model.config.decoder
    return isinstance(spec.input, config.Tokens) and spec.input.segments > 1


def _tokens_of(offsets: Sequence[tuple[int, int]], span: tuple[int, int]) -> tuple[int, int]:
    """The first and the last token of some characters. Raises ValueError where the tokenizer makes nothing of them."""
    inside = [number for number, (start, end) in enumerate(offsets) if start < span[1] and end > span[0] and end > start]
    if not inside:
        raise ValueError("the tokenizer leaves out the characters of the answer")
    return inside[0], inside[-1]
