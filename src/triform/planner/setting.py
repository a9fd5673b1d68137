"""How a model is trained, as far as its memory and time depend on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_type_hints

from triform import config

Precision = Literal["fp32", "bf16", "fp16", "fp8"]
OptimizerName = Literal["adamw", "adamw8bit", "adafactor", "muon", "sgd"]
Recompute = Literal["none", "selective", "full"]
AttentionKernel = Literal["sdpa", "eager"]
Rows = Literal["full", "padded", "packed"]
Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One training step. Raises ValueError for what no step can be.

    batch: sequences of a micro-batch. accumulate: micro-batches of a step.
    sequence: tokens of a sequence, the encoder's of an encoder-decoder; patches have a length of their own.
    target: tokens of an encoder-decoder's target; None: `sequence`.
    precision: of the matrix products; the weights and the optimizer's states are fp32 in every one. In fp8 only the layers'
        matrices are multiplied so, and everything else is bf16.
    recompute: which activations are made anew in the backward pass instead of being kept.
    attention: "sdpa", which never holds the scores, or "eager", which does.
    scored: positions a sequence that a language-model head scores; None: all.
    rows: "full" of one text each, or "padded" or "packed" with several, which attention needs a mask for.
    average: a moving average of the weights is kept beside them (`train.ema`).
    offload: what autograd saves waits in the processor's memory (`train.offload`).
    adapter: what is trained beside the model's frozen weights (`train.adapter`); plain data stands for it too.
    """

    batch: int = 32
    sequence: int = 1024
    target: int | None = None
    accumulate: int = 1
    precision: Precision = "bf16"
    optimizer: OptimizerName = "adamw"
    recompute: Recompute = "none"
    attention: AttentionKernel = "sdpa"
    scored: int | None = None
    rows: Rows = "full"
    average: bool = False
    offload: bool = False
    adapter: config.Adapter | None = None
    device: Device = "cuda"

    def __post_init__(self) -> None:
        if isinstance(self.adapter, Mapping):
            object.__setattr__(self, "adapter", config.from_dict(config.Adapter, self.adapter, "adapter"))
        hints = get_type_hints(type(self))
        for field in fields(self):
            _check(field.name, getattr(self, field.name), get_args(hints[field.name]))
        longest = self.sequence if self.target is None else self.target
        if self.scored is not None and self.scored > longest:
            raise ValueError(f"scored: expected at most the {longest:,} positions of a sequence, got {self.scored:,}")

    @property
    def target_length(self) -> int:
        """Tokens of an encoder-decoder's target."""
        return self.sequence if self.target is None else self.target


def _check(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    if name == "adapter":
        if not isinstance(value, config.Adapter | None):
            raise ValueError(f"adapter: expected an Adapter or nothing, got {value!r}")
    elif name in ("average", "offload"):
        if not isinstance(value, bool):
            raise ValueError(f"{name}: expected true or false, got {value!r}")
    elif choices and all(isinstance(choice, str) for choice in choices):
        if value not in choices:
            raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
    elif value is None and type(None) in choices:
        return
    elif isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: expected a whole number of at least 1, got {value!r}")
