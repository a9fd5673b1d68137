"""The losses of preferences against the papers' formulas, written out once more in plain Python."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from triform import config
from triform.objectives.kto import KTO
from triform.objectives.preference_losses import DPO, IPO, ORPO, Answers, PairLoss, SimPO

# log-probability by the model and by the reference, and tokens, of the chosen and of the rejected answer
PAIRS = [((-12.5, -13.0, 7), (-11.0, -9.5, 4)), ((-3.25, -2.0, 2), (-40.0, -38.0, 21)), ((-0.5, -0.5, 1), (-0.5, -0.5, 1))]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def dpo(pair: Any, beta: float, smoothing: float = 0.0) -> float:
    (chosen, chosen_reference, _), (rejected, rejected_reference, _) = pair
    h = (chosen - chosen_reference) - (rejected - rejected_reference)
    return -(1 - smoothing) * math.log(sigmoid(beta * h)) - smoothing * math.log(sigmoid(-beta * h))


def ipo(pair: Any, beta: float) -> float:
    (chosen, chosen_reference, n), (rejected, rejected_reference, m) = pair
    h = (chosen - chosen_reference) / n - (rejected - rejected_reference) / m
    return (h - 1 / (2 * beta)) ** 2


def simpo(pair: Any, beta: float, margin: float) -> float:
    (chosen, _, n), (rejected, _, m) = pair
    return -math.log(sigmoid(beta / n * chosen - beta / m * rejected - margin))


def orpo(pair: Any, weight: float) -> float:
    (chosen, _, n), (rejected, _, m) = pair
    p, q = math.exp(chosen / n), math.exp(rejected / m)
    return -chosen / n - weight * math.log(sigmoid(math.log((p / (1 - p)) / (q / (1 - q)))))


CASES: dict[str, tuple[PairLoss, Callable[[Any], float], PairLoss]] = {
    "DPO": (DPO(beta=0.3), lambda pair: dpo(pair, 0.3), DPO(beta=0.29)),
    "smoothed DPO": (DPO(beta=0.1, smoothing=0.2), lambda pair: dpo(pair, 0.1, 0.2), DPO(beta=0.1)),
    "IPO": (IPO(beta=0.4), lambda pair: ipo(pair, 0.4), IPO(beta=0.5)),
    "SimPO": (SimPO(beta=2.5, margin=1.4), lambda pair: simpo(pair, 2.5, 1.4), SimPO(beta=2.5, margin=1.3)),
    "ORPO": (ORPO(weight=0.2), lambda pair: orpo(pair, 0.2), ORPO(weight=0.21)),
}


def answers(side: int, pairs: list[Any] = PAIRS) -> Answers:
    log_prob, reference, tokens = zip(*(pair[side] for pair in pairs), strict=True)
    return Answers(torch.tensor(log_prob).double(), torch.tensor(tokens), torch.tensor(reference).double())


@pytest.mark.parametrize("name", CASES)
def test_a_loss_is_the_papers(name: str) -> None:
    """In fp64, tolerance 1e-6; with another setting it differs by more than 1e-4."""
    loss, formula, other = CASES[name]
    wanted = torch.tensor([formula(pair) for pair in PAIRS]).double()
    assert torch.allclose(loss.costs(answers(0), answers(1)), wanted, rtol=0, atol=1e-6)
    assert not torch.allclose(other.costs(answers(0), answers(1)), wanted, rtol=0, atol=1e-4)


def test_kto_is_the_papers() -> None:
    """Tolerance 1e-6; with the kinds of answers swapped it differs."""
    loss, divergence = KTO(beta=0.2, desirable=1.2, undesirable=0.7), 1.5
    wanted = []
    for (log_prob, reference, _), good in zip((pair[0] for pair in PAIRS), (True, False, True), strict=True):
        reward, z = log_prob - reference, divergence
        wanted.append(1.2 * (1 - sigmoid(0.2 * (reward - z))) if good else 0.7 * (1 - sigmoid(0.2 * (z - reward))))
    kinds = torch.tensor([True, False, True])
    got = loss.costs(answers(0), kinds, torch.tensor(divergence))
    assert torch.allclose(got, torch.tensor(wanted).double(), rtol=0, atol=1e-6)
    assert not torch.allclose(loss.costs(answers(0), ~kinds, torch.tensor(divergence)), torch.tensor(wanted).double(), rtol=0, atol=1e-3)


@given(st.lists(st.tuples(st.floats(-500, 0), st.floats(-500, 0), st.integers(1, 60)), min_size=2, max_size=2))
def test_losses_and_gradients_are_numbers(pair: list[Any]) -> None:
    """Even where an answer is certain, whose odds are infinite."""
    for loss in (DPO(), IPO(), SimPO(), ORPO()):
        sides = [answers(side, [pair]) for side in (0, 1)]
        for side in sides:
            side.log_prob.requires_grad_()
        cost = loss.costs(*sides).sum()
        cost.backward()
        assert math.isfinite(float(cost.detach()))
        assert all(bool(side.log_prob.grad.isfinite().all()) for side in sides)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", CASES)
def test_the_chosen_answer_gains(name: str) -> None:
    """The gradient makes the chosen answer more probable, and but for ORPO's and IPO's optimum the other less."""
    sides = [answers(side, PAIRS[:1]) for side in (0, 1)]
    for side in sides:
        side.log_prob.requires_grad_()
    CASES[name][0].costs(*sides).sum().backward()
    assert sides[0].log_prob.grad is not None
    assert sides[1].log_prob.grad is not None
    assert float(sides[0].log_prob.grad) < 0 < float(sides[1].log_prob.grad)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"kind": "DPO", "beta": 0.0}, "beta: expected a number above 0"),
        ({"kind": "DPO", "smoothing": 0.5}, "smoothing: expected a share"),
        ({"kind": "SimPO", "margin": -1.0}, "margin: expected 0 or more"),
        ({"kind": "ORPO", "weight": 0.0}, "weight: expected a number above 0"),
        ({"kind": "KTO"}, "kind: expected one of DPO, IPO, ORPO, SimPO"),
    ],
)
def test_settings_that_make_no_sense(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        config.from_dict(PairLoss, fields, "loss")
