"""Blocks by torch.compile while a step is taken, with what was compiled kept between runs."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from triform.config.files import cache_folder
from triform.nn import Stack


def choose_compile(wanted: bool | str, device: str = "cpu", say: Callable[[str], None] | None = None) -> bool:
    """Whether blocks are compiled: as wanted, if there is a compiler; for auto, on an accelerator.

    On a CPU the blocks' own parts (`triform.nn.fused`) are about as fast, and need no minute of warming up. Where there is no
    compiler and one was wanted, `say` is told in a line; None: standard error.
    """
    if wanted is False or (wanted == "auto" and device == "cpu"):
        return False
    lacking = _lacking(device)
    if lacking is not None and wanted is True:
        (say or _tell)(f"train.compile: there is no {lacking} here; the run goes on without compiling")
    return lacking is None


def _lacking(device: str) -> str | None:
    """What torch would need to compile for a device and does not find."""
    if device != "cpu":
        return None if importlib.util.find_spec("triton") else "Triton"
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception as error:  # torch has a kind of its own for it, which moves between versions
        return "C++ compiler" if "compiler" in f"{type(error).__name__} {error}".lower() else None
    return None


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Compiled:
    """The blocks of a model in a compiled form, for use in training steps alone: what generates has another shape each time."""

    def __init__(self, model: nn.Module) -> None:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))
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
