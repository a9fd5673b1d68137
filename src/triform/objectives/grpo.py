"""Group relative policy optimisation (Shao et al. 2024): several answers to each prompt, each judged against the others.

Shapes: B answers, T tokens, N answers of a rollout, G answers to a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor

from triform.config.spec import spec
from triform.nn import IGNORE

from .base import Sample
from .on_policy import AnswerBatch, OnPolicy, OnPolicyObjective

_FLAT = 1e-4  # what is added to a deviation that divides


@spec
class GRPO(OnPolicy):
    """Answers to each prompt, trained on by how much better than the others they are.

    loss: what the tokens' losses come to. grpo: the mean over answers of the mean over each one's tokens. bnpo: the mean over the
    tokens of each micro-batch. dapo: over those of the whole step (Yu et al. 2025). dr_grpo: the sum over `max_new_tokens` and the
    number of answers, so that an answer's length changes nothing (Liu et al. 2025).
    scale: rewards less their mean in the group are divided by their standard deviation there, by that of the whole rollout
    ("batch"), or by nothing ("none", Dr. GRPO). mask_truncated: answers that were cut off at max_new_tokens are not trained on.
    """

    group: int = 8
    loss: Literal["grpo", "bnpo", "dr_grpo", "dapo"] = "dapo"
    scale: Literal["group", "batch", "none"] = "group"
    mask_truncated: bool = False
    fewest: ClassVar[int] = 2


def group_advantages(rewards: np.ndarray, group: int, scale: str) -> np.ndarray:
    """The advantage (N,) of each answer from rewards (N,), those of a group side by side (Shao et al. 2024, section 4.1.2)."""
    parts = rewards.reshape(-1, group)
    found: np.ndarray = parts - parts.mean(1, keepdims=True)
    if scale == "group":
        found = found / (parts.std(1, ddof=1, keepdims=True) + _FLAT)
    elif scale == "batch":
        found = found / (rewards.std(ddof=1) + _FLAT)
    return found.reshape(-1)


class GRPOObjective(OnPolicyObjective):
    """In: prompts. Out, of answers: what `OnPolicyObjective` says, with one advantage for all tokens of an answer."""

    spec: GRPO

    def judge(self, samples: Sequence[Sample], rewards: np.ndarray, memory: dict[str, Any]) -> dict[str, float]:
        advantages = group_advantages(rewards, self.spec.group, self.spec.scale)
        for sample, advantage in zip(samples, advantages, strict=True):
            sample["advantages"] = np.full(len(sample["completion"]), advantage, dtype=np.float32)
        spread = rewards.reshape(-1, self.spec.group).std(1)
        return {"reward_spread": float(spread.mean()), "alike_share": float((spread < 1e-8).mean())}

    def settle(self, batch: AnswerBatch, samples: Sequence[Sample]) -> None:
        if self.spec.mask_truncated and batch.advantages is not None:
            for labels, sample in zip(batch.labels, samples, strict=True):
                if not sample["ended"]:
                    labels.fill_(IGNORE)
        batch.divisor = {
            "grpo": len(samples), "bnpo": 1, "dapo": batch.scored, "dr_grpo": len(samples) * self.spec.max_new_tokens
        }[self.spec.loss]  # fmt: skip

    def total(self, loss: Tensor, scored: Tensor) -> Tensor:
        if self.spec.loss == "grpo":
            return (loss.sum(-1) / scored.sum(-1).clamp(min=1)).sum()
        return loss.sum() / scored.sum().clamp(min=1) if self.spec.loss == "bnpo" else loss.sum()
