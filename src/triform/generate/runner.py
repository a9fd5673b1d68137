"""Passes of a model over the tokens of several requests at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from triform.nn import Layout, Transformer
from triform.nn.mask import View

from .forms import padded
from .slots import Slots
from .stepper import Stepper

Work = Sequence[tuple[int, Sequence[int]]]  # slots, and the tokens that are read into each


class Runner:
    """A model with a decoder and the slots that it reads and writes."""

    def __init__(self, net: Transformer, slots: Slots) -> None:
        assert net.config.decoder is not None
        self.net, self.slots = net, slots
        self.has_prefix = any(block.attention.mask == "prefix" for block in net.config.decoder.pattern)
        self.stepper = Stepper.of(net)

    def read(self, work: Work, whole: Sequence[bool]) -> Tensor:
        """Read tokens into slots; gives scores (N, V) of what follows the last token of each.

        work: slots in rising order, with their new tokens; whole: whether these are a prompt from its first to its last
        token, which a model with a prefix sees both ways.
        """
        if self.stepper is None:
            return self._pass(work, whole)
        causal = torch.tensor([not (self.has_prefix and both) for both in whole])
        if bool(causal.all()):
            return self._steps(self.stepper, work)
        both_ways = (~causal).nonzero()[:, 0].tolist()
        passed = self._pass([work[i] for i in both_ways], [whole[i] for i in both_ways])
        if len(both_ways) == len(work):
            return passed
        stepped = self._steps(self.stepper, [work[i] for i in causal.nonzero()[:, 0].tolist()])
        scores = stepped.new_empty(len(work), stepped.shape[1])
        scores[causal], scores[~causal] = stepped, passed.type_as(stepped)
        return scores

    def _steps(self, stepper: Stepper, work: Work) -> Tensor:
        """As `read`, in one native call."""
        counts = [len(ids) for _, ids in work]
        self.slots.reserve([(slot, count) for (slot, _), count in zip(work, counts, strict=True)])
        tokens = torch.tensor([i for _, some in work for i in some])
        slots = torch.tensor([slot for slot, ids in work for _ in ids])
        scores = stepper.step(tokens, slots, self.slots, torch.tensor(counts).cumsum(0) - 1)
        self.slots.advance()
        return scores

    def _pass(self, work: Work, whole: Sequence[bool]) -> Tensor:
        """As `read`, by the model's own modules."""
        net, slots = self.net, self.slots
        assert net.decoder is not None
        counts = [len(ids) for _, ids in work]
        shape = slots.plan([(slot, count) for (slot, _), count in zip(work, counts, strict=True)])
        ids = torch.tensor([i for _, some in work for i in some], device=slots.device).view(shape)
        layout = None
        if self.has_prefix and any(whole):
            prefix = [both for both, count in zip(whole, counts, strict=True) for _ in range(count)]
            layout = Layout(prefix=torch.tensor(prefix, device=slots.device).view(shape))
        across = View() if net.encoder is None else slots.across()
        hidden, _ = net.decoder(ids, None, layout, (None, across), slots)
        slots.advance()
        last = hidden[:, -1] if slots.spans == () else hidden[0, torch.tensor(counts, device=slots.device).cumsum(0) - 1]
        scores = net.score(last)
        assert scores is not None
        return scores

    def encode(self, sources: Sequence[tuple[int, Sequence[int]]]) -> None:
        """Let the encoder read, and leave what each layer sees of it in the slots."""
        net = self.net
        assert net.encoder is not None
        assert net.decoder is not None
        ids, mask = padded([ids for _, ids in sources], 0, self.slots.device)
        memory, _ = net.encoder(ids, mask)
        for index, layer in enumerate(net.decoder.layers.values()):
            attention: Any = layer.get_submodule("cross.body")
            keys, values = attention.keys_and_values(memory)
            for (slot, tokens), key, value in zip(sources, keys, values, strict=True):
                self.slots.remember(slot, index, key[:, : len(tokens)], value[:, : len(tokens)])
