"""A moving average of a model's weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """The exponential moving average of the parameters that a model trains, by name (Polyak & Juditsky 1992).

    After step t, counted from 0, an average a becomes d * a + (1 - d) * p, where d is the smaller of
    `decay` and (1 + t) / (10 + t), so that the weights of the start are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.values: dict[str, Tensor] = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        parameters = dict(self.model.named_parameters())
        torch._foreach_lerp_(list(self.values.values()), [parameters[name].detach() for name in self.values], share)

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Take up averages that were saved. Raises ValueError where names or shapes are those of another model."""
        if wrong := values.keys() ^ self.values.keys():
            raise ValueError(f"the averaged weights and the model differ in {', '.join(sorted(wrong)[:3])}; they are of another model")
        for name, value in self.values.items():
            if values[name].shape != value.shape:
                raise ValueError(f"the averaged weights have {name} of {tuple(values[name].shape)}, expected {tuple(value.shape)}")
            value.copy_(values[name])

    @contextmanager
    def used(self) -> Iterator[None]:
        """The model has the averaged weights while the block runs."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, parameter in self.model.named_parameters():
            if name not in self.values:
                continue
            parameter.data, self.values[name] = self.values[name], parameter.data
