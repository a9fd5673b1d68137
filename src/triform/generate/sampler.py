"""The choice of the next token from a model's scores, for rows of any settings together.

Shapes: R rows, V vocabulary, C candidates left of it. A row is a text that runs; what its choices depend on is its
`State`. A row's tokens are the same whichever other rows are there.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor

from . import processors
from .processors import History
from .requests import Scored
from .sampling import Sampling

_DRAWS = 128  # random numbers that a row draws at once


class Guide(Protocol):
    """What allows and bars tokens of one row, step by step (constrained output)."""

    @property
    def complete(self) -> bool:
        """Whether nothing can follow, so that the row ends."""

    def apply(self, scores: Tensor) -> None:
        """Put -inf into scores (V,), in place, where a token is not allowed now."""

    def accept(self, token: int) -> None:
        """Hear which token was chosen."""

    def copy(self) -> Guide:
        """Another that goes on from here by itself."""


class NoChoice(ValueError):
    """No token can be chosen for some of the rows; the states of all are as they were. `rows`: their numbers in the call."""

    def __init__(self, message: str, rows: list[int]) -> None:
        super().__init__(message)
        self.rows = rows


class State:
    """What the choices of one row depend on, and the tokens that it made.

    prompt: the tokens before the first choice, for the penalties and bars that heed them (of an encoder-decoder, those
        that its decoder begins with).
    eos: tokens that end a row, which are not chosen before `min_new_tokens`. barred: tokens that are never chosen.
    seed: None takes the first of the sampling's.
    guide: bars further tokens at each step.
    """

    def __init__(
        self,
        sampling: Sampling,
        prompt: Sequence[int] = (),
        *,
        eos: Collection[int] = frozenset(),
        barred: Collection[int] = frozenset(),
        seed: int | None = None,
        guide: Guide | None = None,
    ) -> None:
        for word in sampling.bad_words:
            if isinstance(word, str):
                raise ValueError(f"bad_words: expected sequences of ids here, got {word!r}; `generate` makes them of texts")
        self.sampling, self.guide = sampling, guide
        self.made = 0
        self._open, self._short = frozenset(barred), frozenset(barred) | frozenset(eos)
        self._ids = torch.empty(0, dtype=torch.long)
        self._length = 0
        if sampling.looks_back:
            self._remember(prompt)
        self._generator = None
        if not sampling.greedy:
            self._generator = torch.Generator().manual_seed(sampling.seeds(1)[0] if seed is None else seed)
        self._draws: list[float] = []

    @property
    def barred(self) -> frozenset[int]:
        """The tokens that are not to be chosen now, whatever was before."""
        return self._short if self.made < self.sampling.min_new_tokens else self._open

    @property
    def complete(self) -> bool:
        """Whether the row ends, as its guide lets nothing follow."""
        return self.guide is not None and self.guide.complete

    @property
    def ids(self) -> Tensor:
        """The tokens so far, (T,), where the sampling looks back."""
        return self._ids[: self._length]

    def draw(self) -> float:
        """The row's next random number, uniform in [0, 1)."""
        if not self._draws:
            assert self._generator is not None
            self._draws = torch.rand(_DRAWS, generator=self._generator, dtype=torch.double).tolist()[::-1]
        return self._draws.pop()

    def accept(self, token: int) -> None:
        """Hear which token was chosen, where another than `choose` did it (a draft that was verified)."""
        self.made += 1
        if self.sampling.looks_back:
            self._remember([token])
        if self.guide is not None:
            self.guide.accept(token)

    def copy(self) -> State:
        """Another with the same past, for tokens that are tried out; both draw from one row of random numbers."""
        new = copy(self)
        new._ids = self._ids.clone()
        new.guide = None if self.guide is None else self.guide.copy()
        return new

    def _remember(self, tokens: Sequence[int]) -> None:
        end = self._length + len(tokens)
        if end > len(self._ids):
            grown = torch.empty(max(64, 2 * end), dtype=torch.long)
            grown[: self._length] = self.ids
            self._ids = grown
        self._ids[self._length : end] = torch.as_tensor(tokens, dtype=torch.long)
        self._length = end


@dataclass(frozen=True)
class Choices:
    """The tokens chosen (R,), and the log-probability of each (R,), in nats, as the model gave it.

    tops: of each row the most probable tokens, as many as its `top_log_probs`, with their log-probabilities.
    """

    tokens: Tensor
    log_probs: Tensor
    tops: list[tuple[tuple[int, float], ...]]


