"""What training does natively between its products: against torch in fp64, in every variant that this processor runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.adamw import adamw

from triform.kernels import library, training
from triform.kernels.build import variants
from triform.nn import fused
from triform.nn.feedforward import ACTIVATIONS

NATIVE = library()
# Of the largest number: a few roundings of sums in fp32, and one of the result in bf16 (2^-9), or two where it is rounded on the way.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}
DTYPES = list(TOLERANCE)
Part = Callable[..., Tensor]


@pytest.fixture(params=list(variants()), autouse=True)
def variant(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each variant that this processor can run; the others are left out by name."""
    assert NATIVE is not None, "these tests need a C++ compiler"
    best = NATIVE.variant()
    name = request.param if not NATIVE.use(request.param.encode()) else best.decode()
    yield name
    NATIVE.done(NATIVE.use(best))


def given(dtype: torch.dtype, *shapes: tuple[int, ...]) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=random).to(dtype).requires_grad_() for shape in shapes]


def off(found: Tensor, wanted: Tensor) -> float:
    return float((found.detach().double() - wanted.detach()).abs().max() / wanted.detach().abs().max())


def assert_same(ours: Part, plain: Part, inputs: list[Tensor], dtype: torch.dtype) -> None:
    """Values and gradients; those of inputs a little larger must be seen to differ."""

    def run(part: Part, inputs: list[Tensor]) -> list[Tensor]:
        y = part(*inputs)
        weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype).to(y.dtype)
        return [y, *torch.autograd.grad(y, inputs, weights)]

    tolerance, found = TOLERANCE[dtype], run(ours, inputs)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    assert all(off(a, b) < tolerance for a, b in zip(found, run(plain, exact), strict=True))
    larger = [(x.detach() * (1 + 8 * tolerance)).requires_grad_() for x in exact]
    assert not all(off(a, b) < tolerance for a, b in zip(found, run(plain, larger), strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [7, 64, 300])
@pytest.mark.parametrize("kind", ["rms", "layer", "layer without bias"])
def test_norms(kind: str, width: int, dtype: torch.dtype) -> None:
    (x,), (weight, bias) = given(dtype, (3, 5, width)), given(torch.float32, (width,), (width,))
    if kind == "rms":
        plain: Part = lambda x, w: F.rms_norm(x, (width,), w + 1, 1e-5)  # noqa: E731
        assert_same(lambda x, w: fused.rms_norm(x, w, 1e-5, 1.0, dtype), plain, [x, weight], dtype)
    else:
        inputs = [x, weight] if "without" in kind else [x, weight, bias]
        plain = lambda x, w, b=None: F.layer_norm(x, (width,), w, b, 1e-5)  # noqa: E731
        assert_same(lambda x, w, b=None: fused.layer_norm(x, w, b, 1e-5, dtype), plain, inputs, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if fused.has_inner(name)])
def test_gates(name: str, gated: bool, dtype: torch.dtype) -> None:
    act, inputs = ACTIVATIONS[name], given(dtype, (7, 50), (7, 50))[: 1 + gated]
    assert_same(lambda x, y=None: fused.gate(x, y, name, act), lambda x, y=None: act(x) if y is None else act(x) * y, inputs, dtype)


