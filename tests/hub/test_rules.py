"""One table of names, read in both directions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Size, Tensor

from triform.hub.rules import FUSED, FUSED_TRANSPOSED, SAME, STACKED, TRANSPOSED, Layout, leading, match, pairs, rules, to_theirs

SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 4))


def tensors(shapes: list[tuple[int, ...]]) -> list[Tensor]:
    return [torch.randn(shape) for shape in shapes]


@settings(max_examples=50, deadline=None)
@given(st.sampled_from([SAME, TRANSPOSED, leading(1), leading(2)]), st.lists(SHAPES, min_size=1, max_size=1))
def test_one_to_one_layouts_come_back(layout: Layout, shapes: list[tuple[int, int]]) -> None:
    ours = tensors(list(shapes))
    back = layout.load(layout.save(ours), [t.shape for t in ours])
    assert all(torch.equal(a, b) for a, b in zip(back, ours, strict=True))


@settings(max_examples=50, deadline=None)
@given(st.sampled_from([FUSED, FUSED_TRANSPOSED]), st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(1, 4))
def test_fused_layouts_come_back(layout: Layout, rows: list[int], width: int) -> None:
    ours = tensors([(row, width) for row in rows])
    saved = layout.save(ours)
    assert len(saved) == 1
    back = layout.load(saved, [t.shape for t in ours])
    assert all(torch.equal(a, b) for a, b in zip(back, ours, strict=True))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), SHAPES)
def test_stacked_experts_come_back(count: int, shape: tuple[int, int]) -> None:
    ours = [torch.randn(count, *shape)]
    saved = STACKED.save(ours)
    assert len(saved) == count
    assert torch.equal(STACKED.load(saved, [ours[0].shape])[0], ours[0])


TABLE = rules(
    ("token", "embed"),
    (("layers.{i}.a", "layers.{i}.b"), "h.{i}.ab", FUSED),
    ("layers.{i}.experts", "h.{i}.experts.{e}", STACKED),
    *pairs("layers.{i}", "h.{i}", {"norm": "ln"}),
    ("absent", "nowhere"),
)
OURS = {
    "token": torch.randn(5, 2),
    "layers.0.a": torch.randn(3, 2),
    "layers.0.b": torch.randn(1, 2),
    "layers.10.experts": torch.randn(2, 4, 2),
    "layers.10.norm.bias": torch.randn(2),
}


def test_rules_apply_to_each_layer_there_is() -> None:
    assert to_theirs(OURS, TABLE).keys() == {"embed", "h.0.ab", "h.10.experts.0", "h.10.experts.1", "h.10.ln.bias"}


def test_a_weight_without_a_rule_is_named() -> None:
    with pytest.raises(ValueError, match=r"^no rule for layers.0.c, layers.x.a$"):
        match(TABLE, {"layers.0.c": Size((1,)), "layers.x.a": Size((1,))})


def test_many_names_are_cut_short() -> None:
    with pytest.raises(ValueError, match=r"^no rule for w0, w1, w2, w3, w4 and 3 more$"):
        match(TABLE, {f"w{i}": Size((1,)) for i in range(8)})
