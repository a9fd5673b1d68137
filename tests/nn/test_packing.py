"""Packed documents give what the documents give alone."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from triform import config, nn


def numbers(lengths: list[int]) -> Tensor:
    return torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)])[None]


def weighted(hidden: Tensor) -> Tensor:
    """A scalar that tells the places of hidden states (1, T, D) apart."""
    return (hidden * torch.linspace(-1, 1, hidden.shape[2])).sin().sum()


def check_same(spec: config.Transformer, lengths: list[int], layout: nn.Layout | None = None) -> None:
    model, rows = tiny.build(spec), [tiny.ids(1, n, seed=i) for i, n in enumerate(lengths)]
    alone = [model(row).hidden for row in rows]
    torch.stack([weighted(h) for h in alone]).sum().backward()
    wanted = tiny.gradients(model)
    packed = model(torch.cat(rows, 1), layout=layout or nn.Layout(documents=numbers(lengths))).hidden
    torch.stack([weighted(h) for h in packed.split(lengths, 1)]).sum().backward()
    tiny.assert_close(packed, torch.cat(alone, 1), 1e-5)
    tiny.assert_close(tiny.gradients(model), wanted, 1e-4)


@pytest.mark.parametrize("position", tiny.POSITIONS)
@pytest.mark.parametrize("form", [tiny.encoder, tiny.decoder])
def test_packed_documents_are_the_documents_alone(form: Any, position: str) -> None:
    check_same(form(position), [4, 1, 6])


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=5),
    window=st.none() | st.integers(1, 8),
    mask=st.sampled_from(["causal", "bidirectional"]),
)
def test_any_documents_and_window(lengths: list[int], window: int | None, mask: Any) -> None:
    check_same(tiny.decoder("rotary", mask=mask, window=window, kv_heads=2), lengths)


def test_with_experts() -> None:
    stack = tiny.stack(tiny.attention("alibi", mask="causal"), feed_forward=tiny.EXPERTS)
    check_same(config.Transformer(decoder=stack), [3, 5, 2])


def test_more_tokens_than_learned_positions_fit_when_each_document_does() -> None:
    check_same(tiny.decoder("learned"), [20, 24])


def test_the_comparison_finds_documents_that_were_not_told_apart() -> None:
    for wrong in ([0] * 6, [0, 0, 0, 0, 1, 1]):
        with pytest.raises(AssertionError):
            check_same(tiny.decoder("rotary"), [3, 3], nn.Layout(documents=torch.tensor([wrong])))


@pytest.mark.parametrize("position", ["none", "learned", "rotary", "bucketed", "alibi"])
def test_packed_pairs_of_an_encoder_decoder(position: str) -> None:
    model = tiny.build(tiny.encoder_decoder(position))
    source, target = [4, 2, 5], [2, 6, 1]
    inputs = [tiny.ids(1, n, seed=i) for i, n in enumerate(source)]
    targets = [tiny.ids(1, n, seed=9 + i) for i, n in enumerate(target)]
    alone = [model(a, target=b).hidden for a, b in zip(inputs, targets, strict=True)]
    torch.stack([weighted(h) for h in alone]).sum().backward()
    wanted = tiny.gradients(model)
    layout = nn.Layout(documents=numbers(source), target_documents=numbers(target))
    packed = model(torch.cat(inputs, 1), target=torch.cat(targets, 1), layout=layout).hidden
    torch.stack([weighted(h) for h in packed.split(target, 1)]).sum().backward()
    tiny.assert_close(packed, torch.cat(alone, 1), 1e-5)
    tiny.assert_close(tiny.gradients(model), wanted, 1e-4)


def test_a_cache_takes_no_packed_documents() -> None:
    model = tiny.build(tiny.decoder())
    with pytest.raises(ValueError, match="give each document a row of its own"):
        model(tiny.ids(1, 4), cache=nn.Cache.growing(model.config), layout=nn.Layout(documents=numbers([2, 2])))
