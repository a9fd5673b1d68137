"""Who sees whom, by gradient: exactly zero where nothing may be seen, and not zero where something may."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import groupby
from typing import Any

import pytest
import tiny
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from triform import config, nn


def reach(run: Callable[[Tensor], Tensor], length: int, seed: int = 0) -> Tensor:
    """True (T, S) where the output at t of `run`, states (B, S, D) to (B, T, D), depends on the state at s.

    Row t of the batch is there for the output at t, so that one backward pass tells all.
    """
    x = states(1, length, seed)
    queries = run(x).shape[1]
    copies = x.detach().repeat(queries, 1, 1).requires_grad_()
    probe = torch.randn(tiny.WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    every = torch.arange(queries)
    (run(copies)[every, every] @ probe).sum().backward()
    assert copies.grad is not None
    return (copies.grad != 0).any(-1)


@lru_cache(maxsize=None)
def without_inputs(spec: config.Transformer) -> Any:
    """The model, reading hidden states in place of tokens."""
    model = nn.build(spec, dtype=torch.float64, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for stack in (model.encoder, model.decoder):
        if stack is not None:
            stack.input = None
    return model.requires_grad_(False)


def states(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, length, tiny.WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def many(values: list[Any], like: Tensor) -> Tensor:
    return torch.tensor([values]).expand(len(like), -1)


def allowed(spec: config.Attention, seen: list[bool], documents: list[int], prefix: list[bool]) -> Tensor:
    """The rule, one pair at a time; a token always reaches itself, by the residual connection."""
    length = len(seen)
    table = torch.eye(length, dtype=torch.bool)
    for t in range(length):
        for s in range(length):
            near = spec.window is None or abs(s - t) < spec.window
            both = spec.mask == "prefix" and prefix[t] and prefix[s]
            if seen[s] and documents[t] == documents[s] and (both or (near and (spec.mask == "bidirectional" or s <= t))):
                table[t, s] = True
    return table


def check(spec: config.Attention, seen: list[bool], documents: list[int], prefix: list[bool], rule: config.Attention | None = None) -> None:
    """A layer of attention `spec` obeys the rule of `rule`, its own unless told."""
    model = without_inputs(config.Transformer(decoder=tiny.stack(spec, depth=1, feed_forward=tiny.EXPERTS)))

    def run(x: Tensor) -> Tensor:
        layout = nn.Layout(
            documents=many(documents, x) if len(set(documents)) > 1 else None, prefix=many(prefix, x) if any(prefix) else None
        )
        hidden: Tensor = model(x, None if all(seen) else many(seen, x), layout=layout).hidden
        return hidden

    found = reach(run, len(seen))
    wanted = allowed(rule or spec, seen, documents, prefix)
    kept = torch.tensor(seen)
    assert torch.equal(found[kept], wanted[kept])


POSITIONS = st.sampled_from([None, *tiny.SCORE_POSITIONS])


@settings(max_examples=120, deadline=None)
@given(data=st.data(), length=st.integers(1, 9), mask=st.sampled_from(["bidirectional", "causal", "prefix"]), position=POSITIONS)
def test_every_mask(data: Any, length: int, mask: Any, position: str | None) -> None:
    window = data.draw(st.none() | st.integers(1, length + 1), "window")
    heads = data.draw(st.sampled_from([None, 1, 2]), "kv_heads")
    left = data.draw(st.integers(0, length - 1), "padding on the left")
    right = data.draw(st.integers(0, length - 1 - left), "padding on the right")
    documents = sorted(data.draw(st.lists(st.integers(0, 2), min_size=length, max_size=length), "documents"))
    prefix = [mask == "prefix" and i < data.draw(st.integers(0, length), "prefix") for i in range(length)]
    seen = [left <= i < length - right for i in range(length)]
    check(tiny.attention(position or "none", mask=mask, window=window, kv_heads=heads), seen, documents, prefix)


@pytest.mark.parametrize("mask", ["bidirectional", "causal"])
def test_the_check_finds_a_wrong_window(mask: Any) -> None:
    spec, plain = tiny.attention(mask=mask, window=3), ([True] * 8, [0] * 8, [False] * 8)
    check(spec, *plain)
    for window in (2, 4, None):
        with pytest.raises(AssertionError):
            check(spec, *plain, rule=tiny.attention(mask=mask, window=window))


def test_the_check_finds_documents_that_see_each_other() -> None:
    model = without_inputs(config.Transformer(decoder=tiny.stack(tiny.attention(mask="causal"), depth=1)))
    apart = allowed(tiny.attention(mask="causal"), [True] * 6, [0, 0, 0, 1, 1, 1], [False] * 6)
    assert not torch.equal(reach(lambda x: model(x).hidden, 6), apart)


def test_a_stack_of_local_and_global_layers() -> None:
    """Each layer keeps its own window: what a stack of layers reaches is what a walk through their rules reaches."""
    local, wide = tiny.attention("rotary", mask="causal", window=2), tiny.attention("rotary", mask="causal", window=4)
    model = without_inputs(config.Transformer(decoder=tiny.stack(local, local, wide, depth=3)))
    step = [allowed(spec, [True] * 9, [0] * 9, [False] * 9).double() for spec in (local, local, wide)]
    assert torch.equal(reach(lambda x: model(x).hidden, 9), step[2] @ step[1] @ step[0] > 0)


def test_negative_documents_are_padding() -> None:
    spec = tiny.attention("alibi")
    model = without_inputs(config.Transformer(decoder=tiny.stack(spec, depth=1)))
    documents = [0, 0, 1, 1, -1, -1]
    found = reach(lambda x: model(x, layout=nn.Layout(documents=many(documents, x))).hidden, 6)
    assert torch.equal(found[:4], allowed(spec, [d >= 0 for d in documents], documents, [False] * 6)[:4])


@settings(max_examples=40, deadline=None)
@given(
    source=st.lists(st.integers(0, 2), min_size=1, max_size=7).map(sorted),
    target=st.lists(st.integers(0, 2), min_size=1, max_size=6).map(sorted),
    right=st.integers(0, 3),
    position=POSITIONS,
)
def test_packed_documents_of_an_encoder_decoder(source: list[int], target: list[int], right: int, position: str | None) -> None:
    """The decoder reads the encoder's side of its own document, padding left out, and its own past."""
    assume(right < len(source))
    seen = [i < len(source) - right for i in range(len(source))]
    spec = tiny.encoder_decoder(position or "none")
    model = without_inputs(config.Transformer(encoder=spec.encoder, decoder=spec.decoder))

    def run(x: Tensor, y: Tensor) -> Tensor:
        layout = nn.Layout(documents=many(source, x), target_documents=many(target, x))
        hidden: Tensor = model(x, many(seen, x), y, layout=layout).hidden
        return hidden

    across = torch.tensor([[u == s and ok for s, ok in zip(source, seen, strict=True)] for u in target])
    encoded, decoded = states(len(target), len(source)), states(len(target), len(target), 1)
    assert torch.equal(reach(lambda x: run(x, decoded[:1].expand(len(x), -1, -1)), len(source)), across)
    past = reach(lambda y: run(encoded[:1].expand(len(y), -1, -1), y), len(target), 1)
    assert torch.equal(past, allowed(tiny.attention(mask="causal"), [True] * len(target), target, [False] * len(target)))


def test_documents_of_one_side_alone_are_refused() -> None:
    model = tiny.build(tiny.encoder_decoder())
    with pytest.raises(ValueError, match="both documents and target_documents"):
        model(tiny.ids(1, 4), target=tiny.ids(1, 3), layout=nn.Layout(documents=torch.zeros(1, 4, dtype=torch.long)))


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_positions_restart_with_each_document(documents: list[int]) -> None:
    from triform.nn.mask import positions_of

    numbers = torch.tensor([documents])
    wanted = [i for _, run in groupby(documents) for i, _ in enumerate(run)]
    assert positions_of(numbers, None, numbers).tolist() == [wanted]
