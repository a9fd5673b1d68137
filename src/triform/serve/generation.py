"""Answers as they come: between the engine's thread and the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from triform.generate.constrained import Constraint, Matcher
from triform.generate.requests import Event, Full, Request, Ticket
from triform.generate.sampling import Sampling

from .errors import ServeError, bad
from .models import Writer
from .observe import Record
from .requests import Sampled
from .settings import Settings

_SILENCE = 10.0  # seconds without a token after which a stream shows that it lives
_HELD = 64  # tokens of an answer that is held back, after which a stream shows that it lives
_LATE = 5.0  # seconds that the engine may take to end a request whose deadline is over


@dataclass(frozen=True)
class Prompt:
    """What is to be answered: token ids, and what is asked of them. scored: see `Request.prompt_log_probs`."""

    ids: Sequence[int]
    sampling: Sampling
    scored: int | None = None


def sampling_of(request: Sampled, new_tokens: int | None, top: int, settings: Settings) -> Sampling:
    """How a request wants its answers generated; `constraint` is put in by who has one."""
    if new_tokens is not None and new_tokens > settings.new_tokens:
        raise bad(f"max_tokens: expected at most {settings.new_tokens:,}, got {new_tokens:,}", "max_tokens")
    wanted = settings.new_tokens if new_tokens is None else new_tokens
    given: dict[str, Any] = {
        "temperature": 1.0 if request.temperature is None else request.temperature,
        "top_p": request.top_p, "top_k": request.top_k, "min_p": request.min_p, "typical_p": request.typical_p,
        "repetition_penalty": request.repetition_penalty, "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty, "no_repeat_ngram": request.no_repeat_ngram,
        "logit_bias": {int(token): bias for token, bias in (request.logit_bias or {}).items()} or None,
        "stop": (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ()),
        "seed": None if request.seed is None else request.seed % 2**61,
        "min_new_tokens": min(request.min_tokens or 0, wanted),
    }  # fmt: skip
    return Sampling(max_new_tokens=wanted, top_log_probs=top, **{name: value for name, value in given.items() if value is not None})


class Answers:
    """The answers of one request, from the time that they are submitted until they are read or given up.

    deadline: seconds. refuses: whether a text must not pass; answers are then held until they are whole. Used as a context
    manager, so that whatever happens their slots are free afterwards.
    """

    def __init__(
        self, writer: Writer, record: Record, deadline: float, refuses: Callable[[str], Awaitable[bool]] | None = None
    ) -> None:
        self.writer, self.record, self._refuses = writer, record, refuses
        self.tickets: list[Ticket] = []
        self._loop = asyncio.get_running_loop()
        self._ends = self._loop.time() + deadline
        self._events: deque[tuple[int, Event] | ServeError] = deque()
        self._news = asyncio.Event()
        self._told = False  # whether the loop was told of what has come since it last looked
        self._lock = threading.Lock()
        self._closed = False

    def submit(self, prompts: Sequence[Prompt]) -> None:
        """Hand prompts to the engine, in any thread. Raises ServeError 400 for what it does not take, 429 when its queue is full."""
        for place, prompt in enumerate(prompts):
            seconds = max(0.001, self._ends - self._loop.time())
            try:
                if prompt.sampling.constraint is not None:
                    # found out here, while the request can still be refused
                    Matcher(prompt.sampling.constraint, self.writer.tokenizer, self.writer.tokenizer.ends)
                request = Request(
                    ids=prompt.ids, sampling=prompt.sampling, eos=self.writer.tokenizer.ends or None, deadline=seconds,
                    prompt_log_probs=prompt.scored, adapter=self.writer.adapter,
                )  # fmt: skip
                ticket = self.writer.engine.submit(request, on_event=self._hearing(place))
            except Full:
                message = "the queue of this model is full; try again in a second"
                raise ServeError(429, message, code="queue_full") from None
            except ValueError as error:
                raise bad(str(error)) from None
            with self._lock:
                self.tickets.append(ticket)
                if self._closed:
                    ticket.cancel()

    def _hearing(self, place: int) -> Callable[[Event], None]:
        def hear(event: Event) -> None:
            self._events.append((place, event))
            if not self._told:
                self._told = True
                with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody reads any more
                    self._loop.call_soon_threadsafe(self._news.set)

        return hear

    async def _next(self) -> tuple[int, Event] | None:
        """What comes next; None when nothing has come for a while. Raises ServeError past the deadline."""
        while not self._events:
            self._news.clear()
            self._told = False
            if self._events:  # it came before that was said
                break
            now = self._loop.time()
            if now > self._ends + _LATE:
                raise late()
            try:
                async with asyncio.timeout_at(min(now + _SILENCE, self._ends + _LATE + 0.01)):
                    await self._news.wait()
            except TimeoutError:
                return None
        found = self._events.popleft()
        if isinstance(found, ServeError):
            raise found
        return found

    async def events(self) -> AsyncIterator[tuple[int, Event] | None]:
        """Each token with the number of its answer, until all have ended, and None every few seconds of silence.

        Of an answer that must not pass there is nothing but its end. Raises ServeError for what goes wrong on the way.
        """
        if self._refuses is None:
            async for found in self._heard():
                yield found
            return
        held: dict[int, list[Event]] = {}
        async for found in self._heard():
            if found is None:
                yield None
                continue
            place, event = found
            kept = held.setdefault(place, [])
            kept.append(event)
            if event.finish_reason is None:
                if len(kept) % _HELD == 0:
                    yield None
            elif await self._refuses("".join(one.text for one in kept)):
                yield place, Event(None, finish_reason="content_filter")
            else:
                for one in kept:
                    yield place, one

    async def _heard(self) -> AsyncIterator[tuple[int, Event] | None]:
        """What the engine says, as it comes."""
        left = len(self.tickets)
        while left:
            found = await self._next()
            if found is None:
                yield None
                continue
            place, event = found
            if event.token is not None:
                self.record.token()
            self._check(place, event)
            left -= event.finish_reason is not None
            yield place, event

    def _check(self, place: int, event: Event) -> None:
        if event.finish_reason == "deadline":
            raise late()
        if event.finish_reason == "cancelled":
            raise stopping()
        if event.finish_reason == "error":
            if isinstance(self.tickets[place].error, ValueError):
                raise bad(event.error or "the request cannot be met")
            raise ServeError(500, f"generating failed: {event.error}", code="generation_failed")

    def give_up(self, error: ServeError) -> None:
        """Have whoever reads get an error instead of the next token. In the event loop's thread."""
        self._events.appendleft(error)
        self._news.set()

    def close(self) -> None:
        """End what still runs."""
        with self._lock:
            self._closed = True
            for ticket in self.tickets:
                if not ticket.done:
                    ticket.cancel()


def spread(prompts: Sequence[Sequence[int]], sampling: Sampling, count: int) -> list[Prompt]:
    """`count` answers to each prompt, those to one prompt side by side, each with a seed of its own."""
    places = range(len(prompts) * count)
    seeds = [sampling.seed + place if isinstance(sampling.seed, int) else None for place in places]
    return [Prompt(prompts[place // count], replace(sampling, seed=seeds[place])) for place in places]


def with_constraint(sampling: Sampling, constraint: Constraint) -> Sampling:
    """The same, in a form."""
    return replace(sampling, constraint=constraint)


def stopping() -> ServeError:
    """What a request gets that the server's end cuts off."""
    return ServeError(503, "the server is stopping", code="shutting_down")


def late() -> ServeError:
    """What a request gets whose deadline is over."""
    return ServeError(504, "the request took longer than the server's deadline", code="deadline_exceeded")
