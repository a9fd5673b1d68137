"""What changes a model's scores before a token is chosen: penalties, bars, and what sampling leaves out.

Shapes: R rows, V vocabulary, T tokens of the longest row, C candidates left of the vocabulary. Every function gives
new scores and leaves those handed in as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_HEAD = 1024  # most probable tokens, which mostly hold a top-p
_MARGIN = 1e-4  # of a probability, for rounding


@dataclass(frozen=True)
class History:
    """The tokens of rows so far.

    ids: (R, T), the last token of each row on the right; -1 where a row has none.
    made: (R,), how many of a row's last tokens were generated.
    """

    ids: Tensor
    made: Tensor

    def places(self, vocab_size: int, *, made_only: bool = False) -> Tensor:
        """The tokens as columns of scores with one more, (R, T), which is for what does not count: padding, with `made_only` the prompt."""
        there = self.ids >= 0
        if made_only:
            width = self.ids.shape[1]
            there = there & (torch.arange(width, device=self.ids.device) >= width - self.made[:, None])
        return self.ids.masked_fill(~there, vocab_size).clamp(max=vocab_size)


def penalize(scores: Tensor, places: Tensor, penalty: float) -> Tensor:
    """Scores (R, V) of the tokens at `places` (R, T, V for none) divided by the penalty where positive, multiplied where negative."""
    wider = F.pad(scores, (0, 1))
    found = wider.gather(1, places)
    return wider.scatter_(1, places, torch.where(found < 0, found * penalty, found / penalty))[:, :-1]


def discourage(scores: Tensor, places: Tensor, presence: float, frequency: float) -> Tensor:
    """Scores (R, V) less `presence` for every token at `places` (R, T, V for none), and `frequency` each time (OpenAI's definition)."""
    wider = F.pad(scores, (0, 1))
    wider.scatter_(1, places, wider.gather(1, places) - presence)
    return wider.scatter_add_(1, places, wider.new_full(places.shape, -frequency))[:, :-1]


def bar(scores: Tensor, rows: Tensor, tokens: Tensor) -> Tensor:
    """Scores (R, V) with -inf at the pairs of `rows` (N,) and `tokens` (N,); tokens that the model has not are passed over."""
    known = tokens < scores.shape[1]
    changed = scores.clone()
    changed[rows[known], tokens[known]] = -torch.inf
    return changed


def bar_repeated(scores: Tensor, history: History, size: int) -> Tensor:
    """-inf for the tokens that would end a run of `size` tokens that the row has already (Paulus et al. 2017)."""
    ids = history.ids
    if ids.shape[1] < size:
        return scores
    windows = ids.unfold(1, size, 1)
    ends = (windows[..., :-1] == ids[:, None, ids.shape[1] - size + 1 :]).all(-1) & (windows[..., -1] >= 0)
    rows, places = ends.nonzero(as_tuple=True)
    return bar(scores, rows, windows[rows, places, -1])


def bar_sequences(scores: Tensor, history: History, sequences: Sequence[tuple[int, ...]]) -> Tensor:
    """-inf for the tokens that would complete one of the sequences of ids, each of at least one."""
    width = history.ids.shape[1]
    pairs = []
    for *before, last in sequences:
        if len(before) <= width:
            beginning = torch.tensor(before, dtype=torch.long, device=scores.device)
            rows = (history.ids[:, width - len(before) :] == beginning).all(1).nonzero()[:, 0]
            pairs.append((rows, torch.full_like(rows, last)))
    return bar(scores, *(torch.cat(side) for side in zip(*pairs, strict=True))) if pairs else scores


def narrow(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest scores of each row, and all that are level with the k-th: scores and ids (R, C), by rising id.

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


def keep_top_p(scores: Tensor, top_p: float, least: int = 1, outside: Tensor | None = None) -> Tensor:
    """-inf for all but the fewest most probable of scores (R, C) whose probabilities sum to `top_p`; at least `least` stay.

    outside: (R, 1), the probability of less probable tokens that are not among the scores.
    """
    rising, order = scores.sort(dim=-1, stable=True)
    below = rising.softmax(-1).cumsum(-1)
    cut = (below if outside is None else outside + (1 - outside) * below) <= 1 - top_p
    cut[:, -least:] = False
    return _without(scores, order, cut)


def head_of_top_p(scores: Tensor, top_p: float, least: int = 1) -> tuple[Tensor, Tensor | None]:
    """`keep_top_p` of scores (R, V), which sorts but the head of them where that holds enough: scores and ids (R, C), None for all."""
    if max(_HEAD, least) < scores.shape[-1] // 4:
        best, ids = narrow(scores, max(_HEAD, least))
        outside = 1 - (best.logsumexp(-1, keepdim=True) - scores.logsumexp(-1, keepdim=True)).exp()
        if bool((outside < 1 - top_p - _MARGIN).all()):
            return keep_top_p(best, top_p, least, outside.clamp(min=0)), ids
    return keep_top_p(scores, top_p, least), None


def keep_min_p(scores: Tensor, min_p: float, least: int = 1) -> Tensor:
    """-inf where a probability is below `min_p` times the row's highest, for scores (R, C); at least `least` stay."""
    chances = scores.softmax(-1)
    cut = chances < min_p * chances.amax(-1, keepdim=True)
    if least > 1:
        cut.scatter_(-1, chances.topk(min(least, cut.shape[-1])).indices, False)
    return scores.masked_fill(cut, -torch.inf)


def keep_typical(scores: Tensor, mass: float, least: int = 1) -> Tensor:
    """-inf for all but the tokens whose surprise is nearest to the entropy and whose probabilities sum to `mass`.

    Locally typical sampling (Meister et al. 2022) of scores (R, C); at least `least` stay.
    """
    log_probs = scores.log_softmax(-1)
    entropy = -(log_probs * log_probs.exp()).nansum(-1, keepdim=True)
    distance, order = (-log_probs - entropy).abs().sort(dim=-1, stable=True)
    reached = (scores.gather(-1, order).softmax(-1).cumsum(-1) < mass).sum(-1, keepdim=True)
    cut = distance > distance.gather(-1, reached.clamp(max=scores.shape[-1] - 1))
    cut[:, :least] = False
    return _without(scores, order, cut)


def _without(scores: Tensor, order: Tensor, cut: Tensor) -> Tensor:
    """Scores with -inf where `cut` is True, which is told in another order."""
    return scores.masked_fill(torch.empty_like(cut).scatter_(-1, order, cut), -torch.inf)


def pick(scores: Tensor, draw: Tensor) -> Tensor:
    """The places (R,) in scores (R, C) that numbers `draw` (R,), uniform in [0, 1), fall on: the inverse of the cumulated probabilities."""
    heights = scores.double().softmax(-1).cumsum(-1)
    total = heights[:, -1:]
    # Below the total whatever the rounding, so that a place of probability 0 is never picked.
    at = torch.minimum(draw[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(heights, at, right=True)[:, 0]
