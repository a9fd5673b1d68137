"""The names under which weights are written are promised: what else reads our files goes by them."""

import pytest
from weight_names import ALL, FROZEN, names

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("case", ALL)
def test_the_names_are_the_frozen_ones(case: str) -> None:
    frozen, now = (FROZEN / f"{case}.txt").read_text(encoding="utf-8").splitlines(), names(case)
    gone, new = [name for name in frozen if name not in now], [name for name in now if name not in frozen]
    assert now == frozen, f"gone: {gone[:5]}; new: {new[:5]}; if meant, run tests/weight_names.py"


def test_each_case_has_its_list_and_no_other() -> None:
    assert {file.stem for file in FROZEN.iterdir()} == set(ALL)


def test_layers_experts_and_heads_are_in_the_lists() -> None:
    assert "model.layers.2.block_sparse_moe.experts.3.w2.weight" in names("mixtral")
    assert "decoder.block.1.layer.2.mlp.experts.expert_0.wo.weight" in names("switch")
    assert "lm_head.weight" in names("t5-1.1")
    assert "lm_head.weight" not in names("t5")
    assert "transformer.h.0.attn.c_attn.weight" in names("gpt2")
    assert "h.0.attn.c_attn.weight" in names("gpt2-bare")
