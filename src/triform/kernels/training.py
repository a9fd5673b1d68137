"""What a training step does between its products, natively (`source/training.h`): each in one pass over its numbers.

Every function here takes tensors on a CPU in fp32 or bf16, as `serves` says. Their callers have the same in torch's operations.

Shapes: R rows, D width, B batch, H heads, G key-value heads, T tokens or queries, S keys, W width of a head, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from ctypes import byref
from typing import Any

import torch
from torch import Tensor

from .native import ACTIVATIONS, BF16, F32, LAYER_NORM, RMS_NORM, AdamW, Attending, Gate, LossRows, Native, NormRows, Turn, library

_KINDS = {torch.float32: F32, torch.bfloat16: BF16}
SEEN, SCORES = 1, 2
_PIECE = 1 << 14  # numbers whose squares are summed together (see training.h)
_FEW = 1 << 15  # numbers, below which another thread is not worth waking


def serves(*tensors: Tensor | None, dtype: torch.dtype = torch.float32) -> bool:
    """Whether the native library is there and knows these and what is to come of them: plain ones on a CPU, in fp32 or bf16."""
    for x in tensors:
        if x is not None and not (type(x) in (Tensor, torch.nn.Parameter) and x.device.type == "cpu" and x.dtype in _KINDS):
            return False
    return dtype in _KINDS and library() is not None


def _native() -> Native:
    found = library()
    assert found is not None, "ask `serves` first"
    return found


def _at(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _threads(count: int) -> int:
    return torch.get_num_threads() if count >= _FEW else 1


def _wide(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.detach().float().contiguous()


def norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, offset: float, dtype: torch.dtype, *, layer: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The layer norm, or else RMS norm, of x (..., D) in `dtype`, with the mean (R,), None of the latter, and 1 / deviation (R,)."""
    x = x.contiguous()
    rows, width = x.numel() // x.shape[-1], x.shape[-1]
    out, inverse, mean = torch.empty_like(x, dtype=dtype), x.new_empty(rows, dtype=torch.float32), None
    if layer:
        mean = torch.empty_like(inverse)
    weight, bias = _wide(weight), _wide(bias)  # type: ignore[assignment]
    work = NormRows(
        x=_at(x), out=_at(out), weight=_at(weight), bias=_at(bias), mean=_at(mean), inverse=_at(inverse), rows=rows, width=width,
        x_kind=_KINDS[x.dtype], out_kind=_KINDS[dtype], kind=LAYER_NORM if layer else RMS_NORM, eps=eps, offset=offset,
    )  # fmt: skip
    native = _native()
    native.done(native.norm(byref(work), _threads(x.numel())))
    return out, mean, inverse


