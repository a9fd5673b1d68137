"""What is trained beside frozen weights, as data."""

from __future__ import annotations

import math
from fnmatch import fnmatchcase
from typing import Literal

from .spec import at_least, probability, spec


@spec
class Adapter:
    """Low-rank updates of linear layers, whose own weights stay as they are (LoRA, Hu et al. 2021; DoRA, Liu et al. 2024).

    A layer y = W x becomes y = (W + s B A) x with B A of `rank`, and s = alpha / rank, or alpha / sqrt(rank) with `rslora`
    (Kalajdzievski 2023). dora: each row of W + s B A is scaled to a length that is learned too.
    targets: the layers' names or their last part, such as query or up, or patterns of whole names, such as `decoder.*.query`; all:
    every linear layer of the blocks but an expert's. dropout: of what goes into A.
    whole: parts of the model that are trained as they are, such as head; null: the head, unless it is a language model's.
    quantize: the matrices of the blocks are kept in 4 bits (nf4: QLoRA, Dettmers et al. 2023).
    """

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] | Literal["all"] = "all"
    dropout: float = 0.0
    kind: Literal["lora", "dora"] = "lora"
    rslora: bool = False
    whole: tuple[str, ...] | None = None
    quantize: Literal["nf4"] | None = None

    def __post_init__(self) -> None:
        at_least(self, 1, "rank")
        probability(self, "dropout")
        if not self.alpha > 0:
            raise ValueError(f"alpha: expected a number above 0, got {self.alpha}")
        if not self.targets:
            raise ValueError("targets: expected at least one name, such as query, or all")

    def takes(self, layer: str) -> bool:
        """Whether a linear layer of this name is among the targets."""
        if self.targets == "all":
            return ".layers." in layer
        return any(target in (layer, layer.rpartition(".")[2]) or fnmatchcase(layer, target) for target in self.targets)

    @property
    def scaling(self) -> float:
        """The factor s of the update."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)
