"""Keys and values of requests that come and go: a slot for each, and every slot goes on by itself.

Shapes: N tokens of a pass, R slots, H key-value heads, C capacity of a slot in tokens, W width of a head.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from triform import config
from triform.nn import Cache
from triform.nn.cache import Growing, Span
from triform.nn.mask import Part, View

from .forms import longest

Work = Sequence[tuple[int, int]]  # slots, and how many tokens each goes on by in a pass

_SHARE = 0.25  # of the device's memory, that a cache takes at most where nothing else is said
_CAPACITY = 4096  # tokens of a slot where neither the model nor the caller says


@dataclass
class _Pass:
    """Where the tokens of the coming pass go: neighbouring slots `rows`, of T tokens each (`block`), or tokens of any slots.

    slots, places (N,): of each token. past, end: the fewest tokens that one of the rows held, the most that one will hold.
    """

    rows: slice
    slots: Tensor
    places: Tensor
    past: int
    end: int
    block: bool
    even: bool
    memory: int = 0  # the most tokens that one of the rows has of an encoder's output


class Layer(Growing):
    """Keys and values (R, H, C, W) of one attention."""

    key: Tensor
    value: Tensor

    def __init__(self, key: Tensor, value: Tensor, window: int | None = None) -> None:
        self.key, self.value, self.window = key, value, window
        self.now: _Pass | None = None

    def held(self) -> tuple[Tensor, Tensor]:
        """What a pass over neighbouring slots sees of an encoder's output (B, H, S, W); else the buffers."""
        now = self.now
        assert now is not None
        if not now.block:
            return self.key, self.value
        return self.key[now.rows, :, : now.memory], self.value[now.rows, :, : now.memory]

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values (B, H, T, W) where the pass says.

        Returns what a pass over neighbouring slots sees, (B, H, S, W); else the buffers, of which the pass's view names parts.
        """
        now = self.now
        assert now is not None
        if now.block and now.even:
            self.key[now.rows, :, now.past : now.end], self.value[now.rows, :, now.past : now.end] = key, value
        else:
            for buffer, new in ((self.key, key), (self.value, value)):
                buffer[now.slots, :, now.places] = new.transpose(1, 2).flatten(0, 1)
        if not now.block:
            return self.key, self.value
        seen = slice(first_seen(now.past, self.window), now.end)
        return self.key[now.rows, :, seen], self.value[now.rows, :, seen]

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Give a slot the first `tokens` of another."""
        for buffer in (self.key, self.value):
            buffer[target, :, :tokens] = buffer[source, :, :tokens]