def choose(scores: Tensor, states: Sequence[State]) -> Choices:
    """A token for each row from scores (R, V); its state hears of it.

    Raises NoChoice, a ValueError, where scores are not finite numbers or everything is barred.
    """
    scores = scores.float()
    total = log_totals(scores)
    groups = _groups(states)
    left = [remaining(scores if len(groups) == 1 else scores[rows], [states[row] for row in rows]) for rows in groups]
    best = [part.max(-1) for part, _ in left]
    if stuck := [(rows[i], most.values[i]) for rows, most in zip(groups, best, strict=True) for i in _infinite(most.values)]:
        _refuse(stuck)
    tokens = torch.empty(len(states), dtype=torch.long, device=scores.device)
    for rows, (part, ids), most in zip(groups, left, best, strict=True):
        places = most.indices
        if not states[rows[0]].sampling.greedy:
            draws = torch.tensor([states[row].draw() for row in rows], dtype=torch.double, device=scores.device)
            places = processors.pick(part, draws)
        tokens[rows] = places if ids is None else ids.gather(-1, places[:, None])[:, 0]
    for state, token in zip(states, tokens.tolist(), strict=True):
        state.accept(token)
    told = tops(scores, total, [state.sampling.top_log_probs for state in states])
    return Choices(tokens, scores.gather(-1, tokens[:, None])[:, 0] - total, told)


def _infinite(values: Tensor) -> list[int]:
    found: list[int] = (~values.isfinite()).nonzero()[:, 0].tolist()
    return found


def _refuse(stuck: Sequence[tuple[int, Tensor]]) -> NoReturn:
    """Say why rows whose best scores are these numbers have no token to choose."""
    if barred := [row for row, best in stuck if best == -torch.inf]:
        raise NoChoice("every token is barred, by bad_words, no_repeat_ngram, logit_bias or a constraint; loosen one of them", barred)
    rows = [row for row, _ in stuck]
    raise NoChoice("the scores overflow; choose penalties, biases and a temperature nearer to what they are when left out", rows)


def score(scores: Tensor, tokens: Sequence[int], top: int) -> list[Scored]:
    """Tokens (R,) that are there already, by the scores (R, V) of each in its place, and so many of the most probable ones there.

    Raises NoChoice where scores are not finite numbers.
    """
    if not tokens:
        return []
    scores = scores.float()
    total = log_totals(scores)
    own = scores.gather(-1, torch.tensor(tokens, device=scores.device)[:, None])
    log_probs, ranks = (own[:, 0] - total).tolist(), (1 + (scores > own).sum(-1)).tolist()
    return [Scored(*one) for one in zip(tokens, log_probs, ranks, tops(scores, total, [top] * len(tokens)), strict=True)]


def remaining(scores: Tensor, states: Sequence[State]) -> tuple[Tensor, Tensor | None]:
    """What is left to choose from of scores (R, V), for rows with the same `rules` and `barred`.

    Returns scores (R, C), -inf where a token is left out, and the candidates' ids (R, C), None where C is all of V. The
    softmax of the scores is what a token is drawn from. The states are left as they are.
    """
    first = states[0]
    history = history_of(states, scores.device) if first.sampling.looks_back else None
    changed = guided(processed(scores, first.sampling, history, first.barred), [state.guide for state in states])
    return (changed, None) if first.sampling.greedy else candidates(changed, first.sampling)


def log_totals(scores: Tensor) -> Tensor:
    """The logarithm (R,) of the sum that turns exp(scores) (R, V) into probabilities. Raises NoChoice where it is not finite."""
    total = scores.logsumexp(-1)
    if not bool((fine := total.isfinite()).all()):
        broken = (~fine).nonzero()[:, 0].tolist()
        raise NoChoice("the model's scores are not finite numbers; its weights may be damaged or its training may have diverged", broken)
    return total


def guided(scores: Tensor, guides: Sequence[Guide | None]) -> Tensor:
    """Scores (R, V) without the tokens that the rows' guides bar."""
    if all(guide is None for guide in guides):
        return scores
    scores = scores.clone()
    for row, guide in zip(scores, guides, strict=True):
        if guide is not None:
            guide.apply(row)
    return scores


