"""What pipeline parallelism needs: stages that lack an end or some layers."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import tiny
import torch

from triform import config, nn


def split(model: Any, at: int) -> tuple[Any, Any]:
    """Two stages: the input and the layers before `at`; the other layers, the norm and the head."""
    first, second = deepcopy(model), deepcopy(model)
    for key in list(first.decoder.layers):
        del (second if int(key) < at else first).decoder.layers[key]
    first.decoder.norm = first.head = second.decoder.input = None
    return first, second


HEAD = config.LanguageModel(tied=False)
SPECS = {
    **{position: tiny.decoder(position, HEAD) for position in tiny.POSITIONS},
    "local and global": config.Transformer(
        decoder=tiny.stack(tiny.attention("rotary", mask="causal", window=2), tiny.attention("alibi", mask="causal"), depth=3), head=HEAD
    ),
}


@pytest.mark.parametrize("case", ["plain", "padded", "packed"])
@pytest.mark.parametrize("name", SPECS)
def test_stages_in_a_row_are_the_whole(name: str, case: str) -> None:
    model, ids = tiny.build(SPECS[name]), tiny.ids(2, 7)
    mask = torch.tensor([[True] * 7, [False] * 3 + [True] * 4]) if case == "padded" else None
    layout = nn.Layout(documents=torch.tensor([[0, 0, 0, 1, 1, 1, 1]] * 2)) if case == "packed" else None
    whole = model(ids, mask, layout=layout).logits
    whole.sin().sum().backward()
    wanted = tiny.gradients(model)
    first, second = split(model, 1)
    got = second(first(ids, mask, layout=layout).hidden, mask, layout=layout).logits
    got.sin().sum().backward()
    tiny.assert_close(got, whole, 1e-6)
    ours, theirs = tiny.gradients(first), tiny.gradients(second)
    assert ours.keys() | theirs.keys() == wanted.keys()
    for key in wanted:
        tiny.assert_close(ours.get(key, 0) + theirs.get(key, 0), wanted[key], 1e-5)


def test_layers_keep_their_global_names() -> None:
    first, second = split(tiny.build(tiny.decoder()), 1)
    assert list(first.decoder.layers) == ["0"]
    assert list(second.decoder.layers) == ["1"]
    assert any(name.startswith("decoder.layers.1.") for name in second.state_dict())


def test_a_stage_takes_a_cache() -> None:
    model, ids = tiny.build(tiny.decoder("rotary", HEAD)), tiny.ids(2, 6)
    first, second = split(model, 1)
    caches = [nn.Cache.growing(model.config) for _ in range(2)]
    with torch.no_grad():
        parts = [second(first(part, cache=caches[0]).hidden, cache=caches[1]).logits for part in ids.split([3, 1, 2], 1)]
        tiny.assert_close(torch.cat(parts, 1), model(ids).logits, 1e-5)


def test_an_attention_that_holds_some_of_the_heads_runs_the_same_code() -> None:
    """Tensor parallelism: two halves of the heads, summed, are the whole."""
    spec = config.Attention(heads=4, kv_heads=2, bias="none")
    whole = nn.Attention(spec, tiny.WIDTH)
    x, view = torch.randn(2, 5, tiny.WIDTH), nn.mask.View(causal=True)
    total = torch.zeros_like(x)
    for half in range(2):
        part = deepcopy(whole)
        for linear in (part.query, part.key, part.value):
            linear.weight = torch.nn.Parameter(linear.weight.chunk(2, 0)[half])
        part.out.weight = torch.nn.Parameter(part.out.weight.chunk(2, 1)[half])
        total = total + part(x, view)
    tiny.assert_close(total, whole(x, view), 1e-5)
