"""How the next token is chosen from a model's scores.

Shapes: B batch, V vocabulary, C candidates left of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_COLDEST = 1e-5  # a lower temperature is greedy: dividing by it would overflow
_DRAWS = 128  # random numbers that a row draws at once


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen, and when to stop.

    max_new_tokens: at most so many tokens a row.
    min_new_tokens: at least so many; until then no token that ends a row is taken. A stop string ends it all the same.
    temperature: the scores are divided by it; 0 takes the most probable token (greedy search).
    top_k: keep the k most probable tokens and those level with the last of them; 0 keeps all.
    top_p: keep the fewest most probable tokens whose probabilities sum to it (Holtzman et al. 2019); 1 keeps all.
    min_p: keep tokens at least so probable as this share of the most probable one's (Nguyen et al. 2024); 0 keeps all.
    repetition_penalty: the scores of tokens of the prompt and the output, divided by it where positive and multiplied
        where negative (Keskar et al. 2019); 1 changes nothing. Greedy search heeds it too.
    stop: strings that end the output and are cut from it.
    seed: row i of a call draws from `seed + i`, or from the i-th of several seeds, whatever the other rows are; None:
        from torch's global generator.

    Applied in the order repetition penalty, temperature, top-k, top-p, min-p, as transformers does.
    Raises ValueError for a value out of range.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | tuple[int, ...] | None = None
    min_new_tokens: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop))
        if isinstance(self.seed, list):
            object.__setattr__(self, "seed", tuple(self.seed))
        _whole("max_new_tokens", self.max_new_tokens, 1)
        _whole("min_new_tokens", self.min_new_tokens, 0, f"; max_new_tokens is {self.max_new_tokens}", self.max_new_tokens + 1)
        _whole("top_k", self.top_k, 0, "; 0 keeps every token")
        _number("temperature", self.temperature, 0, math.inf, "; 0 is greedy")
        _number("top_p", self.top_p, 0, 1, "; 1 keeps every token")
        _number("min_p", self.min_p, 0, 1, "; 0 keeps every token")
        _number("repetition_penalty", self.repetition_penalty, 0, math.inf, "; 1 changes nothing")
        if self.repetition_penalty == 0:
            raise ValueError("repetition_penalty: expected a number above 0, got 0; 1 changes nothing")
        for text in self.stop:
            if not isinstance(text, str) or not text:
                raise ValueError(f"stop: expected texts of at least one character, got {text!r}; leave it out")
        if self.seed is not None:
            for seed in self.seed if isinstance(self.seed, tuple) else (self.seed,):
                _whole("seed", seed, 0, high=2**62)

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is always taken."""
        return self.temperature < _COLDEST

    def seeds(self, rows: int) -> list[int]:
        """A seed for each of the rows of a call."""
        if isinstance(self.seed, tuple):
            if len(self.seed) != rows:
                raise ValueError(f"seed: expected one seed or one for each of the {rows} prompts, got {len(self.seed)}")
            return list(self.seed)
        first = int(torch.randint(2**62, ())) if self.seed is None and not self.greedy else self.seed or 0
        return [first + row for row in range(rows)]


def _whole(name: str, value: object, low: int, hint: str = "", high: int | None = None) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < low or (high is not None and value >= high):
        bounds = f"of at least {low}" if high is None else f"from {low} to {high - 1}"
        raise ValueError(f"{name}: expected a whole number {bounds}, got {value!r}{hint}")


def _number(name: str, value: object, low: float, high: float, hint: str) -> None:
    fine = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high and value != math.inf
    if not fine:
        bounds = f"at least {low}" if high == math.inf else f"from {low} to {high}"
        raise ValueError(f"{name}: expected a number {bounds}, got {value!r}{hint}")


def penalize(scores: Tensor, used: Tensor, penalty: float) -> Tensor:
    """Scores (B, V) with those of `used` tokens (B, V, True where used) made less by the repetition penalty."""
    return torch.where(used, torch.where(scores < 0, scores * penalty, scores / penalty), scores)


