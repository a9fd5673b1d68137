"""Preferences: the better of two answers is to become more probable than the other.

Shapes: B pairs, T tokens of a row, U of an encoder-decoder's answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from triform import config
from triform.config.spec import spec
from triform.data.conversations import Messages, preference
from triform.data.shards import Shards
from triform.text import Tokenizer
from triform.text.turns import encode_dialogue, encode_prompt

from .answers import answer_batch, fitted, need_answers
from .base import Batch, Loss, Objective, Sample, Samples, columns_of
from .log_probs import LogProbs, log_probs
from .preference_losses import DPO, Answers, PairLoss

_SIDES = ("chosen", "rejected")


@spec
class JudgedAnswers:
    """What `Preference` and `KTO` share.

    length: tokens of a prompt with its answer; of the prompt alone for an encoder-decoder, which has `target_length` for its answer.
    What is too long loses the prompt's beginning or the answer's end.
    """

    length: int = 512
    target_length: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("length", 4), ("target_length", 2)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}: expected at least {least} tokens, got {value}")

    @property
    def rows_a_sample(self) -> int:
        """Rows that a model reads: a pair's two, or for KTO an answer and another's, which is only looked at."""
        return 2

    def longest(self) -> dict[str, tuple[str, int]]:
        """For each stack the field that decides on its longest row, and that row's tokens."""
        if self.target_length is None:
            return {"decoder": ("length", self.length)}
        return {"encoder": ("length", self.length), "decoder": ("target_length", self.target_length)}


@spec
class Preference(JudgedAnswers):
    """Rows of a prompt with a `chosen` and a `rejected` answer (see `triform.data.conversations`).

    loss: DPO, IPO, SimPO or ORPO. sft: the weight of the chosen answers' negative log-likelihood a token, which is added to it
    (Pang et al. 2024). length, target_length: as `JudgedAnswers` says.
    """

    loss: PairLoss = DPO()
    sft: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sft < 0:
            raise ValueError(f"sft: expected 0 or more, got {self.sft}")

    def texts(self, row: Mapping[str, Any]) -> Iterator[str]:
        """The texts of a row, for a tokenizer to be trained on."""
        return preference_texts(row)


def preference_texts(row: Mapping[str, Any]) -> Iterator[str]:
    """The texts of a row with two answers."""
    pair = preference(row)
    return (str(message.get("content") or "") for message in (*pair.prompt, *pair.chosen, *pair.rejected))


@dataclass
class AnswerRows(Batch):
    """Rows of two answers for each sample: first one of each, then the other of each.

    reference (2 B,): the answers' log-probabilities by the reference, None where it is not asked; wanted (B,): whether the
    first answer is a good one, where that is told.
    """

    reference: Tensor | None = None
    wanted: Tensor | None = None

    @property
    def count(self) -> int:
        """The samples."""
        return len(self.inputs) // 2

    def answers(self, found: LogProbs, part: slice) -> Answers:
        """Some rows' answers, by what a model found for all rows or for the first ones."""
        return Answers(found.total[part], found.count[part], None if self.reference is None else self.reference[part])


@dataclass(frozen=True)
class Written:
    """A prompt and an answer as ids, and 1 for each of the answer's that the assistant wrote."""

    prompt: Sequence[int]
    answer: Sequence[int]
    scored: Sequence[int]


def written(tokenizer: Tokenizer, prompt: Messages, answer: Messages, tools: Any, *, encodes: bool) -> Written:
    """A prompt with its answer as a decoder-only model, or an encoder-decoder (`encodes`), reads them."""
    if not encodes:
        encoded = encode_dialogue(tokenizer, [*prompt, *answer], tools=tools, after=len(prompt))
        assert encoded.assistant is not None
        start = encoded.assistant.index(True) if True in encoded.assistant else len(encoded.ids)
        scored = [int(own) for own in encoded.assistant[start:]]
        ends = [at for at, own in enumerate(scored, start) if own and encoded.ids[at] in tokenizer.ends]
        stop = ends[-1] + 1 if ends else len(encoded.ids)  # what a template writes after it is never generated
        return Written(encoded.ids[:start], encoded.ids[start:stop], scored[: stop - start])
    if len(answer) != 1:
        raise ValueError(f"expected one message of the assistant as the answer of an encoder-decoder, got {len(answer)}")
    end = [] if tokenizer.eos is None else [tokenizer.eos]
    ids = [*tokenizer.encode(str(answer[0].get("content") or ""), plain=True), *end]
    return Written(encode_prompt(tokenizer, prompt, tools=tools, encodes=True), ids, [1] * len(ids))


def cut_answers(tokenizer: Tokenizer, found: Sequence[Written], spec: Any) -> tuple[Sequence[int], list[Sequence[int]]]:
    """The prompt and the answers of one sample within the tokens that a specification allows them."""
    prompt, answers = found[0].prompt, [each.answer for each in found]
    if spec.target_length is None:
        return fitted(prompt, answers, spec.length)
    if len(prompt) > spec.length:  # of a conversation the last turns are kept, of a plain text its beginning and what ends it
        prompt = prompt[-spec.length :] if tokenizer.chat_template is not None else [*prompt[: spec.length - 1], prompt[-1]]
    return prompt, [answer[: spec.target_length] for answer in answers]


