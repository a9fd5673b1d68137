"""KTO: answers that are good or bad each by itself, without pairs (Ethayarajh et al. 2024).

Shapes: B answers, T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from triform import config
from triform.config.spec import spec
from triform.data.conversations import Judged, judged, preference
from triform.data.shards import Shards

from .answers import answer_batch, need_answers
from .base import Batch, Loss, Objective, Sample, Samples, columns_of
from .log_probs import log_probs
from .preference import AnswerRows, JudgedAnswers, cut_answers, reference_columns, reference_of, written
from .preference_losses import Answers, above

_SIDES = ("answer", "other")


@spec
class KTO(JudgedAnswers):
    """Rows of a prompt with a `completion` and a `label`, true for a good answer; or pairs, which count as one of each.

    beta: how much straying from the reference counts; less lets the model go further. desirable, undesirable: the weights of good
    and bad answers; where one kind is rarer, the authors raise its weight until the sums are within 1 to 4/3 of each other.
    length, target_length: as `JudgedAnswers` says.

    How far the model is from the reference is estimated on the answers to other prompts of a micro-batch, so a small `train.batch`
    makes it noisy, and `train.accumulate` does not help.
    """

    beta: float = 0.1
    desirable: float = 1.0
    undesirable: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("beta", "desirable", "undesirable"):
            above(name, getattr(self, name))

    def texts(self, row: Mapping[str, Any]) -> Iterator[str]:
        """The texts of a row, for a tokenizer to be trained on."""
        found = _answers(row)
        return (str(message.get("content") or "") for message in (*found[0].prompt, *(m for each in found for m in each.completion)))

    def rewards(self, answers: Answers) -> Tensor:
        """The rewards (B,) that the model implies."""
        return self.beta * answers.log_ratio

    def costs(self, answers: Answers, wanted: Tensor, divergence: Tensor) -> Tensor:
        """(B,) of answers that are wanted (B,) or not; divergence: from the reference, a scalar (nats; section 4.1, equation 8)."""
        sign = torch.where(wanted, 1.0, -1.0)
        weight = torch.where(wanted, self.desirable, self.undesirable)
        return weight * (1 - torch.sigmoid(sign * (self.rewards(answers) - self.beta * divergence)))


class KTOObjective(Objective):
    """In: prompts, each with an answer and whether it is good. Out: `AnswerRows`: each prompt with its answer, and then each with
    the answer to another prompt, which the divergence from the reference is estimated on."""

    spec: KTO
    chats = True
    smooths = False
    compares = True
    metric_names = ("accuracy", "margin", "kl")

    @property
    def encodes(self) -> bool:
        """Whether the model is an encoder-decoder."""
        return self.spec.target_length is not None

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Sequence[int]]]:
        """Columns "prompt", "answer", "answer_scored", 1 where the assistant wrote a token, and "label", one number."""
        out = []
        for row in rows:
            for each in _answers(row):
                whole = written(self.tokenizer, each.prompt, each.completion, each.tools, encodes=self.encodes)
                prompt, (answer,) = cut_answers(self.tokenizer, [whole], self.spec)
                columns = {"prompt": prompt, "answer": answer, "answer_scored": whole.scored[: len(answer)], "label": [int(each.label)]}
                out.append(columns)
        return out

    def sizes(self) -> dict[str, int]:
        return dict.fromkeys(("prompt", "answer"), self.tokenizer.vocab_size) | {"answer_scored": 2, "label": 2}

    def samples(self, shards: Shards) -> Samples:
        """Each answer with another from the other half of the data, so that it is not to the same prompt."""
        lengths = sum(np.diff(shards.column(name).offsets) for name in ("prompt", "answer"))
        count = len(shards)

        def get(index: int) -> Sample:
            other = columns_of(shards, (index + count // 2) % count)
            return columns_of(shards, index) | {"other": other["answer"], "other_scored": other["answer_scored"]}

        return Samples(np.asarray(lengths), get)

    def collate(self, samples: Sequence[Sample], seeds: Sequence[tuple[int, ...]]) -> AnswerRows:
        answers, scored = ([s[f"{side}{kind}"] for side in _SIDES for s in samples] for kind in ("", "_scored"))
        prompts = [s["prompt"] for s in (*samples, *samples)]
        if not self.encodes:  # another's answer may be longer
            answers = [answer[: self.spec.length - len(prompt)] for prompt, answer in zip(prompts, answers, strict=True)]
            scored = [which[: len(answer)] for answer, which in zip(answers, scored, strict=True)]
        plain = answer_batch(self.tokenizer, prompts, answers, scored, encodes=self.encodes)
        wanted = torch.tensor([bool(s["label"][0]) for s in samples])
        return AnswerRows(**vars(plain), reference=reference_of(samples, _SIDES), wanted=wanted)

    def example(self, sample: Sample) -> list[tuple[str, bool]]:
        """The prompt and its answer, which is learned, or unlearned."""
        prompt, answer = (self.tokenizer.decode(sample[name], skip_special=False) for name in ("prompt", "answer"))
        return [(prompt, False), (answer, True), (f" [{'good' if sample['label'][0] else 'bad'}]", False)]

    def reference(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        return reference_columns(log_probs(model, batch).total, _SIDES)

    def loss(self, model: Any, batch: Batch, *, smoothing: float = 0.0, z_loss: float = 0.0) -> Loss:
        """Besides the loss: implied rewards of good and of bad answers, how often they are above and below 0, how far a good one's is
        above 0 or a bad one's below, the divergence from the reference (nats), and the answers' log-probabilities and tokens."""
        assert isinstance(batch, AnswerRows)
        assert batch.wanted is not None
        assert batch.reference is not None
        model.eval()  # no dropout, as the reference had none
        count, wanted = batch.count, batch.wanted
        with torch.no_grad():
            others = batch.answers(log_probs(model, _rows(batch, slice(count, None))), slice(count))
            divergence = (others.log_prob - batch.reference[count:]).mean().clamp(min=0)
        found = log_probs(model, _rows(batch, slice(count)))
        answers = batch.answers(found, slice(count))
        costs = self.spec.costs(answers, wanted, divergence)
        with torch.no_grad():
            rewards = self.spec.rewards(answers)
            margin = torch.where(wanted, rewards, -rewards)
            whole = {"accuracy": margin > 0, "margin": margin, "log_prob": answers.log_prob, "tokens": answers.tokens}
            metrics = {name: float(value.sum()) for name, value in whole.items()} | {"kl": count * float(divergence)}
            sides = {"chosen_reward": wanted, "rejected_reward": ~wanted}
            metrics |= {name: float((rewards * which).sum()) for name, which in sides.items()}
        counts = {name: float(which.sum()) for name, which in sides.items()}
        return Loss(costs.sum(), metrics, found.auxiliary, counts)

    def check(self, model: config.Model) -> None:
        need_answers(model, "KTO", self.tokenizer, encodes=self.encodes)


def _answers(row: Mapping[str, Any]) -> list[Judged]:
    """The answers of a row: one that is judged, or a pair's two."""
    if "label" in row:
        return [judged(row)]
    pair = preference(row)
    return [Judged(pair.prompt, answer, good, pair.tools) for answer, good in ((pair.chosen, True), (pair.rejected, False))]


def _rows(batch: Batch, part: slice) -> Batch:
    """Some rows of a batch."""
    rest = {name: None if (held := getattr(batch, name)) is None else held[part] for name in ("mask", "target", "target_mask")}
    return Batch(batch.inputs[part], batch.labels[part], **rest)
