"""Beam search and beam sampling: the best few texts of each prompt go on together, in groups that differ where that is wanted.

The tokens are those of transformers' beam search.

Shapes: B prompts, N beams of a group, R = B N rows, V vocabulary, C candidates a row, K candidates a group.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import processors
from .processors import History
from .requests import FinishReason, TokenRun
from .rows import Rows
from .sampler import Guide, NoChoice, State, candidates, guided, log_totals, processed, tops
from .sampling import Beams
from .stream import TextStream


@dataclass(eq=False)
class _Beam:
    """A text so far: its last token, and the text before that. `score` is the sum of its processed log-probabilities."""

    score: float
    before: _Beam | None = None
    token: int = -1
    log_prob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()
    stream: TextStream | None = None
    guide: Guide | None = None

    def then(self, token: int, score: float, log_prob: float, top: tuple[tuple[int, float], ...]) -> _Beam:
        """The text with one more token."""
        return _Beam(score, self, token, log_prob, top, self.stream, self.guide)

    def run(self, reason: FinishReason, score: float) -> TokenRun:
        """The whole text."""
        steps: list[_Beam] = []
        beam = self
        while beam.before is not None:
            steps.append(beam)
            beam = beam.before
        steps.reverse()
        top = [step.top for step in steps if step.top]
        return TokenRun([step.token for step in steps], [step.log_prob for step in steps], reason, top, score=score)


@dataclass
class Quest:
    """One prompt whose continuation is looked for.

    state: its random numbers and what is barred. room: at most so many tokens. eos: tokens that end a text. stream: for
    stop strings, the stream of an empty text.
    """

    state: State
    room: int
    eos: frozenset[int]
    stream: TextStream | None = None


class _Search:
    """A group of beams of one prompt, N that run, and at most N that have finished, the best first."""

    def __init__(self, quest: Quest, settings: Beams) -> None:
        self.quest, self.settings = quest, settings
        self.size = settings.num_beams // settings.num_beam_groups
        first = _Beam(0.0, stream=quest.stream, guide=quest.state.guide)
        # The others would be the first again: nothing is to come of them.
        self.running = [first, *(replace(first, score=-torch.inf) for _ in range(self.size - 1))]
        self.finished: list[tuple[float, _Beam, FinishReason]] = []
        self.length, self.done = 0, False
        self.taken: list[int] = []  # the tokens that the last step chose

    def step(self, found: Iterator[tuple[int, _Beam]]) -> list[int]:
        """Go on by the candidates of one step; gives the numbers of the beams that those now running go on from."""
        count = self.size
        self.taken = []
        if self.done:
            return list(range(count))
        self.length += 1
        self.quest.state.made += 1
        running: list[tuple[int, _Beam]] = []
        finished: list[tuple[float, _Beam, FinishReason]] = []
        for rank, (parent, beam) in enumerate(found):
            reason = self._reason(beam)
            if reason is None:
                running.append((parent, beam))
            elif rank < count:
                finished.append((self._final(beam.score, self.length), beam, reason))
        self.finished = sorted(self.finished + finished, key=lambda entry: -entry[0])[:count]
        running = sorted(running, key=lambda entry: -entry[1].score)[:count]
        self.taken = [beam.token for _, beam in running] or [beam.token for _, beam, _ in finished]
        self.done = self.length == self.quest.room or not running or self._settled(running[0][1].score)
        if self.done:
            return list(range(count))
        running += [(running[0][0], replace(running[0][1], score=-torch.inf))] * (count - len(running))
        self.running = [beam for _, beam in running]
        return [parent for parent, _ in running]

    def _reason(self, beam: _Beam) -> FinishReason | None:
        if beam.token in self.quest.eos:
            return "stop"
        if beam.guide is not None:
            beam.guide = beam.guide.copy()
            beam.guide.accept(beam.token)
            if beam.guide.complete:
                return "stop"
        if beam.stream is not None:
            beam.stream = beam.stream.copy()
            beam.stream.push(beam.token)
            if beam.stream.stopped:
                return "stop_string"
        return "length" if self.length == self.quest.room else None

    def _final(self, score: float, length: int) -> float:
        scale: float = float(length) ** self.settings.length_penalty
        return score / scale

    def _settled(self, best: float) -> bool:
        """Whether nothing that runs is to be waited for."""
        how = self.settings
        if len(self.finished) < self.size:
            return False
        if how.early_stopping is True:
            return True
        length = self.quest.room if how.early_stopping == "never" and how.length_penalty > 0 else self.length
        return self._final(best, length) <= self.finished[-1][0]


_Groups = list[_Search]  # of one prompt


def _results(groups: _Groups, wanted: int) -> list[TokenRun]:
    """The texts of a prompt that are given, the best first."""
    found = sorted((entry for search in groups for entry in search.finished), key=lambda entry: -entry[0])
    if len(found) < wanted:
        raise NoChoice(f"only {len(found)} texts are possible here, and num_return_sequences is {wanted}; ask for fewer", [])
    return [beam.run(reason, score) for score, beam, reason in found[:wanted]]


def beam_search(rows: Rows, quests: Sequence[Quest], settings: Beams, history: History | None) -> list[list[TokenRun]]:
    """The best texts of each prompt, `num_return_sequences` of them, with their scores.

    rows: `num_beams` of each prompt, beside one another. history: the rows' tokens so far, where the sampling looks back.
    Raises ValueError where scores are not finite numbers or too few texts are possible.
    """
    count = settings.num_beam_groups
    prompts = [[_Search(replace(quest, state=quest.state.copy()), settings) for _ in range(count)] for quest in quests]
    live = prompts
    while True:
        parents = _step(rows.scores.float(), live, history, settings.diversity_penalty)
        left = [place for place, groups in enumerate(live) if not all(search.done for search in groups)]
        if not left:
            return [_results(groups, settings.num_return_sequences) for groups in prompts]
        # Prompts that are done run along until taking them out, which copies the cache, is worth it, or they have no position left.
        step = max(search.length for search in live[left[0]])
        if len(left) <= 0.75 * len(live) or any(groups[0].quest.room <= step for groups in live):
            origins = _rows(parents, left, rows.scores.device)
            rows.keep(origins)
            live = [live[place] for place in left]
        else:
            origins = _rows(parents, range(len(live)), rows.scores.device)
            rows.exchange(origins)
        tokens = origins.new_tensor([beam.token for groups in live for search in groups for beam in search.running])
        if history is not None:
            history = History(torch.cat((history.ids[origins], tokens[:, None]), 1), history.made[origins] + 1)
        rows.advance(tokens[:, None])


def _rows(parents: Sequence[Sequence[int]], places: Sequence[int], device: torch.device) -> Tensor:
    """The rows of the batch that the beams of prompts at `places` go on from."""
    return torch.tensor([place * len(parents[place]) + parent for place in places for parent in parents[place]], device=device)


def _step(scores: Tensor, live: Sequence[_Groups], history: History | None, penalty: float) -> list[list[int]]:
    """Let all beams go on by scores (R, V), group after group; of each prompt the beams that those now running go on from, by number."""
    if len(live[0]) == 1:
        searches = [groups[0] for groups in live]
        return [search.step(found) for search, found in zip(searches, _candidates(scores, searches, history), strict=True)]
    size, rows = live[0][0].size, torch.arange(len(scores), device=scores.device)
    parents: list[list[int]] = [[] for _ in live]
    less = torch.zeros(len(live), scores.shape[1])
    for number in range(len(live[0])):
        searches, own = [groups[number] for groups in live], rows.view(len(live), -1, size)[:, number].flatten()
        past = None if history is None else History(history.ids[own], history.made[own])
        working = not all(search.done for search in searches)
        found = _candidates(scores[own], searches, past, less.repeat_interleave(size, 0)) if working else iter([iter(())] * len(live))
        for place, (search, some) in enumerate(zip(searches, found, strict=True)):
            parents[place] += [number * size + parent for parent in search.step(some)]
            for token in search.taken:
                less[place, token] += penalty
    return parents


def _candidates(
    scores: Tensor, live: Sequence[_Search], history: History | None, less: Tensor | None = None
) -> Iterator[Iterator[tuple[int, _Beam]]]:
    """Of each group the K texts, one token longer, that its next beams are chosen from, with the numbers of the beams they go on from.

    less: taken from the tokens' log-probabilities (R, V).
    """
    beams = [beam for search in live for beam in search.running]
    quest = next(search.quest for search in live if not search.done)  # all bar the same
    count = live[0].size
    sampling, reserve = quest.state.sampling, max(2, 1 + len(quest.eos))  # as many as may end, and one
    total = log_totals(scores)
    log_probs = scores - total[:, None]
    left = processed(log_probs if less is None else log_probs - less.to(scores.device), sampling, history, quest.state.barred)
    left = guided(left, [beam.guide for beam in beams])
    left, ids = (left, None) if sampling.greedy else candidates(left, sampling, reserve)
    width = left.shape[1]
    left = (left + left.new_tensor([beam.score for beam in beams])[:, None]).view(len(live), -1)
    most = min(reserve * count, left.shape[1])
    places = left.topk(most).indices if sampling.greedy else _drawn(left, [search.quest.state for search in live], most)
    parents = places // width
    rows = parents + count * torch.arange(len(live), device=left.device)[:, None]
    tokens = places % width if ids is None else ids[rows, places % width]
    told = tops(scores, total, [sampling.top_log_probs] * len(beams))
    columns = (parents, rows, left.gather(1, places), tokens, log_probs[rows, tokens])
    for search, *entries in zip(live, *(column.tolist() for column in columns), strict=True):
        yield (
            (parent, search.running[parent].then(token, score, log_prob, told[row]))
            for parent, row, score, token, log_prob in zip(*entries, strict=True)
            if score > -torch.inf
        )


def _drawn(scores: Tensor, states: Sequence[State], count: int) -> Tensor:
    """Places (B, K) in scores (B, M), drawn one after another and none twice."""
    found = []
    for _ in range(count):
        draws = torch.tensor([state.draw() for state in states], dtype=torch.double, device=scores.device)
        place = processors.pick(scores, draws).clamp(max=scores.shape[1] - 1)[:, None]  # where nothing is left, any
        found.append(place)
        scores = scores.scatter(1, place, -torch.inf)
    return torch.cat(found, 1)
