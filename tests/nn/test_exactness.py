"""Gradients of whole models in fp32 are as near to those in fp64 when native passes make them as when torch's operations do."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from triform import config, nn
from triform.kernels import library
from triform.kernels import training as native

ROUNDS = 6  # inputs, over which errors are averaged
MORE = 2  # times torch's error that native passes may make


def _stack(feed_forward: config.FeedForward | config.Experts, *, reads: bool) -> config.Stack:
    attention: dict[str, Any] = {"heads": 4, "head_width": 8, "bias": "none", "scale": 1.0}
    block = config.Block(
        attention=config.Attention(
            mask="causal" if reads else "bidirectional", position=config.Bucketed(buckets=8, max_distance=10), **attention
        ),
        feed_forward=feed_forward, cross=config.Attention(mask="bidirectional", **attention) if reads else None,
        norm=config.RMSNorm(eps=1e-6),
    )  # fmt: skip
    return config.Stack(width=32, depth=3, input=config.Tokens(vocab_size=99), pattern=(block,), norm=config.RMSNorm(eps=1e-6))


def _model(feed_forward: config.FeedForward | config.Experts) -> nn.Transformer:
    """As T5 is: nothing scales scores, layers share a learned bias. Gains and biases are not what they begin with."""
    spec = config.Transformer(
        encoder=_stack(feed_forward, reads=False), decoder=_stack(feed_forward, reads=True), share_tokens=True,
        head=config.LanguageModel(tied=True), init=config.Init(scheme="t5"),
    )  # fmt: skip
    random = torch.Generator().manual_seed(0)
    model = nn.Transformer(spec).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.1 if name.endswith("query.weight") else 0.3
            parameter.copy_(scale * torch.randn(parameter.shape, generator=random) + (parameter.ndim == 1))
    return model


def _gradients(model: nn.Transformer, seed: int) -> list[Tensor]:
    """Of a random weighting of the scores, with a row that is padded."""
    random = torch.Generator().manual_seed(seed)
    source, target = torch.randint(3, 99, (2, 12), generator=random), torch.randint(3, 99, (2, 10), generator=random)
    scores = model(source, torch.arange(12) < torch.tensor([[12], [9]]), target).logits
    assert scores is not None
    weights = torch.randn(scores.shape, generator=random).to(scores.dtype)
    return list(torch.autograd.grad((scores * weights).sum(), list(model.parameters()), allow_unused=True, materialize_grads=True))


def _error(model: nn.Transformer, exact: list[list[Tensor]]) -> float:
    """Of all gradients together, in the 2-norm: the geometric mean over the rounds."""
    logs = []
    for seed, wanted in enumerate(exact):
        apart = sum(float((a.double() - b).square().sum()) for a, b in zip(_gradients(model, seed), wanted, strict=True))
        logs.append(math.log(apart / sum(float(b.square().sum()) for b in wanted)) / 2)
    return math.exp(sum(logs) / len(logs))


RELU = config.FeedForward(hidden=48, activation="relu", gated=False, bias=False)
GATED = config.FeedForward(hidden=48, activation="gelu_tanh", gated=True, bias=False)


@pytest.mark.parametrize("feed_forward", [RELU, GATED, config.Experts(expert=RELU, count=4)], ids=["t5", "t5-1.1", "switch"])
def test_native_gradients_are_as_exact_as_torch_s(
    feed_forward: config.FeedForward | config.Experts, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert library() is not None, "this test needs a C++ compiler"
    model, wide = _model(feed_forward), _model(feed_forward).double()
    exact = [_gradients(wide, seed) for seed in range(ROUNDS)]
    found = _error(model, exact)
    with monkeypatch.context() as without:
        without.setattr(native, "serves", lambda *tensors, **more: False)
        plain = _error(model, exact)
    print(f"native {found:.1e}, torch {plain:.1e}")
    assert found < MORE * plain < 2e-5
    with torch.no_grad():
        dict(model.named_parameters())["encoder.layers.0.attention.body.query.weight"] *= 1 + 1e-4
    assert _error(model, exact) > MORE * plain