def narrow(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest scores of each row, and all that are level with the k-th: scores and ids (B, C), by rising id.

    Rows with fewer candidates than another have -inf for the rest.
    """
    best = scores.topk(min(k, scores.shape[-1]))
    least, ids = best.values[:, -1:], best.indices
    width = int((scores >= least).sum(-1).max())
    if width > ids.shape[1]:
        ids = scores.topk(width).indices
    ids = ids.sort(-1).values
    scores = scores.gather(-1, ids)
    return scores.masked_fill(scores < least, -torch.inf), ids


def keep_top_p(scores: Tensor, top_p: float) -> Tensor:
    """-inf for all but the fewest most probable of scores (B, C) whose probabilities sum to `top_p`; at least one stays."""
    rising, order = scores.sort(dim=-1, stable=True)
    cut = rising.softmax(-1).cumsum(-1) <= 1 - top_p
    cut[:, -1] = False
    return scores.masked_fill(torch.empty_like(cut).scatter_(-1, order, cut), -torch.inf)


def keep_min_p(scores: Tensor, min_p: float) -> Tensor:
    """-inf where a probability is below `min_p` times the row's highest, for scores (B, C)."""
    chances = scores.softmax(-1)
    return scores.masked_fill(chances < min_p * chances.amax(-1, keepdim=True), -torch.inf)


def candidates(scores: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor | None]:
    """Scores (B, V) after temperature, top-k, top-p and min-p: scores (B, C), and the token ids (B, C), None where C is all of V."""
    ids = None
    if sampling.temperature != 1:
        scores = scores / sampling.temperature
    if 0 < sampling.top_k < scores.shape[-1]:
        scores, ids = narrow(scores, sampling.top_k)
    if sampling.top_p < 1:
        scores = keep_top_p(scores, sampling.top_p)
    if sampling.min_p > 0:
        scores = keep_min_p(scores, sampling.min_p)
    return scores, ids


def pick(scores: Tensor, draw: Tensor) -> Tensor:
    """The places (B,) in scores (B, C) that numbers `draw` (B,), uniform in [0, 1), fall on: the inverse of the cumulated probabilities."""
    heights = scores.double().softmax(-1).cumsum(-1)
    total = heights[:, -1:]
    # Below the total whatever the rounding, so that a place of probability 0 is never picked.
    at = torch.minimum(draw[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(heights, at, right=True)[:, 0]


class Sampler:
    """Chooses a token for each row of a running batch, with what the choice depends on: the tokens used so far and the random draws."""

    def __init__(self, sampling: Sampling, seeds: Sequence[int]) -> None:
        self.sampling = sampling
        self.used: Tensor | None = None  # (B, V), for the repetition penalty
        self._generators = [] if sampling.greedy else [torch.Generator().manual_seed(seed) for seed in seeds]
        self._draws, self._drawn = torch.empty(0, 0), 0

    def start(self, ids: Tensor, mask: Tensor | None, vocab_size: int) -> None:
        """Tell the tokens (B, T) there are before the first choice; those where `mask` (B, T) is False don't count."""
        if self.sampling.repetition_penalty != 1:
            used = torch.zeros(len(ids), vocab_size + 1, dtype=torch.bool, device=ids.device)
            used.scatter_(1, ids if mask is None else ids.masked_fill(~mask.bool(), vocab_size), True)
            self.used = used[:, :vocab_size]

    def keep(self, rows: Tensor) -> None:
        """Keep the batch rows (B',) named, in that order."""
        if self.used is not None:
            self.used = self.used[rows]
        if self._generators:
            self._generators = [self._generators[row] for row in rows.tolist()]
            self._draws = self._draws[rows]

    def __call__(self, scores: Tensor, barred: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Scores (B, V) to the tokens chosen (B,) and their log-probabilities (B,), in nats, as the model had them.

        barred: token ids (N,) that are not to be chosen.
        """
        scores = scores.float()
        total = scores.logsumexp(-1)
        if not bool(total.isfinite().all()):
            raise ValueError("the model's scores are not finite numbers; its weights may be damaged or its training may have diverged")
        changed = scores if self.used is None else penalize(scores, self.used, self.sampling.repetition_penalty)
        if barred is not None:
            changed = changed.index_fill(-1, barred, -torch.inf)
        if self.sampling.greedy:
            tokens = changed.argmax(-1)
        else:
            left, ids = candidates(changed, self.sampling)
            tokens = pick(left, self._draw(scores.device))
            tokens = tokens if ids is None else ids.gather(-1, tokens[:, None])[:, 0]
        if self.used is not None:
            self.used.scatter_(1, tokens[:, None], True)
        return tokens, scores.gather(-1, tokens[:, None])[:, 0] - total

    def _draw(self, device: torch.device) -> Tensor:
        """The next random number of each row, (B,)."""
        if self._drawn % _DRAWS == 0:
            rows = [torch.rand(_DRAWS, generator=generator, dtype=torch.double) for generator in self._generators]
            self._draws = torch.stack(rows).to(device)
        self._drawn += 1
        return self._draws[:, (self._drawn - 1) % _DRAWS]
