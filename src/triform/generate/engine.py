"""The engine behind everything that generates: requests from any thread join and leave one running batch.

A step reads one token of every running request and a chunk of the prompts that have joined (continuous batching, Yu et
al. 2022, with chunked prefill, Agrawal et al. 2023), in a thread of the engine's own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from threading import Condition, Thread
from typing import Any, Literal

import torch

from triform.nn.compiler import choose_compile
from triform.text import Tokenizer

from .admission import row_of
from .batch import Batch
from .forms import Module, expect
from .requests import Event, Full, Request, Ticket
from .runner import Runner
from .scheduler import Row
from .slots import Slots, size_of


@dataclass(frozen=True)
class Stats:
    """How the engine stands.

    running, waiting: requests. slots, slots_used: places for running ones. cache_tokens, cache_tokens_used: how many
    tokens all slots hold at most, and how many those of running requests hold. tokens_generated, prompt_tokens_read,
    prefix_hits (requests that began in another's keys and values), prefix_tokens (that were not read for it): since the
    engine was made. cache_bytes: what the slots take when they are full.
    """

    running: int
    waiting: int
    slots: int
    slots_used: int
    cache_tokens: int
    cache_tokens_used: int
    cache_bytes: int
    tokens_generated: int
    prompt_tokens_read: int
    prefix_hits: int
    prefix_tokens: int


class Engine:
    """One model at work for many.

    Close it, or use it in a `with` statement.
    """

    def __init__(
        self,
        model: Module,
        tokenizer: Tokenizer | None = None,
        *,
        slots: int = 16,
        capacity: int | None = None,
        memory: int | float | None = None,
        chunk: int | None = None,
        queue: int = 256,
        compile: bool | Literal["auto"] = "auto",
    ) -> None:
        """slots: requests that run at once; fewer where `memory` does not hold them.
        capacity: tokens of one request, prompt and output; None: as many as the model has positions, at most 4096, or
            as fit into the memory.
        memory: what the cache may take, in bytes, or as a share (below 1) of the device's; None: a quarter of it.
        chunk: tokens of prompts that a step reads at most, and a quarter of it beside the next token of running
            requests; None: 64 on the CPU, where more in one pass are hardly faster, else 512.
        queue: requests that may wait beside those that run; one more is refused with `Full`.
        compile: whether the pass over the next tokens goes through torch.compile (see `CompiledStepper`), which takes its time with
            every new size of it; "auto": on a GPU with Triton. Prepared models on the CPU have native kernels in its place.

        Raises ValueError for a model that does not generate, and a memory that does not hold one request.
        """
        net = expect(model, "generate")
        for name, value in (("slots", slots), ("chunk", chunk), ("queue", queue), ("capacity", capacity)):
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        self.model, self.tokenizer = net, tokenizer
        self._queue = queue
        self._was_training = net.training
        like = next(net.parameters())
        slots, capacity, source = size_of(net.config, like, slots, capacity, memory)
        chunk = chunk or (64 if like.device.type == "cpu" else 512)
        compiled = choose_compile(compile, like.device.type, name="compile")
        self.batch = Batch(Runner(net, Slots(net.config, slots, capacity, source, like), compiled), chunk)
        self._inbox: deque[Row] = deque()
        self._change = Condition()
        self._closing = self._stopped = False
        self._idle = True
        self._thread = Thread(target=self._run, name="triform-engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request, on_event: Callable[[Event], None] | None = None) -> Ticket:
        """Let a request wait for its turn; from any thread.

        on_event: hears every event, in the engine's thread, so that it should be quick; without it the ticket keeps
            the events for who iterates over it.

        Raises ValueError for what the model cannot run, and `Full`, which is one, when too many wait.
        """
        ticket = Ticket(request, on_event)
        row = row_of(self.model, self.tokenizer, ticket, self.batch.slots)
        ticket.wake = self._wake
        with self._change:
            if self._closing:
                raise ValueError("the engine is closed and takes no more requests")
            scheduler = self.batch.scheduler
            if len(self._inbox) + len(scheduler.waiting) >= self._queue + self.batch.slots.slots - len(scheduler.rows):
                raise Full(f"{self._queue} requests wait already; try again later, or make the engine with a longer queue")
            self._inbox.append(row)
            self._change.notify_all()
        return ticket

    def stats(self) -> Stats:
        """How the engine stands now."""
        batch, slots = self.batch, self.batch.slots
        with self._change:
            rows = list(batch.scheduler.rows.values())
            return Stats(
                running=len(rows), waiting=len(self._inbox) + len(batch.scheduler.waiting), slots=slots.slots, slots_used=len(rows),
                cache_tokens=slots.slots * slots.capacity, cache_tokens_used=sum(row.computed for row in rows), cache_bytes=slots.bytes,
                tokens_generated=batch.tokens, prompt_tokens_read=batch.read, prefix_hits=batch.scheduler.hits,
                prefix_tokens=batch.scheduler.reused,
            )  # fmt: skip

    def close(self, drain: bool = True, timeout: float | None = None) -> None:
        """Take no more requests and stop: with `drain` when all have ended, or after `timeout` seconds; the rest are cancelled."""
        with self._change:
            self._closing = True
            if drain:
                self._change.wait_for(lambda: self._stopped or (self._idle and not self._inbox), timeout)
            self._stopped = True
            self._change.notify_all()
        self._thread.join()
        self.model.train(self._was_training)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close(drain=False)

    def _wake(self) -> None:
        with self._change:
            self._change.notify_all()

    def _run(self) -> None:
        batch = self.batch
        self.model.eval()
        with torch.inference_mode():
            while True:
                with self._change:
                    self._idle = not batch.scheduler.busy
                    if self._idle:
                        self._change.notify_all()  # for who waits until all have ended
                    self._change.wait_for(lambda: self._stopped or self._inbox or not self._idle)
                    self._idle = False
                    while self._inbox:
                        batch.add(self._inbox.popleft())
                    if self._stopped:
                        break
                batch.step()
            batch.cancel()
