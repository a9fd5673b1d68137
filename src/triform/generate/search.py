"""Text from a prompt, a token at a time, by a decoder alone or an encoder and a decoder.

Shapes: B batch, T tokens of the prompt (or of the encoder's input), V vocabulary.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from triform import config
from triform.nn import Cache, Layout, Transformer
from triform.text import Tokenizer
from triform.text.framing import decoder_start, source
from triform.text.framing import prompts as framed_prompts

from .forms import Module, batches, check_ids, evaluating, expect, listed, longest, padded
from .sampler import State, choose
from .sampling import Sampling
from .stream import TextStream

FinishReason = Literal["stop", "length", "stop_string"]


@dataclass
class TokenRun:
    """The tokens of one row, those that ended it included; the log-probability of each (nats) as the model gave it; and why it ended.

    top: at each step the most probable tokens, as (id, log-probability), as many as `Sampling.top_log_probs`.
    """

    ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    finish_reason: FinishReason = "length"
    top: list[tuple[tuple[int, float], ...]] = field(default_factory=list)

    def add(self, token: int, log_prob: float, top: tuple[tuple[int, float], ...] = ()) -> None:
        """One more token."""
        self.ids.append(token)
        self.log_probs.append(log_prob)
        if top:
            self.top.append(top)


@dataclass(frozen=True)
class Generation:
    """What a prompt was continued with, or answered by an encoder-decoder.

    text: what follows the prompt, without special tokens and stop string.
    ids, log_probs: every token made, the one that ended it included, and its log-probability
        (nats) as the model gave it, before temperature and the rest.
    finish_reason: "stop" at the end-of-sequence token, "stop_string", or "length" at
        `max_new_tokens` or the model's longest sequence.
    prompt_ids: the tokens that the model read.
    """

    text: str
    ids: list[int]
    log_probs: list[float]
    finish_reason: FinishReason
    prompt_ids: list[int]


Watch = Callable[[int, int, bool], bool]
Conversation = Sequence[Mapping[str, Any]]


def generate_ids(
    model: Module,
    ids: Tensor,
    mask: Tensor | None = None,
    sampling: Sampling | None = None,
    *,
    eos: Collection[int] = (),
    start: int | Sequence[int] | None = None,
    barred: Collection[int] = (),
    watch: Watch | None = None,
) -> list[TokenRun]:
    """Tokens that follow ids (B, T), a run for each row.

    ids: prompts of a decoder-only model, padded on the left, or what the encoder of an encoder-decoder reads.
    mask: (B, T), False or 0 where padding.
    eos: a row ends with any of these tokens.
    start: the token, or the tokens, that the decoder of an encoder-decoder begins with.
    barred: tokens that are never chosen.
    watch: called as `watch(row, token, last)` with every token made, `last` when the row ends with it;
        True ends the row ("stop_string").

    Raises ValueError for a model of another form, and for prompts longer than its learned positions.
    """
    sampling = sampling or Sampling()
    net = expect(model, "generate")
    lengths = [ids.shape[1]] * len(ids) if mask is None else mask.sum(1).tolist()
    if ids.ndim != 2 or min(lengths, default=0) < 1:
        raise ValueError("ids: expected rows of at least one token each; begin an empty prompt with the tokenizer's bos")
    first = [] if net.encoder is None or start is None else [start] if isinstance(start, int) else list(start)
    if net.encoder is not None and not first:
        raise ValueError("start: expected the token that the decoder begins with (the tokenizer's bos, or its pad as T5 has it)")
    room = [_room(net.config, length, len(first), sampling.max_new_tokens) for length in lengths]
    ends, never = frozenset(eos), frozenset(barred)
    with evaluating(net) as device:
        ids = ids.to(device)
        mask = None if mask is None or bool(mask.all()) else mask.to(device).bool()
        before = [first] * len(ids) if first else _unpadded(ids, mask) if sampling.looks_back else [[]] * len(ids)
        seeds = sampling.seeds(len(ids))
        states = [State(sampling, prompt, eos=ends, barred=never, seed=seed) for prompt, seed in zip(before, seeds, strict=True)]
        return _search(_Batch(net, ids, mask, first, max(room)), states, room, _Ending(ends, watch))


def _unpadded(ids: Tensor, mask: Tensor | None) -> list[list[int]]:
    return ids.tolist() if mask is None else [row[seen].tolist() for row, seen in zip(ids, mask, strict=True)]


def _room(spec: config.Transformer, length: int, first: int, wanted: int) -> int:
    """How many tokens a row may make, after `first` that the decoder begins with; the last needs no position, as it is not read again."""
    limit = longest(spec.encoder if spec.encoder is not None else spec.decoder)
    if limit is not None and length > limit:
        raise ValueError(f"a prompt has {length:,} tokens and the model has {limit:,} learned positions; shorten it")
    limit = longest(spec.decoder)
    if limit is None:
        return wanted
    return min(wanted, limit + 1 - (length if spec.encoder is None else first))


class _Batch:
    """Rows of a batch that run: their cache and the scores (B, V) of their next tokens."""

    def __init__(self, net: Transformer, ids: Tensor, mask: Tensor | None, start: list[int], room: int) -> None:
        self.net = net
        self.tokens = ids.new_tensor(start).expand(len(ids), -1) if start else ids
        capacity = room + self.tokens.shape[1] - 1
        _check_memory(net, len(ids), capacity)
        self.cache = Cache.preallocated(net.config, capacity)
        if net.encoder is not None:
            hidden = net(ids, mask, self.tokens, cache=self.cache, logits=False).hidden
        else:
            hidden = net(ids, mask, cache=self.cache, layout=self._layout(ids, mask), logits=False).hidden
        self.scores = self._score(hidden[:, -1])

    def _layout(self, ids: Tensor, mask: Tensor | None) -> Layout | None:
        """The prompt is the prefix of a model that has one."""
        assert self.net.config.decoder is not None
        if all(block.attention.mask != "prefix" for block in self.net.config.decoder.pattern):
            return None
        return Layout(prefix=torch.ones_like(ids, dtype=torch.bool) if mask is None else mask)

    def _score(self, hidden: Tensor) -> Tensor:
        scores = self.net.score(hidden)
        assert scores is not None
        return scores

    def advance(self, tokens: Tensor) -> None:
        """Read one token a row, (B,)."""
        new = tokens[:, None]
        if self.net.encoder is None:
            hidden = self.net(new, cache=self.cache, logits=False).hidden
        else:
            hidden = self.net(new, target=new, cache=self.cache, logits=False).hidden
        self.scores = self._score(hidden[:, -1])


@dataclass(frozen=True)
class _Ending:
    """Which tokens end a row, and who watches and may end it."""

    eos: frozenset[int]
    watch: Watch | None

    def ends(self, run: TokenRun, row: int, room: int) -> bool:
        """Whether the last token of a run ended it; the run is told why."""
        at_eos = run.ids[-1] in self.eos
        last = at_eos or len(run.ids) >= room
        if self.watch is not None and self.watch(row, run.ids[-1], last):
            run.finish_reason, last = "stop_string", True
        elif at_eos:
            run.finish_reason = "stop"
        return last


def _search(batch: _Batch, states: list[State], room: Sequence[int], ending: _Ending) -> list[TokenRun]:
    runs = [TokenRun() for _ in room]
    rows = list(range(len(room)))  # the row of the call that each row of the running batch is
    left = rows  # the places in the running batch of rows that have not ended
    for step in range(1, max(room) + 1):
        found = choose(batch.scores if len(left) == len(rows) else batch.scores[left], [states[rows[place]] for place in left])
        ended = []
        for place, token, log_prob, top in zip(left, found.tokens.tolist(), found.log_probs.tolist(), found.tops, strict=True):
            row = rows[place]
            runs[row].add(token, log_prob, top)
            ended.append(ending.ends(runs[row], row, room[row]))
        tokens = found.tokens.new_zeros(len(rows))
        tokens[left] = found.tokens
        left = [place for place, over in zip(left, ended, strict=True) if not over]
        if not left:
            break
        # Ended rows run along until taking them out, which copies the cache, is worth it, or until they have no position left.
        if 4 * len(left) <= 3 * len(rows) or (len(left) < len(rows) and any(room[row] <= step for row in rows)):
            kept = torch.tensor(left, device=tokens.device)
            batch.cache.reorder(kept)
            tokens, rows = tokens[kept], [rows[place] for place in left]
            left = list(range(len(rows)))
        batch.advance(tokens)
    return runs


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


def generate(
    model: Module,
    tokenizer: Tokenizer,
    prompts: str | Sequence[str | Conversation],
    sampling: Sampling | None = None,
    *,
    on_text: Callable[[int, str], None] | None = None,
    start: int | Sequence[int] | None = None,
    batch_size: int = 32,
) -> list[Generation]:
    """Continue each prompt (decoder-only), or answer it (encoder-decoder).

    prompts: texts, or conversations: lists of messages such as {"role": "user", "content": "Hello"}, which are
        written as the tokenizer's chat template says, up to where the answer begins.
    sampling: how; left out, greedily and at most 128 tokens.
    on_text: called as `on_text(row, piece)` with the text of prompt number `row` as it comes, in whole characters;
        the pieces joined are its text.
    start: what the decoder of an encoder-decoder begins with; left out, the tokenizer's `start`, or where it has none
        its bos, or its pad as in T5.
    batch_size: so many prompts run at once, those of like length together.

    A row ends with any of the tokenizer's `ends`. Ids that the model has and the tokenizer has not are never chosen.

    Raises ValueError, before anything runs, for a model of another form, and for a prompt that is empty
    without a bos or that is longer than the model's learned positions.
    """
    sampling = sampling or Sampling()
    net = expect(model, "generate")
    encodes = net.encoder is not None
    first = (tokenizer.start or [decoder_start(tokenizer)]) if encodes and start is None else start
    prompt_ids = _encode(tokenizer, prompts, encodes)
    for row, ids in enumerate(prompt_ids):
        if not ids:
            raise ValueError(f"prompt {row + 1} is empty, and the tokenizer has no bos token to begin with; give it some text")
        _room(net.config, len(ids), 1, 1)
    spec = net.config.encoder if encodes else net.config.decoder
    assert spec is not None
    check_ids(prompt_ids, spec)
    eos = tokenizer.ends or ([] if tokenizer.sep is None else [tokenizer.sep])
    seeds = sampling.seeds(len(prompt_ids))
    results: dict[int, Generation] = {}
    for rows in batches([len(ids) for ids in prompt_ids], batch_size):
        streams = [TextStream(tokenizer, [] if encodes else prompt_ids[row], sampling.stop) for row in rows]
        watch = _watch(rows, streams, eos, on_text) if on_text is not None or sampling.stop else None
        inputs, mask = padded([prompt_ids[row] for row in rows], tokenizer.pad or 0, next(net.parameters()).device, left=not encodes)
        how = _with_seeds(sampling, [seeds[row] for row in rows])
        runs = generate_ids(net, inputs, mask, how, eos=eos, start=first, barred=_unknown(net.config, tokenizer), watch=watch)
        for row, stream, run in zip(rows, streams, runs, strict=True):
            if watch is None:
                for token in run.ids[: -1 if run.finish_reason == "stop" else None]:
                    stream.push(token)
                stream.finish()
            results[row] = Generation(stream.text, run.ids, run.log_probs, run.finish_reason, prompt_ids[row])
    return [results[row] for row in range(len(prompt_ids))]


def _encode(tokenizer: Tokenizer, prompts: str | Sequence[str | Conversation], encodes: bool) -> list[list[int]]:
    """What the model reads of each prompt."""
    asked = [prompts] if isinstance(prompts, str) else list(prompts)
    conversations = {i: prompt for i, prompt in enumerate(asked) if isinstance(prompt, list | tuple)}
    texts = listed([prompt for i, prompt in enumerate(asked) if i not in conversations])
    framed = [source(tokenizer, ids) for ids in tokenizer.encode_batch(texts)] if encodes else framed_prompts(tokenizer, texts)
    of_texts = iter(framed)
    return [tokenizer.encode_chat(conversations[i]) if i in conversations else next(of_texts) for i in range(len(asked))]


def _unknown(spec: config.Transformer, tokenizer: Tokenizer) -> range:
    """The ids that a model has beyond its tokenizer's: rows that round its table up to a size that computes fast."""
    assert isinstance(spec.last.input, config.Tokens)
    return range(tokenizer.vocab_size, spec.last.input.vocab_size)


def _with_seeds(sampling: Sampling, seeds: Sequence[int]) -> Sampling:
    return sampling if sampling.greedy else replace(sampling, seed=tuple(seeds))


def _watch(rows: Sequence[int], streams: Sequence[TextStream], eos: Collection[int], on_text: Callable[[int, str], None] | None) -> Watch:
    def watch(place: int, token: int, last: bool) -> bool:
        stream = streams[place]
        piece = "" if token in eos else stream.push(token)
        if last:
            piece += stream.finish()
        if piece and on_text is not None:
            on_text(rows[place], piece)
        return stream.stopped

    return watch
