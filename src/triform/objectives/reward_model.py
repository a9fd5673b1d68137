"""A model of what people prefer: one number for an answer, higher for the better of two (Bradley & Terry 1952; Stiennon et al. 2020).

Shapes: B pairs, T tokens of a row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from triform import config
from triform.config.spec import spec
from triform.data.conversations import Messages, preference
from triform.data.shards import Shards
from triform.nn import IGNORE, Layout
from triform.nn.norm import at_least_float
from triform.text import Tokenizer
from triform.text.framing import decoder_start, pair

from .answers import fitted
from .base import Batch, Loss, Objective, Sample, Samples, auxiliary, need, stack_rows, whole_rows
from .preference import AnswerRows, preference_texts, written

_SIDES = ("chosen", "rejected")


@spec
class RewardModel:
    """Rows of a prompt with a `chosen` and a `rejected` answer (see `triform.data.conversations`), for a Classify head of one label.

    length: tokens of a prompt with its answer; what is too long loses the prompt's beginning or the answer's end. center: the weight
    of the squared sum of both rewards, which keeps them around 0 (Eisenstein et al. 2023).
    """

    length: int = 512
    center: float = 0.0

    def __post_init__(self) -> None:
        if self.length < 8:
            raise ValueError(f"length: expected at least 8 tokens, got {self.length}")
        if self.center < 0:
            raise ValueError(f"center: expected 0 or more, got {self.center}")

    @property
    def rows_a_sample(self) -> int:
        """Rows that a model reads for a pair."""
        return 2

    def longest(self) -> dict[str, tuple[str, int]]:
        """For each stack the field that decides on its longest row, and that row's tokens."""
        return dict.fromkeys(("encoder", "decoder"), ("length", self.length))

    def texts(self, row: Mapping[str, Any]) -> Iterator[str]:
        """The texts of a row, for a tokenizer to be trained on."""
        return preference_texts(row)


def reward_row(
    tokenizer: Tokenizer, prompt: Messages, answer: Messages, length: int, *, tools: Sequence[Mapping[str, Any]] | None = None
) -> tuple[list[int], list[int]]:
    """What a reward model reads of an answer within `length` tokens, and the segment of each: as the chat template writes it, or
    prompt and answer as the tokenizer's template joins two texts. What is too long loses the prompt's beginning or the answer's end."""
    if tokenizer.chat_template is not None:
        whole = written(tokenizer, prompt, answer, tools, encodes=False)
        asked, (said,) = fitted(whole.prompt, [whole.answer], length)
        return [*asked, *said], [0] * len(asked) + [1] * len(said)
    frame = pair(tokenizer)
    texts = ("\n".join(str(message.get("content") or "") for message in messages) for messages in (prompt, answer))
    first, second = tokenizer.encode_batch(texts, plain=True)
    asked, (said,) = fitted(first, [second], length - len(frame.before) - len(frame.between) - len(frame.after))
    return frame.joined(asked, said)


class RewardModelObjective(Objective):
    """In: prompts, each with two answers. Out: `AnswerRows` with inputs (2 B, T), the chosen answers' rows first, segments where the
    model has them, and for an encoder-decoder target (2 B, T), the same rows a place to the right; labels (2 B,) are not read."""

    spec: RewardModel
    smooths = False
    metric_names = ("accuracy", "margin")
    encodes = segments = False  # what the model is; `check` says

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Sequence[int]]]:
        """Columns "chosen" and "rejected", framed, and of both "…_segment"."""
        out = []
        for row in rows:
            found, columns = preference(row), dict[str, Sequence[int]]()
            for side, answer in zip(_SIDES, (found.chosen, found.rejected), strict=True):
                ids, segments = reward_row(self.tokenizer, found.prompt, answer, self.spec.length, tools=found.tools)
                columns |= {side: ids, f"{side}_segment": segments}
            out.append(columns)
        return out

    def sizes(self) -> dict[str, int]:
        return dict.fromkeys(_SIDES, self.tokenizer.vocab_size) | {f"{side}_segment": 2 for side in _SIDES}

    def samples(self, shards: Shards) -> Samples:
        return whole_rows(shards, *_SIDES)

    def collate(self, samples: Sequence[Sample], seeds: Sequence[tuple[int, ...]]) -> AnswerRows:
        inputs, mask = stack_rows([s[side] for side in _SIDES for s in samples], self.tokenizer.pad or 0)
        batch = AnswerRows(inputs, torch.full((len(inputs),), IGNORE), mask)
        if self.segments:
            batch.layout = Layout(segments=stack_rows([s[f"{side}_segment"] for side in _SIDES for s in samples], 0)[0])
        if self.encodes:
            start = (self.tokenizer.start or [decoder_start(self.tokenizer)])[0]
            batch.target, batch.target_mask = inputs.roll(1, 1), mask
            batch.target[:, 0] = start
        return batch

    def loss(self, model: Any, batch: Batch, *, smoothing: float = 0.0, z_loss: float = 0.0) -> Loss:
        """Besides the loss: the rewards of both answers, their margin, and how often it is above 0."""
        out = model(batch.inputs, batch.mask, batch.target, batch.target_mask, layout=batch.layout)
        chosen, rejected = at_least_float(out.logits)[:, 0].chunk(2)
        margin = chosen - rejected
        total = (self.spec.center * (chosen + rejected).square() - F.logsigmoid(margin)).sum()
        found = {"accuracy": margin > 0, "margin": margin, "chosen_reward": chosen, "rejected_reward": rejected}
        return Loss(total, {name: float(value.detach().sum()) for name, value in found.items()}, auxiliary(out))

    def example(self, sample: Sample) -> list[tuple[str, bool]]:
        """What is read of the chosen answer, and of the rejected one; answers decide."""
        runs = []
        for side in _SIDES:
            ids, segments = sample[side], sample[f"{side}_segment"]
            own = [self.tokenizer.decode(ids[segments == segment], skip_special=False) for segment in (0, 1)]
            runs += [(f"[{side}] {own[0]}", False), (f"{own[1]}\n", True)]
        return runs

    def uniform_loss(self, model: config.Model, batch: Batch) -> float | None:
        return math.log(2)

    def check(self, model: config.Model) -> None:
        head = getattr(model, "head", None)
        need(isinstance(head, config.Classify), "RewardModel", "a Classify head", type(head).__name__)
        assert isinstance(model, config.Transformer)
        assert isinstance(head, config.Classify)
        need(head.labels == 1, "RewardModel", "a head of 1 label", head.labels)
        first = model.encoder or model.decoder
        assert first is not None
        need(isinstance(first.input, config.Tokens), "RewardModel", "a model that reads text", "one that reads pictures")
        assert isinstance(first.input, config.Tokens)
        self.encodes, self.segments = model.form == "encoder-decoder", first.input.segments > 1

    def task(self) -> dict[str, Any]:
        return {"objective": "RewardModel", "labels": ["reward"], "problem_type": "regression", "length": self.spec.length}
