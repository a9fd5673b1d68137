"""How probable a model finds given answers: what preferences and policies are trained by.

Shapes: B rows, T tokens (of an encoder-decoder's target), D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from triform.nn import IGNORE

from .base import Batch, auxiliary


@dataclass(frozen=True)
class LogProbs:
    """Log-probabilities of a batch's labels, in nats.

    tokens (B, T): of each label, 0 where it is not scored. scored (B, T): whether it is. entropy (B, T): of all tokens that could stand
    there, without a gradient, where it was asked for. auxiliary: the losses of experts, where the model has them. hidden (B, T, D): what
    the head read.
    """

    tokens: Tensor
    scored: Tensor
    entropy: Tensor | None
    auxiliary: dict[str, Tensor]
    hidden: Tensor

    @property
    def total(self) -> Tensor:
        """Of each row, (B,)."""
        return self.tokens.sum(-1)

    @property
    def count(self) -> Tensor:
        """The labels of each row that are scored, (B,)."""
        return self.scored.sum(-1)


def log_probs(model: Any, batch: Batch, *, temperature: float = 1.0, entropy: bool = False) -> LogProbs:
    """The log-probabilities of a batch's labels by a model with a language-model head; temperature: the logits are divided by it."""
    out = model(batch.inputs, batch.mask, batch.target, batch.target_mask, layout=batch.layout, logits=False)
    tokens, entropies = model.language_model_log_probs(out.hidden, batch.labels, temperature=temperature, entropy=entropy)
    return LogProbs(tokens, batch.labels != IGNORE, entropies, auxiliary(out), out.hidden)
