"""Who runs, where, and by how many tokens in the coming step."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from heapq import heappop, heappush

import numpy as np

from .requests import Ticket
from .sampler import State
from .stream import TextStream

_OVERTAKEN = 64  # requests that a level of priority goes ahead of
_WORTH = 8  # tokens, from which on copying is less work than reading them again

Tokens = np.ndarray


class Row:
    """A request on its way: what it reads, where its keys and values are, and what it made.

    tokens: what the decoder reads, the prompt (or what an encoder-decoder begins with) and then what was made;
    computed: how many of them are in the cache. source: what the encoder reads. room: how many tokens may be made.
    mark: is added to the tokens by which rows are compared (held, prompt, source): what other weights made of them is other keys.
    """

    def __init__(
        self, ticket: Ticket, prompt: Sequence[int], source: Sequence[int], state: State, room: int, mark: int = 0
    ) -> None:
        self.ticket, self.state, self.room, self.mark = ticket, state, room, mark
        self.tokens = list(prompt)
        self.prompt: Tokens = np.array(prompt, dtype=np.int64) + mark
        self.source: Tokens = np.array(source, dtype=np.int64) + mark
        self.computed = 0
        self.slot = -1
        self.begun = False  # whether anything of it was read, or taken over from another
        self.encoded = not len(source)
        self.stream: TextStream | None = None
        self.eos: Collection[int] = frozenset()
        self.watch: Callable[[int, bool], bool] | None = None  # called with each token and whether it is the last; True ends

    @property
    def reads_all(self) -> bool:
        """Whether all of the prompt is to be read, whoever else has read it."""
        return self.ticket.request.prompt_log_probs is not None

    @property
    def pending(self) -> int:
        """Tokens to be read before the next can be chosen."""
        return len(self.tokens) - self.computed


class Waiting:
    """Requests in the order in which they will run: first come, first served, but for priorities.

    A level of priority counts as having come 64 places earlier, so that nobody waits for ever.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Row]] = []
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._heap)

    def __iter__(self) -> Iterator[Row]:
        return (row for *_, row in self._heap)

    def push(self, row: Row) -> None:
        """Put a request in its place."""
        self._arrivals += 1
        heappush(self._heap, (self._arrivals - _OVERTAKEN * row.ticket.request.priority, self._arrivals, row))

    def pop(self) -> Row:
        """The request whose turn it is."""
        return heappop(self._heap)[-1]

    def drop(self) -> list[Row]:
        """Take out, and give, those that were cancelled or whose deadline is over."""
        found = [row for row in self if row.ticket.cancelled or row.ticket.late]
        if found:
            self._heap = sorted(entry for entry in self._heap if entry[-1] not in found)
        return found


def common(a: Tokens, b: Tokens) -> int:
    """How many tokens two sequences begin with alike."""
    length = min(len(a), len(b))
    differ = a[:length] != b[:length]
    return int(differ.argmax()) if differ.any() else length


