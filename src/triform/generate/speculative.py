"""Speculative decoding: several tokens proposed cheaply, then read by the model in one pass (Leviathan et al. 2023, Chen et al. 2023).

A proposal x is taken with probability min(1, p(x) / q(x)), where p is what the model would draw from and q what x was
drawn from; where it is not, a token is drawn from max(0, p - q), scaled to sum to one, and the rest of the proposals are
dropped. So the text has the distribution that it has without proposals, and greedily it is the same text.

Shapes: V vocabulary, K proposals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from triform import config
from triform.nn import Transformer
from triform.text import Tokenizer

from .forms import Module, expect, longest
from .processors import pick
from .requests import Speculation, TokenRun
from .rows import Ending, Rows
from .sampler import NoChoice, State, log_totals, remaining, tops

Prompt = tuple[Sequence[int], Sequence[int]]  # what goes in, and what the decoder of an encoder-decoder begins with


@dataclass(frozen=True)
class Draft:
    """Proposals by a smaller model with the same tokens and of the same form, `tokens` for each pass of the large one.

    tokenizer: of the draft, to check that its tokens are the same.
    """

    model: Module
    tokenizer: Tokenizer | None = None
    tokens: int = 4

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ValueError(f"tokens: expected at least one proposal a pass, got {self.tokens}")


@dataclass(frozen=True)
class Lookup:
    """Proposals from the prompt and the text itself: the `tokens` that followed where its last tokens, at most `ngram`, stood before."""

    tokens: int = 8
    ngram: int = 3

    def __post_init__(self) -> None:
        for name in ("tokens", "ngram"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")


def speculate(
    net: Transformer, prompt: Prompt, state: State, room: int, ending: Ending, how: Draft | Lookup, row: int = 0
) -> TokenRun:
    """The text that follows one prompt, at most `room` tokens.

    prompt: what a decoder-only model goes on from, or an encoder reads; and what the decoder of an encoder-decoder begins with.
    row: its number in the call, for who watches.
    Raises ValueError for a draft of another form.
    """
    reader = _Reader(net, *prompt, room)
    proposer = _Drafted(how, net, prompt, room) if isinstance(how, Draft) else _Found(how, prompt[0])
    run, scores, proposed = TokenRun(), reader.first, list[_Proposal]()
    run.speculation = told = Speculation()
    while True:
        told.passes += 1
        told.proposed += len(proposed)
        for i in range(len(scores)):
            own = scores[i : i + 1]
            token, taken = _chosen(own, state, proposed[i] if i < len(proposed) else None)
            told.accepted += taken
            total = log_totals(own)
            top = tops(own, total, [state.sampling.top_log_probs])[0]
            state.accept(token)
            if ending.ends(run, row, room, (token, float(own[0, token] - total), top), complete=state.complete):
                return run
            if not taken:
                break
        proposed = proposer.propose(state, run.ids, min(how.tokens, room - len(run.ids) - 1))
        scores = reader.after([*run.ids, *(one.token for one in proposed)], 1 + len(proposed))


@dataclass(frozen=True)
class _Proposal:
    """A token, and the probabilities (V,) that it was drawn by; None: it was certain."""

    token: int
    chances: Tensor | None


def _chosen(scores: Tensor, state: State, proposal: _Proposal | None) -> tuple[int, bool]:
    """The next token by scores (1, V), and whether it is the one proposed."""
    chances = _chances(scores, state)
    if proposal is None:
        return _drawn(chances, state), False
    wanted = float(chances[proposal.token])
    if proposal.chances is None:
        rest = chances.index_fill(0, torch.tensor(proposal.token, device=chances.device), 0.0)
    else:
        wanted = wanted / float(proposal.chances[proposal.token])
        rest = (chances - proposal.chances).clamp(min=0)
    if _uniform(state) < wanted:
        return proposal.token, True
    return _drawn(rest if bool(rest.any()) else chances, state), False


def _chances(scores: Tensor, state: State) -> Tensor:
    """What a token is drawn from, (V,), by scores (1, V); greedily all of it is on one token."""
    left, ids = remaining(scores, [state])
    if not bool((left > -torch.inf).any()):
        raise NoChoice("every token is barred, by bad_words, no_repeat_ngram, logit_bias or a constraint; loosen one of them", [0])
    if state.sampling.greedy:
        return torch.zeros(scores.shape[-1], dtype=torch.double, device=scores.device).index_fill(0, left[0].argmax(), 1.0)
    chances = left[0].double().softmax(-1)
    return chances if ids is None else chances.new_zeros(scores.shape[-1]).index_copy(0, ids[0], chances)


def _uniform(state: State) -> float:
    return 0.0 if state.sampling.greedy else state.draw()


def _drawn(chances: Tensor, state: State) -> int:
    return int(pick(chances.log()[None], torch.tensor([_uniform(state)], dtype=torch.double, device=chances.device)))


class _Reader:
    """One prompt and what follows it, as a model reads them; it can go back."""

    def __init__(self, net: Transformer, ids: Sequence[int], start: Sequence[int], spare: int) -> None:
        self._device = next(net.parameters()).device
        self._rows = Rows(net, torch.tensor([list(ids)], device=self._device), None, list(start), spare, alternatives=1)
        self._begin = self._rows.prompts.shape[1]
        self._read: list[int] = []
        self.first = self._rows.scores.float()  # (1, V), after the prompt

    def after(self, text: Sequence[int], count: int) -> Tensor:
        """Scores (count, V) after each of the last `count` tokens of what follows the prompt."""
        most = min(len(self._read), len(text) - count)
        same = next((at for at in range(most) if self._read[at] != text[at]), most)
        self._read = list(text)
        return self._rows.read(torch.tensor([self._read[same:]], device=self._device), self._begin + same)[0, -count:].float()


class _Drafted:
    """Proposals by a smaller model."""

    def __init__(self, draft: Draft, net: Transformer, prompt: Prompt, room: int) -> None:
        small = expect(draft.model, "generate")
        if small.config.form != net.config.form:
            raise ValueError(f"the draft is {small.config.form} and the model {net.config.form}; expected two of one form")
        ids, start = prompt
        assert isinstance(net.config.last.input, config.Tokens)
        self._vocab_size = net.config.last.input.vocab_size  # the draft's table may have been rounded up to another size
        source, target = longest(small.config.encoder), longest(small.config.decoder)
        self._most = room if target is None else min(room, target - (len(start) or len(ids)))  # tokens that it has positions for
        fits = self._most > 0 and (source is None or len(ids) <= source)
        self._reader = _Reader(small, ids, start, self._most) if fits else None

    def propose(self, state: State, made: Sequence[int], most: int) -> list[_Proposal]:
        """At most so many tokens that may follow those made."""
        found: list[_Proposal] = []
        own, text = state.copy(), list(made)
        while self._reader is not None and len(found) < most and len(text) <= self._most and not own.complete:
            scores = self._reader.after(text, 1)
            try:
                chances = _chances(F.pad(scores, (0, self._vocab_size - scores.shape[-1]), value=-torch.inf), own)
            except ValueError:  # a constraint that the draft has led to where nothing goes on
                break
            if not bool(chances.isfinite().all()):
                break
            token = _drawn(chances, state)
            found.append(_Proposal(token, chances))
            text.append(token)
            own.accept(token)
        return found


class _Found:
    """Proposals from the text so far."""

    def __init__(self, how: Lookup, ids: Sequence[int]) -> None:
        self._how, self._ids = how, list(ids)

    def propose(self, state: State, made: Sequence[int], most: int) -> list[_Proposal]:
        """What followed the latest place where the last tokens of the text stood before, as many of them as possible."""
        text = np.array([*self._ids, *made])
        for size in range(min(self._how.ngram, len(text) - 1), 0, -1):
            starts = len(text) - size  # of runs of this size that something follows
            same = np.ones(starts, dtype=bool)
            for i in range(size):
                same &= text[i : i + starts] == text[len(text) - size + i]
            if same.any():
                at = int(same.nonzero()[0][-1]) + size
                return [_Proposal(int(token), None) for token in text[at : at + most]]
        return []
