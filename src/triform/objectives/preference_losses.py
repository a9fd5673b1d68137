"""What a preference costs: DPO and its kin, from the log-probabilities of the answer that was chosen and of the one that was rejected.

Shapes: B pairs, or answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from triform.config.spec import spec

_CERTAIN = -1e-6  # a mean log-probability closer to 0 has odds that are no number any more


@dataclass(frozen=True)
class Answers:
    """Answers as a model sees them: the log-probability (B,) of each in nats, its tokens (B,), and its log-probability by the
    reference, where one is asked."""

    log_prob: Tensor
    tokens: Tensor
    reference: Tensor | None = None

    @property
    def mean(self) -> Tensor:
        """The log-probability of a token, (B,)."""
        return self.log_prob / self.tokens

    @property
    def log_ratio(self) -> Tensor:
        """log p(answer) - log p_reference(answer), (B,)."""
        assert self.reference is not None
        return self.log_prob - self.reference


def above(name: str, value: float, least: float = 0.0) -> None:
    """Raise ValueError unless a number is above another."""
    if value <= least:
        raise ValueError(f"{name}: expected a number above {least:g}, got {value}")


@spec
class DPO:
    """Direct preference optimisation (Rafailov et al. 2023, equation 7).

    beta: how much straying from the reference counts; less lets the model go further. smoothing: the share of pairs that are taken
    to be the wrong way round (conservative DPO, Mitchell 2023).
    """

    beta: float = 0.1
    smoothing: float = 0.0
    compares: ClassVar[bool] = True  # with a reference

    def __post_init__(self) -> None:
        above("beta", self.beta)
        if not 0 <= self.smoothing < 0.5:
            raise ValueError(f"smoothing: expected a share from 0 up to but not including 0.5, got {self.smoothing}")

    def rewards(self, answers: Answers) -> Tensor:
        """The rewards (B,) that the model implies."""
        return self.beta * answers.log_ratio

    def costs(self, chosen: Answers, rejected: Answers) -> Tensor:
        """(B,), nats."""
        margin = self.rewards(chosen) - self.rewards(rejected)
        return -(1 - self.smoothing) * F.logsigmoid(margin) - self.smoothing * F.logsigmoid(-margin)


@spec
class IPO:
    """Identity preference optimisation (Azar et al. 2024, equation 17), of log-probabilities a token, as its authors have it.

    beta: the margin of log-ratios goes to 1 / (2 beta) and no further.
    """

    beta: float = 0.1
    compares: ClassVar[bool] = True

    def __post_init__(self) -> None:
        above("beta", self.beta)

    def rewards(self, answers: Answers) -> Tensor:
        """The rewards (B,) that the model implies."""
        return self.beta * answers.log_ratio / answers.tokens

    def costs(self, chosen: Answers, rejected: Answers) -> Tensor:
        """(B,), squares of nats a token."""
        return ((self.rewards(chosen) - self.rewards(rejected)) / self.beta - 1 / (2 * self.beta)).square()


@spec
class SimPO:
    """Simple preference optimisation (Meng et al. 2024, equation 6): of log-probabilities a token, without a reference.

    margin: by how much the chosen answer's reward has to be above the other's (the paper's gamma).
    """

    beta: float = 2.0
    margin: float = 1.0
    compares: ClassVar[bool] = False

    def __post_init__(self) -> None:
        above("beta", self.beta)
        if self.margin < 0:
            raise ValueError(f"margin: expected 0 or more, got {self.margin}")

    def rewards(self, answers: Answers) -> Tensor:
        """The rewards (B,) that the model implies."""
        return self.beta * answers.mean

    def costs(self, chosen: Answers, rejected: Answers) -> Tensor:
        """(B,), nats."""
        return -F.logsigmoid(self.rewards(chosen) - self.rewards(rejected) - self.margin)


@spec
class ORPO:
    """Odds-ratio preference optimisation (Hong et al. 2024, equations 6 and 7): fine-tuning on the chosen answer, and the log of
    both answers' odds ratio, without a reference.

    weight: of the odds ratio (the paper's lambda).
    """

    weight: float = 0.1
    compares: ClassVar[bool] = False

    def __post_init__(self) -> None:
        above("weight", self.weight)

    def rewards(self, answers: Answers) -> Tensor:
        """The rewards (B,) that the model implies."""
        return self.weight * answers.mean

    def costs(self, chosen: Answers, rejected: Answers) -> Tensor:
        """(B,), nats a token of the chosen answer."""
        return -chosen.mean - self.weight * F.logsigmoid(_log_odds(chosen.mean) - _log_odds(rejected.mean))


def _log_odds(log_prob: Tensor) -> Tensor:
    log_prob = log_prob.clamp(max=_CERTAIN)
    return log_prob - torch.log(-torch.expm1(log_prob))


PairLoss = DPO | IPO | SimPO | ORPO
