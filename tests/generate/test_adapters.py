"""Several adapters of one model in one engine: each request is answered as if its adapter were the model's own."""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import Any

import pytest
import torch

from triform import config
from triform.generate import Sampling
from triform.generate.engine import Engine
from triform.generate.prepared import prepare
from triform.generate.requests import Request
from triform.nn.adapter import adapter_parts, add_adapter, attach, linear_layers, merge_adapter, switch_off

from .conftest import CAUSAL, built, decoder_only, encoder_decoder

WAIT = 20.0
NAMES = ("formal", "terse")


def hang(model: Any, name: str, kind: Any = "lora") -> Any:
    """A model with an adapter that changes what it says."""
    spec = config.Adapter(rank=3, kind=kind)
    layers = [layer for layer in linear_layers(model) if ".layers." in layer]
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    with torch.no_grad():
        for where, part in attach(model, dict.fromkeys(layers, spec), name=name, trainable=False).items():
            layer = model.get_submodule(where)
            part.start(layer, generator)
            part.lora_b.copy_(0.4 * torch.randn(part.lora_b.shape, generator=generator))
            part.freeze(layer)
    return model


@lru_cache(maxsize=None)
def plain(form: str) -> Any:
    return built(decoder_only(60, CAUSAL) if form == "decoder" else encoder_decoder(60))


def merged(form: str, name: str | None, kind: str) -> Any:
    model = copy.deepcopy(plain(form))
    if name is not None:
        hang(model, name, kind)
        merge_adapter(model, name)
    return model


def asked(seed: int, adapter: str | None, form: str, shared: bool = False) -> Request:
    generator = torch.Generator().manual_seed(0 if shared else seed)
    ids = torch.randint(60, (12,), generator=generator).tolist()
    start = (3,) if form == "both" else None
    return Request(ids=ids, sampling=Sampling(max_new_tokens=6), start=start, eos=(), adapter=adapter)


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("form", ["decoder", "both"])
def test_requests_with_different_adapters_run_together(form: str, packed: bool, kind: str) -> None:
    model = copy.deepcopy(plain(form))
    if packed:
        model = prepare(model, "fp32")
    for name in NAMES:
        hang(model, name, kind)
    switch_off(model)
    names = [None, *NAMES]
    said = {}
    with Engine(model, slots=8, capacity=32) as engine:
        # The same prompt under each adapter, twice: keys and values of one are nothing to another.
        for _ in range(2):
            tickets = {(name, seed): engine.submit(asked(seed, name, form, shared=seed == 1)) for seed in (1, 2) for name in names}
            said = {key: ticket.result(WAIT).ids for key, ticket in tickets.items()}
        reused = [ticket.reused for ticket in tickets.values()]
    for name in names:
        with Engine(merged(form, name, kind), slots=2, capacity=32) as alone:
            for seed in (1, 2):
                expected = alone.submit(asked(seed, None, form, shared=seed == 1)).result(WAIT)
                assert said[name, seed] == expected.ids
    assert any(reused)
    assert len({tuple(said[name, 1]) for name in names}) == 3


def test_a_name_that_no_adapter_has_is_refused() -> None:
    model = hang(copy.deepcopy(plain("decoder")), "formal")
    with Engine(model, slots=1, capacity=32) as engine, pytest.raises(ValueError, match="no adapter 'rude'; it has formal"):
        engine.submit(asked(0, "rude", "decoder"))
    with Engine(plain("decoder"), slots=1, capacity=32) as engine, pytest.raises(ValueError, match="no adapter 'rude'; it has none"):
        engine.submit(asked(0, "rude", "decoder"))


@pytest.mark.parametrize("packed", [False, True])
def test_an_adapter_in_use_is_the_model_of_who_names_none(packed: bool) -> None:
    model = copy.deepcopy(plain("decoder"))
    if packed:
        model = prepare(model, "fp32")
    hang(model, "formal")
    with Engine(model, slots=1, capacity=32) as engine:
        said = engine.submit(asked(5, None, "decoder")).result(WAIT).ids
    with Engine(merged("decoder", "formal", "lora"), slots=1, capacity=32) as alone:
        assert said == alone.submit(asked(5, None, "decoder")).result(WAIT).ids
    with Engine(merged("decoder", None, "lora"), slots=1, capacity=32) as alone:
        assert said != alone.submit(asked(5, None, "decoder")).result(WAIT).ids


def test_what_trains_is_what_generates() -> None:
    model = copy.deepcopy(plain("decoder")).requires_grad_(True)
    add_adapter(model, config.Adapter(rank=2), seed=0)
    before = _said(model)
    with torch.no_grad():
        for part in adapter_parts(model).values():
            part.lora_b.add_(0.5)
    assert _said(model) != before


def _said(model: Any) -> list[int]:
    with Engine(model, slots=1, capacity=32) as engine:
        return engine.submit(asked(4, None, "decoder")).result(WAIT).ids
