"""Half precision stays near single."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch

from triform import config
from triform.kernels import training
from triform.nn import fused

SPECS = {
    "rotary": tiny.decoder("rotary", kv_heads=2, qk_norm=config.RMSNorm()),
    "window": tiny.decoder("sinusoidal", window=3),
    "bucketed": tiny.decoder("bucketed"),
    "experts": config.Transformer(
        decoder=tiny.stack(tiny.attention("alibi", mask="causal"), feed_forward=tiny.EXPERTS, norm=config.RMSNorm()),
        head=config.LanguageModel(),
    ),
}


def run(model: Any, autocast: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = model(tiny.ids(2, 9), logits=False)
        loss = model.language_model_loss(out.hidden, tiny.ids(2, 9, seed=1)) / 18
    loss.backward()
    return loss.detach(), tiny.gradients(model)


@pytest.mark.parametrize("how", ["natively", "by plain products", "by torch"])
@pytest.mark.parametrize("name", SPECS)
def test_autocast_trains_as_fp32_does(name: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if how != "natively":
        monkeypatch.setattr(training, "library", lambda: None)
        monkeypatch.setattr(fused, "_FEW_KEYS", 0 if how == "by torch" else 256)
    model = tiny.build(SPECS[name])
    (wanted, sure), (got, rough) = run(model, False), run(model, True)
    tiny.assert_close(got, wanted, 2e-2)
    for key in sure:
        assert rough[key].dtype == torch.float32
        error, size = (rough[key] - sure[key]).norm(), sure[key].norm()
        assert error <= 0.1 * size + 1e-3, key
    with pytest.raises(AssertionError):
        tiny.assert_close(rough, sure, 1e-6)


@pytest.mark.parametrize("name", SPECS)
def test_a_model_in_bf16_is_near_one_in_fp32(name: str) -> None:
    wanted, got = (tiny.build(SPECS[name], dtype)(tiny.ids(2, 9)).logits.float() for dtype in (torch.float32, torch.bfloat16))
    assert ((got - wanted).norm() / wanted.norm()).item() < 0.1
