"""Parts of a block with their backward pass written out, for training on a CPU.

Each gives what the plain operations give, to rounding, keeps less for the backward pass than autograd would, and works out
again there what is cheap: the inner product of a feed-forward, attention's probabilities.

Shapes: B batch, T queries, S keys, D width, H heads, G key-value heads, W width of a head, F hidden width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .products import Products, chosen, gradients


def fits(x: Tensor) -> bool:
    """Whether these are for x: a tensor on a CPU that wants a gradient, and no compiler is at work, which fuses by itself."""
    return x.is_cpu and x.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling()


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer is torch's own, on one device and with nothing hung on it, so that its weight may be used without calling it.

    An adapter, a packed matrix or a shard is called as the module it is.
    """
    return type(layer) is nn.Linear and type(layer.weight) is nn.Parameter and not (layer._forward_hooks or layer._forward_pre_hooks)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


# Norms


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, offset: float, dtype: torch.dtype) -> Tensor:
        wide = _wide(x)
        inverse = wide.square().mean(-1, keepdim=True).add_(eps).rsqrt_()  # a norm squared would round twice
        ctx.save_for_backward(x, weight, inverse)
        ctx.offset = offset
        out: Tensor = (wide * inverse).mul_(_wide(weight) + offset).to(dtype)
        return out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        gradient, normed, scale = _wide(gradient), _wide(x) * inverse, _wide(weight) + ctx.offset
        both = gradient * normed
        by_weight = both.flatten(0, -2).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        along = (both @ scale).unsqueeze(-1).div_(-x.shape[-1])
        by_x = torch.mul(gradient, scale, out=both).addcmul_(normed, along).mul_(inverse)
        return by_x.to(x.dtype), by_weight, None, None, None


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float, dtype: torch.dtype) -> Tensor:
    """x / rms(x) * (weight + offset), (..., D), computed in fp32 or better and given in `dtype`; keeps x and a number a row."""
    out: Tensor = _RMSNorm.apply(x, weight, eps, offset, dtype)  # type: ignore[no-untyped-call]
    return out


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, dtype: torch.dtype) -> Tensor:
        out, mean, inverse = torch.native_layer_norm(_wide(x), x.shape[-1:], weight, bias, eps)
        ctx.save_for_backward(x, weight, bias, mean, inverse)
        return out.to(dtype)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, inverse = ctx.saved_tensors
        needs = [*ctx.needs_input_grad[:2], bias is not None and ctx.needs_input_grad[2]]
        found = torch.ops.aten.native_layer_norm_backward(_wide(gradient), _wide(x), x.shape[-1:], mean, inverse, weight, bias, needs)
        by_x, by_weight, by_bias = (g if need else None for g, need in zip(found, needs, strict=True))
        return None if by_x is None else by_x.to(x.dtype), by_weight, by_bias, None, None


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, dtype: torch.dtype) -> Tensor:
    """torch's layer norm of x (..., D), computed in fp32 or better and given in `dtype`."""
    out: Tensor = _LayerNorm.apply(x, weight, bias, eps, dtype)  # type: ignore[no-untyped-call]
    return out


# Rotation


def _turned(x: Tensor, cos: Tensor, sin: Tensor, way: int) -> Tensor:
    wide, half = _wide(x), x.shape[-1] // 2
    out = wide * cos
    out[..., :half].addcmul_(wide[..., half:], sin[..., :half], value=way)
    out[..., half:].addcmul_(wide[..., :half], sin[..., half:], value=way)
    return out.to(x.dtype)


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin, 1)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(gradient, cos, sin, -1), None, None


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`position.rotate` of x (B, H, T, W), which keeps nothing of x."""
    out: Tensor = _Rotation.apply(x, cos, sin)  # type: ignore[no-untyped-call]
    return out


# Feed-forward

_BACK: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "relu": lambda gradient, x: torch.ops.aten.threshold_backward(gradient, x, 0),
    "gelu": lambda gradient, x: torch.ops.aten.gelu_backward(gradient, x),
    "gelu_tanh": lambda gradient, x: torch.ops.aten.gelu_backward(gradient, x, approximate="tanh"),
    "silu": lambda gradient, x: torch.ops.aten.silu_backward(gradient, x),
}


def has_inner(activation: str) -> bool:
    """Whether `inner` knows the activation's derivative."""
    return activation in _BACK


