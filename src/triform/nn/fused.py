"""Parts of a block with their backward pass written out, for training on a CPU.

Each gives what the plain operations give, to rounding, keeps less for the backward pass than autograd would, and works out
again there what is cheap: the inner product of a feed-forward, attention's probabilities. In fp32 and bf16 they are done by
the native library where there is one.

Shapes: B batch, T queries, S keys, D width, H heads, G key-value heads, W width of a head, F hidden width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from triform.kernels import training as native

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
        ctx.native, ctx.offset = native.serves(x, weight, dtype=dtype), offset
        if ctx.native:
            out, _, inverse = native.norm(x, weight, None, eps, offset, dtype, layer=False)
            ctx.save_for_backward(x, weight, inverse)
            return out
        wide = _wide(x)
        inverse = wide.square().mean(-1, keepdim=True).add_(eps).rsqrt_()  # a norm squared would round twice
        ctx.save_for_backward(x, weight, inverse)
        return (wide * inverse).mul_(_wide(weight) + offset).to(dtype)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        if ctx.native:
            found = native.norm_gradients(gradient, x, weight, False, None, inverse, ctx.offset)
            return found[0], found[1].to(weight.dtype), None, None, None
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
        ctx.native = native.serves(x, weight, bias, dtype=dtype)
        if ctx.native:
            out, mean, inverse = native.norm(x, weight, bias, eps, 0.0, dtype, layer=True)
        else:
            out, mean, inverse = torch.native_layer_norm(_wide(x), x.shape[-1:], weight, bias, eps)
        ctx.save_for_backward(x, weight, bias, mean, inverse)
        return out.to(dtype)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, inverse = ctx.saved_tensors
        if ctx.native:
            done = native.norm_gradients(gradient, x, weight, bias is not None, mean, inverse, 0.0)
            return done[0], done[1].to(weight.dtype), None if bias is None or done[2] is None else done[2].to(bias.dtype), None, None
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
        ctx.native = x.stride(-1) == 1 and native.serves(x, cos, sin)
        return native.turned(x, cos, sin, torch.empty_like(x)) if ctx.native else _turned(x, cos, sin, 1)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        if not ctx.native:
            return _turned(gradient, cos, sin, -1), None, None
        gradient = gradient if gradient.stride(-1) == 1 else gradient.contiguous()
        return native.turned(gradient, cos, sin, torch.empty_like(gradient), back=True), None, None


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
        ctx.given = how.given(weight, dtype)
        with torch.autocast(left.device.type, enabled=False):
            return how.linear(_gated(left, right, functions), weight.to(dtype), None if bias is None else bias.to(dtype))

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        left, right, weight, bias = ctx.saved_tensors
        by_h, _, _ = gradients(ctx.how, gradient, left, weight, None, (True, False, False), ctx.given)
        assert by_h is not None
        h, by_left, by_right = _gated_back(by_h, left, right, ctx.functions)
        assert h is not None
        _, by_weight, by_bias = gradients(ctx.how, gradient, h, weight, bias, (False, *ctx.needs_input_grad[2:4]), ctx.given)
        return by_left, by_right, by_weight, by_bias, None, None


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor | None, functions: tuple[Any, Any]) -> Tensor:
        ctx.save_for_backward(left, right)
        ctx.functions = functions
        return _gated(left, right, functions)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        left, right = ctx.saved_tensors
        return *_gated_back(gradient.clone(), left, right, ctx.functions, again=False)[1:], None


def _gated(left: Tensor, right: Tensor | None, functions: tuple[Any, str]) -> Tensor:
    activation, name = functions
    if native.serves(left, right):
        return native.gated(left, right, name)
    h: Tensor = activation(left)
    return h if right is None else h.mul_(right)


def _gated_back(
    gradient: Tensor, left: Tensor, right: Tensor | None, functions: tuple[Any, str], again: bool = True
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """What `_gated` gave, where it is wanted `again`, and its gradients by left and right; `gradient` is used up."""
    activation, name = functions
    if native.serves(gradient, left, right):
        return native.gated_gradients(gradient, left, right, name)
    if right is None:
        return activation(left) if again else None, _BACK[name](gradient, left), None
    active = activation(left)
    h = active * right if again else None
    by_right = active.mul_(gradient)
    return h, _BACK[name](gradient.mul_(right), left), by_right


def inner(
    left: Tensor, right: Tensor | None, weight: Tensor, bias: Tensor | None, name: str, activation: Callable[[Tensor], Tensor]
) -> Tensor:
    """(activation(left) * right) times weight (D, F) transposed, plus bias, (..., D); left and right (..., F), right None for 1.

    `activation` is the one of that name. Keeps left and right only.
    """
    out: Tensor = _Inner.apply(left, right, weight, bias, (activation, name), chosen())  # type: ignore[no-untyped-call]
    return out


def gate(left: Tensor, right: Tensor | None, name: str, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """activation(left) * right alone, to the bit what `inner` multiplies."""
    out: Tensor = _Gate.apply(left, right, (activation, name))  # type: ignore[no-untyped-call]
    return out


# Attention

_MOST_KEYS = 4096  # of the native library, where the scores of a block of queries still fit a processor's caches
_FEW_KEYS = 512  # of plain products


def attends(dtype: torch.dtype, keys: int, biased: bool) -> bool:
    """Whether `attention` is faster than torch's own, which goes backward slowly while sequences are short, above all in bf16, and has
    no kernel for a learned bias."""
    if native.serves(dtype=dtype):
        return keys <= _MOST_KEYS
    return keys <= _FEW_KEYS and (biased or dtype != torch.float32)


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


class _NativeAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
        ctx.save_for_backward(query, key, value, mask)
        ctx.how = causal, scale
        return native.attention(query, key, value, mask, causal, scale)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask = ctx.saved_tensors
        by_query, by_key, by_value, by_mask = native.attention_gradients(gradient, query, key, value, mask, *ctx.how)
        return by_query, by_key, by_value, None if by_mask is None else by_mask.to(mask.dtype), None, None


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
    """Scaled dot-product attention, where `attends` says so: query (B, H, T, W), key and value (B, G, S, W).

    mask: broadcasts to (B, H, T, S): True where a query sees a key, or scores to add, of query's dtype, which get a gradient too.
    Keeps neither scores nor probabilities.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if native.attends(query, key, value, mask):
        done: Tensor = _NativeAttention.apply(query, key, value, mask, causal, scale)  # type: ignore[no-untyped-call]
        return done
    blind = None
    if causal:
        mask = _causal(query.shape[2], key.shape[2], query.dtype)
    elif mask is not None and mask.dtype == torch.bool:
        blind = ~mask.any(-1, keepdim=True)
        blind = blind if bool(blind.any()) else None
        mask = torch.zeros(mask.shape, dtype=query.dtype).masked_fill_(~mask, torch.finfo(query.dtype).min / 2)
    out: Tensor = _Attention.apply(query, key, value, mask, blind, scale)  # type: ignore[no-untyped-call]
    return out
