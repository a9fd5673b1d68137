"""The per-token half of a block: dense or gated, or one of many experts.

Shapes: B batch, T tokens, D width, F hidden width, E experts, K chosen experts, N all tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triform import config

from . import fused
from .dropout import Dropout
from .norm import at_least_float
from .recompute import inside


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": _gelu_tanh,
    "quick_gelu": _quick_gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


class FeedForward(nn.Module):
    """down(act(up(x))), or down(act(gate(x)) * up(x)) when gated (Shazeer 2020)."""

    def __init__(self, spec: config.FeedForward, width: int) -> None:
        super().__init__()
        self.spec, self.activation = spec, ACTIVATIONS[spec.activation]
        self.gate = nn.Linear(width, spec.hidden, bias=spec.bias) if spec.gated else None
        self.up = nn.Linear(width, spec.hidden, bias=spec.bias)
        self.down = nn.Linear(spec.hidden, width, bias=spec.bias)
        self.dropout = Dropout(spec.dropout)

    def forward(self, x: Tensor) -> Tensor:
        left, right = (self.up(x), None) if self.gate is None else (self.gate(x), self.up(x))
        ours, plain = fused.fits(left) and fused.has_inner(self.spec.activation), fused.is_plain(self.down) and not inside()
        if ours and plain and not (self.training and self.dropout.p):
            return fused.inner(left, right, self.down.weight, self.down.bias, self.spec.activation, self.activation)
        if ours:  # a block that runs again keeps nothing, and need not end with this product
            h = fused.gate(left, right, self.spec.activation, self.activation)
        else:
            h = self.activation(left) if right is None else self.activation(left) * right
        out: Tensor = self.down(self.dropout(h))
        return out


@dataclass(frozen=True)
class Routing:
    """What one layer of experts chose in one pass.

    logits (N, E) of the router, in fp32 or better, chosen (N, K) and kept (N, K), False where an expert was
    full; padding left out.
    """

    logits: Tensor
    chosen: Tensor
    kept: Tensor

    def load_balance(self) -> Tensor:
        """E times the sum over experts of (share of choices) x (mean probability); 1 when even (Fedus et al. 2021, eq. 4)."""
        tokens, count = self.logits.shape
        share = F.one_hot(self.chosen, count).sum((0, 1)) / max(1, self.chosen.numel())
        return count * (share * self.logits.softmax(-1).sum(0) / max(1, tokens)).sum()

    def z_loss(self) -> Tensor:
        """Mean squared log-sum-exp of the router's logits (Zoph et al. 2022, eq. 5)."""
        return self.logits.logsumexp(-1).square().sum() / max(1, len(self.logits))


class Experts(nn.Module):
    """A router and E feed-forwards, of which each token passes K, weighted by the router's softmax."""

    def __init__(self, spec: config.Experts, width: int) -> None:
        super().__init__()
        self.spec, self.activation = spec, ACTIVATIONS[spec.expert.activation]
        count, hidden = spec.count, spec.expert.hidden
        self.router = nn.Linear(width, count, bias=False)
        self.gate = nn.Parameter(torch.empty(count, hidden, width)) if spec.expert.gated else None
        self.up = nn.Parameter(torch.empty(count, hidden, width))
        self.down = nn.Parameter(torch.empty(count, width, hidden))
        self.up_bias = nn.Parameter(torch.empty(count, hidden)) if spec.expert.bias else None
        self.gate_bias = nn.Parameter(torch.empty(count, hidden)) if spec.expert.bias and spec.expert.gated else None
        self.down_bias = nn.Parameter(torch.empty(count, width)) if spec.expert.bias else None
        self.dropout = Dropout(spec.expert.dropout)
        self.shared = FeedForward(spec.shared, width) if spec.shared else None

    def forward(self, x: Tensor, seen: Tensor | None = None) -> tuple[Tensor, Routing]:
        """x (B, T, D) to (B, T, D). Tokens not `seen` (B, T) get no expert and take no one's place."""
        flat = x.flatten(0, 1)
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(at_least_float(flat), at_least_float(self.router.weight))
        weights, chosen = logits.softmax(-1).topk(self.spec.top_k)
        if self.spec.renormalize:
            weights = weights / weights.sum(-1, keepdim=True)
        kept = torch.ones_like(chosen, dtype=torch.bool) if seen is None else seen.flatten()[:, None].expand_as(chosen)
        if self.spec.capacity is not None and self.training:
            kept = kept & self._admitted(chosen, kept, len(x))
        y = torch.zeros_like(flat, dtype=logits.dtype) if self.shared is None else self.shared(flat).to(logits.dtype)
        y = self._dispatch(flat, y, weights, chosen, kept)
        real = slice(None) if seen is None else seen.flatten()
        return y.type_as(x).view_as(x), Routing(logits[real], chosen[real], kept[real])

    def _dispatch(self, x: Tensor, y: Tensor, weights: Tensor, chosen: Tensor, kept: Tensor) -> Tensor:
        """Add to y (N, D) what the chosen experts make of x (N, D); each expert runs once over all its tokens."""
        slots = kept.flatten().nonzero()[:, 0]
        slots = slots[chosen.flatten()[slots].argsort(stable=True)]
        counts = torch.bincount(chosen.flatten()[slots], minlength=self.spec.count).tolist()
        tokens = slots // self.spec.top_k
        # Unbound at once: the gradient of each `weight[e]` would be a tensor of all the experts' size.
        tables = (self.up, self.up_bias, self.gate, self.gate_bias, self.down, self.down_bias)
        experts = zip(*([None] * self.spec.count if table is None else table.unbind() for table in tables), strict=True)
        parts = [self._expert(matrices, part) for matrices, part in zip(experts, torch.split(x[tokens], counts), strict=True) if len(part)]
        if not parts:
            return y
        return y.index_add(0, tokens, torch.cat(parts).to(y.dtype) * weights.flatten()[slots, None])

    def _admitted(self, chosen: Tensor, kept: Tensor, batch: int) -> Tensor:
        """False (N, K) for a token whose expert had its capacity of tokens of the same sequence before it."""
        places = F.one_hot(chosen, self.spec.count) * kept[..., None]
        order = places.view(batch, -1, self.spec.count).cumsum(1).view(*chosen.shape, -1)
        return order.gather(-1, chosen[..., None])[..., 0] <= (self.spec.capacity or 0)

    def _expert(self, matrices: tuple[Tensor | None, ...], x: Tensor) -> Tensor:
        up, up_bias, gate, gate_bias, down, down_bias = matrices
        assert up is not None
        assert down is not None
        h = F.linear(x, up, up_bias)
        h = self.activation(h) if gate is None else self.activation(F.linear(x, gate, gate_bias)) * h
        return F.linear(self.dropout(h), down, down_bias)
