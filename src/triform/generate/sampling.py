"""How tokens are to be chosen: the settings, their limits, and some known by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal

import torch

from .constrained import Constraint

Preset = Literal["greedy", "beam", "sampling", "contrastive"]

_COLDEST = 1e-5  # a lower temperature is greedy: dividing by it would overflow


def _whole(name: str, value: object, low: int, hint: str = "", high: int | None = None) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < low or (high is not None and value >= high):
        bounds = f"of at least {low}" if high is None else f"from {low} to {high - 1}"
        raise ValueError(f"{name}: expected a whole number {bounds}, got {value!r}{hint}")


def _number(name: str, value: object, low: float, high: float, hint: str) -> None:
    fine = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high and not math.isinf(value)
    if not fine:
        bounds = "" if low == -math.inf else f" at least {low}" if high == math.inf else f" from {low} to {high}"
        raise ValueError(f"{name}: expected a number{bounds}, got {value!r}{hint}")


@dataclass(frozen=True, kw_only=True)
class Beams:
    """Beam search: the best few texts so far go on together. With a temperature above 0 their tokens are drawn (beam sampling).

    num_beams: how many go on.
    length_penalty: a finished text's score is the sum of its log-probabilities divided by its length to this power:
        above 0 favours long texts, below 0 short ones.
    early_stopping: when a prompt is done, once it has `num_beams` finished texts: True at once; False when the best that
        runs is no better than the worst finished, both at the length they have; "never" when it could not become so at
        any length.
    num_return_sequences: so many of the finished texts are given, the best first.
    num_beam_groups, diversity_penalty: diverse beam search (Vijayakumar et al. 2018): the beams go on in so many groups of one size,
        one after another at each step, and a token's score is less by the penalty for every beam of the groups before that has
        just taken it.

    As in transformers, whose tokens these are. Raises ValueError for a value out of range.
    """

    num_beams: int = 4
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    num_return_sequences: int = 1
    num_beam_groups: int = 1
    diversity_penalty: float = 0.0

    def __post_init__(self) -> None:
        _whole("num_beams", self.num_beams, 2, "; without beams, leave `search` out")
        _number("length_penalty", self.length_penalty, -50, 50, "; 1 is the mean log-probability, 0 the sum")
        if self.early_stopping not in (True, False, "never"):
            raise ValueError(f'early_stopping: expected True, False or "never", got {self.early_stopping!r}')
        _whole("num_return_sequences", self.num_return_sequences, 1, "; at most num_beams", self.num_beams + 1)
        _whole("num_beam_groups", self.num_beam_groups, 1, "; at most num_beams", self.num_beams + 1)
        _number("diversity_penalty", self.diversity_penalty, 0, 1000, "; 0 without groups")
        if self.num_beams % self.num_beam_groups:
            raise ValueError(f"num_beam_groups: expected a divisor of num_beams, {self.num_beams}, got {self.num_beam_groups}")
        if (self.num_beam_groups > 1) != (self.diversity_penalty > 0):
            wanted = "above 0 with groups, which would else say the same," if self.num_beam_groups > 1 else "of 0 without num_beam_groups,"
            raise ValueError(f"diversity_penalty: expected a number {wanted} got {self.diversity_penalty}")


@dataclass(frozen=True, kw_only=True)
class Contrastive:
    """Contrastive search (Su et al. 2022): of the `top_k` most probable tokens the one with the highest

    (1 - penalty_alpha) * probability - penalty_alpha * the greatest cosine of its hidden state and an earlier token's.
    """

    penalty_alpha: float = 0.6
    top_k: int = 4

    def __post_init__(self) -> None:
        _number("penalty_alpha", self.penalty_alpha, 0, 1, "; 0 is greedy")
        _whole("top_k", self.top_k, 1)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen, and when to stop.

    max_new_tokens: at most so many tokens a row.
    min_new_tokens: at least so many; until then no token that ends a row is taken. A stop string ends it all the same.
    temperature: the scores are divided by it; 0 takes the most probable token (greedy search).
    top_k: keep the k most probable tokens and those level with the last of them; 0 keeps all.
    top_p: keep the fewest most probable tokens whose probabilities sum to it (Holtzman et al. 2019); 1 keeps all.
    min_p: keep tokens at least so probable as this share of the most probable one's (Nguyen et al. 2024); 0 keeps all.
    typical_p: keep the tokens whose surprise is nearest to the expected one, as many as sum to it (Meister et al. 2022);
        1 keeps all.
    repetition_penalty: the scores of tokens of the prompt and the output, divided by it where positive and multiplied
        where negative (Keskar et al. 2019); 1 changes nothing.
    presence_penalty, frequency_penalty: taken from the score of a token that was generated: once, and for every time
        (OpenAI's definition); below 0 encourages it.
    no_repeat_ngram: no run of so many tokens of the prompt and the output occurs twice; 0 allows all.
    logit_bias: numbers added to the scores of tokens, by id; -inf bars one.
    bad_words: what is not to be written: sequences of ids, whose last token is barred where the others stand before it,
        or texts, of which `generate` makes the sequences that the tokenizer spells them with, alone and after a space; the same
        text in other tokens is not seen.
    stop: strings that end the output and are cut from it.
    seed: row i of a call draws from `seed + i`, or from the i-th of several seeds, whatever the other rows are; None:
        from torch's global generator.
    top_log_probs: tell the log-probabilities of so many of the most probable tokens at each step.
    constraint: what the whole text must be: a `JsonSchema`, a `Regex`, or `OneOf` several texts.
    search: `Beams` or `Contrastive`; None goes on with one token a row at a time. Or one of ChatLM-mini-Chinese's named
        searches, "greedy", "beam", "sampling" or "contrastive": each field that has its default takes the value of `PRESETS`.

    Greedy search heeds the penalties and bars too. Applied in the order logit bias, repetition, presence and frequency
    penalties, n-grams, bad words, least length, then temperature, top-k, top-p, min-p, typical-p, as transformers does
    (which has no presence and frequency penalties). Raises ValueError for a value out of range.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram: int = 0
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] = ()
    bad_words: tuple[str | tuple[int, ...], ...] = ()
    stop: tuple[str, ...] = ()
    seed: int | tuple[int, ...] | None = None
    min_new_tokens: int = 0
    top_log_probs: int = 0
    constraint: Constraint | None = None
    search: Beams | Contrastive | Preset | None = None

    def __post_init__(self) -> None:
        self._make_hashable()
        if isinstance(self.search, str):
            self._fill_in(self.search)
        _whole("max_new_tokens", self.max_new_tokens, 1)
        _whole("min_new_tokens", self.min_new_tokens, 0, f"; max_new_tokens is {self.max_new_tokens}", self.max_new_tokens + 1)
        _whole("top_k", self.top_k, 0, "; 0 keeps every token")
        _whole("no_repeat_ngram", self.no_repeat_ngram, 0, "; 0 allows every run of tokens")
        _whole("top_log_probs", self.top_log_probs, 0)
        _number("temperature", self.temperature, 0, math.inf, "; 0 is greedy")
        _number("top_p", self.top_p, 0, 1, "; 1 keeps every token")
        _number("min_p", self.min_p, 0, 1, "; 0 keeps every token")
        _number("typical_p", self.typical_p, 0, 1, "; 1 keeps every token")
        _number("repetition_penalty", self.repetition_penalty, 0, math.inf, "; 1 changes nothing")
        _number("presence_penalty", self.presence_penalty, -math.inf, math.inf, "; 0 changes nothing")
        _number("frequency_penalty", self.frequency_penalty, -math.inf, math.inf, "; 0 changes nothing")
        for name in ("repetition_penalty", "typical_p"):
            if getattr(self, name) == 0:
                raise ValueError(f"{name}: expected a number above 0, got 0; 1 changes nothing")
        self._check_tokens()
        if self.constraint is not None and not isinstance(self.constraint, Constraint):
            raise ValueError(f"constraint: expected a JsonSchema, a Regex or a OneOf, got {type(self.constraint).__name__}")
        if self.search is not None and not isinstance(self.search, Beams | Contrastive):
            raise ValueError(f"search: expected Beams, Contrastive or None, got {self.search!r}")
        if isinstance(self.search, Beams) and self.search.num_beam_groups > 1 and not self.greedy:
            raise ValueError(f"temperature: expected 0 with groups of beams, which draw nothing, got {self.temperature}")
        if isinstance(self.search, Contrastive) and not self.greedy:
            raise ValueError(f"temperature: expected 0 with contrastive search, which draws nothing, got {self.temperature}")

    def _make_hashable(self) -> None:
        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop))
        if isinstance(self.seed, list):
            object.__setattr__(self, "seed", tuple(self.seed))
        pairs = self.logit_bias.items() if isinstance(self.logit_bias, Mapping) else dict(self.logit_bias).items()
        object.__setattr__(self, "logit_bias", tuple(pairs))
        words = (self.bad_words,) if isinstance(self.bad_words, str) else self.bad_words
        object.__setattr__(self, "bad_words", tuple(tuple(word) if isinstance(word, list) else word for word in words))

    def _fill_in(self, name: str) -> None:
        if name not in PRESETS:
            raise ValueError(f"search: expected Beams, Contrastive or one of {', '.join(PRESETS)}, got {name!r}")
        object.__setattr__(self, "search", None)
        for field, value in PRESETS[name].items():
            if getattr(self, field) == getattr(Sampling, field):
                object.__setattr__(self, field, value)

    def _check_tokens(self) -> None:
        for text in self.stop:
            if not isinstance(text, str) or not text:
                raise ValueError(f"stop: expected texts of at least one character, got {text!r}; leave it out")
        for token, bias in self.biases:
            _whole("logit_bias", token, 0, " as a token's id")
            if bias != -math.inf:
                _number("logit_bias", bias, -1e30, 1e30, f" for the token {token}; -inf bars it")
        for word in self.bad_words:
            if not isinstance(word, str | tuple) or not word:
                raise ValueError(f"bad_words: expected texts or sequences of ids, none of them empty, got {word!r}")
            for token in word if isinstance(word, tuple) else ():
                _whole("bad_words", token, 0, " as a token's id")
        if self.seed is not None:
            for seed in self.seed if isinstance(self.seed, tuple) else (self.seed,):
                _whole("seed", seed, 0, high=2**62)

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is always taken."""
        return self.temperature < _COLDEST

    @property
    def biases(self) -> tuple[tuple[int, float], ...]:
        """The pairs of `logit_bias`."""
        assert isinstance(self.logit_bias, tuple)
        return self.logit_bias

    @property
    def looks_back(self) -> bool:
        """Whether the choice depends on the tokens so far."""
        penalties = self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1
        return bool(penalties or self.no_repeat_ngram or any(len(word) > 1 for word in self.bad_words))

    @cached_property
    def rules(self) -> tuple[Any, ...]:
        """What rows must share for their scores to be changed in one go."""
        return tuple(getattr(self, f.name) for f in fields(self) if f.name not in _FOR_ONE_ROW)

    def seeds(self, rows: int) -> list[int]:
        """A seed for each of the rows of a call."""
        if isinstance(self.seed, tuple):
            if len(self.seed) != rows:
                raise ValueError(f"seed: expected one seed or one for each of the {rows} prompts, got {len(self.seed)}")
            return list(self.seed)
        first = int(torch.randint(2**62, ())) if self.seed is None and not self.greedy else self.seed or 0
        return [first + row for row in range(rows)]


_FOR_ONE_ROW = frozenset({"max_new_tokens", "min_new_tokens", "stop", "seed", "top_log_probs", "search", "constraint"})

PRESETS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beam": {
        "temperature": 1.0, "top_k": 50, "top_p": 0.95, "no_repeat_ngram": 4,
        "search": Beams(num_beams=5, length_penalty=-2.0, early_stopping=True),
    },
    "sampling": {"temperature": 0.98, "top_k": 50, "top_p": 0.80, "no_repeat_ngram": 4},
    "contrastive": {"search": Contrastive(penalty_alpha=0.5, top_k=50)},
}  # fmt: skip
