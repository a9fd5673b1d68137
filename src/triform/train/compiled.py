"""Blocks by torch.compile while a step is taken, with what was compiled kept between runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from triform.nn import Stack
from triform.nn.compiler import keep_compiled


class Compiled:
    """The blocks of a model in a compiled form, for use in training steps alone: what generates has another shape each time."""

    def __init__(self, model: nn.Module) -> None:
        keep_compiled()
        self.blocks = [layer for stack in model.modules() if isinstance(stack, Stack) for layer in stack.layers.values()]
        self._calls: list[Any] = [torch.compile(layer._call_impl) for layer in self.blocks]

    @contextmanager
    def used(self) -> Iterator[None]:
        """In this context a call of a block is a call of its compiled form."""
        for block, call in zip(self.blocks, self._calls, strict=True):
            block._compiled_call_impl = call  # what nn.Module.compile sets, for good
        try:
            yield
        finally:
            for block in self.blocks:
                block._compiled_call_impl = None