class PreferenceObjective(Objective):
    """In: prompts, each with two answers. Out: `AnswerRows`, the chosen answers first, as `answer_batch` makes them."""

    spec: Preference
    chats = True
    smooths = False
    metric_names = ("accuracy", "margin")

    @property
    def compares(self) -> bool:  # type: ignore[override]
        """Whether the loss asks the reference."""
        return self.spec.loss.compares

    @property
    def encodes(self) -> bool:
        """Whether the model is an encoder-decoder."""
        return self.spec.target_length is not None

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Sequence[int]]]:
        """Columns "prompt", "chosen" and "rejected", and of both answers "…_scored", 1 where the assistant wrote a token."""
        out = []
        for row in rows:
            pair = preference(row)
            found = [
                written(self.tokenizer, pair.prompt, answer, pair.tools, encodes=self.encodes) for answer in (pair.chosen, pair.rejected)
            ]
            if found[0].prompt != found[1].prompt:
                raise ValueError("the chat template writes the prompt differently for each of the answers; expected the same")
            prompt, answers = cut_answers(self.tokenizer, found, self.spec)
            columns: dict[str, Sequence[int]] = {"prompt": prompt}
            for side, answer, whole in zip(_SIDES, answers, found, strict=True):
                columns |= {side: answer, f"{side}_scored": whole.scored[: len(answer)]}
            out.append(columns)
        return out

    def sizes(self) -> dict[str, int]:
        return dict.fromkeys(("prompt", *_SIDES), self.tokenizer.vocab_size) | {f"{side}_scored": 2 for side in _SIDES}

    def samples(self, shards: Shards) -> Samples:
        prompts, chosen, rejected = (np.diff(shards.column(name).offsets) for name in ("prompt", *_SIDES))
        return Samples(2 * prompts + chosen + rejected, lambda index: columns_of(shards, index))

    def collate(self, samples: Sequence[Sample], seeds: Sequence[tuple[int, ...]]) -> AnswerRows:
        answers, scored = ([s[f"{side}{kind}"] for side in _SIDES for s in samples] for kind in ("", "_scored"))
        plain = answer_batch(self.tokenizer, [s["prompt"] for s in (*samples, *samples)], answers, scored, encodes=self.encodes)
        return AnswerRows(**vars(plain), reference=reference_of(samples, _SIDES))

    def example(self, sample: Sample) -> list[tuple[str, bool]]:
        """The prompt, the chosen answer, and the rejected one; answers are learned."""
        prompt, chosen, rejected = (self.tokenizer.decode(sample[name], skip_special=False) for name in ("prompt", *_SIDES))
        return [(prompt, False), (chosen, True), ("\n[rejected] ", False), (rejected, True)]

    def reference(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        return reference_columns(log_probs(model, batch).total, _SIDES)

    def loss(self, model: Any, batch: Batch, *, smoothing: float = 0.0, z_loss: float = 0.0) -> Loss:
        """Besides the loss: implied rewards of both answers, their margin, how often it is above 0, the answers' log-probabilities
        (nats) and tokens, and how far they are from the reference's (nats)."""
        assert isinstance(batch, AnswerRows)
        model.eval()  # no dropout, as the reference had none
        found, pairs = log_probs(model, batch), batch.count
        chosen, rejected = batch.answers(found, slice(pairs)), batch.answers(found, slice(pairs, None))
        costs = self.spec.loss.costs(chosen, rejected)
        if self.spec.sft:
            costs = costs - self.spec.sft * chosen.mean
        with torch.no_grad():
            rewards = [self.spec.loss.rewards(answers) for answers in (chosen, rejected)]
            margin = rewards[0] - rewards[1]
            metrics = {"accuracy": margin > 0, "margin": margin}
            for side, answers, reward in zip(_SIDES, (chosen, rejected), rewards, strict=True):
                metrics |= {f"{side}_reward": reward, f"{side}_log_prob": answers.log_prob, f"{side}_tokens": answers.tokens}
            if self.compares:
                metrics["log_ratio"] = (chosen.log_ratio + rejected.log_ratio) / 2
            sums = {name: float(value.sum()) for name, value in metrics.items()}
        return Loss(costs.sum(), sums, found.auxiliary)

    def uniform_loss(self, model: config.Model, batch: Batch) -> float | None:
        return math.log(2) if isinstance(self.spec.loss, DPO) and not self.spec.sft else None

    def check(self, model: config.Model) -> None:
        need_answers(model, "Preference", self.tokenizer, encodes=self.encodes)

    def task(self) -> dict[str, Any]:
        return {"objective": "Preference", "loss": type(self.spec.loss).__name__}


def reference_columns(totals: Tensor, sides: Sequence[str]) -> dict[str, Tensor]:
    """Log-probabilities (sides B,) as columns "reference_…" of the samples, (B,) each."""
    return {f"reference_{side}": part for side, part in zip(sides, totals.chunk(len(sides)), strict=True)}


def reference_of(samples: Sequence[Sample], sides: Sequence[str]) -> Tensor | None:
    """What `reference_columns` put into samples, (sides B,); None where it is not there."""
    if f"reference_{sides[0]}" not in samples[0]:
        return None
    return torch.tensor([float(sample[f"reference_{side}"]) for side in sides for sample in samples])
