"""What objectives share that learn from the model's own answers: prompts, rewards, and the terms of a policy's loss.

The training loop asks such an objective for more than the others (`triform.train.rollouts`): it lets the model answer the prompts of
a step, has the answers judged, and hands them back as samples, which `collate` and `loss` take like any others.

Shapes: B answers, T tokens of a row (of the decoder's, where there is an encoder), N answers of a rollout, G answers to a prompt.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from triform import config
from triform.config.spec import at_least, spec
from triform.data.conversations import Conversation, prompt
from triform.data.shards import Shards
from triform.nn import IGNORE
from triform.text.turns import encode_prompt

from .answers import answer_batch, need_answers
from .base import Batch, Loss, Objective, Sample, Samples, need, whole_rows
from .log_probs import log_probs


@spec
class Reward:
    """What judges answers: a Python function, or a model with a Classify head of one label (its folder or name).

    function: "module:name" or "file.py:name" (see `triform.objectives.rewards`). weight: of its numbers in the sum.
    """

    function: str | None = None
    model: str | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        if (self.function is None) == (self.model is None):
            raise ValueError("function: expected a function or a model, and not both")

    @property
    def name(self) -> str:
        """What its figures are called: the function's name, or the last part of the model's."""
        if self.function is not None:
            return self.function.rpartition(":")[2]
        parts = [part for part in str(self.model).replace("\\", "/").split("/") if part not in ("", ".", "..")]
        return parts[-2] if len(parts) > 1 and parts[-1] == "model" else parts[-1]


@spec
class OnPolicy:
    """What PPO and GRPO share.

    rewards: what judges the answers; a text is a function. length: tokens of a prompt at most. max_new_tokens: of an answer.
    group: answers to each prompt. temperature, top_p: how they are drawn; log-probabilities are those at that temperature.
    iterations: how often all answers of a rollout are trained on; minibatches: in how many steps each time, of which each has
    `train.batch` times `train.accumulate` prompts. clip: how far the probability of a token may move from what it was when the
    answer was drawn before its gradient ends, as a share; clip_high: the same upwards (None: as clip). kl: how much straying from
    the reference costs, which is the model that the run began with; with 0 there is none. record: so many answers of each
    rollout, from the lowest reward to the highest, are put on record.
    """

    rewards: tuple[str | Reward, ...]
    length: int = 256
    max_new_tokens: int = 64
    group: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    iterations: int = 1
    minibatches: int = 1
    clip: float = 0.2
    clip_high: float | None = None
    kl: float = 0.0
    record: int = 8
    fewest: ClassVar[int] = 1  # answers of a group

    def __post_init__(self) -> None:
        at_least(self, 1, "length", "max_new_tokens", "iterations", "minibatches")
        at_least(self, self.fewest, "group")
        at_least(self, 0, "kl", "record")
        if not self.rewards:
            raise ValueError("rewards: expected at least one function or model")
        names = [each.name for each in self.judges]
        if len(set(names)) != len(names):
            raise ValueError(f"rewards: expected different names, got {', '.join(names)}")
        for name in ("temperature", "clip", "clip_high"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(f"{name}: expected a number above 0, got {getattr(self, name)}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: expected a share above 0 and at most 1, got {self.top_p}")

    @property
    def judges(self) -> tuple[Reward, ...]:
        """The rewards, each with its weight."""
        return tuple(Reward(function=each) if isinstance(each, str) else each for each in self.rewards)

    @property
    def updates(self) -> int:
        """Steps that are made of one rollout."""
        return self.iterations * self.minibatches

    @property
    def rows_a_sample(self) -> int:
        """Rows that a model reads for a prompt."""
        return self.group

    def texts(self, row: Mapping[str, Any]) -> Iterator[str]:
        """The texts of a row, for a tokenizer to be trained on."""
        asked = [str(message.get("content")) for message in prompt(row).messages]
        yield from (*asked, *(value for value in row.values() if isinstance(value, str) and value not in asked))

    def longest(self, form: str = "decoder-only") -> dict[str, tuple[str, int]]:
        """For each stack of a model of this form the field that decides on its longest row, and that row's tokens."""
        if form == "encoder-decoder":
            return {"encoder": ("length", self.length), "decoder": ("max_new_tokens", self.max_new_tokens)}
        return {"decoder": ("length", self.length + self.max_new_tokens)}


