"""Text from a prompt, a token at a time, by a decoder alone or an encoder and a decoder.

Shapes: B batch, T tokens of the prompt (or of the encoder's input), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from triform import config
from triform.nn import Transformer
from triform.text import Tokenizer
from triform.text.framing import prompts as framed_prompts
from triform.text.framing import source

from .admission import ends_of, spelled, start_of, unknown
from .batch import run_together
from .beam import Quest, beam_search
from .constrained import Matcher
from .contrastive import contrastive_search
from .forms import Module, batches, check_ids, evaluating, expect, listed, padded
from .requests import FinishReason, Request, Speculation, TokenRun
from .rows import Ending, Rows, Watch, room
from .sampler import Guide, State, history_of
from .sampling import Beams, Contrastive, Sampling
from .speculative import Draft, Lookup
from .speculative import speculate as speculated
from .stream import TextStream


@dataclass(frozen=True)
class Generation:
    """What a prompt was continued with, or answered by an encoder-decoder.

    text: what follows the prompt, without special tokens and stop string.
    ids, log_probs: every token made, the one that ended it included, and its log-probability
        (nats) as the model gave it, before temperature and the rest.
    finish_reason: "stop" at the end-of-sequence token, "stop_string", or "length" at
        `max_new_tokens` or the model's longest sequence.
    prompt_ids: the tokens that the model read.
    tops: at each step the most probable tokens and their log-probabilities, as many as `Sampling.top_log_probs`.
    score: what beam search ranks by: the sum of log-probabilities over the length to the power of the length penalty.
    speculation: of speculative decoding, how many tokens were proposed and taken.
    """

    text: str
    ids: list[int]
    log_probs: list[float]
    finish_reason: FinishReason
    prompt_ids: list[int]
    tops: list[tuple[tuple[int, float], ...]] = field(default_factory=list)
    score: float | None = None
    speculation: Speculation | None = None


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
        True ends the row ("stop_string"). Beams cannot be watched, as none of their tokens is certain before the end.

    With beams, `num_return_sequences` runs for each row, the best first.
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
    if isinstance(sampling.search, Beams) and watch is not None:
        raise ValueError("watch: expected none with beams, as no token is certain before the end")
    if sampling.constraint is not None:
        raise ValueError("constraint: expected none with ids, as it is kept by the text that a tokenizer's tokens make; use `generate`")
    if sampling.search is None:
        seen = ids.tolist() if mask is None else [row[real].tolist() for row, real in zip(ids, mask.bool(), strict=True)]
        requests = _requests(sampling, seen, start=first, eos=eos, barred=barred)
        return run_together(net, None, requests, rows=len(requests), watch=watch)
    call = _Call(net, sampling, Ending(frozenset(eos), watch), frozenset(barred), first)
    with evaluating(net) as device:
        ids = ids.to(device)
        return call.run(ids, None if mask is None or bool(mask.all()) else mask.to(device).bool())


@dataclass(frozen=True)
class _Call:
    """What prompts that run together are gone on with."""

    net: Transformer
    sampling: Sampling
    ending: Ending
    barred: frozenset[int]
    first: list[int]  # what the decoder of an encoder-decoder begins with
    streams: Sequence[TextStream] | None = None  # of each prompt, where stop strings are to end its beams
    guides: Sequence[Guide | None] | None = None  # of each prompt
    speculate: Draft | Lookup | None = None

    def run(self, ids: Tensor, mask: Tensor | None) -> list[TokenRun]:
        """The runs of prompts (B, T), mask (B, T)."""
        how, search, spec = self.sampling, self.sampling.search, self.net.config
        lengths = [ids.shape[1]] * len(ids) if mask is None else mask.sum(1).tolist()
        alternatives = min(search.top_k, _vocab_size(spec)) if isinstance(search, Contrastive) else 0
        most = [room(spec, length, len(self.first), how.max_new_tokens, reads_last=alternatives > 0) for length in lengths]
        states = self._states(ids, mask)
        if self.speculate is not None:
            prompts = ids.tolist() if mask is None else [row[seen].tolist() for row, seen in zip(ids, mask, strict=True)]
            own = zip(prompts, states, most, strict=True)
            return [speculated(self.net, (p, self.first), s, n, self.ending, self.speculate, i) for i, (p, s, n) in enumerate(own)]
        copies = search.num_beams if isinstance(search, Beams) else 1
        rows = Rows(self.net, ids, mask, self.first, max(most), copies=copies, alternatives=alternatives)
        if isinstance(search, Contrastive):
            return contrastive_search(rows, states, most, search, self.ending, None if self.first else mask)
        assert isinstance(search, Beams)
        streams: Sequence[TextStream | None] = self.streams or [None] * len(states)
        quests = [Quest(state, each, self.ending.eos, stream) for state, each, stream in zip(states, most, streams, strict=True)]
        history = history_of([state for state in states for _ in range(copies)], ids.device) if how.looks_back else None
        return [run for runs in beam_search(rows, quests, search, history) for run in runs]

    def _states(self, ids: Tensor, mask: Tensor | None) -> list[State]:
        how, before = self.sampling, [self.first] * len(ids)
        if how.looks_back and not self.first:
            before = ids.tolist() if mask is None else [row[seen].tolist() for row, seen in zip(ids, mask, strict=True)]
        seeds = how.seeds(len(ids))
        eos, barred, guides = self.ending.eos, self.barred, self.guides or [None] * len(ids)
        rows = zip(before, seeds, guides, strict=True)
        return [State(how, ids, eos=eos, barred=barred, seed=seed, guide=guide) for ids, seed, guide in rows]


def _requests(sampling: Sampling, prompts: Sequence[Sequence[int]], **more: Any) -> list[Request]:
    """A request for each prompt, with a seed of its own."""
    seeds = sampling.seeds(len(prompts))
    rows = zip(prompts, seeds, strict=True)
    return [Request(ids=ids, sampling=sampling if sampling.greedy else replace(sampling, seed=seed), **more) for ids, seed in rows]


def generate(
    model: Module,
    tokenizer: Tokenizer,
    prompts: str | Sequence[str | Conversation],
    sampling: Sampling | None = None,
    *,
    on_text: Callable[[int, str], None] | None = None,
    start: int | Sequence[int] | None = None,
    speculate: Draft | Lookup | None = None,
    batch_size: int = 32,
) -> list[Generation]:
    """Continue each prompt (decoder-only), or answer it (encoder-decoder).

    prompts: texts, or conversations: lists of messages such as {"role": "user", "content": "Hello"}, which are
        written as the tokenizer's chat template says, up to where the answer begins.
    sampling: how; left out, greedily and at most 128 tokens.
    on_text: called as `on_text(row, piece)` with the text of prompt number `row` as it comes, in whole characters;
        the pieces joined are its text. With beams, once with the best text.
    start: what the decoder of an encoder-decoder begins with; left out, the tokenizer's `start`, or where it has none
        its bos, or its pad as in T5.
    speculate: let a smaller model or a look-up in the text propose tokens, which the model reads several at a time; the text is
        what it would be, or has the same distribution. One prompt at a time.
    batch_size: so many prompts run at once; with beams and contrastive search those of like length together.

    With beams, `num_return_sequences` texts for each prompt, the best first.
    A row ends with any of the tokenizer's `ends`. Ids that the model has and the tokenizer has not are never chosen.

    Raises ValueError, before anything runs, for a model of another form, and for a prompt that is empty
    without a bos or that is longer than the model's learned positions.
    """
    sampling = spelled(sampling or Sampling(), tokenizer)
    net = expect(model, "generate")
    if speculate is not None:
        _check_speculation(speculate, sampling, tokenizer)
    encodes = net.encoder is not None
    first = start_of(tokenizer) if encodes and start is None else [start] if isinstance(start, int) else start
    prompt_ids = _encode(tokenizer, prompts, encodes)
    for row, ids in enumerate(prompt_ids):
        if not ids:
            raise ValueError(f"prompt {row + 1} is empty, and the tokenizer has no bos token to begin with; give it some text")
        room(net.config, len(ids), 1, 1)
    spec = net.config.encoder if encodes else net.config.decoder
    assert spec is not None
    check_ids(prompt_ids, spec)
    if sampling.search is None and speculate is None:
        runs = run_together(net, tokenizer, _requests(sampling, prompt_ids, start=first), rows=batch_size, on_text=on_text)
        found = zip(runs, prompt_ids, strict=True)
        return [Generation(run.text, run.ids, run.log_probs, run.finish_reason, ids, run.tops) for run, ids in found]
    eos, barred, seeds = ends_of(tokenizer), unknown(net.config, tokenizer), sampling.seeds(len(prompt_ids))
    results: dict[int, list[Generation]] = {}
    for rows in batches([len(ids) for ids in prompt_ids], batch_size):
        streams = [TextStream(tokenizer, [] if encodes else prompt_ids[row], sampling.stop) for row in rows]
        beams = isinstance(sampling.search, Beams)
        watch = _watch(rows, streams, eos, on_text) if not beams and (on_text is not None or sampling.stop) else None
        inputs, mask = padded([prompt_ids[row] for row in rows], tokenizer.pad or 0, next(net.parameters()).device, left=not encodes)
        how = _with_seeds(sampling, [seeds[row] for row in rows])
        guides = _guides(how, tokenizer, eos, [[] if encodes else prompt_ids[row] for row in rows])
        begin = list(first or []) if encodes else []
        call = _Call(net, how, Ending(eos, watch), barred, begin, streams if sampling.stop else None, guides, speculate)
        with evaluating(net):
            runs = call.run(inputs, mask)
        each = len(runs) // len(rows)
        for place, (row, stream) in enumerate(zip(rows, streams, strict=True)):
            several = runs[place * each : (place + 1) * each]
            results[row] = [_told(run, stream if watch else _written(run, stream.copy(), eos), prompt_ids[row]) for run in several]
            if beams and on_text is not None:
                on_text(row, results[row][0].text)
    return [one for row in range(len(prompt_ids)) for one in results[row]]


def _check_speculation(speculate: Draft | Lookup, sampling: Sampling, tokenizer: Tokenizer) -> None:
    if sampling.search is not None:
        raise ValueError("speculate: expected no `search` beside it; beams and contrastive search do not go on with one token at a time")
    if not isinstance(speculate, Draft):
        return
    there = _vocab_size(expect(speculate.model, "generate").config)
    if there < tokenizer.vocab_size:
        raise ValueError(f"the draft has {there} tokens and the tokenizer {tokenizer.vocab_size}; expected a draft with the same tokenizer")
    other = speculate.tokenizer
    if other is not None and other.backend.get_vocab() != tokenizer.backend.get_vocab():
        raise ValueError("the draft's tokenizer has other tokens than the model's; expected a draft with the same tokenizer")


def _guides(how: Sampling, tokenizer: Tokenizer, eos: frozenset[int], contexts: Sequence[list[int]]) -> list[Guide | None] | None:
    """What keeps each row to the sampling's constraint."""
    if how.constraint is None:
        return None
    return [Matcher(how.constraint, tokenizer, eos, context) for context in contexts]


