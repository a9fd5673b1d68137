"""Short jobs of many requests, run together: what comes while the model is at work is its next batch."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import ServeError, bad


@dataclass(frozen=True)
class _Job:
    items: Sequence[Any]
    option: Hashable
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[list[Any]]

    def settle(self, results: list[Any] | None, error: Exception | None) -> None:
        """Tell the one who waits; nobody does any more where it was cancelled or its loop has ended."""

        def tell() -> None:
            if self.future.done():
                return
            if error is not None:
                self.future.set_exception(error)
            else:
                self.future.set_result(results or [])

        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(tell)


class Batcher:
    """Runs `run(items, option)`, which gives one result an item, in a thread of its own.

    size: items of jobs with the same option run together up to so many. queue: so many items may wait; then a job gets 429.
    A job that fails fails alone: a batch that raises is run again job by job.
    """

    def __init__(self, run: Callable[[Sequence[Any], Any], list[Any]], *, size: int = 32, queue: int = 1024) -> None:
        self._run, self._size, self._queue = run, size, queue
        self._jobs: deque[_Job] = deque()
        self._change = threading.Condition()
        self._closed = False
        self._running = 0
        self._thread = threading.Thread(target=self._work, name="triform-batcher", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Items that wait."""
        with self._change:
            return sum(len(job.items) for job in self._jobs)

    @property
    def running(self) -> int:
        """Items of the batch at work."""
        return self._running

    async def __call__(self, items: Sequence[Any], option: Hashable = None) -> list[Any]:
        """One result an item. Raises ServeError 429 when too many wait, 400 for what the model does not take."""
        loop = asyncio.get_running_loop()
        job = _Job(items, option, loop, loop.create_future())
        with self._change:
            if self._closed:
                raise ServeError(503, "the server is stopping", code="shutting_down")
            if sum(len(other.items) for other in self._jobs) + len(items) > self._queue:
                raise ServeError(429, "too many texts wait for this model; try again in a second", code="queue_full")
            self._jobs.append(job)
            self._change.notify()
        return await job.future

    def close(self) -> None:
        """Run what waits, and end the thread."""
        with self._change:
            self._closed = True
            self._change.notify()
        self._thread.join()

    def _next(self) -> list[_Job]:
        """Jobs to run together; [] at the end."""
        with self._change:
            while not self._jobs and not self._closed:
                self._change.wait()
            if not self._jobs:
                return []
            batch = [self._jobs.popleft()]
            count = len(batch[0].items)
            for job in list(self._jobs):
                if job.option == batch[0].option and count + len(job.items) <= self._size:
                    self._jobs.remove(job)
                    batch.append(job)
                    count += len(job.items)
            self._running = count
            return batch

    def _work(self) -> None:
        while batch := self._next():
            batch = [job for job in batch if not job.future.cancelled()]
            if batch:
                self._together(batch)
            self._running = 0

    def _together(self, batch: list[_Job]) -> None:
        try:
            results = self._run([item for job in batch for item in job.items], batch[0].option)
        except Exception as error:
            if len(batch) == 1:
                batch[0].settle(None, bad(str(error)) if isinstance(error, ValueError) else error)
                return
            for job in batch:
                self._together([job])
            return
        at = 0
        for job in batch:
            job.settle(results[at : at + len(job.items)], None)
            at += len(job.items)