def apart(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_gradients_of_norms_lose_no_digits_over_many_rows(kind: str) -> None:
    random = torch.Generator().manual_seed(0)
    x, gradient = torch.randn(1 << 14, 16, generator=random), torch.randn(1 << 14, 16, generator=random) + 0.3
    weight, bias = torch.ones(16), torch.zeros(16)
    _, mean, inverse = training.norm(x, weight, bias, 1e-6, 0.0, torch.float32, layer=kind == "layer")
    _, by_weight, by_bias = training.norm_gradients(gradient, x, weight, True, mean, inverse, 0.0)
    wide = x.double() if mean is None else x.double() - mean.double()[:, None]
    terms = gradient.double() * wide * inverse.double()[:, None]
    assert by_bias is not None
    assert max(apart(by_weight, terms.sum(0)), apart(by_bias, gradient.double().sum(0))) < 6e-7
    one_by_one = torch.zeros(16)
    for row in terms.float():
        one_by_one += row
    assert apart(one_by_one, terms.sum(0)) > 6e-7


def test_the_slope_of_gelu_loses_no_digits_where_tanh_is_near_one() -> None:
    x = torch.linspace(-5, 5, 4001)
    exact = x.double().requires_grad_()
    (wanted,) = torch.autograd.grad(F.gelu(exact, approximate="tanh").sum(), exact)
    found = training.gated_gradients(torch.ones_like(x), x, None, "gelu_tanh")[1]
    t = torch.tanh(0.7978845608 * (x + 0.044715 * x**3))
    by_tanh = 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * 0.7978845608 * (1 + 0.134145 * x * x)
    assert apart(found, wanted) < 1e-7 < apart(by_tanh, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [6, 64])
def test_rotation(width: int, dtype: torch.dtype) -> None:
    """Of heads that lie behind their tokens, each row of the batch with positions of its own."""
    (x,) = given(dtype, (2, 5, 3, width))
    angles = torch.randn(2, 1, 5, width // 2)
    cos, sin = torch.cat((angles.cos(), angles.cos()), -1), torch.cat((-angles.sin(), angles.sin()), -1)

    def plain(x: Tensor) -> Tensor:
        heads = x.transpose(1, 2)
        return heads * cos + heads.roll(width // 2, -1) * sin

    assert_same(lambda x: fused.rotate(x.transpose(1, 2), cos, sin), plain, [x], dtype)


MASKS = ["none", "causal", "boolean", "boolean of a row", "bias", "bias of a batch"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("mask", MASKS)
def test_attention(mask: str, groups: int, dtype: torch.dtype) -> None:
    """More queries than a block has, and a number of keys that no panel ends with."""
    batch, heads, queries, keys, width = 2, 4, 71, 71 if mask == "causal" else 90, 20
    inputs = given(dtype, (batch, queries, heads, width), (batch, keys, groups, width), (batch, keys, groups, width))
    seen: Any = None
    if mask.startswith("boolean"):
        seen = torch.rand(batch, 1, 1 if "row" in mask else queries, keys, generator=torch.Generator().manual_seed(2)) < 0.6
        seen[0, 0, 0] = "row" in mask  # a query that sees nothing
    if mask.startswith("bias"):
        inputs += given(dtype, (batch if "batch" in mask else 1, heads, queries, keys))

    def part(attend: Callable[..., Tensor]) -> Part:
        return lambda q, k, v, bias=None: attend(*(x.transpose(1, 2) for x in (q, k, v)), seen if bias is None else bias)

    def ours(q: Tensor, k: Tensor, v: Tensor, given_mask: Tensor | None) -> Tensor:
        y = fused.attention(q, k, v, given_mask, mask == "causal", None)
        assert type(y.grad_fn).__name__ == "_NativeAttentionBackward"
        return y

    def plain(q: Tensor, k: Tensor, v: Tensor, given_mask: Tensor | None) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, given_mask, is_causal=mask == "causal", enable_gqa=True)

    assert_same(part(ours), part(plain), inputs, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("z_loss", "smoothing"), [(0.0, 0.0), (0.1, 0.0), (0.0, 0.1), (0.1, 0.2)])
@pytest.mark.parametrize("biased", [True, False])
def test_cross_entropy(biased: bool, z_loss: float, smoothing: float, dtype: torch.dtype) -> None:
    (scores,), (bias,) = given(dtype, (9, 103)), given(torch.float32, (103,))
    labels = torch.randint(0, 103, (9,), generator=torch.Generator().manual_seed(1))
    exact = scores.detach().double().requires_grad_()
    logits = exact + bias.detach() if biased else exact
    log_sum = logits.logsumexp(-1)
    each = (1 - smoothing) * F.cross_entropy(logits, labels, reduction="none") + smoothing * (log_sum - logits.mean(-1))
    each = each + z_loss * log_sum**2
    (wanted,) = torch.autograd.grad(each.sum(), exact)
    found = scores.detach().clone()
    loss = training.cross_entropy(found, bias if biased else None, labels, z_loss, smoothing)
    assert off(loss, each) < TOLERANCE[torch.float32]
    assert off(found, wanted) < TOLERANCE[dtype]
    assert off(found, wanted * (1 + 4 * TOLERANCE[dtype])) > TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_adamw(dtype: torch.dtype) -> None:
    """Three steps of torch's, from gradients as narrow as they are given, times a factor."""
    parameters = [torch.randn(40_003, generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    (our_mean, mean), (our_square, square) = ([torch.zeros(40_003) for _ in range(2)] for _ in range(2))
    count = torch.zeros(())
    settings: Any = {"lr": 0.01, "eps": 1e-8, "weight_decay": 0.1}
    for step in range(3):
        gradient = torch.randn(40_003, generator=torch.Generator().manual_seed(step)).to(dtype)
        group = settings | {"betas": (0.9, 0.95)}
        training.adamw(parameters[0], gradient, (our_mean, our_square), group, step=step + 1.0, scale=0.5)
        adamw(
            [parameters[1]], [0.5 * gradient.float()], [mean], [square], [], [count], fused=True, amsgrad=False, beta1=0.9, beta2=0.95,
            maximize=False, **settings,
        )  # fmt: skip
    for ours, theirs in ((parameters[0], parameters[1]), (our_mean, mean), (our_square, square)):
        assert off(ours, theirs.double()) < 1e-6
        assert off(ours, theirs.double() * (1 + 1e-5)) > 1e-6


def test_the_norm_of_all_does_not_depend_on_the_threads() -> None:
    tensors = [torch.randn(50_001, generator=torch.Generator().manual_seed(4)), torch.randn(7).bfloat16()]
    before, found = torch.get_num_threads(), set()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.add(training.total_norm(tensors))
    torch.set_num_threads(before)
    assert len(found) == 1
    assert found.pop() == pytest.approx(float(torch.cat([x.double() for x in tensors]).norm()), rel=1e-7)


def test_what_is_not_known_is_left_to_torch() -> None:
    x = torch.randn(4, 4)
    assert training.serves(x, torch.nn.Parameter(x), None)
    assert not training.serves(x.double())
    assert not training.serves(x.half())
    assert not training.serves(x, dtype=torch.float16)
    assert not training.serves(x.to("meta"))
    with torch._subclasses.FakeTensorMode() as mode:
        assert not training.serves(mode.from_tensor(x))


def test_labels_beyond_the_vocabulary_are_refused() -> None:
    with pytest.raises(ValueError, match="labels: expected numbers below 5, got 5"):
        training.cross_entropy(torch.zeros(2, 5), None, torch.tensor([0, 5]), 0.0, 0.0)


def test_what_is_not_finite_stays_so() -> None:
    scores = torch.zeros(2, 40)
    scores[0, 7] = torch.nan
    assert training.cross_entropy(scores, None, torch.tensor([1, 1]), 0.0, 0.0).isfinite().tolist() == [False, True]
    x = torch.full((2, 20), torch.nan, requires_grad=True)
    assert fused.gate(x, None, "silu", F.silu).isnan().all()
    assert fused.rms_norm(x, torch.ones(20), 1e-5, 0.0, torch.float32).isnan().all()
