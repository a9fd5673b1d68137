"""Who may see whom.

Shapes: B batch (or 1, when all rows agree), T queries, S keys. A boolean mask is
True where a query may see a key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from triform import config

from .position import Rotation


@dataclass(frozen=True)
class Layout:
    """What tokens belong to, where position and padding do not say it all; each (B, T).

    segments: token types (BERT's sentence A and B).
    documents: the number of the packed document a token belongs to, in runs; tokens
        of different documents never see each other and positions restart with each.
    prefix: True for the tokens that a prefix mask lets see each other both ways; a
        cached pass must hold the whole prefix.
    target_documents: `documents` of the decoder's input of an encoder-decoder.
    """

    segments: Tensor | None = None
    documents: Tensor | None = None
    prefix: Tensor | None = None
    target_documents: Tensor | None = None


class View(NamedTuple):
    """What one kind of attention may see in one pass, and how its queries and keys are turned.

    mask: None, True where a query sees a key, or scores to add; broadcasts to (B, H, T, S).
    causal: causal and nothing else, so that the fused kernel needs no mask.
    """

    mask: Tensor | None = None
    rotation: Rotation | None = None
    causal: bool = False


def positions_of(documents: Tensor) -> Tensor:
    """Positions (B, T) that restart with each run of equal document numbers (B, T)."""
    index = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    starts = torch.zeros_like(index)
    starts[:, 1:] = index[:, 1:] * (documents[:, 1:] != documents[:, :-1])
    return index - starts.cummax(1).values


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
        both = prefix[:, :, None] & prefix[:, None, :]
        older = distance.shape[2] - both.shape[2]
        seen = seen | torch.nn.functional.pad(both, (older, 0))
    return seen


def hidden_score(dtype: torch.dtype, device_type: str) -> float:
    """The score of a key that must not be seen: finite, so that a row that sees nothing gives no NaN."""
    if torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
    return torch.finfo(dtype).min / 2
