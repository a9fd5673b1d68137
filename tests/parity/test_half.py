"""In bf16 we are as near to the fp32 answers, of the same rounded weights, as the reference itself is.

A distance is the median, over the answers and hidden states of every token of six texts, of the relative 2-norm: a median,
since a token that bf16 sends to another expert is far away on either side. The reference runs twice, with its eager and
its fused attention; ours may be `ROOM` times as far as the farther one.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from parity.cases import CASES, inputs, reference
from parity.compare import call_ours, call_theirs
from parity.test_controls import MISTAKES, built
from torch import Tensor

from triform import hub

pytestmark = pytest.mark.filterwarnings("ignore")
ROOM = 1.15


def run(call: Callable[..., Any], model: Any, name: str) -> list[Tensor]:
    """The answers of a model and its hidden states, in fp32."""
    form = CASES[name].form
    ids, target = (torch.cat([inputs(length, seed=seed) for seed in range(6)]) for length in (12, 10))
    with torch.no_grad():
        answers, hidden = call(model, form, ids, target if form == "both" else None)
    if form == "image" or name.startswith("clip"):
        hidden = hidden[:-1]  # theirs is taken before the last norm
    return [x.float() for x in (*(answers[key] for key in sorted(answers)), *hidden)]


def distance(found: list[Tensor], exact: list[Tensor]) -> float:
    return float(torch.cat([((a - b).norm(dim=-1) / b.norm(dim=-1)).flatten() for a, b in zip(found, exact, strict=True)]).median())


def distances(name: str, model: Any) -> tuple[float, float]:
    """How far the answers of a bf16 model of ours, and the reference's in bf16, are from its fp32 ones."""
    theirs = copy.deepcopy(reference(name)[0]).bfloat16()
    exact = run(call_theirs, copy.deepcopy(theirs).float(), name)
    found = []
    for kind in ("eager", "sdpa") if name != "switch" else ("eager",):  # Switch has no other
        theirs.set_attn_implementation(kind)
        found.append(distance(run(call_theirs, theirs, name), exact))
    return distance(run(call_ours, model, name), exact), max(found)


@pytest.mark.parametrize("name", CASES)
def test_half_precision(name: str) -> None:
    ours, theirs = distances(name, hub.load_public(reference(name)[1]).bfloat16())
    assert ours < ROOM * theirs


@pytest.mark.parametrize("mistake", ["window one longer", "rope scaling left out", "norms swapped", "experts' weights not renormalised"])
def test_a_mistake_is_noticed_in_half_precision(mistake: str) -> None:
    name, change = MISTAKES[mistake]
    ours, theirs = distances(name, built(name, change).bfloat16())
    assert ours > ROOM * theirs