def longest_rows(objective: Any, form: str) -> dict[str, tuple[str, int]]:
    """`longest` of a recipe's objective for a model of this form."""
    found: dict[str, tuple[str, int]] = objective.longest(form) if isinstance(objective, OnPolicy) else objective.longest()
    return found


@dataclass
class AnswerBatch(Batch):
    """Answers that a model gave, at the places of their labels.

    old: log-probabilities (B, T) of the tokens when they were drawn, None where those are the model's own now; reference: by the
    reference; advantages (B, T); values, returns (B, T) of a value function; scores (B, 1 + rewards): the reward of each answer
    and what it is made of (NaN: nothing was said), where answers are measured and not trained on. divisor: what the loss, a sum, is
    divided by.
    """

    old: Tensor | None = None
    reference: Tensor | None = None
    advantages: Tensor | None = None
    values: Tensor | None = None
    returns: Tensor | None = None
    scores: Tensor | None = None
    divisor: int = 0

    @property
    def count(self) -> int:
        return self.divisor


COLUMNS = ("old", "reference", "advantages", "values", "returns")
"""What a sample may hold of each token of its answer."""


def asked_text(asked: Conversation) -> str:
    """What was asked last, as text."""
    content = asked.messages[-1].get("content")
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def clipped_loss(log_probs: Tensor, old: Tensor, advantages: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """The policy's loss of each token (Schulman et al. 2017, equation 7), and where its ratio was clipped; all (B, T)."""
    ratio = (log_probs - old).exp()
    loss = -torch.minimum(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)
    clipped = ((ratio < 1 - low) & (advantages < 0)) | ((ratio > 1 + high) & (advantages > 0))
    return loss, clipped


def kl_k3(log_probs: Tensor, reference: Tensor) -> Tensor:
    """An estimate of KL(model || reference) for each token that the model drew, never negative and without bias (Schulman 2020, k3)."""
    gap = reference - log_probs
    return gap.exp() - gap - 1


class OnPolicyObjective(Objective):
    """In: prompts, and the rest of each row for the rewards. Out, of answers: inputs (B, T) of prompt and answer (or inputs of the
    encoder and target of the decoder), labels the answers' tokens, and what is known of each."""

    spec: OnPolicy
    chats = True
    smooths = False
    encodes = False  # whether an encoder reads the prompts

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Sequence[int]]]:
        """Columns "prompt", as the model reads it, and "row", the whole row as bytes of JSON. Raises ValueError for a bad row."""
        return [{"prompt": self.prompt_ids(row), "row": list(_written(row))} for row in rows]

    def prompt_ids(self, row: Mapping[str, Any]) -> list[int]:
        """What the model reads of a row before it answers."""
        asked = prompt(row)
        ids = encode_prompt(self.tokenizer, asked.messages, tools=asked.tools, encodes=self.encodes)
        if not 0 < len(ids) <= self.spec.length:
            hint = "raise objective.length, or leave the row out" if ids else "a tokenizer without bos needs some text to begin with"
            raise ValueError(f"the prompt has {len(ids):,} tokens, expected from 1 to {self.spec.length:,}; {hint}")
        return ids

    def sizes(self) -> dict[str, int]:
        return {"prompt": self.tokenizer.vocab_size, "row": 256}

    def samples(self, shards: Shards) -> Samples:
        return whole_rows(shards, "prompt")

    def row(self, sample: Sample) -> dict[str, Any]:
        """The row of the data that a sample was made of."""
        found: dict[str, Any] = json.loads(bytes(sample["row"].astype(np.uint8)).decode("utf-8", "surrogatepass"))
        return found

    def collate(self, samples: Sequence[Sample], seeds: Sequence[tuple[int, ...]]) -> AnswerBatch:
        """Samples of answers: "prompt", "completion", those of `COLUMNS` that are known, "ended", and "scores" where they are only
        measured."""
        prompts, answers = ([sample[name] for sample in samples] for name in ("prompt", "completion"))
        batch = AnswerBatch(**vars(answer_batch(self.tokenizer, prompts, answers, encodes=self.encodes)))
        scored = batch.labels != IGNORE
        for name in COLUMNS:
            if name in samples[0]:
                values = torch.from_numpy(np.concatenate([sample[name] for sample in samples])).float()
                setattr(batch, name, torch.zeros(scored.shape).masked_scatter(scored, values))
        if "scores" in samples[0]:
            batch.scores = torch.from_numpy(np.stack([sample["scores"] for sample in samples]))
            batch.divisor = len(samples)
        else:
            self.settle(batch, samples)
        return batch

    def settle(self, batch: AnswerBatch, samples: Sequence[Sample]) -> None:
        """Say what the loss of a batch is divided by, and leave answers out."""
        batch.divisor = batch.scored

    @property
    def needs_old(self) -> bool:
        """Whether log-probabilities are needed as they were when the answers were drawn."""
        return self.spec.updates > 1

    @property
    def needs_reference(self) -> bool:
        """Whether the model that the run began with is needed."""
        return self.spec.kl > 0

    def read(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        """What a model says of answers, (B, T) each: "old", the log-probabilities of their tokens."""
        return {"old": log_probs(model, batch, temperature=self.spec.temperature).tokens}

    def judge(self, samples: Sequence[Sample], rewards: np.ndarray, memory: dict[str, Any]) -> dict[str, float]:
        """Put "advantages" and what else is made of rewards (N,) into the samples of a rollout, the answers to a prompt side by side.

        memory: what goes on from rollout to rollout, plain data. Returns figures to log.
        """
        raise NotImplementedError

    def loss(self, model: Any, batch: Batch, *, smoothing: float = 0.0, z_loss: float = 0.0) -> Loss:
        """The policy's loss, without dropout: answers were drawn without. Of answers that are only measured minus their rewards."""
        assert isinstance(batch, AnswerBatch)
        if batch.scores is not None:
            totals = dict(zip(self.figures, batch.scores.nansum(0).tolist(), strict=True)) | {"answer_tokens": float(batch.scored)}
            counts = dict(zip(self.figures, (~batch.scores.isnan()).sum(0).tolist(), strict=True))
            return Loss(-batch.scores[:, 0].sum(), totals, counts=counts)
        model.eval()
        found = log_probs(model, batch, temperature=self.spec.temperature, entropy=True)
        old = found.tokens.detach() if batch.old is None else batch.old
        assert batch.advantages is not None
        assert found.entropy is not None
        loss, clipped = clipped_loss(found.tokens, old, batch.advantages, self.spec.clip, self.spec.clip_high or self.spec.clip)
        told = {"entropy": found.entropy, "clip_share": clipped}
        if batch.reference is not None:
            told["kl"] = kl_k3(found.tokens, batch.reference)
            loss = loss + self.kl_weight * told["kl"]
        further, more = self.further(model, batch, found.hidden)
        scored = found.scored
        metrics = {name: float((value.detach() * scored).sum()) for name, value in (told | more).items()}
        counts = dict.fromkeys(metrics, float(scored.sum()))
        return Loss(self.total((loss + further) * scored, scored), metrics, found.auxiliary, counts)

    @property
    def figures(self) -> tuple[str, ...]:
        """The names of a reward and of what it is made of."""
        return ("reward", *(f"reward_{judge.name}" for judge in self.spec.judges))

    @property
    def kl_weight(self) -> float:
        """Of the KL divergence in the loss."""
        return self.spec.kl

    def further(self, model: Any, batch: AnswerBatch, hidden: Tensor) -> tuple[Tensor | float, dict[str, Tensor]]:
        """What else a token costs, (B, T), from hidden states (B, T, D), and figures (B, T) to log."""
        return 0.0, {}

    def total(self, loss: Tensor, scored: Tensor) -> Tensor:
        """The batch's loss from that of each token, (B, T), of which (B, T) are scored; a step divides it by its `divisor`s."""
        return loss.sum()

    def check(self, model: config.Model) -> None:
        name, forms = type(self.spec).__name__, ("decoder-only", "encoder-decoder")
        need(model.form in forms, name, "a model that is decoder-only or encoder-decoder", f"one that is {model.form}")
        need(isinstance(getattr(model, "head", None), config.LanguageModel), name, "a LanguageModel head", "another")
        self.encodes = model.form == "encoder-decoder"
        need_answers(model, name, self.tokenizer, encodes=self.encodes)


def _written(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass")
