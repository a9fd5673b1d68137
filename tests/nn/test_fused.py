"""Parts with a backward pass of their own give what the plain operations give, value and gradients, and keep less."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from triform.nn import fused, position
from triform.nn.feedforward import ACTIVATIONS
from triform.nn.products import Products, lookup, training_products

Part = Callable[..., Tensor]


def given(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=random, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def assert_same(ours: Part, plain: Part, inputs: list[Tensor], tolerance: float = 1e-12) -> None:
    """Values and gradients, by the largest number of each; another scale of the result must be seen."""

    def run(part: Part, scale: float = 1.0) -> list[Tensor]:
        y = part(*inputs) * scale
        weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
        return [y, *torch.autograd.grad(y, inputs, weights)]

    def apart(left: list[Tensor], right: list[Tensor]) -> float:
        return max(float((a - b).detach().abs().max() / b.detach().abs().max()) for a, b in zip(left, right, strict=True))

    wanted = run(plain)
    assert apart(run(ours), wanted) < tolerance
    assert apart(run(ours, 1 + 4 * tolerance), wanted) > tolerance


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_rms_norm(offset: float) -> None:
    inputs = given((3, 5, 8), (8,))
    assert_same(
        lambda x, w: fused.rms_norm(x, w, 1e-5, offset, x.dtype), lambda x, w: F.rms_norm(x, (8,), w + offset, 1e-5), inputs
    )  # fmt: skip


@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm(bias: bool) -> None:
    inputs = given((3, 5, 8), (8,), *([(8,)] if bias else []))
    assert_same(
        lambda x, w, b=None: fused.layer_norm(x, w, b, 1e-5, x.dtype), lambda x, w, b=None: F.layer_norm(x, (8,), w, b, 1e-5), inputs
    )  # fmt: skip


def test_a_narrow_norm_is_the_wide_one_rounded() -> None:
    (x,), (w,) = given((3, 8), dtype=torch.float32), given((8,), dtype=torch.float32)
    assert torch.equal(fused.rms_norm(x, w, 1e-5, 0.0, torch.bfloat16), fused.rms_norm(x, w, 1e-5, 0.0, torch.float32).bfloat16())


def test_rotation() -> None:
    (x,) = given((2, 3, 5, 8))
    angles = torch.randn(1, 1, 5, 4, dtype=torch.float64)
    cos, sin = torch.cat((angles.cos(), angles.cos()), -1), torch.cat((-angles.sin(), angles.sin()), -1)
    assert_same(lambda x: fused.rotate(x, cos, sin), lambda x: (x * cos) + x.roll(4, -1) * sin, [x])
    assert torch.equal(position.rotate(x, (cos, sin)), fused.rotate(x, cos, sin))


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if fused.has_inner(name)])
def test_inner(name: str, bias: bool, gated: bool) -> None:
    act, inputs = ACTIVATIONS[name], given((2, 3, 8), (4, 8), *([(2, 3, 8)] if gated else []), *([(4,)] if bias else []))

    def parts(rest: tuple[Tensor, ...]) -> tuple[Tensor | None, Tensor | None]:
        return (rest[0] if gated else None), (rest[-1] if bias else None)

    def ours(left: Tensor, weight: Tensor, *rest: Tensor) -> Tensor:
        right, b = parts(rest)
        return fused.inner(left, right, weight, b, name, act)

    def plain(left: Tensor, weight: Tensor, *rest: Tensor) -> Tensor:
        right, b = parts(rest)
        return F.linear(act(left) if right is None else act(left) * right, weight, b)

    assert_same(ours, plain, inputs)


MASKS = {
    "none": lambda: None,
    "causal": lambda: "causal",
    "boolean": lambda: torch.rand(2, 1, 5, 5, generator=torch.Generator().manual_seed(2)) < 0.6,
    "bias": lambda: given((1, 6, 5, 5))[0],
}


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("mask", MASKS)
def test_attention(mask: str, groups: int) -> None:
    seen: Any = MASKS[mask]()
    causal = isinstance(seen, str)
    if mask == "boolean":
        seen[0, 0, 3] = False  # a query that sees nothing
    inputs = [*given((2, 6, 5, 4), (2, groups, 5, 4), (2, groups, 5, 4)), *([seen] if mask == "bias" else [])]

    def ours(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
        given_mask = bias if bias is not None else None if causal else seen
        return fused.attention(query, key, value, given_mask, causal, None)

    def plain(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
        given_mask = bias if bias is not None else None if causal else seen
        return F.scaled_dot_product_attention(query, key, value, given_mask, is_causal=causal, enable_gqa=True)

    assert_same(ours, plain, inputs)


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_under_autocast_gives_torchs_bits(bias: bool) -> None:
    layer, (x,) = torch.nn.Linear(24, 40, bias=bias), given((3, 7, 24), dtype=torch.float32)
    found = []
    for ours in (False, True):
        with torch.autocast("cpu", torch.bfloat16), training_products(Products(layers=ours)):
            y = layer(x)
        assert (type(y.grad_fn).__name__ == "_LinearBackward") == ours
        found.append([y, *torch.autograd.grad(y.float().sin().sum(), [x, *layer.parameters()])])
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("narrow", [True, False])
def test_a_tables_gradients_come_together_in_place(narrow: bool) -> None:
    """Under autocast the output's gradient waits in 16 bits for the end of the backward pass, and is then as if it had not."""
    from triform.nn import linear_cross_entropy

    (table,), ids = given((11, 6), dtype=torch.float32 if narrow else torch.float64), torch.tensor([[1, 2, 2], [5, 0, 10]])

    def run(in_place: bool) -> Tensor:
        table.grad, how = None, Products(in_place=in_place)
        with training_products(how):
            for _ in range(2):
                with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
                    hidden = lookup(ids, table).tanh()
                    loss = linear_cross_entropy(hidden, table, ids.roll(1, 1)).mul(0.5)
                waits = narrow and in_place and table.grad is None
                loss.backward()
                assert (table.grad is None) == waits
                how.settle()
        assert table.grad is not None
        return table.grad

    tolerance = 1e-6 if narrow else 1e-12
    wanted, got = run(False), run(True)
    assert torch.allclose(got, wanted, rtol=tolerance, atol=tolerance / 100)
    assert not torch.allclose(got * (1 + 1e3 * tolerance), wanted, rtol=tolerance, atol=tolerance / 100)


def test_what_needs_no_gradient_takes_torchs_way() -> None:
    (x,) = given((3, 8))
    assert fused.fits(x)
    with torch.no_grad():
        assert not fused.fits(x)
    assert not fused.fits(x.detach())
