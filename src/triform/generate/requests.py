"""What is asked of the engine, and what comes of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Event as Flag
from typing import Literal

from .sampling import Sampling

FinishReason = Literal["stop", "length", "stop_string", "cancelled", "deadline", "error", "content_filter"]


class Full(ValueError):
    """As many requests wait as the engine's queue holds: try again later."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt, and how it is to be gone on with.

    ids: the prompt of a decoder-only model, or what the encoder of an encoder-decoder reads.
    sampling: how, with one seed (the first of several).
    start: what the decoder of an encoder-decoder begins with; None: as the engine's tokenizer says.
    eos: tokens that end the text; None: as the engine's tokenizer says.
    barred: tokens that are never chosen, beside those that the model has and the tokenizer has not.
    priority: the higher goes first; each level overtakes at most the 64 requests that came just before.
    deadline: seconds from being submitted, after which the request ends with what it has.
    prompt_log_probs: tell the log-probability of every token of the prompt but the first, and so many of the most probable ones in
        its place; None: do not. All of the prompt is read for it, by a decoder-only model that sees it from left to right.
    adapter: the one of the model's that is used (see `triform.nn.adapter`); None: the model as it is.
    """

    ids: Sequence[int]
    sampling: Sampling = field(default_factory=Sampling)
    start: Sequence[int] | None = None
    eos: Collection[int] | None = None
    barred: Collection[int] = ()
    priority: int = 0
    deadline: float | None = None
    prompt_log_probs: int | None = None
    adapter: str | None = None


@dataclass(frozen=True)
class Event:
    """A token of a request, or its end without one.

    token: None where a request ends without a token: cancelled, past its deadline or failed.
    log_prob: of the token, in nats, as the model gave it.
    top: the most probable tokens with their log-probabilities, as many as `sampling.top_log_probs`.
    text: the whole characters that have become certain, where the engine has a tokenizer; the pieces joined are the text.
    finish_reason: why the request ends, with its last event; "content_filter" where who serves it held the answer back.
    error: what went wrong, where that is "error".
    """

    token: int | None
    log_prob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()
    text: str = ""
    finish_reason: FinishReason | None = None
    error: str | None = None


@dataclass
class Speculation:
    """How often the model was asked (`passes`), and how many tokens were proposed to it and how many of them it took."""

    passes: int = 0
    proposed: int = 0
    accepted: int = 0

    @property
    def rate(self) -> float:
        """The share of the proposals that was taken; 0 where there were none."""
        return self.accepted / max(1, self.proposed)


@dataclass(frozen=True)
class Scored:
    """A token that was given: its log-probability (nats), its place among all tokens (1: the most probable), the most probable ones."""

    token: int
    log_prob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()


@dataclass
class TokenRun:
    """The tokens of one row, those that ended it included, and why it ended.

    log_probs: of each token, in nats, as the model gave it.
    tops: at each step the most probable tokens with their log-probabilities, as many as `sampling.top_log_probs`.
    text: without special tokens and stop string, where there is a tokenizer.
    score: what beam search ranks by. speculation: of speculative decoding.
    prompt: the prompt's tokens but for the first, where the request asks for them.
    """

    ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    finish_reason: FinishReason = "length"
    tops: list[tuple[tuple[int, float], ...]] = field(default_factory=list)
    text: str = ""
    score: float | None = None
    speculation: Speculation | None = None
    prompt: list[Scored] = field(default_factory=list)


class Ticket:
    """A request that was submitted: its events as they come (by iterating, once), and in the end its result.

    run: what there is so far. reused: tokens of the prompt whose keys and values were there from another request.
    first_token_at, submitted_at: by `time.monotonic()`. error: the exception that ended it.
    """

    def __init__(self, request: Request, on_event: Callable[[Event], None] | None = None) -> None:
        self.request, self.run = request, TokenRun()
        self.reused = 0
        self.cancelled = False
        self.error: Exception | None = None
        self.submitted_at = time.monotonic()
        self.first_token_at: float | None = None
        self._on_event = on_event
        self._events: SimpleQueue[Event] | None = SimpleQueue() if on_event is None else None
        self._done = Flag()
        self.wake: Callable[[], None] | None = None  # tells the engine

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self._done.is_set()

    @property
    def late(self) -> bool:
        """Whether its deadline is over."""
        return self.request.deadline is not None and time.monotonic() - self.submitted_at > self.request.deadline

    def cancel(self) -> None:
        """End it at the next step, with what it has."""
        self.cancelled = True
        if self.wake is not None:
            self.wake()

    def result(self, timeout: float | None = None) -> TokenRun:
        """Wait for the end. Raises what went wrong, and TimeoutError after `timeout` seconds."""
        if not self._done.wait(timeout):
            raise TimeoutError(f"the request has not ended within {timeout:g} s; it goes on")
        if self.error is not None:
            raise self.error
        return self.run

    def __iter__(self) -> Iterator[Event]:
        if self._events is None:
            raise ValueError("events go to on_event; submit without it to iterate over them")
        while True:
            event = self._events.get()
            yield event
            if event.finish_reason is not None:
                return

    def hear(self, event: Event) -> None:
        """Take what the engine says. Raises what `on_event` raises, but for the last event."""
        if event.token is not None and self.first_token_at is None:
            self.first_token_at = time.monotonic()
        try:
            if self._events is not None:
                self._events.put(event)
            elif self._on_event is not None:
                self._on_event(event)
        except Exception as error:
            if event.finish_reason is None:
                raise
            self.error = self.error or error
        finally:
            if event.finish_reason is not None:
                self.run.finish_reason = event.finish_reason
                self._done.set()
