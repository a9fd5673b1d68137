"""What changes a model's scores before a token is chosen: penalties, bars, and what sampling leaves out.

Shapes: R rows, V vocabulary, T tokens of the longest row, C candidates left of the vocabulary. Every function gives
new scores and leaves those handed in as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class History:
    """The tokens of rows so far.

    ids: (R, T), the last token of each row on the right; -1 where a row has none.
    made: (R,), how many of a row's last tokens were generated.
    """

    ids: Tensor
    made: Tensor

    def counts(self, vocab_size: int, *, made_only: bool = False) -> Tensor:
        """How often each token occurs in each row, (R, V) in fp32; with `made_only` among the generated ones."""
        there = self.ids >= 0
        if made_only:
            width = self.ids.shape[1]
            there = there & (torch.arange(width, device=self.ids.device) >= width - self.made[:, None])
        found = torch.zeros(len(self.ids), vocab_size + 1, device=self.ids.device)  # the last is for what does not count
        places = self.ids.masked_fill(~there, vocab_size).clamp(max=vocab_size)
        return found.scatter_add_(1, places, torch.ones_like(places, dtype=found.dtype))[:, :vocab_size]


def penalize(scores: Tensor, used: Tensor, penalty: float) -> Tensor:
    """Scores (R, V) of `used` tokens (R, V, True where used) divided by the penalty where positive, multiplied where negative."""
    return torch.where(used, torch.where(scores < 0, scores * penalty, scores / penalty), scores)


def discourage(scores: Tensor, counts: Tensor, presence: float, frequency: float) -> Tensor:
    """Scores (R, V) less `presence` for every token that occurs and `frequency` for every time it does (OpenAI's definition)."""
    return scores - frequency * counts - presence * (counts > 0)


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


def keep_top_p(scores: Tensor, top_p: float, least: int = 1) -> Tensor:
    """-inf for all but the fewest most probable of scores (R, C) whose probabilities sum to `top_p`; at least `least` stay."""
    rising, order = scores.sort(dim=-1, stable=True)
    cut = rising.softmax(-1).cumsum(-1) <= 1 - top_p
    cut[:, -least:] = False
    return _without(scores, order, cut)


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