def norm_gradients(
    gradient: Tensor, x: Tensor, weight: Tensor, has_bias: bool, mean: Tensor | None, inverse: Tensor, offset: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Of what `norm` gave, by x in its dtype, and by weight and bias (D,) in fp32; `gradient` (..., D)."""
    x, gradient = x.contiguous(), gradient.contiguous()
    width, threads = x.shape[-1], _threads(x.numel())
    by_x, weight = torch.empty_like(x), _wide(weight)  # type: ignore[assignment]
    by_weight = torch.zeros(threads, 2, width)
    by_bias = torch.zeros(threads, 2, width) if has_bias else None
    work = NormRows(
        x=_at(x), gradient=_at(gradient), by_x=_at(by_x), weight=_at(weight), mean=_at(mean), inverse=_at(inverse),
        by_weight=_at(by_weight), by_bias=_at(by_bias), rows=x.numel() // width, width=width, x_kind=_KINDS[x.dtype],
        out_kind=_KINDS[gradient.dtype], kind=RMS_NORM if mean is None else LAYER_NORM, offset=offset,
    )  # fmt: skip
    native = _native()
    native.done(native.norm(byref(work), threads))
    return by_x, by_weight.sum((0, 1)), None if by_bias is None else by_bias.sum((0, 1))


def turned(x: Tensor, cosine: Tensor, sine: Tensor, out: Tensor, *, back: bool = False) -> Tensor:
    """x (B, H, T, W) rotated into `out`, of its dtype and shape; cosine and sine (B or 1, 1, T, W) in fp32. back: the other way."""
    batch, heads, tokens, width = x.shape
    assert x.stride(3) == out.stride(3) == cosine.stride(3) == sine.stride(3) == 1
    assert cosine.stride() == sine.stride()
    work = Turn(
        x=_at(x), out=_at(out), cosine=_at(cosine), sine=_at(sine), x_strides=x.stride()[:3], out_strides=out.stride()[:3],
        turn_strides=(0 if len(cosine) == 1 else cosine.stride(0), cosine.stride(2)), batch=batch, heads=heads, tokens=tokens,
        width=width, kind=_KINDS[x.dtype], back=back,
    )  # fmt: skip
    native = _native()
    native.done(native.turn(byref(work), _threads(x.numel())))
    return out


def gated(left: Tensor, right: Tensor | None, activation: str) -> Tensor:
    """activation(left) * right, of one shape; right None for 1."""
    left, right = left.contiguous(), None if right is None else right.contiguous()
    out = torch.empty_like(left)
    _gate(left, right, None, (out, None, None), activation)
    return out


def gated_gradients(gradient: Tensor, left: Tensor, right: Tensor | None, activation: str) -> tuple[Tensor, Tensor, Tensor | None]:
    """What `gated` gave, again, and its gradients by left and right; the latter takes the place of `gradient`."""
    left, right, gradient = left.contiguous(), None if right is None else right.contiguous(), gradient.contiguous()
    out, by_left, by_right = torch.empty_like(left), torch.empty_like(left), None if right is None else gradient
    _gate(left, right, gradient, (out, by_left, by_right), activation)
    return out, by_left, by_right


def _gate(left: Tensor, right: Tensor | None, gradient: Tensor | None, to: tuple[Tensor, Tensor | None, Tensor | None], name: str) -> None:
    work = Gate(
        left=_at(left), right=_at(right), gradient=_at(gradient), out=_at(to[0]), by_left=_at(to[1]), by_right=_at(to[2]),
        count=left.numel(), activation=ACTIVATIONS[name], kind=_KINDS[left.dtype],
    )  # fmt: skip
    native = _native()
    native.done(native.gate(byref(work), _threads(left.numel())))


def cross_entropy(scores: Tensor, bias: Tensor | None, labels: Tensor, z_loss: float, smoothing: float) -> Tensor:
    """The losses (R,) in fp32 of scores (R, V) plus bias (V,) for labels (R,); the gradient by the scores takes their place."""
    assert scores.is_contiguous()
    loss, labels, bias = scores.new_empty(len(scores), dtype=torch.float32), labels.contiguous(), _wide(bias)
    work = LossRows(
        scores=_at(scores), bias=_at(bias), labels=_at(labels), loss=_at(loss), rows=len(scores), width=scores.shape[1],
        kind=_KINDS[scores.dtype], z_loss=z_loss, smoothing=smoothing,
    )  # fmt: skip
    native = _native()
    native.done(native.loss(byref(work), _threads(scores.numel())))
    return loss


def attends(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> bool:
    """Whether `attention` knows these."""
    inputs = (query, key, value)
    if not serves(*inputs) or query.shape[-1] % 2 or not all(x.numel() and x.stride(-1) == 1 and x.dtype == query.dtype for x in inputs):
        return False
    if mask is None:
        return True
    learned = mask.requires_grad and mask.shape[1:] != (query.shape[1], query.shape[2], key.shape[2])
    return mask.dtype in (torch.bool, query.dtype) and mask.ndim == 4 and mask.shape[3] == key.shape[2] and not learned


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    """Scaled dot-product attention: query (B, H, T, W), key and value (B, G, S, W), mask as `attends` wants it; (B, H, T, W).

    Tokens come before heads in the memory of the result. A query that sees nothing gets zeros.
    """
    batch, heads, tokens, width = query.shape
    out = query.new_empty(batch, tokens, heads, width).transpose(1, 2)
    _attend(query, key, value, (mask, causal, scale), out=out)
    return out


def attention_gradients(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Of what `attention` gave, by query, key, value and by the mask where it wants one, all lying as these do."""
    if gradient.stride(-1) != 1:
        gradient = gradient.contiguous()
    by = [torch.empty_strided(x.shape, x.stride(), dtype=x.dtype) for x in (query, key, value)]
    by_mask = None if mask is None or not mask.requires_grad else torch.zeros(mask.shape)
    _attend(query, key, value, (mask, causal, scale), out=gradient, by=by, by_mask=by_mask)
    return by[0], by[1], by[2], by_mask


def _attend(
    query: Tensor, key: Tensor, value: Tensor, how: tuple[Tensor | None, bool, float], *, out: Tensor, by: Sequence[Tensor] = (),
    by_mask: Tensor | None = None,
) -> None:  # fmt: skip
    """how: the mask, whether it is causal, and the scale. `out` is the result, or where gradients are to be made in `by`, that by it."""
    mask, causal, scale = how
    batch, heads, tokens, width = query.shape
    work = Attending(
        query=_at(query), key=_at(key), value=_at(value), mask=_at(mask), by_mask=_at(by_mask), query_strides=query.stride()[:3],
        key_strides=key.stride()[:3], value_strides=value.stride()[:3], out_strides=out.stride()[:3], batch=batch, heads=heads,
        groups=key.shape[1], queries=tokens, keys=key.shape[2], width=width, kind=_KINDS[query.dtype], causal=causal, scale=scale,
    )  # fmt: skip
    if by:
        work.gradient, (work.by_query, work.by_key, work.by_value) = _at(out), (_at(x) for x in by)
    else:
        work.out = _at(out)
    if mask is not None:
        work.mask_kind = SEEN if mask.dtype == torch.bool else SCORES
        work.mask_strides = tuple(0 if size == 1 else stride for size, stride in zip(mask.shape[:3], mask.stride()[:3], strict=True))
    native, threads = _native(), _threads(query.numel())
    work.room_bytes = native.attend_bytes(byref(work))
    room = torch.empty(threads * work.room_bytes + 64, dtype=torch.uint8)
    work.room = -(-room.data_ptr() // 64) * 64
    native.done(native.attend(byref(work), threads))


def adamw(
    values: Tensor, gradient: Tensor, moments: tuple[Tensor, Tensor], group: Mapping[str, Any], *, step: float, scale: float
) -> None:
    """A step of AdamW in place, with the gradient times `scale`; `step` counts from 1, values and moments are contiguous and in fp32.

    group: `lr`, `betas`, `eps` and `weight_decay`, as a group of torch's optimizer has them.
    """
    gradient = gradient.contiguous()
    betas: tuple[float, float] = group["betas"]
    work = AdamW(
        gradient=_at(gradient), values=_at(values), mean=_at(moments[0]), square=_at(moments[1]), count=values.numel(),
        rate=group["lr"], decay=group["weight_decay"], beta1=betas[0], beta2=betas[1], eps=group["eps"],
        correction1=1 - betas[0] ** step, correction2=1 - betas[1] ** step, scale=scale,
        kind=_KINDS[gradient.dtype],
    )  # fmt: skip
    native = _native()
    native.done(native.adamw(byref(work), _threads(values.numel())))


def total_norm(tensors: Iterable[Tensor]) -> float:
    """The root of the sum of all squares, whatever the number of threads."""
    native, total = _native(), 0.0
    for x in tensors:
        x = x.contiguous()
        pieces = torch.empty(-(-x.numel() // _PIECE), dtype=torch.float64)
        total += native.squares(_at(x), _KINDS[x.dtype], x.numel(), _at(pieces), _threads(x.numel()))
    return math.sqrt(total)
