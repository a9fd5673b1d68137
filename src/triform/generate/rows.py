"""Prompts that run together from the first to the last token: their cache, and what the model says comes next.

Shapes: B prompts, R rows (several of each prompt), T tokens, D width, V vocabulary.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from triform import config
from triform.nn import Cache, Layout, Transformer

from .forms import longest
from .requests import TokenRun


def room(spec: config.Transformer, length: int, first: int, wanted: int, *, reads_last: bool = False) -> int:
    """How many tokens a row may make, after `first` that the decoder begins with.

    The last of them needs no position, unless it is read too.
    Raises ValueError for a prompt of `length` tokens that is longer than the model's learned positions.
    """
    limit = longest(spec.encoder if spec.encoder is not None else spec.decoder)
    if limit is not None and length > limit:
        raise ValueError(f"a prompt has {length:,} tokens and the model has {limit:,} learned positions; shorten it")
    limit = longest(spec.decoder)
    if limit is None:
        return wanted
    return min(wanted, limit + (not reads_last) - (length if spec.encoder is None else first))


Watch = Callable[[int, int, bool], bool]


@dataclass(frozen=True)
class Ending:
    """What ends a row: a token of `eos`, or `watch`, called as `watch(row, token, last)` with every token, by giving True."""

    eos: frozenset[int]
    watch: Watch | None = None

    def ends(
        self, run: TokenRun, row: int, room: int, step: tuple[int, float, tuple[tuple[int, float], ...]], *, complete: bool = False
    ) -> bool:
        """Add a token, its log-probability and the most probable ones to a run, which is told if it ends and why.

        complete: nothing can follow the token.
        """
        token, log_prob, top = step
        run.ids.append(token)
        run.log_probs.append(log_prob)
        if top:
            run.tops.append(top)
        at_eos = token in self.eos or complete
        last = at_eos or len(run.ids) >= room
        if self.watch is not None and self.watch(row, token, last):
            run.finish_reason, last = "stop_string", True
        elif at_eos:
            run.finish_reason = "stop"
        return last


class Rows:
    """Rows that run: their cache, the scores (R, V) of their next tokens, and `hidden` (R, T, D) of those read last.

    ids (B, T), mask: prompts of a decoder-only model, padded on the left, or what an encoder reads.
    start: what the decoder of an encoder-decoder begins with. spare: places for further tokens. copies: rows of each
    prompt, beside one another. alternatives: so many tokens may be tried for one place; with any, rows can go back.
    """

    def __init__(
        self, net: Transformer, ids: Tensor, mask: Tensor | None, start: list[int], spare: int, *, copies: int = 1, alternatives: int = 0
    ) -> None:
        self.net = net
        self.prompts = ids.new_tensor(start).expand(len(ids), -1) if start else ids  # what the decoder reads, (B, T)
        capacity = self.prompts.shape[1] + spare + max(0, alternatives - 1)
        _check_memory(net, len(ids) * copies, capacity)
        self.cache = Cache.preallocated(net.config, capacity, windowed=not alternatives)
        if net.encoder is not None:
            self.hidden = net(ids, mask, self.prompts, cache=self.cache, logits=False).hidden
        else:
            self.hidden = net(ids, mask, cache=self.cache, layout=self._layout(ids, mask), logits=False).hidden
        self.scores = self.score(self.hidden[:, -1])
        if copies > 1:
            self.keep(torch.arange(len(ids), device=ids.device).repeat_interleave(copies))

    def _layout(self, ids: Tensor, mask: Tensor | None) -> Layout | None:
        """The prompt is the prefix of a model that has one."""
        assert self.net.config.decoder is not None
        if all(block.attention.mask != "prefix" for block in self.net.config.decoder.pattern):
            return None
        return Layout(prefix=torch.ones_like(ids, dtype=torch.bool) if mask is None else mask)

    def score(self, hidden: Tensor) -> Tensor:
        """Scores over the vocabulary of hidden states."""
        scores = self.net.score(hidden)
        assert scores is not None
        return scores

    def advance(self, tokens: Tensor) -> None:
        """Read a token of each row, (R, 1)."""
        self.hidden = self._hidden(tokens)
        self.scores = self.score(self.hidden[:, -1])

    def _hidden(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.net(tokens, target=None if self.net.encoder is None else tokens, cache=self.cache, logits=False).hidden
        return found

    def read(self, tokens: Tensor, since: int) -> Tensor:
        """Scores (R, T, V) after each of several tokens of each row, (R, T), from place `since` on, where others may have stood."""
        self.cache.truncate(since)
        return self.score(self._hidden(tokens))

    def attempt(self, tokens: Tensor) -> Tensor:
        """Hidden states (R, K, D) of K tokens of each row, (R, K), each tried for the next place; `take` must follow."""
        self.cache.alternatives = True
        self._tried = self._hidden(tokens)
        return self._tried

    def take(self, choices: Tensor) -> None:
        """Go on with one of the tokens that were tried of each row, by its number (R,)."""
        self.cache.take(choices, self._tried.shape[1])
        self.hidden = self._tried[torch.arange(len(choices), device=choices.device), choices][:, None]
        self.scores = self.score(self.hidden[:, -1])

    def keep(self, rows: Tensor) -> None:
        """Keep the rows (R',) named, in that order."""
        self.cache.reorder(rows)
        self.scores, self.hidden = self.scores[rows], self.hidden[rows]

    def exchange(self, rows: Tensor) -> None:
        """Go on in each row from what another row of the same prompt has read."""
        self.cache.exchange(rows, self.prompts.shape[1])


def _check_memory(net: Transformer, rows: int, capacity: int) -> None:
    """Refuse a cache larger than the machine's memory before any of it is taken."""
    spec, parameter = net.config.decoder, next(net.parameters())
    assert spec is not None
    attentions = [spec.block(layer).attention for layer in range(spec.depth)]
    width = sum((a.kv_heads or a.heads) * spec.head_width(a) for a in attentions if a.window is None)
    need = 2 * rows * capacity * width * parameter.element_size()
    if parameter.device.type == "cuda":
        there = torch.cuda.mem_get_info(parameter.device)[1]
    elif hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    else:
        return
    if need > there:
        raise ValueError(
            f"the cache of {rows:,} rows of {capacity:,} tokens takes {need / 2**30:,.0f} GiB and the memory has {there / 2**30:,.0f}; "
            "lower max_new_tokens or batch_size"
        )
