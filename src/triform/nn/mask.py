"""Who may see whom.

Shapes: B batch (or 1, when all rows agree), T queries, S keys. A boolean mask is
True where a query may see a key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from triform import config

from .position import Rotation


@dataclass(frozen=True)
class Layout:
    """What tokens belong to, where position and padding do not say it all; each (B, T).

    segments: token types (BERT's sentence A and B).
    documents: the number of the packed document a token belongs to, each a run of its
        own; negative where padding. Tokens of different documents never see each other
        and positions restart with each.
    prefix: True for the tokens that a prefix mask lets see each other both ways; a
        cached pass must hold the whole prefix.
    target_documents: `documents` of the decoder's input of an encoder-decoder.
    """

    segments: Tensor | None = None
    documents: Tensor | None = None
    prefix: Tensor | None = None
    target_documents: Tensor | None = None


class Part(NamedTuple):
    """Some of the tokens of a pass over a cache with `spans`, and the keys that they see.

    queries: which of the pass's tokens, the same number of each of the cache's `rows`.
    keys: which of these rows' keys; `mask` and `causal` as in `View`, for the rows as a batch of their own.
    """

    queries: slice
    rows: slice
    keys: slice
    mask: Tensor | None = None
    causal: bool = False


class View(NamedTuple):
    """What one kind of attention may see in one pass, and how its queries and keys are turned.

    mask: None, True where a query sees a key, or scores to add; broadcasts to (B, H, T, S).
    causal: causal and nothing else, so that the fused kernel needs no mask.
    parts: in place of these, where the pass (of B = 1) holds tokens of several rows of a cache.
    """

    mask: Tensor | None = None
    rotation: Rotation | None = None
    causal: bool = False
    parts: tuple[Part, ...] = ()


def positions_of(ids: Tensor, seen: Tensor | None = None, documents: Tensor | None = None) -> Tensor:
    """Positions (B or 1, T) of the tokens of a pass, `ids` (B, T) or their vectors (B, T, D).

    They count `seen` tokens only, so that padding on either side changes nothing, and
    restart with each run of equal document numbers.
    """
    if seen is None and documents is None:
        return torch.arange(ids.shape[1], device=ids.device)[None]
    count = torch.ones(ids.shape[:2], dtype=torch.long, device=ids.device) if seen is None else seen.long()
    at = count.cumsum(1) - 1
    if documents is not None:
        starts = torch.zeros_like(at)
        starts[:, 1:] = (at - count + 1)[:, 1:] * (documents[:, 1:] != documents[:, :-1])
        at = at - starts.cummax(1).values
    return at.clamp(min=0)


def visible(attention: config.Attention, distance: Tensor, prefix: Tensor | None = None) -> Tensor:
    """True (B, T, S) where the kind of attention lets a query see a key at `distance` (key minus query).

    `prefix` (B, T) applies to passes whose last T keys are the queries.
    """
    seen = torch.ones_like(distance, dtype=torch.bool)
    if attention.mask != "bidirectional":
        seen = distance <= 0
    if attention.window is not None:
        seen = seen & (distance > -attention.window) & (distance < attention.window)
    if attention.mask == "prefix" and prefix is not None:
        both = prefix.bool()[:, :, None] & prefix.bool()[:, None, :]
        older = distance.shape[2] - both.shape[2]
        seen = seen | F.pad(both, (older, 0))
    return seen


def masked_bias(bias: Tensor, seen: Tensor, x: Tensor) -> Tensor:
    """Scores to add (B, H, T, S): the bias where a query sees a key, else a number that leaves the key no weight.

    They are of the dtype that attention to x runs in. The number is finite, so that a row
    that sees nothing gives no NaN.
    """
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    return bias.to(dtype).masked_fill(~seen, torch.finfo(dtype).min / 2)