def _written(run: TokenRun, stream: TextStream, eos: frozenset[int]) -> TextStream:
    """The stream with the text of a run."""
    for token in run.ids:
        if token not in eos:
            stream.push(token)
    stream.finish()
    return stream


def _told(run: TokenRun, stream: TextStream, prompt: list[int]) -> Generation:
    return Generation(stream.text, run.ids, run.log_probs, run.finish_reason, prompt, run.tops, run.score, run.speculation)


def _encode(tokenizer: Tokenizer, prompts: str | Sequence[str | Conversation], encodes: bool) -> list[list[int]]:
    """What the model reads of each prompt."""
    asked = [prompts] if isinstance(prompts, str) else list(prompts)
    conversations = {i: prompt for i, prompt in enumerate(asked) if isinstance(prompt, list | tuple)}
    texts = listed([prompt for i, prompt in enumerate(asked) if i not in conversations])
    framed = [source(tokenizer, ids) for ids in tokenizer.encode_batch(texts)] if encodes else framed_prompts(tokenizer, texts)
    of_texts = iter(framed)
    return [tokenizer.encode_chat(conversations[i]) if i in conversations else next(of_texts) for i in range(len(asked))]


def _vocab_size(spec: config.Transformer) -> int:
    assert isinstance(spec.last.input, config.Tokens)
    return spec.last.input.vocab_size


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
