"""Mixtures of experts against one token at a time."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from triform import config, nn
from triform.nn.feedforward import ACTIVATIONS

WIDTH = 6
PLAIN = config.FeedForward(hidden=5, activation="relu")
GATED = config.FeedForward(hidden=5, activation="silu", gated=True)


def layer(dtype: torch.dtype = torch.float64, **fields: Any) -> nn.Experts:
    spec = config.Experts(**{"expert": GATED, "count": 4, "top_k": 2} | fields)
    experts = nn.Experts(spec, WIDTH).to(dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return experts


def tokens(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, WIDTH, generator=torch.Generator().manual_seed(1), dtype=dtype)


def one_token(experts: nn.Experts, x: Tensor, admitted: set[int] | None = None) -> Tensor:
    """What a token (D,) gets, expert by expert in the order of their probability; `admitted` names those with room."""
    spec, probabilities = experts.spec, (experts.router.weight @ x).softmax(0)
    best = probabilities.sort(descending=True).indices[: spec.top_k].tolist()
    total = probabilities[best].sum() if spec.renormalize else 1.0
    out = torch.zeros_like(x) if experts.shared is None else experts.shared(x)
    for e in best:
        if admitted is None or e in admitted:
            hidden = experts.up[e] @ x + experts.up_bias[e]
            act = ACTIVATIONS[spec.expert.activation]
            hidden = act(hidden) if experts.gate is None else act(experts.gate[e] @ x + experts.gate_bias[e]) * hidden
            out = out + probabilities[e] / total * (experts.down[e] @ hidden + experts.down_bias[e])
    return out


@pytest.mark.parametrize("expert", [PLAIN, GATED], ids=["plain", "gated"])
@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("top_k", [1, 3])
@pytest.mark.parametrize("shared", [None, PLAIN], ids=["alone", "shared"])
def test_a_token_at_a_time(expert: config.FeedForward, renormalize: bool, top_k: int, shared: config.FeedForward | None) -> None:
    experts = layer(expert=expert, renormalize=renormalize, top_k=top_k, shared=shared)
    x = tokens(2, 5)
    got, routing = experts(x)
    wanted = torch.stack([torch.stack([one_token(experts, t) for t in row]) for row in x])
    tiny.assert_close(got, wanted, 1e-12)
    assert routing.kept.all()
    experts.spec = config.Experts(expert=expert, count=4, top_k=top_k, renormalize=not renormalize, shared=shared)
    with pytest.raises(AssertionError):
        tiny.assert_close(torch.stack([one_token(experts, t) for t in x[0]]), got[0], 1e-12)


def admitted(experts: nn.Experts, row: Tensor, real: list[bool], capacity: int) -> list[set[int]]:
    """The experts that take each token of a row, first come, first served."""
    taken, out = [0] * experts.spec.count, []
    for x, is_real in zip(row, real, strict=True):
        best = (experts.router.weight @ x).topk(experts.spec.top_k).indices.tolist() if is_real else []
        out.append({e for e in best if taken[e] < capacity})
        for e in best:
            taken[e] += 1
    return out


@pytest.mark.parametrize("capacity", [1, 2, 3])
def test_a_full_expert_drops_those_that_come_later_and_only_in_training(capacity: int) -> None:
    experts, x = layer(capacity=capacity), tokens(2, 7)
    seen = torch.ones(2, 7, dtype=torch.bool)
    seen[0, :3] = False
    places = [place for row, real in zip(x, seen.tolist(), strict=True) for place in admitted(experts, row, real, capacity)]
    wanted = torch.stack([one_token(experts, t, place) for t, place in zip(x.flatten(0, 1), places, strict=True)])
    got, routing = experts.train()(x, seen)
    tiny.assert_close(got, wanted.view_as(x), 1e-12)
    assert int(routing.kept.sum()) == sum(map(len, places)) < routing.kept.numel()
    whole, routing = experts.eval()(x, seen)
    tiny.assert_close(whole[seen], torch.stack([one_token(experts, t) for t in x[seen]]), 1e-12)
    assert routing.kept.all()
    assert routing.logits.shape == (int(seen.sum()), 4)
    with pytest.raises(AssertionError):
        tiny.assert_close(whole[seen], got[seen], 1e-12)


def test_padding_takes_no_place_and_gets_nothing() -> None:
    experts = layer(capacity=2, top_k=1).train()
    row = tokens(1, 4)
    alone, _ = experts(row)
    padded, routing = experts(torch.cat((row[:, :1].expand(1, 6, -1), row), 1), torch.tensor([[False] * 6 + [True] * 4]))
    tiny.assert_close(padded[:, 6:], alone, 1e-12)
    assert padded[:, :6].eq(0).all()
    assert len(routing.logits) == 4
    crowded, _ = experts(torch.cat((row[:, :1].expand(1, 6, -1), row), 1))
    assert not torch.allclose(crowded[:, 6:], alone)


def test_losses_by_hand() -> None:
    """Three tokens, two experts: shares 2/3 and 1/3; mean probabilities (0.75 + 0.75 + 0.25) / 3 and the rest."""
    three = torch.log(torch.tensor(3.0))
    logits = torch.stack((torch.stack((three, 0 * three)), torch.stack((three, 0 * three)), torch.stack((0 * three, three))))
    routing = nn.Routing(logits, torch.tensor([[0], [0], [1]]), torch.ones(3, 1, dtype=torch.bool))
    mean = 1.75 / 3
    assert float(routing.load_balance()) == pytest.approx(2 * (2 / 3 * mean + 1 / 3 * (1 - mean)), abs=1e-6)
    assert float(routing.z_loss()) == pytest.approx(float(torch.log(torch.tensor(4.0))) ** 2, abs=1e-6)
    even = nn.Routing(torch.zeros(4, 2), torch.tensor([[0, 1]] * 4), torch.ones(4, 2, dtype=torch.bool))
    assert float(even.load_balance()) == pytest.approx(1.0, abs=1e-6)


def test_a_model_returns_the_mean_over_its_layers_and_padding_does_not_count() -> None:
    stack = tiny.stack(tiny.attention("rotary", mask="causal"), feed_forward=tiny.EXPERTS)
    model, ids = tiny.build(config.Transformer(decoder=stack)), tiny.ids(1, 5)
    with torch.no_grad():
        aux = model(ids).aux
        padded = model(torch.cat((torch.zeros(1, 3, dtype=torch.long), ids), 1), torch.tensor([[False] * 3 + [True] * 5])).aux
    assert len(aux.routing) == 2
    assert float(aux.load_balance) == pytest.approx(sum(float(r.load_balance()) for r in aux.routing) / 2)
    assert float(aux.router_z) == pytest.approx(sum(float(r.z_loss()) for r in aux.routing) / 2)
    assert float(padded.load_balance) == pytest.approx(float(aux.load_balance), abs=1e-5)
    assert float(padded.router_z) == pytest.approx(float(aux.router_z), abs=1e-4)
    assert tiny.build(tiny.decoder())(ids).aux.load_balance is None


@pytest.mark.parametrize("mask", [None, torch.tensor([[False, True, True, True, True]])], ids=["documents", "mask and documents"])
def test_padding_between_packed_documents_is_routed_nowhere(mask: Tensor | None) -> None:
    stack = tiny.stack(tiny.attention("rotary", mask="causal"), feed_forward=tiny.EXPERTS)
    layout = nn.Layout(documents=torch.tensor([[0, 0, 1, 1, -1]]))
    aux = tiny.build(config.Transformer(decoder=stack))(tiny.ids(1, 5), mask, layout=layout).aux
    assert [len(routing.logits) for routing in aux.routing] == [4 if mask is None else 3] * 2


def test_gradients_are_those_of_the_plain_loop() -> None:
    """They reach the router, every expert, the shared feed-forward and the tokens."""
    experts = layer(renormalize=True, shared=PLAIN)
    x, y = tokens(2, 6).requires_grad_(), tokens(2, 6).requires_grad_()
    experts(x)[0].cos().sum().backward()
    got = tiny.gradients(experts)
    torch.stack([one_token(experts, t) for t in y.flatten(0, 1)]).cos().sum().backward()
    wanted = tiny.gradients(experts)
    tiny.assert_close(got, wanted, 1e-10)
    assert x.grad is not None
    assert y.grad is not None
    tiny.assert_close(x.grad, y.grad, 1e-10)
    assert all(gradient.abs().max() > 0 for gradient in got.values())


def test_the_losses_reach_the_router() -> None:
    for loss in ("load_balance", "z_loss"):
        experts = layer(torch.float32)
        _, routing = experts(tokens(2, 6, dtype=torch.float32))
        getattr(routing, loss)().backward()
        found = tiny.gradients(experts)
        assert found["router.weight"].abs().max() > 0
        assert all(gradient.eq(0).all() for name, gradient in found.items() if name != "router.weight")


def test_autocast_runs_the_experts_in_bf16_and_the_router_in_fp32() -> None:
    experts, x = layer(torch.float32), tokens(2, 6, dtype=torch.float32)
    plain, sure = experts(x)
    with torch.autocast("cpu", torch.bfloat16):
        got, routing = experts(x)
    assert got.dtype == x.dtype
    assert torch.equal(routing.logits, sure.logits)
    tiny.assert_close(got, plain, 3e-2)
    with pytest.raises(AssertionError):
        tiny.assert_close(got, plain, 1e-6)
    got.sum().backward()
    assert all(gradient.isfinite().all() for gradient in tiny.gradients(experts).values())
