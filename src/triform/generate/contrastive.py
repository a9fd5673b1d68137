"""Contrastive search: of the most probable tokens the one whose hidden state says something new.

Su et al. 2022, "A Contrastive Framework for Neural Text Generation", equation 5.

Shapes: B rows, S places so far, K candidates, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .requests import TokenRun
from .rows import Ending, Rows
from .sampler import NoChoice, State, log_totals, remaining, tops
from .sampling import Contrastive


def contrastive_search(
    rows: Rows, states: Sequence[State], room: Sequence[int], settings: Contrastive, ending: Ending, mask: Tensor | None = None
) -> list[TokenRun]:
    """The text of each row, at most `room` tokens.

    rows: with `top_k` alternatives. mask: (B, S), which of the first places that the decoder read are seen.
    Raises ValueError where scores are not finite numbers or everything is barred.
    """
    runs = [TokenRun() for _ in room]
    names = list(range(len(room)))  # the row of the call that each row of the running batch is
    live = [place for place in names if room[place] > 0]  # the places in the running batch of rows that have not ended
    context = F.normalize(rows.hidden.float(), dim=-1)
    unseen = torch.zeros(context.shape[:2], device=context.device) if mask is None else torch.where(mask, 0.0, -torch.inf)
    for step in range(1, max(room) + 1):
        if not live:
            break
        asked = [states[names[place]] for place in live]
        scores = rows.scores[live].float()
        total = log_totals(scores)
        likely, candidates = _likely(scores, asked, settings.top_k)
        tokens = candidates.new_zeros(len(names), candidates.shape[1])
        tokens[live] = candidates
        tried = F.normalize(rows.attempt(tokens).float(), dim=-1)
        likeness = (tried @ context.mT + unseen[:, None]).amax(-1)[live]
        worth = (1 - settings.penalty_alpha) * likely - settings.penalty_alpha * likeness
        choices = worth.masked_fill(likely == 0, -torch.inf).argmax(-1, keepdim=True)
        chosen = candidates.gather(1, choices)
        log_probs = (scores.gather(1, chosen)[:, 0] - total).tolist()
        told = tops(scores, total, [state.sampling.top_log_probs for state in asked])
        ended = []
        for place, state, token, log_prob, top in zip(live, asked, chosen[:, 0].tolist(), log_probs, told, strict=True):
            row = names[place]
            state.accept(token)
            ended.append(ending.ends(runs[row], row, room[row], (token, log_prob, top), complete=state.complete))
        taken = choices.new_zeros(len(names))
        taken[live] = choices[:, 0]
        rows.take(taken)
        context = torch.cat((context, tried[range(len(names)), taken][:, None]), dim=1)
        unseen = F.pad(unseen, (0, 1))
        live = [place for place, over in zip(live, ended, strict=True) if not over]
        # Ended rows run along until taking them out, which copies the cache, is worth it, or until they have no position left.
        if live and (len(live) <= 0.75 * len(names) or any(room[row] <= step for row in names)):
            kept = torch.tensor(live, device=context.device)
            rows.keep(kept)
            context, unseen = context[kept], unseen[kept]
            names, live = [names[place] for place in live], list(range(len(live)))
    return runs


def _likely(scores: Tensor, states: Sequence[State], count: int) -> tuple[Tensor, Tensor]:
    """The probabilities (B, K) of the most probable tokens of scores (B, V), and these; 0 where a token is barred."""
    left, _ = remaining(scores, states)
    best = left.softmax(-1).topk(min(count, left.shape[-1]))
    if stuck := best.values[:, 0].isnan().nonzero()[:, 0].tolist():
        raise NoChoice("every token is barred, by bad_words, no_repeat_ngram, logit_bias or a constraint; loosen one of them", stuck)
    return best.values, best.indices
