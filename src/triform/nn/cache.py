"""Keys and values kept between passes. The caller owns a cache and hands it in; no module keeps one.

Shapes: B batch, H key-value heads, S keys so far, T new tokens, W width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from triform import config


class Growing:
    """Keys and values (B, H, S, W) of one attention, one concatenation a pass."""

    def __init__(self) -> None:
        self.key: Tensor | None = None
        self.value: Tensor | None = None

    def held(self) -> tuple[Tensor, Tensor] | None:
        """What is there, if anything: of a memory all that the queries may look at."""
        return None if self.key is None or self.value is None else (self.key, self.value)

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add T keys and values; returns all that the new queries may look at."""
        if self.key is not None and self.value is not None:
            key, value = torch.cat((self.key, key), dim=2), torch.cat((self.value, value), dim=2)
        self.key, self.value = key, value
        return key, value

    def reorder(self, rows: Tensor) -> None:
        """Keep the batch rows (B',) named, in that order."""
        if self.key is not None and self.value is not None:
            self.key, self.value = self.key[rows], self.value[rows]

    def exchange(self, rows: Tensor, since: int) -> None:
        """Give each row the tokens of another (B,), which has the same as it in the first `since` places."""
        self.reorder(rows)

    def truncate(self, length: int) -> None:
        """Forget the tokens after the first `length`."""
        if self.key is not None and self.value is not None:
            self.key, self.value = self.key[:, :, :length], self.value[:, :, :length]


