"""What a model is made of, as data: norms, positions, sublayers, blocks, stacks.

Nothing here imports torch, so a configuration can be read, compared, saved and
planned with where torch is absent. Every class is frozen and hashable: equal
configurations are one dictionary key, which is how a stack finds out what its
layers share.

A message raised here starts with the field at fault; `from_dict` puts the path
to it in front.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeVar, dataclass_transform

Activation = Literal["relu", "gelu", "gelu_tanh", "quick_gelu", "silu", "tanh"]

_T = TypeVar("_T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def spec(cls: type[_T]) -> type[_T]:
    """Mark a class as one frozen, keyword-only part of a configuration."""
    return dataclass(frozen=True, kw_only=True)(cls)


def at_least(part: object, low: int, *names: str) -> None:
    """Raise ValueError unless the named fields of a part are None or at least `low`."""
    for name in names:
        value = getattr(part, name)
        if value is not None and value < low:
            raise ValueError(f"{name}: expected at least {low}, got {value}")


def probability(part: object, *names: str) -> None:
    """Raise ValueError unless the named fields of a part are from 0 up to but not including 1."""
    for name in names:
        value = getattr(part, name)
        if not 0 <= value < 1:
            raise ValueError(f"{name}: expected a probability from 0 up to but not including 1, got {value}")


# Norms


@spec
class LayerNorm:
    """Ba et al. 2016."""

    eps: float = 1e-5
    bias: bool = True


@spec
class RMSNorm:
    """Zhang and Sennrich 2019. With `unit_offset` the scale is `1 + weight`, as in Gemma."""

    eps: float = 1e-6
    unit_offset: bool = False


Norm = LayerNorm | RMSNorm

# Positions: at the input, at the queries and keys, or at the scores


@spec
class Learned:
    """One vector a position. `offset` leading rows stay unused, as in RoBERTa and BART."""

    length: int
    offset: int = 0

    def __post_init__(self) -> None:
        at_least(self, 1, "length")
        at_least(self, 0, "offset")


@spec
class Sinusoidal:
    """Sines and cosines of the position (Vaswani et al. 2017): by turns, or where not `interleaved` all sines first (Marian)."""

    base: float = 10_000.0
    interleaved: bool = True


@spec
class Linear:
    """Positions divided by `factor` (Chen et al. 2023)."""

    factor: float


@spec
class Llama3:
    """Slow frequencies divided by `factor`, fast ones kept, a ramp between (Llama 3.1)."""

    factor: float
    low: float
    high: float
    original_length: int


@spec
class Yarn:
    """Peng et al. 2023. `attention_factor` None: `0.1 ln(factor) + 1`."""

    factor: float
    original_length: int
    fast: float = 32.0
    slow: float = 1.0
    attention_factor: float | None = None

    @property
    def magnitude(self) -> float:
        """The factor on cosine and sine (section 3.4)."""
        return self.attention_factor or (0.1 * math.log(self.factor) + 1 if self.factor > 1 else 1.0)


@spec
class Rotary:
    """Su et al. 2021; pairs are (i, i + half) as in Hugging Face's layout."""

    theta: float = 10_000.0
    scaling: Linear | Llama3 | Yarn | None = None


@spec
class Bucketed:
    """T5's relative bias: one learned number per head and distance bucket (Raffel et al. 2020)."""

    buckets: int = 32
    max_distance: int = 128

    def __post_init__(self) -> None:
        at_least(self, 4, "buckets")
        at_least(self, self.buckets, "max_distance")


@spec
class Alibi:
    """A fixed slope a head times the distance (Press et al. 2022)."""


# Sublayers


@spec
class Attention:
    """One attention: MHA (`kv_heads` None), GQA, or MQA (`kv_heads` 1).

    `window` counts the tokens a query sees to its left, itself included; a
    bidirectional window reaches as far to the right. A `prefix` mask is causal but
    for the positions the caller names as prefix, which see each other both ways.
    `scale` None: `head_width ** -0.5`.
    """

    heads: int
    kv_heads: int | None = None
    head_width: int | None = None
    mask: Literal["bidirectional", "causal", "prefix"] = "bidirectional"
    window: int | None = None
    position: Rotary | Bucketed | Alibi | None = None
    qk_norm: LayerNorm | RMSNorm | None = None
    bias: Literal["none", "qkv", "out", "all"] = "all"
    scale: float | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        at_least(self, 1, "heads", "kv_heads", "head_width", "window")
        probability(self, "dropout")
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError(f"kv_heads: expected a divisor of the {self.heads} heads, got {self.kv_heads}")


