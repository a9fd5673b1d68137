"""The 2017 model equals `torch.nn.Transformer` with the same weights (1e-5 of the largest score; export bit-exact)."""

from typing import Any

import pytest
import torch
from parity.compare import TOLERANCE, difference
from torch import Tensor

from triform import config, hub, nn
from triform.hub.families import VANILLA
from triform.nn.position import sinusoids

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # torch on its own fast paths
SMALL = {
    "encoder.width": 32, "decoder.width": 32, "encoder.depth": 2, "decoder.depth": 3, "encoder.input.vocab_size": 99,
    "decoder.input.vocab_size": 99, "encoder.input.scale": 32**0.5, "decoder.input.scale": 32**0.5,
    "encoder.pattern[0].feed_forward.hidden": 48, "decoder.pattern[0].feed_forward.hidden": 48,
}  # fmt: skip
NORMED = {"encoder.norm": {"kind": "LayerNorm"}, "decoder.norm": {"kind": "LayerNorm"}}


def reference(pre: bool, normed: bool) -> tuple[Any, Tensor]:
    """A perturbed `torch.nn.Transformer` and a token table."""
    torch.manual_seed(0)
    model = torch.nn.Transformer(32, 8, 2, 3, 48, norm_first=pre, batch_first=True).eval()
    if not normed:
        model.encoder.norm = model.decoder.norm = None
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model, torch.randn(99, 32)


def ours(pre: bool, normed: bool, weights: dict[str, Tensor], **more: Any) -> Any:
    placement = {f"{side}.pattern[0].placement": "pre" if pre else "post" for side in ("encoder", "decoder")}
    spec = config.with_overrides(config.Model, config.preset("transformer-base"), SMALL | placement | (NORMED if normed else {}) | more)
    model = nn.build(spec).eval()
    hub.load_weights(model, weights, VANILLA)
    return model


def scores(model: Any, token: Tensor, ids: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """What torch's model makes of tokens, scored with the token table."""

    def embedded(x: Tensor) -> Tensor:
        return token[x] * 32**0.5 + sinusoids(torch.arange(x.shape[1]), 32)

    causal = model.generate_square_subsequent_mask(target.shape[1])
    hidden: Tensor = model(embedded(ids), embedded(target), tgt_mask=causal, src_key_padding_mask=~mask, memory_key_padding_mask=~mask)
    return hidden @ token.T


@pytest.mark.parametrize("normed", [False, True], ids=["as-published", "last-norms"])
@pytest.mark.parametrize("pre", [False, True], ids=["post", "pre"])
def test_equals_torch(pre: bool, normed: bool) -> None:
    model, token = reference(pre, normed)
    weights = {**model.state_dict(), "token.weight": token}
    ids, target = torch.randint(0, 99, (2, 12)), torch.randint(0, 99, (2, 6))
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[1, 9:] = False
    mine = ours(pre, normed, weights)
    with torch.no_grad():
        expected = scores(model, token, ids, target, mask)
        assert difference(mine(ids, mask, target).logits, expected) < TOLERANCE
        assert difference(mine(ids, None, target).logits, expected) > 10 * TOLERANCE  # control: padding seen
        wrong = ours(pre, normed, weights, **{"decoder.pattern[0].feed_forward.activation": "gelu"})
        assert difference(wrong(ids, mask, target).logits, expected) > 10 * TOLERANCE
    exported = hub.export_weights(mine, VANILLA)
    assert exported.keys() == weights.keys()
    assert all(torch.equal(exported[name], tensor) for name, tensor in weights.items())
