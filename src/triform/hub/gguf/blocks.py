"""Weights of a GGUF file as its blocks, not dequantized, under our names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ..rules import Match, match

if TYPE_CHECKING:
    from torch import Tensor

    from .reader import GGUFFile

_KINDS: dict[str, Literal["int8", "int4"]] = {"Q8_0": "int8", "Q4_0": "int4"}


class Blocks:
    """The matrices that a file holds in Q8_0 ("int8") or Q4_0 ("int4"), which `generate.prepare` takes as they are."""

    def __init__(self, file: GGUFFile) -> None:
        from triform.nn import build

        from ..public import weights

        self.file = file
        self.shapes = {name: tensor.shape for name, tensor in weights(build(file.spec, device="meta")).items()}
        self.matches: dict[str, Match] = {name: found for found in match(file.family.table, self.shapes) for name in found.ours}

    def kind(self, name: str) -> Literal["int8", "int4"] | None:
        """What a weight of ours is stored in, None for anything else and for what is not a matrix."""
        found = self.matches.get(name)
        if found is None or len(found.theirs) != 1 or len(self.shapes[name]) != 2 or found.theirs[0] not in self.file:
            return None
        return _KINDS.get(self.file.header.tensors[found.theirs[0]].kind)

    def blocks(self, name: str) -> Tensor:
        """A weight's blocks, (rows, bytes of a row), uint8.

        The rows are in our order: layouts move whole rows, and blocks are along them.
        """
        import torch

        found = self.matches[name]
        raw = self.file.raw(found.theirs[0])
        shapes = [torch.Size((self.shapes[ours][0], raw.shape[1])) for ours in found.ours]
        return found.layout.load([raw], shapes)[found.ours.index(name)]
