"""Passes with a cache, however the sequence is cut, give what one pass gives."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from triform import config, nn
from triform.nn.cache import Windowed

LENGTH = 10
MODELS: dict[str, config.Transformer] = {
    **{position: tiny.decoder(position) for position in tiny.POSITIONS},
    "grouped": tiny.decoder("rotary", kv_heads=2, qk_norm=config.RMSNorm()),
    "window": tiny.decoder("rotary", window=3),
    "window of one": tiny.decoder("alibi", window=1),
    "local and global": config.Transformer(
        decoder=tiny.stack(
            tiny.attention("rotary", mask="causal", window=2), tiny.attention("bucketed", mask="causal"), depth=3, placement="sandwich"
        ),
        head=config.LanguageModel(),
    ),
    "experts": config.Transformer(
        decoder=tiny.stack(tiny.attention("rotary", mask="causal"), feed_forward=tiny.EXPERTS), head=config.LanguageModel()
    ),
}
CACHES: dict[str, Callable[[config.Transformer], nn.Cache]] = {
    "growing": nn.Cache.growing,
    "growing, whole": lambda spec: nn.Cache.growing(spec, windowed=False),
    "preallocated": lambda spec: nn.Cache.preallocated(spec, LENGTH),
    "preallocated, whole": lambda spec: nn.Cache.preallocated(spec, LENGTH + 3, windowed=False),
}
CUTS = st.sets(st.integers(1, LENGTH - 1)).map(lambda cuts: [0, *sorted(cuts), LENGTH])


def left_padded(rows: int, padding: list[int]) -> Tensor | None:
    return None if not any(padding) else torch.tensor([[i >= padding[r] for i in range(LENGTH)] for r in range(rows)])


@torch.no_grad()
def in_passes(model: Any, ids: Tensor, mask: Tensor | None, cuts: list[int], cache: nn.Cache, layout: nn.Layout | None = None) -> Tensor:
    parts = []
    for start, end in pairwise(cuts):
        part = None if mask is None else mask[:, start:end]
        parts.append(model(ids[:, start:end], part, cache=cache, layout=layout if start == 0 else None).logits)
    return torch.cat(parts, 1)


@settings(max_examples=12, deadline=None)
@given(cuts=CUTS, padding=st.sampled_from([[0, 0, 0], [0, 4, 9], [2, 0, 1]]), cache=st.sampled_from(sorted(CACHES)))
@pytest.mark.parametrize("name", MODELS)
def test_any_cut_gives_the_full_pass(name: str, cuts: list[int], padding: list[int], cache: str) -> None:
    model, ids, mask = tiny.build(MODELS[name]), tiny.ids(3, LENGTH), left_padded(3, padding)
    with torch.no_grad():
        wanted = model(ids, mask).logits
    seen = torch.ones(3, LENGTH, dtype=torch.bool) if mask is None else mask
    got = in_passes(model, ids, mask, cuts, CACHES[cache](model.config))
    tiny.assert_close(got[seen], wanted[seen], 1e-5)


@settings(max_examples=12, deadline=None)
@given(cuts=CUTS, right=st.integers(0, 4), position=st.sampled_from(["learned", "rotary", "bucketed"]))
def test_rows_padded_on_the_right_go_on_in_a_whole_cache(cuts: list[int], right: int, position: str) -> None:
    """Padding in the middle of a row: a prompt padded on the right, then more tokens."""
    model, ids = tiny.build(tiny.decoder(position, window=4)), tiny.ids(2, LENGTH)
    mask = torch.ones(2, LENGTH, dtype=torch.bool)
    mask[1, 3 : 3 + right] = False
    got = in_passes(model, ids, mask, cuts, nn.Cache.growing(model.config, windowed=False))
    with torch.no_grad():
        tiny.assert_close(got[1][mask[1]], model(ids[1:, mask[1]]).logits[0], 1e-5)


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("window", [None, 3])
def test_a_prefix_in_the_first_pass(cache: str, window: int | None) -> None:
    model, ids = tiny.build(tiny.decoder("rotary", mask="prefix", window=window)), tiny.ids(2, LENGTH)
    prefix = torch.arange(LENGTH)[None].expand(2, -1) < torch.tensor([[5], [4]])
    with torch.no_grad():
        wanted = model(ids, layout=nn.Layout(prefix=prefix)).logits
        causal = model(ids).logits
    first = nn.Layout(prefix=prefix[:, :6])
    tiny.assert_close(in_passes(model, ids, None, [0, 6, 7, LENGTH], CACHES[cache](model.config), first), wanted, 1e-5)
    with pytest.raises(AssertionError):
        tiny.assert_close(causal, wanted, 1e-5)


@settings(max_examples=20, deadline=None)
@given(cuts=CUTS, position=st.sampled_from(tiny.POSITIONS), cache=st.sampled_from(sorted(CACHES)), padded=st.booleans())
def test_an_encoder_runs_once(cuts: list[int], position: str, cache: str, padded: bool) -> None:
    model, inputs, target = tiny.build(tiny.encoder_decoder(position)), tiny.ids(2, 6), tiny.ids(2, LENGTH, seed=1)
    mask = torch.tensor([[True] * 6, [False] * 2 + [True] * 4])
    target_mask = left_padded(2, [3, 0]) if padded else None
    runs: list[int] = []
    hook = model.encoder.register_forward_hook(lambda *_: runs.append(1))
    store, parts = CACHES[cache](model.config), []
    with torch.no_grad():
        wanted = model(inputs, mask, target, target_mask).logits
        runs.clear()
        for start, end in pairwise(cuts):
            part = None if target_mask is None else target_mask[:, start:end]
            parts.append(model(inputs, mask if start == 0 else None, target[:, start:end], part, cache=store).logits)
    hook.remove()
    seen = torch.ones(2, LENGTH, dtype=torch.bool) if target_mask is None else target_mask
    tiny.assert_close(torch.cat(parts, 1)[seen], wanted[seen], 1e-5)
    assert len(runs) == 1


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("name", ["rotary", "local and global"])
def test_reordered_rows_go_on_as_those_rows(name: str, cache: str) -> None:
    model, ids, mask = tiny.build(MODELS[name]), tiny.ids(3, LENGTH), left_padded(3, [0, 2, 5])
    assert mask is not None
    rows, store = torch.tensor([2, 0, 0, 1]), CACHES[cache](model.config)
    with torch.no_grad():
        wanted = model(ids[rows], mask[rows]).logits[:, 6:]
        model(ids[:, :6], mask[:, :6], cache=store)
        store.reorder(rows)
        got = model(ids[rows, 6:], cache=store).logits
    tiny.assert_close(got, wanted, 1e-5)
    with pytest.raises(AssertionError):
        tiny.assert_close(got[[0, 1, 3, 2]], wanted, 1e-5)


def test_reordered_rows_of_an_encoder_decoder() -> None:
    model, inputs, target = tiny.build(tiny.encoder_decoder("bucketed")), tiny.ids(2, 6), tiny.ids(2, 5, seed=1)
    mask, rows, store = torch.tensor([[True] * 6, [True] * 3 + [False] * 3]), torch.tensor([1, 0, 1]), nn.Cache.growing(model.config)
    with torch.no_grad():
        wanted = model(inputs[rows], mask[rows], target[rows]).logits[:, 3:]
        model(inputs, mask, target[:, :3], cache=store)
        store.reorder(rows)
        tiny.assert_close(model(inputs, None, target[rows, 3:], cache=store).logits, wanted, 1e-5)


def one_line(error: pytest.ExceptionInfo[ValueError]) -> bool:
    return "\n" not in str(error.value)


def test_a_full_cache_says_so_and_stays_usable() -> None:
    model, ids = tiny.build(tiny.decoder("rotary")), tiny.ids(1, 6)
    cache = nn.Cache.preallocated(model.config, 6)
    with torch.no_grad():
        wanted = model(ids).logits[:, 4:]
        model(ids[:, :4], cache=cache)
        with pytest.raises(ValueError, match="holds 6 tokens and 7 are needed") as error:
            model(tiny.ids(1, 3), cache=cache)
        assert one_line(error)
        tiny.assert_close(model(ids[:, 4:], cache=cache).logits, wanted, 1e-5)


@pytest.mark.parametrize(
    "passes",
    [
        [[True, True, False]],
        [[True, True], [False, True]],
        [[True, True], [False], [True]],
        [[False, True], [False], [True]],
    ],
    ids=str,
)
def test_a_windowed_cache_refuses_padding_between_tokens(passes: list[list[bool]]) -> None:
    model = tiny.build(tiny.decoder("rotary", window=2))
    cache = nn.Cache.growing(model.config)

    def run() -> None:
        for mask in passes:
            model(tiny.ids(2, len(mask)), torch.tensor([[True] * len(mask), mask]), cache=cache)

    with torch.no_grad(), pytest.raises(ValueError, match="padded on the left") as error:
        run()
    assert one_line(error)


def test_a_row_that_has_finished_may_be_masked_in_a_windowed_cache() -> None:
    model, ids = tiny.build(tiny.decoder("rotary", window=2)), tiny.ids(2, 5)
    cache = nn.Cache.growing(model.config)
    with torch.no_grad():
        wanted = model(ids[:1]).logits[:, 3:]
        model(ids[:, :3], cache=cache)
        steps = [model(ids[:, i : i + 1], torch.tensor([[True], [False]]), cache=cache).logits[:1] for i in (3, 4)]
    tiny.assert_close(torch.cat(steps, 1), wanted, 1e-5)


def test_a_windowed_cache_stays_small() -> None:
    """A long first pass and many steps: the memory kept is that of the window, not of the text."""
    model = tiny.build(tiny.decoder("rotary", window=8))
    bounded, whole = nn.Cache.growing(model.config), nn.Cache.growing(model.config, windowed=False)

    def kept(cache: nn.Cache) -> int:
        stores = [t.untyped_storage().nbytes() for store in cache.layers for t in (store.key, store.value) if t is not None]
        return max(stores) // (tiny.WIDTH * 4)

    with torch.no_grad():
        for cache in (bounded, whole):
            model(tiny.ids(1, 100), cache=cache)
        assert kept(bounded) <= 16
        assert kept(whole) == 100
        for _ in range(30):
            model(tiny.ids(1, 1), cache=bounded)
            assert kept(bounded) <= 16
    assert all(isinstance(store, Windowed) for store in bounded.layers)


def test_models_that_no_cache_fits_are_refused() -> None:
    with pytest.raises(ValueError, match="models with a decoder"):
        nn.Cache.growing(tiny.encoder())
    with pytest.raises(ValueError, match="causal or prefix mask"):
        nn.Cache.growing(tiny.decoder(mask="bidirectional"))
    with pytest.raises(ValueError, match="at least one token"):
        nn.Cache.preallocated(tiny.decoder(), 0)
