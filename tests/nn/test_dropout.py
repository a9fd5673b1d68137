"""Dropout: shares, scale, gradients, and that it comes from the seed."""

import pytest
import torch

from triform.nn.dropout import Dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_drops_its_share_and_keeps_the_mean(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.ones(101, 997, dtype=dtype, requires_grad=True)
    y = Dropout(p)(x)
    y.float().sum().backward()
    share = (y == 0).float().mean().item()
    sigma = (p * (1 - p) / x.numel()) ** 0.5
    assert abs(share - p) < 5 * sigma + 1 / 65_536
    assert abs(y.float().mean().item() - 1) < 5 * sigma / (1 - p) + (0.01 if dtype == torch.bfloat16 else 1e-4)
    assert torch.equal(x.grad == 0, y == 0)
    assert y.dtype == dtype
    assert abs(share - p / 2) > 5 * sigma  # the control: another share would be noticed


def test_neighbours_are_independent() -> None:
    torch.manual_seed(1)
    kept = (Dropout(0.5)(torch.ones(400_000)) > 0).float() - 0.5
    for lag in (1, 2, 3, 4, 8):
        assert abs((kept[:-lag] * kept[lag:]).mean().item()) < 5 * 0.25 / 400_000**0.5
    assert abs((kept * kept).mean().item()) > 0.2  # the control: an element is not independent of itself


def test_the_seed_decides_and_evaluation_keeps_all() -> None:
    layer, x = Dropout(0.3), torch.ones(1000)
    torch.manual_seed(2)
    first = layer(x)
    torch.manual_seed(2)
    assert torch.equal(layer(x), first)
    assert not torch.equal(layer(x), first)
    assert torch.equal(layer.eval()(x), x)
