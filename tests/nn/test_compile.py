"""One graph, without a break, for the models that training compiles."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch

from triform import config, nn

SPECS = {
    "decoder": tiny.decoder("rotary", kv_heads=2, qk_norm=config.RMSNorm()),
    "encoder": tiny.encoder("learned"),
    "encoder-decoder": tiny.encoder_decoder("bucketed"),
    "alibi": tiny.decoder("alibi", window=3),
}


@pytest.mark.parametrize("name", SPECS)
def test_a_model_compiles_to_one_graph(name: str) -> None:
    torch._dynamo.reset()
    model = tiny.build(SPECS[name])
    mask = torch.tensor([[True] * 6, [False] * 2 + [True] * 4])
    packed = nn.Layout(documents=torch.tensor([[0] * 3 + [1] * 3] * 2))
    arguments: dict[str, Any] = {"layout": packed} if name == "decoder" else {"mask": mask}
    if name == "encoder-decoder":
        arguments["target"] = tiny.ids(2, 4, seed=1)
    plain = model(tiny.ids(2, 6), **arguments).logits
    plain.sin().sum().backward()
    wanted = tiny.gradients(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    got = compiled(tiny.ids(2, 6), **arguments).logits
    got.sin().sum().backward()
    tiny.assert_close(got, plain, 1e-5)
    tiny.assert_close(tiny.gradients(model), wanted, 1e-5)