class Scheduler:
    """Slots and who is in them.

    A slot whose request has ended keeps what it held, so that a prompt that begins alike need not be read again; of the
    free slots the one that was used longest ago is given away first.
    """

    def __init__(self, slots: int, chunk: int, *, reuse: bool, whole: bool) -> None:
        """chunk: tokens of prompts a step, a quarter beside rows that go on; whole: prompts are read in one piece; reuse: they may
        begin in another's keys.
        """
        self.chunk, self.reuse, self.whole = chunk, reuse, whole
        self.waiting = Waiting()
        self.rows: dict[int, Row] = {}  # by slot
        self.held: list[Tokens] = [np.empty(0, dtype=np.int64)] * slots  # what free slots hold
        self.sources: list[Tokens] = [np.empty(0, dtype=np.int64)] * slots  # what was encoded into each slot
        self._free: deque[int] = deque(range(slots))  # used longest ago first
        self.hits = self.reused = 0
        self._for_prompts = False  # whether the last step was for prompts alone

    @property
    def busy(self) -> bool:
        """Whether anything runs or waits."""
        return bool(self.rows or self.waiting)

    def admit(self) -> None:
        """Give free slots to those whose turn it is."""
        while self._free and self.waiting:
            row = self.waiting.pop()
            row.slot = self._best_slot(row)
            self._free.remove(row.slot)
            self.rows[row.slot] = row

    def _best_slot(self, row: Row) -> int:
        """A free slot of which the row goes on with the greater part, else the one that was used longest ago."""
        if len(row.source):
            same = [slot for slot in self._free if np.array_equal(self.sources[slot], row.source)]
            return same[0] if same else self._free[0]
        if self.reuse:
            alike = {slot: common(self.held[slot], row.prompt) for slot in self._free}
            best = max(alike, key=lambda slot: alike[slot])
            if 2 * alike[best] >= len(self.held[best]) > 0 and alike[best] >= _WORTH:
                return best
        return self._free[0]

    def release(self, row: Row, *, keep: bool = True) -> None:
        """Take back a row's slot; what it holds is kept for others unless it is not to be trusted."""
        del self.rows[row.slot]
        if keep and row.begun and self.reuse:
            self.held[row.slot] = np.array(row.tokens[: row.computed], dtype=np.int64) + row.mark
        elif row.begun or not keep:
            self.held[row.slot] = np.empty(0, dtype=np.int64)
        if not keep:
            self.sources[row.slot] = np.empty(0, dtype=np.int64)
        if len(self.held[row.slot]) or len(self.sources[row.slot]):
            self._free.append(row.slot)
        else:
            self._free.appendleft(row.slot)

    def plan(self) -> list[tuple[Row, int]]:
        """The rows of the coming step, each with how many of its tokens are read, by rising slot.

        Prompts that can be read within a chunk have every second step for themselves, so that a first token comes soon
        whatever else runs. In the others every row with one token left goes on, beside a quarter of a chunk of prompts:
        half of that goes to the one that has waited longest and the rest to the shortest, so that a long prompt stalls
        nobody and is itself not put off for ever.
        """
        ready = [row for row in self.rows.values() if row.begun]
        running = [row for row in ready if row.pending == 1]
        prompts = sorted((row for row in ready if row.pending > 1), key=lambda row: row.pending)
        counts, left = dict[int, int](), self.chunk
        self._for_prompts = bool(running and prompts and prompts[0].pending <= left and not self._for_prompts)
        if not self._for_prompts:
            counts = {row.slot: 1 for row in running}
            left = max(1, left // 4) if running else left
            if prompts:
                oldest = min(prompts, key=lambda row: row.ticket.submitted_at)
                share = left if len(prompts) == 1 else max(1, left // 2)
                counts[oldest.slot] = oldest.pending if self.whole else min(oldest.pending, share)
                left -= counts[oldest.slot]
        for row in prompts:
            more = row.pending - counts.get(row.slot, 0)
            if left < 1 or (more > left and (self.whole or self._for_prompts)):
                break
            counts[row.slot] = counts.get(row.slot, 0) + min(more, left)
            left -= min(more, left)
        return [(self.rows[slot], count) for slot, count in sorted(counts.items())]

    def may_begin(self, row: Row) -> bool:
        """Whether a row that was not begun may begin: not while another reads what both begin with."""
        if row.begun or not row.encoded:
            return False
        if row.reads_all:
            return True
        _, promised = self._alike(row, [(other.slot, other.prompt) for other in self.rows.values() if other.begun])
        return not self.reuse or promised < _WORTH or promised <= self.beginning(row)[1]

    def beginning(self, row: Row) -> tuple[int, int]:
        """The slot that holds most of what a row begins with, and how many tokens; the last must be read for its scores."""
        if row.reads_all:
            return row.slot, 0
        there = [(slot, self.held[slot]) for slot in self._free]
        there += [(other.slot, other.prompt[: other.computed]) for other in self.rows.values() if other.begun]
        own = min(common(self.held[row.slot], row.prompt), len(row.prompt) - 1)
        slot, tokens = self._alike(row, there)
        return (slot, tokens) if tokens >= max(own + 1, _WORTH) else (row.slot, own)

    def _alike(self, row: Row, there: Sequence[tuple[int, Tokens]]) -> tuple[int, int]:
        found = [(common(tokens, row.prompt), slot) for slot, tokens in there]
        tokens, slot = max(found, default=(0, row.slot))
        return slot, min(tokens, len(row.prompt) - 1)