class Slots(Cache):
    """A cache of `slots` rows that hold up to `capacity` tokens each, which join, go on and leave independently.

    `plan` says whose the tokens of a pass are, and `advance`, when it is through, adds them to `lengths` (R,), int64 on
    the CPU. Tokens of neighbouring slots, equally many of each, are a pass (B, T) as any other; tokens of any slots are
    one of B = 1 with `spans`. Whoever makes a pass in another way tells `reserve`, writes the keys (rotated) and values of
    a slot's next token at place `lengths[slot]` of `layers[i].key` and `.value`, (R, H, C, W), and leaves `lengths` to
    `advance`. An encoder's keys and values are in `crosses[i]`, up to `memory_lengths[slot]`. Nothing is read beyond a
    slot's length, and all that was never written is 0. Layers with a window hold all tokens, of which the view leaves
    out those that are too old, so that any beginning of a slot can be used again.
    """

    layers: list[Layer]  # type: ignore[assignment]
    crosses: list[Layer]  # type: ignore[assignment]

    def __init__(self, model: config.Transformer, slots: int, capacity: int, source_capacity: int, like: Tensor) -> None:
        """`source_capacity`: tokens of what an encoder reads; `like`: a tensor of the buffers' dtype, on their device."""
        stack = model.decoder
        assert stack is not None
        Cache.growing(model)  # refuses decoders that cannot have a cache
        blocks = [stack.block(index) for index in range(stack.depth)]
        layers = [_layer(stack, block.attention, (slots, capacity), like) for block in blocks]
        crosses = [_layer(stack, block.cross, (slots, source_capacity), like) for block in blocks if block.cross is not None]
        super().__init__(layers, crosses, windowed=False)  # type: ignore[arg-type]
        self.slots, self.capacity, self.source_capacity = slots, capacity, source_capacity
        self.device = like.device
        self.lengths = torch.zeros(slots, dtype=torch.long)
        self.memory_lengths = torch.zeros(slots, dtype=torch.long)
        self._work: Work = ()
        self._touched = [0] * slots  # places that were ever written

    @property
    def bytes(self) -> int:
        """What the buffers take when all slots are full."""
        return sum(buffer.nbytes for layer in (*self.layers, *self.crosses) for buffer in (layer.key, layer.value))

    def plan(self, work: Work) -> tuple[int, int]:
        """Say whose the tokens of the next pass are: slots in rising order, each with its number of tokens; gives its (B, T)."""
        self.reserve(work)
        lengths = self.lengths.tolist()
        spans = self._spans(work, lengths)
        first, block = spans[0], len(spans) == 1
        self.spans = () if block else tuple(spans)
        self._at = first.at if block else torch.cat([span.at.flatten() for span in spans])[None]
        slots = torch.tensor([slot for slot, count in work for _ in range(count)], device=self.device)
        memory = max(self.memory_lengths.tolist()[first.rows])
        now = _Pass(first.rows, slots, self._at.flatten(), first.past, first.end, block, first.even, memory)
        for layer in (*self.layers, *self.crosses):
            layer.now = now
        self._now, self.length = now, max(span.end for span in spans)
        return self._at.shape[0], self._at.shape[1]

    def reserve(self, work: Work) -> None:
        """See that there is room for the tokens of a pass that is made without `plan`; `advance` counts them."""
        lengths = self.lengths.tolist()
        for slot, count in work:
            end = lengths[slot] + count
            if end > self.capacity:
                raise ValueError(f"a slot holds {self.capacity} tokens and {end} are needed; make the slots larger")
            self._touched[slot] = max(self._touched[slot], end)
        self._work = work

    def _spans(self, work: Work, lengths: list[int]) -> list[Span]:
        spans, first, start = [], 0, 0
        while first < len(work):
            end = _together(work, lengths, first)
            rows, count = [slot for slot, _ in work[first:end]], work[first][1]
            past = [lengths[row] for row in rows]
            at = torch.tensor(past, device=self.device)[:, None] + torch.arange(count, device=self.device)
            tokens = slice(start, start + count * len(rows))
            spans.append(Span(tokens, slice(rows[0], rows[-1] + 1), at, min(past), max(past) + count))
            first, start = end, tokens.stop
        return spans

    def extend(self, batch: int, new: int, mask: Tensor | None, device: torch.device) -> Tensor:
        """The positions (B, T) of the tokens that `plan` told of."""
        assert (batch, new, mask) == (*self._at.shape, None), "a pass over slots is of the tokens that were planned"
        return self._at

    def keys(self, window: int | None, new: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Positions (1, S) and what is seen (B, S) of the keys that a layer with this window returns."""
        now = self._now
        at = torch.arange(first_seen(now.past, window), now.end, device=device)[None]
        return at, None if now.even else at <= self._at[:, -1:]

    def across(self) -> View:
        """What the tokens of the pass see of the encoder's output."""
        lengths = self.memory_lengths.tolist()
        if self._now.block:
            return View(self._memory_mask(lengths[self._now.rows]))
        parts = []
        for span in self.spans:
            there = lengths[span.rows]
            parts.append(Part(span.tokens, span.rows, slice(0, max(there)), self._memory_mask(there)))
        return View(parts=tuple(parts))

    def _memory_mask(self, lengths: list[int]) -> Tensor | None:
        if min(lengths) == max(lengths):
            return None
        return torch.arange(max(lengths), device=self.device) < torch.tensor(lengths, device=self.device)[:, None, None, None]

    def advance(self) -> None:
        """Count the tokens of a pass that is through."""
        for slot, count in self._work:
            self.lengths[slot] += count

    def remember(self, slot: int, layer: int, key: Tensor, value: Tensor) -> None:
        """Write an encoder's keys and values (H, S, W), as a layer sees them."""
        length = key.shape[1]
        self.crosses[layer].key[slot, :, :length], self.crosses[layer].value[slot, :, :length] = key, value
        self.memory_lengths[slot] = length

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Let a slot begin with the first `tokens` of another."""
        for layer in self.layers:
            layer.copy(source, target, tokens)
        self._touched[target] = max(self._touched[target], tokens)
        self.lengths[target] = tokens

    def copy_memory(self, source: int, target: int) -> None:
        """Give a slot what another holds of the encoder's output."""
        length = int(self.memory_lengths[source])
        for layer in self.crosses:
            layer.copy(source, target, length)
        self.memory_lengths[target] = length

    def wipe(self, slot: int) -> None:
        """Empty a slot and make it 0 again, as after a pass that gave numbers which are not finite: 0 times those is not 0."""
        for layers, end in ((self.layers, self._touched[slot]), (self.crosses, self.source_capacity)):
            for layer in layers:
                layer.key[slot, :, :end], layer.value[slot, :, :end] = 0, 0
        self._touched[slot] = 0
        self.lengths[slot] = self.memory_lengths[slot] = 0


def _together(work: Work, lengths: list[int], first: int) -> int:
    """Where tokens end that one product takes: single ones of neighbouring slots, while padding costs less than more products."""
    end, longest, total = first + 1, lengths[work[first][0]], lengths[work[first][0]]
    while end < len(work) and work[first][1] == work[end][1] == 1 and work[end][0] == work[end - 1][0] + 1:
        length = lengths[work[end][0]]
        longest, total = max(longest, length), total + length
        if longest * (end + 1 - first) > 1.5 * total + 256:
            break
        end += 1
    return end


def first_seen(past: int, window: int | None) -> int:
    """The first key that a token sees after `past` others."""
    return 0 if window is None else max(0, past - window + 1)


def _layer(stack: config.Stack, attention: config.Attention, size: tuple[int, int], like: Tensor) -> Layer:
    shape = (size[0], attention.kv_heads or attention.heads, size[1], stack.head_width(attention))
    return Layer(_zeros(shape, like), _zeros(shape, like), attention.window)


def _zeros(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Zeros of which, on the CPU, the system takes no memory until they are written."""
    if like.device.type != "cpu":
        return like.new_zeros(shape)
    memory = mmap.mmap(-1, max(1, math.prod(shape) * like.element_size()))
    if hasattr(mmap, "MADV_NOHUGEPAGE"):  # a huge page would be cleared and kept for the first few tokens of a slot
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(memory, dtype=like.dtype, count=math.prod(shape)).view(shape)


def token_bytes(model: config.Transformer, element_size: int) -> int:
    """What a token takes in a slot, in bytes: a key and a value a layer; one that an encoder read takes no more than as much."""
    stack = model.decoder
    assert stack is not None
    attentions = [stack.block(index).attention for index in range(stack.depth)]
    return 2 * element_size * sum((a.kv_heads or a.heads) * stack.head_width(a) for a in attentions)


def size_of(
    model: config.Transformer, like: Tensor, slots: int, capacity: int | None, memory: int | float | None
) -> tuple[int, int, int]:
    """How many slots, and their capacities in tokens for the decoder and for what an encoder reads, that fit into a memory.

    Settings as `Engine` takes them. Raises ValueError where one request does not fit.
    """
    there = device_memory(like.device)
    if memory is None:
        memory = _SHARE
    elif not memory > 0:
        raise ValueError(f"memory: expected bytes, or a share of the device's between 0 and 1, got {memory}")
    if memory < 1:
        memory = memory * there if there is not None else float("inf")
    both = 1 if model.encoder is None else 2
    each = both * token_bytes(model, like.element_size())
    known = longest(model.decoder)
    fits = int(min(memory // each, 2**40))
    wanted = capacity or min(known or _CAPACITY, _CAPACITY, max(fits, 1))
    if fits < wanted or fits < 1:
        raise ValueError(
            f"memory: one request of {wanted:,} tokens takes {wanted * each / 2**20:,.1f} MiB in the cache and {memory / 2**20:,.1f} MiB "
            "are allowed; give more memory or a smaller capacity"
        )
    slots = min(slots, fits // wanted)
    source = min(wanted, longest(model.encoder) or wanted) if both == 2 else 0
    return slots, min(wanted, known or wanted), source


def device_memory(device: torch.device) -> int | None:
    """The memory of a device in bytes, None where it cannot be asked."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None