class _Inner(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, left: Tensor, right: Tensor | None, weight: Tensor, bias: Tensor | None, functions: tuple[Any, Any], how: Products
    ) -> Tensor:
        ctx.save_for_backward(left, right, weight, bias)
        ctx.functions, ctx.how, dtype = functions, how, left.dtype
        with torch.autocast(left.device.type, enabled=False):
            h = functions[0](left)
            return how.linear(h if right is None else h.mul_(right), weight.to(dtype), None if bias is None else bias.to(dtype))

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        left, right, weight, bias = ctx.saved_tensors
        forward, back = ctx.functions
        active = forward(left)
        h = active if right is None else active * right
        by_h, by_weight, by_bias = gradients(ctx.how, gradient, h, weight, bias, (True, *ctx.needs_input_grad[2:4]))
        assert by_h is not None
        by_right = None if right is None else active.mul_(by_h)
        return back(by_h if right is None else by_h.mul_(right), left), by_right, by_weight, by_bias, None, None


def inner(
    left: Tensor, right: Tensor | None, weight: Tensor, bias: Tensor | None, name: str, activation: Callable[[Tensor], Tensor]
) -> Tensor:
    """(activation(left) * right) times weight (D, F) transposed, plus bias, (..., D); left and right (..., F), right None for 1.

    `activation` is the one of that name. Keeps left and right only.
    """
    functions = (activation, _BACK[name])
    out: Tensor = _Inner.apply(left, right, weight, bias, functions, chosen())  # type: ignore[no-untyped-call]
    return out


# Attention


def _joined(x: Tensor, groups: int) -> Tensor:
    """(B, H, T, W) to (B G, H/G T, W): the heads that share keys and values one after another."""
    return x.reshape(len(x) * groups, -1, x.shape[-1])


@lru_cache(maxsize=8)
def _causal(queries: int, keys: int, dtype: torch.dtype) -> Tensor:
    return torch.full((queries, keys), torch.finfo(dtype).min / 2, dtype=dtype).triu_(1)


class _Seen(NamedTuple):
    """Scores to add, which broadcast to (B, H, T, S), and which queries see nothing, (B or 1, H or 1, T or 1, 1)."""

    added: Tensor | None
    blind: Tensor | None = None


def _probabilities(query: Tensor, key: Tensor, seen: _Seen, shape: tuple[int, ...], scale: float) -> Tensor:
    """(B G, H/G T, S) of joined query and key; `shape` is (B, H, T, S)."""
    if seen.added is None:
        return torch.baddbmm(query.new_empty(1), query, key.mT, beta=0, alpha=scale).softmax(-1)
    scores = query.new_empty(len(query), query.shape[1], key.shape[1])
    scores.view(shape).copy_(seen.added)
    found = scores.baddbmm_(query, key.mT, alpha=scale).softmax(-1)
    if seen.blind is not None:
        found.view(shape).masked_fill_(seen.blind, 0)
    return found


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, blind: Tensor | None, scale: float
    ) -> Tensor:
        ctx.shapes, ctx.scale, groups = (query.shape, key.shape, (*query.shape[:3], key.shape[2])), scale, key.shape[1]
        with torch.autocast("cpu", enabled=False):
            query, key, value = _joined(query, groups), _joined(key, groups), _joined(value, groups)
            ctx.save_for_backward(query, key, value, mask, blind)
            return torch.bmm(_probabilities(query, key, _Seen(mask, blind), ctx.shapes[2], scale), value).view(ctx.shapes[0])

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask, blind = ctx.saved_tensors
        as_query, as_key, as_scores = ctx.shapes
        gradient = _joined(gradient, as_key[1])
        shares = _probabilities(query, key, _Seen(mask, blind), as_scores, ctx.scale)
        by_value = torch.bmm(shares.mT, gradient).view(as_key)
        by_shares = torch.bmm(gradient, value.mT)
        by_scores = torch.ops.aten._softmax_backward_data(by_shares, shares, -1, shares.dtype)
        none = key.new_empty(1)
        by_query = torch.baddbmm(none, by_scores, key, beta=0, alpha=ctx.scale).view(as_query)
        by_key = torch.baddbmm(none, by_scores.mT, query, beta=0, alpha=ctx.scale).view(as_key)
        by_mask = by_scores.view(as_scores).sum_to_size(mask.shape) if ctx.needs_input_grad[3] else None
        return by_query, by_key, by_value, by_mask, None, None


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scale: float | None) -> Tensor:
    """Scaled dot-product attention by plain products, for short sequences: query (B, H, T, W), key and value (B, G, S, W).

    mask: broadcasts to (B, H, T, S): True where a query sees a key, or scores to add, of query's dtype, which get a gradient too.
    Keeps neither scores nor probabilities.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    blind = None
    if causal:
        mask = _causal(query.shape[2], key.shape[2], query.dtype)
    elif mask is not None and mask.dtype == torch.bool:
        blind = ~mask.any(-1, keepdim=True)
        blind = blind if bool(blind.any()) else None
        mask = torch.zeros(mask.shape, dtype=query.dtype).masked_fill_(~mask, torch.finfo(query.dtype).min / 2)
    out: Tensor = _Attention.apply(query, key, value, mask, blind, scale)  # type: ignore[no-untyped-call]
    return out