def processed(scores: Tensor, sampling: Sampling, history: History | None, barred: frozenset[int] = frozenset()) -> Tensor:
    """Scores (R, V) after all that greedy search heeds as well: bias, penalties and bars."""
    vocab_size = scores.shape[-1]
    if sampling.biases:
        scores = scores + _biases(sampling.biases, vocab_size).to(scores.device)
    if history is not None:
        if sampling.repetition_penalty != 1:
            scores = processors.penalize(scores, history.places(vocab_size), sampling.repetition_penalty)
        if sampling.presence_penalty or sampling.frequency_penalty:
            made = history.places(vocab_size, made_only=True)
            scores = processors.discourage(scores, made, sampling.presence_penalty, sampling.frequency_penalty)
        if sampling.no_repeat_ngram:
            scores = processors.bar_repeated(scores, history, sampling.no_repeat_ngram)
        if longer := [word for word in sampling.bad_words if isinstance(word, tuple) and len(word) > 1]:
            scores = processors.bar_sequences(scores, history, longer)
    alone = frozenset(word[0] for word in sampling.bad_words if isinstance(word, tuple) and len(word) == 1)
    if never := barred | alone if alone else barred:
        scores = scores.index_fill(-1, _inside(never, vocab_size).to(scores.device), -torch.inf)
    return scores


def candidates(scores: Tensor, sampling: Sampling, least: int = 1) -> tuple[Tensor, Tensor | None]:
    """Scores (R, V) after temperature, top-k, top-p, min-p and typical-p, of which at least `least` tokens stay.

    Returns scores (R, C), and the token ids (R, C), None where C is all of V.
    """
    ids = None
    if sampling.temperature != 1:
        scores = scores / sampling.temperature
    if sampling.top_k and max(sampling.top_k, least) < scores.shape[-1]:
        scores, ids = processors.narrow(scores, max(sampling.top_k, least))
    if sampling.top_p < 1 and ids is None:
        scores, ids = processors.head_of_top_p(scores, sampling.top_p, least)
    elif sampling.top_p < 1:
        scores = processors.keep_top_p(scores, sampling.top_p, least)
    if sampling.min_p > 0:
        scores = processors.keep_min_p(scores, sampling.min_p, least)
    if sampling.typical_p < 1:
        scores = processors.keep_typical(scores, sampling.typical_p, least)
    return scores, ids


def history_of(states: Sequence[State], device: torch.device) -> History:
    """The tokens of rows that look back."""
    ids = [state.ids for state in states]
    width = max(map(len, ids))
    together = torch.full((len(ids), width), -1, dtype=torch.long)
    for row, own in zip(together, ids, strict=True):
        row[width - len(own) :] = own
    return History(together.to(device), torch.tensor([state.made for state in states], device=device))


def _groups(states: Sequence[State]) -> list[list[int]]:
    """The numbers of the rows whose scores are changed in one go."""
    found: dict[Any, list[int]] = {}
    for row, state in enumerate(states):
        found.setdefault((state.sampling.rules, state.barred), []).append(row)
    return list(found.values())


def tops(scores: Tensor, total: Tensor, counts: Sequence[int]) -> list[tuple[tuple[int, float], ...]]:
    """The most probable tokens of each row of scores (R, V), as many as told, with their log-probabilities."""
    most = min(max(counts), scores.shape[-1])
    if not most:
        return [()] * len(counts)
    best = scores.topk(most)
    pairs = zip(best.indices.tolist(), (best.values - total[:, None]).tolist(), counts, strict=True)
    return [tuple(zip(ids, values, strict=True))[:count] for ids, values, count in pairs]


@lru_cache(maxsize=64)
def _biases(pairs: tuple[tuple[int, float], ...], vocab_size: int) -> Tensor:
    bias = torch.zeros(vocab_size)
    for token, value in pairs:
        if token >= vocab_size:
            raise ValueError(f"logit_bias: expected ids below the model's {vocab_size:,} tokens, got {token}")
        bias[token] = value
    return bias


@lru_cache(maxsize=64)
def _inside(ids: frozenset[int], vocab_size: int) -> Tensor:
    """The ids that the vocabulary has."""
    return torch.tensor(sorted(i for i in ids if 0 <= i < vocab_size), dtype=torch.long)
