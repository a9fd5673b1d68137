"""A decoder's pass over one token a request by torch.compile: CUDA graphs on a GPU.

Shapes: N tokens of a pass, B rows that it is padded to, S keys that it reads, R slots, H key-value heads, W width of a head,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from triform.nn import Cache, Transformer
from triform.nn.cache import Growing
from triform.nn.compiler import keep_compiled, tell
from triform.nn.mask import View

from .slots import Layer, Slots

_KEYS = 256  # that are read at the least
_GRAPHS = 256  # that are kept, of all models; torch's own limit of 8 is below the sizes of one


class CompiledStepper:
    """A model's decoder, compiled once for each of a few sizes, so that no step waits for the compiler when those have been seen.

    Rows are padded to the next power of two, at most the slots there are, with slots that write nothing; keys are read up to the
    next power of two from `least` on, at most the capacity. What changes from step to step is in tensors.
    """

    def __init__(
        self, model: Transformer, backend: str | Callable[..., Any] = "inductor", least: int = _KEYS, say: Callable[[str], None] = tell
    ) -> None:
        """backend: as `torch.compile` takes it; only inductor records CUDA graphs. say: is told where the compiler fails."""
        keep_compiled()
        self.model, self.least, self.say = model, least, say
        mode = "reduce-overhead" if backend == "inductor" else None
        self._call = torch.compile(_pass, fullgraph=True, dynamic=False, backend=backend, mode=mode)
        self._fixed: Slots | None = None  # whose buffers torch was told of

    def step(self, tokens: Tensor, slots: Tensor, cache: Slots, wanted: Tensor | None = None) -> Tensor | None:
        """Read tokens (N,), each the next of its slot (N,), which are all different.

        Writes keys and values to the cache's buffers and leaves `lengths` alone. wanted: the rows whose scores are given, all when
        left out. Returns scores (N or len(wanted), V); None, having said why, where it cannot be compiled.
        """
        rows = self._rows(slots.tolist(), cache)
        place = {slot: index for index, slot in enumerate(rows)}
        at = torch.tensor([place[slot] for slot in slots.tolist()])
        inputs = torch.zeros(5, len(rows), dtype=torch.long)
        inputs[0, at], inputs[1, at], inputs[4, at] = tokens, cache.lengths[slots], 1
        inputs[2] = torch.tensor(rows)
        inputs[3] = cache.memory_lengths[inputs[2]].clamp(min=1)
        self._fix(cache)
        keys = self._keys(int(torch.maximum(cache.lengths[slots] + 1, cache.memory_lengths[slots]).max()), cache)
        whole = len(rows) == cache.slots
        try:
            with torch._dynamo.config.patch(recompile_limit=_GRAPHS, accumulated_recompile_limit=4 * _GRAPHS):
                torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
                scores: Tensor = self._call(self.model, cache.layers, cache.crosses, inputs.to(cache.device), keys, whole)
        except Exception as error:  # whatever a compiler fails with, the model's own modules do without it
            cause = getattr(error, "inner_exception", error)  # torch's own says first where it was raised
            first = next(iter(str(cause).strip().splitlines()), "")
            self.say(f"compile: the decoding pass could not be compiled ({type(cause).__name__}: {first}); the run goes on without it")
            return None
        # A copy, as the next step writes over a recorded one's results.
        return scores[(at if wanted is None else at[wanted]).to(scores.device)]

    def _rows(self, slots: list[int], cache: Slots) -> list[int]:
        """The slots of a pass: those that go on, and others up to a size; if that is all, in their order."""
        size = min(1 << (len(slots) - 1).bit_length(), cache.slots)
        taken = set(slots)
        others = [slot for slot in range(cache.slots) if slot not in taken]
        return sorted(slots + others[: size - len(slots)])

    def _keys(self, length: int, cache: Slots) -> int:
        return min(max(self.least, 1 << (length - 1).bit_length()), max(cache.capacity, cache.source_capacity))

    def _fix(self, cache: Slots) -> None:
        """Tell torch that the cache's buffers stay where they are: a graph is recorded only if what it writes to does."""
        if cache is self._fixed:
            return
        self._fixed = cache
        for layer in (*cache.layers, *cache.crosses):
            torch._dynamo.mark_static_address(layer.key)
            torch._dynamo.mark_static_address(layer.value)


class _Rows(Growing):
    """Keys and values of some slots, or all of them, in one pass."""

    def __init__(self, layer: Layer, cache: _Step) -> None:
        self.layer, self.cache = layer, cache

    def held(self) -> tuple[Tensor, Tensor]:
        return self._seen(self.layer.key), self._seen(self.layer.value)

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values (B, H, 1, W) of the rows that go on; returns what they may look at, (B, H, S, W)."""
        cache = self.cache
        for buffer, new in ((self.layer.key, key), (self.layer.value, value)):
            old = buffer[cache.slots, :, cache.places]
            buffer[cache.slots, :, cache.places] = torch.where(cache.active, new[:, :, 0].to(buffer.dtype), old)
        return self.held()

    def _seen(self, buffer: Tensor) -> Tensor:
        return buffer[:, :, : self.cache.reads] if self.cache.whole else buffer[self.cache.slots, :, : self.cache.reads]


class _Step(Cache):
    """Slots as a compiled pass sees them: sizes are Python's, all else is in tensors."""

    def __init__(self, layers: list[Layer], crosses: list[Layer], inputs: Tensor, reads: int, whole: bool) -> None:
        super().__init__([_Rows(layer, self) for layer in layers], [_Rows(layer, self) for layer in crosses], windowed=False)
        self.places, self.slots, self.active = inputs[1], inputs[2], inputs[4].bool()[:, None, None]
        self.reads, self.whole, self.capacity = reads, whole, layers[0].key.shape[2]
        self.length = 1  # slots are no longer than the positions there are, so that nobody need look

    def extend(self, batch: int, new: int, mask: Tensor | None, device: torch.device) -> Tensor:
        """The positions (B, 1) of the tokens."""
        return self.places[:, None]

    def keys(self, window: int | None, new: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Positions (1, S) and what is seen (B, S) of the keys; a window is left to the view."""
        at = torch.arange(min(self.reads, self.capacity), device=device)[None]
        return at, at <= self.places[:, None]


def _pass(model: Transformer, layers: list[Layer], crosses: list[Layer], inputs: Tensor, reads: int, whole: bool) -> Tensor:
    """Scores (B, V) of tokens, by places, slots, lengths of what an encoder read, and whether they count: the rows of inputs (5, B)."""
    assert model.decoder is not None
    across = View()
    if crosses:
        there = torch.arange(min(reads, crosses[0].key.shape[2]), device=inputs.device)
        across = View((there < inputs[3][:, None])[:, None, None])
    hidden, _ = model.decoder(inputs[0][:, None], None, None, (None, across), _Step(layers, crosses, inputs, reads, whole))
    scores = model.score(hidden[:, 0])
    assert scores is not None
    return scores
