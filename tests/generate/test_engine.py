"""Requests that come, go on together and leave: each has the tokens that it would have alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from triform import config
from triform.generate import Sampling, generate, generate_ids
from triform.generate.engine import Engine
from triform.generate.requests import Full, Request, Ticket

from .conftest import CAUSAL, built, decoder_only, encoder_decoder, encoder_only, tokenizer_of

WAIT = 20.0  # seconds, after which a test has failed

WINDOWED = config.Attention(heads=2, mask="causal", window=4, position=config.Rotary())
PLAIN = config.Attention(heads=2, mask="causal")
KINDS: dict[str, tuple[config.Attention, ...]] = {
    "plain": (CAUSAL,),
    "window": (WINDOWED,),
    "mixed": (WINDOWED, CAUSAL),
    "learned": (PLAIN,),
    "alibi": (replace(PLAIN, position=config.Alibi()),),
    "bucketed": (replace(PLAIN, position=config.Bucketed(buckets=8, max_distance=16)),),
    "prefix": (config.Attention(heads=2, mask="prefix", position=config.Rotary()),),
}
FORMS = [*KINDS, "both"]


@lru_cache(maxsize=None)
def model_of(kind: str) -> Any:
    if kind == "both":
        return built(encoder_decoder(60))
    return built(decoder_only(60, *KINDS[kind], learned=64 if kind == "learned" else None))


def asked(seed: int, length: int, new: int, kind: str = "plain", **more: Any) -> Request:
    """A request of random ids; every other one draws its tokens."""
    ids = torch.randint(60, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    how: dict[str, Any] = {"temperature": 1.0, "top_k": 20, "seed": seed} if seed % 2 else {}
    start = (3,) if kind == "both" else None
    return Request(ids=ids, sampling=Sampling(max_new_tokens=new, **how), start=start, eos=(7, 11), **more)


def alone(model: Any, request: Request) -> list[int]:
    """What the request gives in a batch of its own."""
    ids = torch.tensor([list(request.ids)])
    assert request.eos is not None
    return generate_ids(model, ids, None, request.sampling, eos=request.eos, start=request.start)[0].ids


@pytest.fixture
def settled() -> Iterator[Any]:
    """Engines whose slots must be empty in the end."""
    made: list[Engine] = []

    def make(*arguments: Any, **more: Any) -> Engine:
        made.append(Engine(*arguments, **more))
        return made[-1]

    yield make
    for engine in made:
        engine.close(timeout=WAIT)
        assert engine.stats().slots_used == engine.stats().waiting == engine.stats().cache_tokens_used == 0


@pytest.mark.parametrize("kind", FORMS)
def test_many_together_have_the_tokens_of_each_alone(kind: str, settled: Any) -> None:
    model = model_of(kind)
    requests = [asked(seed, 1 + 5 * seed % 23, 4 + 3 * seed, kind) for seed in range(9)]
    engine = settled(model, slots=4, capacity=64, chunk=8)
    found = [ticket.result(WAIT) for ticket in [engine.submit(request) for request in requests]]
    assert [run.ids for run in found] == [alone(model, request) for request in requests]
    assert len({tuple(run.ids) for run in found}) > 5, "runs that are alike would hide a mixed up batch"
    assert {run.finish_reason for run in found} >= {"length"}
