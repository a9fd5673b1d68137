"""What the parts of one server share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from starlette.requests import Request

from .errors import ServeError, bad
from .generation import Answers, stopping
from .models import Models, Writer
from .observe import Metrics, Record
from .settings import Settings

_T = TypeVar("_T")
_HELPERS = 4  # threads that read prompts: the tokenizer and templates take time, and leave the event loop alone


class State:
    """The models, what is allowed, the figures, and the answers under way."""

    def __init__(self, models: Models, settings: Settings) -> None:
        self.models, self.settings = models, settings
        self.metrics = Metrics(models.gauges)
        self.draining = False
        self.running = 0
        self._live: set[Answers] = set()
        self._helpers = ThreadPoolExecutor(_HELPERS, "triform-prompts")

    async def aside(self, work: Callable[..., _T], *arguments: Any) -> _T:
        """Run something that takes time in a thread of its own."""
        return await asyncio.get_running_loop().run_in_executor(self._helpers, work, *arguments)

    @contextmanager
    def answering(self, writer: Writer, record: Record) -> Iterator[Answers]:
        """Answers that end when the block does."""
        answers = Answers(writer, record, self.settings.deadline, None if self.models.guard is None else self._refuses)
        self._live.add(answers)
        try:
            yield answers
        finally:
            self._live.discard(answers)
            answers.close()

    def admit(self, texts: Iterable[str], param: str) -> None:
        """Raise ServeError 400 for a text that the guard does not let pass. Takes time; not for the event loop's thread."""
        if self.models.guard is None:
            return
        for text in texts:
            if (found := self.models.guard(text)).flagged:
                raise bad(f"{param}: a text is judged {found.reason}, and this server refuses such", param, "content_filter")

    async def _refuses(self, text: str) -> bool:
        assert self.models.guard is not None
        return (await self.aside(self.models.guard, text)).flagged

    async def drain(self) -> None:
        """Take no more requests; let what runs finish, or give it up at the deadline."""
        self.draining = True
        ends = asyncio.get_running_loop().time() + self.settings.drain
        while self.running and asyncio.get_running_loop().time() < ends:
            await asyncio.sleep(0.02)
        for answers in list(self._live):
            answers.give_up(stopping())

    def close(self) -> None:
        """End the models and the threads."""
        self._helpers.shutdown(wait=False, cancel_futures=True)
        self.models.close()


def state_of(request: Request) -> State:
    """The server's state."""
    found: State = request.app.state.triform
    return found


def record_of(request: Request) -> Record:
    """The record of a request."""
    found: Record = request.scope["triform.record"]
    return found


async def unless_gone(request: Request, work: Awaitable[_T]) -> _T:
    """The result of work for a client that waits; where it goes away the work is cancelled, and ends."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ServeError(499, "the client went away", code="client_gone")
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)