@spec
class FeedForward:
    """Two linear layers, or three when gated (SwiGLU is gated silu, GEGLU gated gelu)."""

    hidden: int
    activation: Activation = "gelu"
    gated: bool = False
    bias: bool = True
    dropout: float = 0.0

    def __post_init__(self) -> None:
        at_least(self, 1, "hidden")
        probability(self, "dropout")


@spec
class Experts:
    """A feed-forward chosen per token among `count` (Shazeer et al. 2017, Fedus et al. 2021).

    `renormalize` makes the chosen weights sum to one. `capacity` is the number of
    tokens an expert takes from one sequence while training; None, and always when
    evaluating: all of them. `shared` is a feed-forward that every token also passes.
    """

    expert: FeedForward
    count: int
    top_k: int = 1
    renormalize: bool = False
    capacity: int | None = None
    shared: FeedForward | None = None

    def __post_init__(self) -> None:
        at_least(self, 1, "count", "top_k", "capacity")
        if self.top_k > self.count:
            raise ValueError(f"top_k: expected at most the {self.count} experts there are, got {self.top_k}")


@spec
class Block:
    """Self-attention, cross-attention if any, and a feed-forward, each on the residual stream.

    `placement`: the norm stands before the sublayer (pre), after the sum (post), or
    on both sides of the sublayer (sandwich). `dropout` acts on each sublayer's output.
    """

    attention: Attention
    feed_forward: FeedForward | Experts
    cross: Attention | None = None
    norm: LayerNorm | RMSNorm = LayerNorm()
    placement: Literal["pre", "post", "sandwich"] = "pre"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        probability(self, "dropout")
        if self.cross and (self.cross.mask != "bidirectional" or self.cross.window or self.cross.position):
            raise ValueError("cross: expected a bidirectional mask, no window and no position, as it looks at another sequence")


# Stacks


@spec
class Tokens:
    """Token embedding plus position, segment (BERT's token types), norm. `scale` multiplies the token's vector."""

    vocab_size: int
    position: Learned | Sinusoidal | None = None
    segments: int = 0
    scale: float = 1.0
    norm: LayerNorm | RMSNorm | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        at_least(self, 1, "vocab_size")
        at_least(self, 0, "segments")
        probability(self, "dropout")


@spec
class Patches:
    """Square patches of a square image, a learned class token first (Dosovitskiy et al. 2021)."""

    image: int
    patch: int
    channels: int = 3
    bias: bool = True
    norm: LayerNorm | RMSNorm | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        at_least(self, 1, "image", "patch", "channels")
        probability(self, "dropout")
        if self.image % self.patch:
            raise ValueError(f"patch: expected a divisor of the image's side {self.image}, got {self.patch}")

    @property
    def length(self) -> int:
        """Positions of one image: its patches and the class token."""
        return (self.image // self.patch) ** 2 + 1


@spec
class Stack:
    """`depth` blocks of one width; layer i is `pattern[i % len(pattern)]`."""

    width: int
    depth: int
    input: Tokens | Patches
    pattern: tuple[Block, ...]
    norm: LayerNorm | RMSNorm | None = None

    def __post_init__(self) -> None:
        at_least(self, 1, "width", "depth")
        if not self.pattern:
            raise ValueError("pattern: expected at least one block, got none")
        for index, block in enumerate(self.pattern):
            for name, attention in (("attention", block.attention), ("cross", block.cross)):
                if attention is not None:
                    self._check(f"pattern[{index}].{name}", attention)
        if isinstance(self.input, Tokens) and isinstance(self.input.position, Sinusoidal) and self.width % 2:
            raise ValueError(f"width: expected an even number for sinusoidal positions, got {self.width}")

    def _check(self, where: str, attention: Attention) -> None:
        if attention.head_width is None and self.width % attention.heads:
            raise ValueError(f"{where}.heads: expected a divisor of the width {self.width}, got {attention.heads}; or set head_width")
        if isinstance(attention.position, Rotary) and self.head_width(attention) % 2:
            raise ValueError(f"{where}.head_width: expected an even number for rotary positions, got {self.head_width(attention)}")

    def block(self, index: int) -> Block:
        """The block at layer `index`."""
        return self.pattern[index % len(self.pattern)]

    def head_width(self, attention: Attention) -> int:
        """Width of one head of an attention of this stack."""
        return attention.head_width or self.width // attention.heads
