"""A running batch that requests join and leave: one step after another, in whoever's thread calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from torch import Tensor

from triform.nn import Transformer
from triform.text import Tokenizer

from .admission import row_of
from .forms import evaluating
from .requests import Event, FinishReason, Request, Ticket, TokenRun
from .rows import Watch, room
from .runner import Runner
from .sampler import Choices, NoChoice, choose, score
from .scheduler import Row, Scheduler
from .slots import Slots, device_memory, token_bytes

_CHUNK = 1024  # tokens of prompts a step, where nobody waits for a first token
Work = list[tuple[Row, int]]  # who reads, and how many tokens


class Batch:
    """Requests that run together, each as if it were alone.

    tokens: how many were generated; read: of prompts. error: what the last request that failed did so for.
    """

    def __init__(self, runner: Runner, chunk: int) -> None:
        encodes = runner.net.encoder is not None
        self.runner, self.slots = runner, runner.slots
        reuse = not encodes and not runner.has_prefix
        self.scheduler = Scheduler(runner.slots.slots, chunk, reuse=reuse, whole=runner.has_prefix)
        self.tokens = self.read = 0
        self.error: Exception | None = None

    def add(self, row: Row) -> None:
        """Let a request wait for its turn."""
        self.scheduler.waiting.push(row)

    def step(self) -> None:
        """Take out who was cancelled, let in whose turn it is, read, and choose the next token of every row that can."""
        self._drop()
        self.scheduler.admit()
        self._encode()
        for row in list(self.scheduler.rows.values()):
            if self.scheduler.may_begin(row):
                self._begin(row)
        work = self.scheduler.plan()
        if not work:
            return
        pieces = [(row.slot, row.tokens[row.computed : row.computed + count]) for row, count in work]
        whole = [row.computed == 0 and count == len(row.prompt) for row, count in work]
        every = [row.reads_all and row.computed + 1 < len(row.prompt) for row, _ in work]
        try:
            scores = self.runner.read(pieces, whole, every, [row.ticket.request.adapter for row, _ in work])
        except Exception as error:  # whatever it is, the requests that wait are not to suffer from it
            for row, _ in work:
                self._fail(row, error)
            return
        if any(every):
            work, scores = self._score_prompts(work, every, scores)
        for row, count in work:
            self.read += max(0, min(count, len(row.prompt) - row.computed))
            row.computed += count
        self._choose([row for row, _ in work], scores)

    def _score_prompts(self, work: Work, every: Sequence[bool], scores: Tensor) -> tuple[Work, Tensor]:
        """Score the tokens of prompts that were read; gives the rows that go on, and the scores of what follows the last of each."""
        left, last, at = [], [], 0
        for (row, count), each in zip(work, every, strict=True):
            end = at + (count if each else 1)
            told = row.tokens[row.computed + 1 : min(row.computed + 1 + count, len(row.prompt))] if each else []
            try:
                row.ticket.run.prompt += score(scores[at : at + len(told)], told, row.ticket.request.prompt_log_probs or 0)
            except NoChoice as error:
                self._fail(row, ValueError(str(error)))
            else:
                left.append((row, count))
                last.append(end - 1)
            at = end
        return left, scores[last]

    def cancel(self) -> None:
        """End all that runs and waits."""
        for row in (*self.scheduler.waiting, *self.scheduler.rows.values()):
            row.ticket.cancelled = True
        self._drop()

    def _drop(self) -> None:
        for row in self.scheduler.waiting.drop():
            row.ticket.hear(Event(None, finish_reason=_left(row)))
        for row in list(self.scheduler.rows.values()):
            if row.ticket.cancelled or row.ticket.late:
                self._leave(row, _left(row))

    def _leave(self, row: Row, reason: FinishReason) -> None:
        """End a request that made no token that ends it."""
        self.scheduler.release(row)
        piece = row.stream.finish() if row.stream is not None else ""
        row.ticket.run.text += piece
        row.ticket.hear(Event(None, text=piece, finish_reason=reason))

    def _fail(self, row: Row, error: Exception) -> None:
        """End a request with an error; its keys and values are not to be trusted."""
        self.scheduler.release(row, keep=False)
        self.slots.wipe(row.slot)
        row.ticket.error = self.error = error
        row.ticket.hear(Event(None, finish_reason="error", error=str(error)))

    def _begin(self, row: Row) -> None:
        row.begun = True
        if not self.scheduler.reuse:
            self.slots.lengths[row.slot] = 0
            return
        source, tokens = self.scheduler.beginning(row)
        if source != row.slot:
            self.slots.copy(source, row.slot, tokens)
        self.slots.lengths[row.slot] = row.computed = row.ticket.reused = tokens
        self.scheduler.hits += tokens > 0
        self.scheduler.reused += tokens

    def _encode(self) -> None:
        """Let the encoder read for those that have joined, as many as a chunk holds, the longest waiting first."""
        scheduler = self.scheduler
        rows = [row for row in scheduler.rows.values() if not row.encoded]
        new: list[Row] = []
        for row in sorted(rows, key=lambda row: row.ticket.submitted_at):
            same = [slot for slot, ids in enumerate(scheduler.sources) if np.array_equal(ids, row.source)]
            if same:
                if row.slot not in same:
                    self.slots.copy_memory(same[0], row.slot)
                row.encoded = True
                scheduler.sources[row.slot] = row.source
                scheduler.hits, row.ticket.reused = scheduler.hits + 1, len(row.source)
            elif any(np.array_equal(row.source, other.source) for other in new):
                continue  # until it has been read for the other
            elif not new or (len(new) + 1) * max(len(row.source), *(len(other.source) for other in new)) <= scheduler.chunk:
                new.append(row)
        if not new:
            return
        try:
            sources = [(row.slot, (row.source - row.mark).tolist()) for row in new]
            self.runner.encode(sources, [row.ticket.request.adapter for row in new])
        except Exception as error:
            for row in new:
                self._fail(row, error)
            return
        for row in new:
            row.encoded = True
            scheduler.sources[row.slot] = row.source

    def _choose(self, rows: list[Row], scores: Tensor) -> None:
        """The next token of the rows whose tokens are all read; scores (N, V) are of all."""
        places = [place for place, row in enumerate(rows) if not row.pending]
        if not places:
            return
        rows, scores = [rows[place] for place in places], scores[places] if len(places) < len(rows) else scores
        made = [row.state.made for row in rows]
        try:
            choices = choose(scores, [row.state for row in rows])
        except Exception as error:
            # Those at fault leave; where it is not said who they are, each row is asked by itself.
            stuck = set(error.rows) if isinstance(error, NoChoice) else set()
            if len(rows) == 1 or made != [row.state.made for row in rows]:
                stuck = set(range(len(rows)))
            for place in stuck:
                self._fail(rows[place], ValueError(str(error)) if isinstance(error, NoChoice) else error)
            groups = [[place for place in range(len(rows)) if place not in stuck]] if stuck else [[place] for place in range(len(rows))]
            for group in groups:
                self._choose([rows[place] for place in group], scores[group])
            return
        self._hand_out(rows, choices)

    def _hand_out(self, rows: Sequence[Row], choices: Choices) -> None:
        self.tokens += len(rows)
        for row, token, log_prob, top in zip(rows, choices.tokens.tolist(), choices.log_probs.tolist(), choices.tops, strict=True):
            event = _take(row, token, log_prob, top)
            if event.finish_reason is not None:
                self.scheduler.release(row)
            try:
                row.ticket.hear(event)
            except Exception as error:  # of the listener
                self._fail(row, error)


def run_together(
    net: Transformer,
    tokenizer: Tokenizer | None,
    requests: Sequence[Request],
    *,
    rows: int,
    on_text: Callable[[int, str], None] | None = None,
    watch: Watch | None = None,
) -> list[TokenRun]:
    """The runs of requests, so many `rows` of which run at once, in the caller's thread.

    on_text hears as `on_text(number, piece)` the text as it comes; `watch` is called as `watch(number, token, last)` with
    every token, and ends a request by giving True.
    Raises ValueError, before anything runs, for what the model cannot run and a cache beyond the machine's memory.
    """
    if rows < 1:
        raise ValueError(f"batch_size: expected at least one row, got {rows}")
    if not requests:
        return []
    with evaluating(net):
        batch = Batch(Runner(net, _slots_for(net, requests, rows)), _CHUNK)
        tickets = [Ticket(request, _listener(number, on_text)) for number, request in enumerate(requests)]
        for number, ticket in enumerate(tickets):
            row = row_of(net, tokenizer, ticket, batch.slots)
            row.watch = None if watch is None else partial(watch, number)
            batch.add(row)
        while batch.scheduler.busy:
            batch.step()
            if batch.error is not None:
                raise batch.error
    return [ticket.run for ticket in tickets]


def _listener(number: int, on_text: Callable[[int, str], None] | None) -> Callable[[Event], None]:
    def hear(event: Event) -> None:
        if on_text is not None and event.text:
            on_text(number, event.text)

    return hear


def _slots_for(net: Transformer, requests: Sequence[Request], rows: int) -> Slots:
    """As many slots as run at once, each as large as the longest request needs."""
    encodes, like = net.encoder is not None, next(net.parameters())
    capacity = source = 1
    for request in requests:
        length = len(request.ids)
        first = max(1, len(request.start or ())) if encodes else length
        capacity = max(capacity, first + room(net.config, length, first, request.sampling.max_new_tokens) - 1)
        source = max(source, length)
    rows = min(rows, len(requests))
    need = rows * (capacity + (source if encodes else 0)) * token_bytes(net.config, like.element_size())
    if (there := device_memory(like.device)) is not None and need > there:
        raise ValueError(
            f"the cache of {rows:,} rows of {capacity:,} tokens takes {need / 2**30:,.0f} GiB and the memory has {there / 2**30:,.0f}; "
            "lower max_new_tokens or batch_size"
        )
    return Slots(net.config, rows, capacity, source if encodes else 0, like)


def _left(row: Row) -> FinishReason:
    return "cancelled" if row.ticket.cancelled else "deadline"


def _take(row: Row, token: int, log_prob: float, top: tuple[tuple[int, float], ...]) -> Event:
    """Add a token to a row; the event that tells of it."""
    run, at_end = row.ticket.run, token in row.eos
    run.ids.append(token)
    run.log_probs.append(log_prob)
    if row.state.sampling.top_log_probs:
        run.tops.append(top)
    row.tokens.append(token)
    reason: FinishReason | None = "stop" if at_end or row.state.complete else "length" if len(run.ids) >= row.room else None
    piece = ""
    if row.watch is not None and row.watch(token, reason is not None):
        reason = "stop_string"
    if row.stream is not None:
        piece = "" if at_end else row.stream.push(token)
        if reason is not None:
            piece += row.stream.finish()
        if row.stream.stopped:
            reason = "stop_string"
        run.text = row.stream.text if reason is not None else run.text + piece
    return Event(token, log_prob, top, piece, reason)