class Preallocated(Growing):
    """The same in a buffer of `capacity` tokens taken at the first pass, so that a step copies only what is new."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity, self.length = capacity, 0

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        end = self.length + key.shape[2]
        if self.key is None or self.value is None:
            self.key = key.new_empty(*key.shape[:2], self.capacity, key.shape[3])
            self.value = value.new_empty(*value.shape[:2], self.capacity, value.shape[3])
        self.key[:, :, self.length : end] = key
        self.value[:, :, self.length : end] = value
        self.length = end
        return self.key[:, :, :end], self.value[:, :, :end]

    def reorder(self, rows: Tensor) -> None:
        if self.key is not None and self.value is not None:
            self.key, self.value = self._copied(self.key, rows), self._copied(self.value, rows)

    def exchange(self, rows: Tensor, since: int) -> None:
        for buffer in (self.key, self.value):
            if buffer is not None:
                buffer[:, :, since : self.length] = buffer[rows, :, since : self.length]

    def take(self, choices: Tensor, past: int) -> None:
        """Keep of the tokens at places from `past` on one of each row, (B,), counted from there."""
        rows = torch.arange(len(choices), device=choices.device)
        for buffer in (self.key, self.value):
            if buffer is not None:
                buffer[:, :, past] = buffer[rows, :, past + choices]
        self.length = past + 1

    def truncate(self, length: int) -> None:
        self.length = min(self.length, length)

    def _copied(self, buffer: Tensor, rows: Tensor) -> Tensor:
        """A buffer with these rows, copied as far as it is filled."""
        new = buffer.new_empty(len(rows), *buffer.shape[1:])
        new[:, :, : self.length] = buffer[rows, :, : self.length]
        return new


class Windowed(Growing):
    """The same for a sliding window: keeps the last `window - 1` tokens, all that the next token can see besides itself."""

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        key, value = super().append(key, value)
        if (first := key.shape[2] - (self.window - 1)) > 0:
            self.key, self.value = key[:, :, first:], value[:, :, first:]
            if first > self.window:  # a view would keep all of a long pass alive
                self.key, self.value = self.key.clone(), self.value.clone()
        return key, value


class Span(NamedTuple):
    """Tokens of a pass of B = 1 that belong to neighbouring rows of a cache, N rows of T tokens each.

    tokens: which of the pass's; rows: of the cache; at (N, T): their positions, which are also the places of their keys.
    past: the fewest tokens that one of the rows held before; end: the most that one holds now.
    """

    tokens: slice
    rows: slice
    at: Tensor
    past: int
    end: int

    @property
    def even(self) -> bool:
        """Whether all rows hold equally many tokens."""
        return self.end - self.past == self.at.shape[1]


class Cache:
    """What generation carries from pass to pass: a store per layer, and which slots hold tokens.

    Make one with `Cache.growing`, or `Cache.preallocated` when the longest length is
    known. In both, a layer with a sliding window keeps no more than its window unless
    `windowed=False`. Rows of a batch are padded on the left when windows are kept.

    spans: a cache whose rows go on independently says here whose tokens those of the coming pass are.
    alternatives: whether the tokens of the coming pass are all for the next place of their row, and see nothing of one
    another; `take` keeps one of them.
    """

    spans: Sequence[Span] = ()
    alternatives: bool = False

    def __init__(self, layers: list[Growing], crosses: list[Growing], windowed: bool) -> None:
        self.layers, self.crosses, self.windowed = layers, crosses, windowed
        self.length = 0
        self.count: Tensor | None = None  # (B, 1) tokens so far, padding left out; None: `length` in every row
        self.seen: Tensor | None = None  # (B, length) False where padding; None: nowhere
        self.positions: Tensor | None = None  # (B, length); None: 0, 1, 2, ...
        self.memory_mask: Tensor | None = None  # of the encoder's output that the crosses hold

    @property
    def has_memory(self) -> bool:
        """Whether a first pass has left the encoder's keys and values here."""
        return any(store.key is not None for store in self.crosses)

    @classmethod
    def growing(cls, model: config.Transformer, *, windowed: bool = True) -> Cache:
        """An empty cache that grows by concatenation."""
        return cls._make(model, None, windowed)

    @classmethod
    def preallocated(cls, model: config.Transformer, capacity: int, *, windowed: bool = True) -> Cache:
        """An empty cache whose layers take room for `capacity` tokens a row at once."""
        if capacity < 1:
            raise ValueError(f"capacity: expected at least one token, got {capacity}")
        return cls._make(model, capacity, windowed)

    @classmethod
    def _make(cls, model: config.Transformer, capacity: int | None, windowed: bool) -> Cache:
        stack = model.decoder
        if stack is None:
            raise ValueError("a cache is for models with a decoder, and this one has none")
        if any(block.attention.mask == "bidirectional" for block in stack.pattern):
            raise ValueError("a cache is for a decoder that looks back: expected a causal or prefix mask in every block, got bidirectional")
        layers: list[Growing] = []
        for index in range(stack.depth):
            window = stack.block(index).attention.window
            if window is not None and windowed:
                layers.append(Windowed(window))
            else:
                layers.append(Growing() if capacity is None else Preallocated(capacity))
        return cls(layers, [Growing() for _ in range(stack.depth)], windowed)

    def extend(self, batch: int, new: int, mask: Tensor | None, device: torch.device) -> Tensor:
        """Make room for `new` slots and return their positions (B or 1, T), which count seen tokens only.

        Raises ValueError, and changes nothing, where they do not fit.
        """
        self._check(new, mask)
        if self.alternatives:
            self.length += new
            return self._next(self.length - new, device).expand(-1, new)
        if mask is None and self.seen is None:
            self.length += new
            return torch.arange(self.length - new, self.length, device=device)[None]
        mask = torch.ones(batch, new, dtype=torch.bool, device=device) if mask is None else mask.bool()
        if self.seen is None or self.positions is None or self.count is None:
            self.seen = torch.ones(batch, self.length, dtype=torch.bool, device=device)
            self.positions = torch.arange(self.length, device=device).expand(batch, -1)
            self.count = torch.full((batch, 1), self.length, device=device)
        at = (self.count + mask.long().cumsum(1) - 1).clamp(min=0)
        self.seen = torch.cat((self.seen, mask), dim=1)
        self.positions = torch.cat((self.positions, at), dim=1)
        self.count = self.count + mask.sum(1, keepdim=True)
        self.length += new
        return at

    def _check(self, new: int, mask: Tensor | None) -> None:
        room = min((store.capacity for store in self.layers if isinstance(store, Preallocated)), default=None)
        if room is not None and self.length + new > room:
            raise ValueError(f"the cache holds {room} tokens and {self.length + new} are needed; make it with a larger capacity")
        if (mask is None and self.seen is None) or not any(isinstance(store, Windowed) for store in self.layers):
            return
        # A window keeps slots, so padding may stand before a row's tokens or after the last, never between.
        old = torch.ones(1, self.length, dtype=torch.bool) if self.seen is None else self.seen
        now = torch.ones(len(old), new, dtype=torch.bool, device=old.device) if mask is None else mask.bool()
        row = torch.cat((old[:, -1:].to(now.device).expand(len(now), -1), now), dim=1)
        resumes = (~row[:, :-1] & row[:, 1:]).any(1) & old.any(1).to(now.device)
        if bool(resumes.any() | (now[:, :-1] & ~now[:, 1:]).any()):
            raise ValueError("a windowed cache needs rows padded on the left; pad so, or make the cache with windowed=False")

    def keys(self, window: int | None, new: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Positions (B or 1, S) and what is seen (B, S) of the keys that a layer with this window returns."""
        if self.alternatives:
            return self._keys_of_alternatives(new, device)
        kept = self.length
        if window is not None and self.windowed:
            kept = min(self.length - new, window - 1) + new
        if self.seen is None or self.positions is None:
            return torch.arange(self.length - kept, self.length, device=device)[None], None
        return self.positions[:, self.length - kept :], self.seen[:, self.length - kept :]

    def _next(self, past: int, device: torch.device) -> Tensor:
        """The position (B or 1, 1) of each row's token after `past` places."""
        return torch.tensor([[past]], device=device) if self.count is None else self.count

    def _keys_of_alternatives(self, new: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """The same as `keys`, but what is seen is told for each query, (B or 1, T, S)."""
        past = self.length - new
        before = torch.arange(past, device=device)[None] if self.positions is None else self.positions
        seen = torch.ones(1, past, dtype=torch.bool, device=device) if self.seen is None else self.seen
        own = torch.eye(new, dtype=torch.bool, device=device).expand(len(seen), -1, -1)
        at = torch.cat((before, self._next(past, device).expand(-1, new)), dim=1)
        return at, torch.cat((seen[:, None].expand(-1, new, -1), own), dim=2)

    def take(self, choices: Tensor, among: int) -> None:
        """Keep of the `among` alternatives of the last pass one of each row, by its number (B,); no layer may keep a window alone."""
        past = self.length - among
        for store in self.layers:
            assert isinstance(store, Preallocated)
            store.take(choices, past)
        if self.seen is not None and self.positions is not None and self.count is not None:
            self.seen = torch.cat((self.seen, torch.ones_like(self.seen[:, :1])), dim=1)
            self.positions = torch.cat((self.positions, self.count), dim=1)
            self.count = self.count + 1
        self.length, self.alternatives = past + 1, False

    def exchange(self, rows: Tensor, since: int) -> None:
        """Give each row the tokens of another (B,), which has the same as it in the first `since` places, and the same memory."""
        for store in self.layers:
            store.exchange(rows, since)

    def truncate(self, length: int) -> None:
        """Forget all after the first `length` places. Raises ValueError where a layer keeps no more than its window."""
        if length >= self.length:
            return
        if any(isinstance(store, Windowed) for store in self.layers):
            raise ValueError("a windowed cache cannot go back, as it forgets what leaves the window; make the cache with windowed=False")
        for store in self.layers:
            store.truncate(length)
        self.length = length
        if self.seen is not None and self.positions is not None:
            self.seen, self.positions = self.seen[:, :length], self.positions[:, :length]
            self.count = self.seen.sum(1, keepdim=True)

    def reorder(self, rows: Tensor) -> None:
        """Keep the batch rows (B',) named, in that order (beam search, finished rows)."""
        for store in (*self.layers, *self.crosses):
            store.reorder(rows)
        if self.seen is not None and self.positions is not None and self.count is not None:
            self.seen, self.positions, self.count = self.seen[rows], self.positions[rows], self.count[rows]
        if self.memory_mask is not None:
            self.memory_mask = self.memory_mask[rows]
