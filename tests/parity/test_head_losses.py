"""Losses of the heads that models are fine-tuned with, beside transformers' own on the same weights and inputs, to 1e-5."""

from typing import Any

import pytest
import torch
from collating import trained
from parity.cases import inputs, reference
from parity.compare import TOLERANCE

from triform import config, hub
from triform.nn import IGNORE
from triform.objectives import (
    Batch,
    Classification,
    Instruction,
    Objective,
    QuestionAnswering,
    SentenceEmbedding,
    TokenClassification,
    build_objective,
)  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore")
NAMES = tuple(f"n{i}" for i in range(5))


def objective(spec: Any) -> Objective:
    return build_objective(spec, trained("all characters"))


def ids() -> torch.Tensor:
    """Two rows without padding, over which transformers' heads for answers would sum too."""
    return torch.cat((inputs(), inputs(seed=3)))


def check(ours: Any, batch: Batch, spec: Any, theirs: float, other: Batch) -> None:
    """The mean loss is theirs; the same with other labels is not."""
    made = objective(spec)
    with torch.no_grad():
        got, control = (float(made.loss(ours.eval(), one).total) / one.count for one in (batch, other))
    assert abs(got - theirs) < TOLERANCE * max(1.0, abs(theirs))
    assert abs(control - theirs) > 100 * TOLERANCE


PROBLEMS = {
    "single_label_classification": (torch.tensor([2, 0]), torch.tensor([1, 0])),
    "multi_label_classification": (torch.tensor([[1.0, 0, 1], [0, 0, 1]]), torch.tensor([[1.0, 1, 1], [0, 0, 1]])),
    "regression": (torch.tensor([[0.3, -1.0, 2.0], [0, 5, 1]]), torch.tensor([[0.4, -1.0, 2.0], [0, 5, 1]])),
}


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "gpt2"])
def test_classes(family: str, problem: str) -> None:
    theirs, folder = reference(f"{family}-classes")
    labels, other = PROBLEMS[problem]
    theirs.config.problem_type = problem
    try:
        with torch.no_grad():
            wanted = float(theirs(ids(), labels=labels).loss)
    finally:
        theirs.config.problem_type = None
    spec = Classification(labels=NAMES[:3], problem=problem)  # type: ignore[arg-type]
    check(hub.load_public(folder), Batch(ids(), labels), spec, wanted, Batch(ids(), other))


def test_one_number() -> None:
    theirs, folder = reference("bert-regression")
    labels = torch.tensor([[0.7], [-2.0]])
    with torch.no_grad():
        wanted = float(theirs(ids(), labels=labels.squeeze(1)).loss)
    spec = Classification(labels=("n",), problem="regression")
    check(hub.load_public(folder), Batch(ids(), labels), spec, wanted, Batch(ids(), labels + 0.1))


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "gpt2"])
def test_tokens(family: str) -> None:
    theirs, folder = reference(f"{family}-tokens")
    labels = torch.randint(0, 5, ids().shape, generator=torch.Generator().manual_seed(1))
    labels[:, [0, 4, -1]] = IGNORE
    with torch.no_grad():
        wanted = float(theirs(ids(), labels=labels).loss)
    check(hub.load_public(folder), Batch(ids(), labels), TokenClassification(labels=NAMES), wanted, Batch(ids(), labels.roll(1, 1)))


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "gpt2"])
def test_answers(family: str) -> None:
    theirs, folder = reference(f"{family}-answers")
    labels = torch.tensor([[2, 5], [0, 0]])
    with torch.no_grad():
        wanted = float(theirs(ids(), start_positions=labels[:, 0], end_positions=labels[:, 1]).loss)
    check(hub.load_public(folder), Batch(ids(), labels), QuestionAnswering(), wanted, Batch(ids(), labels + 1))


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_instructions(name: str) -> None:
    theirs, folder = reference(name)
    labels = ids().clone()
    labels[:, :5] = IGNORE
    ours, source = hub.load_public(folder), ids()
    if name == "llama":
        with torch.no_grad():
            wanted = float(theirs(input_ids=source, labels=labels).loss)
        ahead = torch.cat((labels[:, 1:], torch.full((2, 1), IGNORE)), dim=1)
        batch, other, spec = Batch(source, ahead), Batch(source, labels), Instruction()
    else:
        target = torch.cat((torch.zeros(2, 1, dtype=torch.long), source[:, :-1]), dim=1)
        with torch.no_grad():
            wanted = float(theirs(input_ids=source, labels=labels, decoder_input_ids=target).loss)
        batch, other = Batch(source, labels, target=target), Batch(source, labels.roll(1, 1), target=target)
        spec = Instruction(target_length=16)
    check(ours, batch, spec, wanted, other)


def test_sentences() -> None:
    """Against the formula of sentence-transformers' MultipleNegativesRankingLoss on transformers' own states, pooled by their mean."""
    theirs, folder = reference("bert-bare")
    rows = torch.cat([inputs(seed=seed) for seed in range(6)])
    with torch.no_grad():
        vectors = torch.nn.functional.normalize(theirs(rows).last_hidden_state.mean(1), dim=-1)
    wanted = float(torch.nn.functional.cross_entropy(20 * vectors[:2] @ vectors[2:].T, torch.arange(2)))
    public = hub.load_public(folder)
    spec = config.with_overrides(config.Model, public.config, {"head": {"kind": "Embed", "pool": "mean"}})
    from triform.nn import build

    ours = build(spec)
    ours.load_state_dict(public.state_dict(), strict=False)
    labels = torch.tensor([0, 1, *[IGNORE] * 4])
    check(ours, Batch(rows, labels), SentenceEmbedding(), wanted, Batch(rows.flip(0), labels))
