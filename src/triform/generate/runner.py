"""Passes of a model over the tokens of several requests at once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from triform.nn import Layout, Transformer
from triform.nn.adapter import in_use, use_adapters
from triform.nn.mask import View

from .compiled import CompiledStepper
from .forms import padded
from .slots import Slots
from .stepper import Stepper

Work = Sequence[tuple[int, Sequence[int]]]  # slots, and the tokens that are read into each
Rows = Sequence[tuple[tuple[int, Sequence[int]], bool, bool, str | None]]  # the same, with `whole`, `every` and the adapter of each


class Runner:
    """A model with a decoder and the slots that it reads and writes.

    compiled: single tokens go through `CompiledStepper`, where the model is none that the native kernels run.
    """

    def __init__(self, net: Transformer, slots: Slots, compiled: bool = False) -> None:
        assert net.config.decoder is not None
        self.net, self.slots = net, slots
        self.has_prefix = any(block.attention.mask == "prefix" for block in net.config.decoder.pattern)
        self.stepper: Stepper | CompiledStepper | None = Stepper.of(net) or (CompiledStepper(net) if compiled else None)

    def read(
        self, work: Work, whole: Sequence[bool], every: Sequence[bool] = (), adapters: Sequence[str | None] = ()
    ) -> Tensor:
        """Read tokens into slots; gives scores (N, V) of what follows the last token of each, or every token where `every` says so.

        work: slots in rising order, with their new tokens; whole: whether these are a prompt from its first to its last
        token, which a model with a prefix sees both ways. adapters: which of the model's each is read with, None: the model as it is.
        """
        every, adapters = every or [False] * len(work), adapters or [None] * len(work)
        rows = list(zip(work, whole, every, adapters, strict=True))
        stepped = self._stepped(rows)
        if all(stepped):
            return self._steps(rows)
        if not any(stepped):
            return self._pass(rows)
        scores: list[Tensor] = [torch.empty(0)] * len(rows)
        for way, chosen in ((self._pass, False), (self._steps, True)):
            places = [place for place, each in enumerate(stepped) if each == chosen]
            some = [rows[place] for place in places]
            made = torch.split(way(some).float(), [len(ids) if each else 1 for (_, ids), _, each, _ in some])
            for place, part in zip(places, made, strict=True):
                scores[place] = part
        return torch.cat(scores)

    def _stepped(self, rows: Rows) -> list[bool]:
        """Which of them the stepper reads: the compiled one those that go on by a token."""
        if self.stepper is None or in_use(self.net):
            return [False] * len(rows)
        single = isinstance(self.stepper, CompiledStepper)
        return [
            adapter is None and not (self.has_prefix and whole) and not (single and len(ids) > 1)
            for (_, ids), whole, _, adapter in rows
        ]

    def _steps(self, rows: Rows) -> Tensor:
        """As `read`, by the stepper."""
        assert self.stepper is not None
        counts = [len(ids) for (_, ids), *_ in rows]
        self.slots.reserve([(slot, count) for ((slot, _), *_), count in zip(rows, counts, strict=True)])
        tokens = torch.tensor([i for (_, some), *_ in rows for i in some])
        slots = torch.tensor([slot for (slot, ids), *_ in rows for _ in ids])
        scores = self.stepper.step(tokens, slots, self.slots, _wanted(counts, [each for _, _, each, _ in rows]))
        if scores is None:
            self.stepper = None
            return self._pass(rows)
        self.slots.advance()
        return scores

    def _pass(self, rows: Rows) -> Tensor:
        """As `read`, by the model's own modules."""
        net, slots = self.net, self.slots
        assert net.decoder is not None
        counts = [len(ids) for (_, ids), *_ in rows]
        shape = slots.plan([(slot, count) for ((slot, _), *_), count in zip(rows, counts, strict=True)])
        ids = torch.tensor([i for (_, some), *_ in rows for i in some], device=slots.device).view(shape)
        layout = None
        if self.has_prefix and any(whole for _, whole, *_ in rows):
            prefix = [whole for (_, whole, *_), count in zip(rows, counts, strict=True) for _ in range(count)]
            layout = Layout(prefix=torch.tensor(prefix, device=slots.device).view(shape))
        across = View() if net.encoder is None else slots.across()
        with self._adapted([adapter for *_, adapter in rows], counts):
            hidden, _ = net.decoder(ids, None, layout, (None, across), slots)
        slots.advance()
        every = [each for _, _, each, _ in rows]
        last = hidden[:, -1] if slots.spans == () and not any(every) else hidden.flatten(0, 1)[_wanted(counts, every).to(slots.device)]
        scores = net.score(last)
        assert scores is not None
        return scores

    def _adapted(self, adapters: Sequence[str | None], counts: Sequence[int]) -> AbstractContextManager[None]:
        """A pass over so many tokens of each uses its adapter; as the model is, where none is named."""
        if not any(adapters):
            return nullcontext()
        return use_adapters(self.net, list(zip(adapters, counts, strict=True)))

    def encode(self, sources: Sequence[tuple[int, Sequence[int]]], adapters: Sequence[str | None] = ()) -> None:
        """Let the encoder read, each with its adapter, and leave what each layer sees of it in the slots."""
        net = self.net
        assert net.encoder is not None
        assert net.decoder is not None
        ids, mask = padded([ids for _, ids in sources], 0, self.slots.device)
        with self._adapted(adapters, [ids.shape[1]] * len(sources)):
            memory, _ = net.encoder(ids, mask)
            for index, layer in enumerate(net.decoder.layers.values()):
                attention: Any = layer.get_submodule("cross.body")
                keys, values = attention.keys_and_values(memory)
                for (slot, tokens), key, value in zip(sources, keys, values, strict=True):
                    self.slots.remember(slot, index, key[:, : len(tokens)], value[:, : len(tokens)])


def _wanted(counts: Sequence[int], every: Sequence[bool]) -> Tensor:
    """The places of the tokens whose scores are given, of pieces of so many tokens that stand one after another."""
    ends = torch.tensor(counts).cumsum(0)
    if not any(every):
        return ends - 1
    pieces = zip(ends.tolist(), counts, every, strict=True)
    return torch.cat([torch.arange(end - (count if each else 1), end) for end, count, each in pieces])
