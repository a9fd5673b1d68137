"""Proximal policy optimisation (Schulman et al. 2017) of answers: a value function says what each token was worth.

Shapes: B answers, T tokens, D width, N answers of a rollout, L tokens of one answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from triform.config.spec import at_least, spec
from triform.nn.norm import at_least_float

from .base import Batch, Sample
from .log_probs import log_probs
from .on_policy import AnswerBatch, OnPolicy, OnPolicyObjective


@spec
class PPO(OnPolicy):
    """Answers, each token trained on by its advantage over what a value function expected.

    The value function is a linear layer on the model's last hidden states, trained along with it and not exported. value_weight:
    of its loss; value_clip: how far a value may move from what it was when the answer was drawn. discount, trace: gamma and lambda
    of generalised advantage estimation (Schulman et al. 2016). whiten: advantages are shifted and scaled to mean 0 and deviation 1
    over a rollout.
    kl_in: whether straying from the reference is taken from each token's reward (Ziegler et al. 2019) or added to the loss. kl_target:
    in the reward, the weight `kl` goes up and down so that the divergence of an answer, in nats, stays about so much; kl_horizon:
    over about so many answers. missing_end_penalty: taken from the reward of an answer that was cut off at max_new_tokens.
    """

    kl: float = 0.05
    iterations: int = 4
    discount: float = 1.0
    trace: float = 0.95
    value_weight: float = 0.1
    value_clip: float = 0.2
    whiten: bool = True
    kl_in: Literal["reward", "loss"] = "reward"
    kl_target: float | None = None
    kl_horizon: int = 10_000
    missing_end_penalty: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "value_weight", "missing_end_penalty")
        at_least(self, 1, "kl_horizon")
        for name in ("discount", "trace"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a share from 0 to 1, got {getattr(self, name)}")
        for name in ("value_clip", "kl_target"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(f"{name}: expected a number above 0, got {getattr(self, name)}")
        if self.kl_target is not None and (self.kl_in != "reward" or self.kl == 0):
            raise ValueError("kl_target: expected kl_in reward and a kl above 0 to begin with; or leave the target out")


def advantages(rewards: np.ndarray, values: np.ndarray, discount: float, trace: float) -> np.ndarray:
    """Generalised advantage estimates (L,) of an answer's tokens from rewards (L,) and values (L,) (Schulman et al. 2016, equation 16)."""
    found, after, ahead = np.zeros(len(rewards)), 0.0, 0.0
    for at in reversed(range(len(rewards))):
        surprise = rewards[at] + discount * ahead - values[at]
        after = surprise + discount * trace * after
        found[at], ahead = after, values[at]
    return found


def adapted(weight: float, divergence: float, target: float, share: float) -> float:
    """The weight of the KL divergence after a rollout (Ziegler et al. 2019, section 2.2); share: of the horizon that it was."""
    return weight * (1 + min(max(divergence / target - 1, -0.2), 0.2) * share)


class PPOObjective(OnPolicyObjective):
    """In: prompts. Out, of answers: what `OnPolicyObjective` says, with advantages, values and returns of each token."""

    spec: PPO

    @property
    def needs_old(self) -> bool:
        return True

    @property
    def kl_weight(self) -> float:
        return self.spec.kl if self.spec.kl_in == "loss" else 0.0

    def attach(self, model: Any) -> None:
        """Give the model the value function, which begins with 0 everywhere."""
        model.value = nn.Linear(model.last.spec.width, 1, device=next(model.parameters()).device)
        nn.init.zeros_(model.value.weight)
        nn.init.zeros_(model.value.bias)

    @contextmanager
    def detached(self, model: Any) -> Iterator[None]:
        """The model is without the value function."""
        value = model.value
        del model.value
        try:
            yield
        finally:
            model.value = value

    def read(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        """"old" as everywhere, and "values", where the model has a value function."""
        found = log_probs(model, batch, temperature=self.spec.temperature)
        return {"old": found.tokens} | ({"values": _values(model, found.hidden)} if hasattr(model, "value") else {})

    def judge(self, samples: Sequence[Sample], rewards: np.ndarray, memory: dict[str, Any]) -> dict[str, float]:
        weight, figures = memory.setdefault("kl_weight", self.spec.kl), dict[str, float]()
        strays = [sample["old"].astype(np.float64) - sample["reference"] if self.needs_reference else None for sample in samples]
        for sample, reward, stray in zip(samples, rewards, strays, strict=True):
            tokens = np.zeros(len(sample["completion"]))
            if stray is not None and self.spec.kl_in == "reward":
                tokens -= weight * stray
            tokens[-1:] += reward - (0.0 if sample["ended"] else self.spec.missing_end_penalty)
            found = advantages(tokens, sample["values"].astype(np.float64), self.spec.discount, self.spec.trace)
            sample["advantages"] = found
            sample["returns"] = (found + sample["values"]).astype(np.float32)
        if self.spec.whiten:
            every = np.concatenate([sample["advantages"] for sample in samples])
            mean, scale = every.mean(), np.sqrt(every.var(ddof=1) + 1e-8) if len(every) > 1 else 1.0
            for sample in samples:
                sample["advantages"] = (sample["advantages"] - mean) / scale
        for sample in samples:
            sample["advantages"] = sample["advantages"].astype(np.float32)
        if self.needs_reference:
            figures["answer_kl"] = float(np.mean([stray.sum() for stray in strays if stray is not None]))
        if self.spec.kl_target is not None:
            figures["kl_weight"] = weight
            share = len(samples) / self.spec.kl_horizon
            memory["kl_weight"] = adapted(weight, figures["answer_kl"], self.spec.kl_target, share)
        return figures

    def further(self, model: Any, batch: AnswerBatch, hidden: Tensor) -> tuple[Tensor | float, dict[str, Tensor]]:
        assert batch.values is not None
        assert batch.returns is not None
        now = _values(model, hidden)
        near = now.clamp(batch.values - self.spec.value_clip, batch.values + self.spec.value_clip)
        cost = 0.5 * torch.maximum((now - batch.returns).square(), (near - batch.returns).square())
        return self.spec.value_weight * cost, {"value_loss": cost}


def _values(model: Any, hidden: Tensor) -> Tensor:
    """What the value function expects at hidden states (B, T, D), (B, T)."""
    return at_least_float(model.value(hidden.to(model.value.weight.dtype))[..., 0])
