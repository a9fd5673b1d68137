"""Log-probabilities of a prompt's own tokens."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from triform.generate import Sampling
from triform.generate.engine import Engine
from triform.generate.prepared import prepare
from triform.generate.requests import Request, Scored

from .test_engine import FORMS, WAIT, model_of

CAUSAL = [kind for kind in FORMS if kind not in ("prefix", "both")]
IDS = torch.randint(60, (19,), generator=torch.Generator().manual_seed(3)).tolist()


def asked(ids: list[int], new: int = 4, **more: Any) -> Request:
    return Request(ids=ids, sampling=Sampling(max_new_tokens=new), eos=(), **more)


def assert_scores(found: list[Scored], model: Any, ids: list[int], top: int) -> None:
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    assert [one.token for one in found] == ids[1:]
    for place, one in enumerate(found):
        row = expected[place]
        assert one.log_prob == pytest.approx(float(row[one.token]), abs=1e-4)
        assert one.rank == 1 + int((row > row[one.token]).sum())
        assert [token for token, _ in one.top] == row.topk(top).indices.tolist()
        assert [chance for _, chance in one.top] == pytest.approx(row.topk(top).values.tolist(), abs=1e-4)


@pytest.fixture(params=[False, True], ids=["modules", "native"])
def engine_of(request: pytest.FixtureRequest) -> Iterator[Any]:
    made: list[Engine] = []

    def make(kind: str) -> Engine:
        model = copy.deepcopy(model_of(kind))
        made.append(Engine(prepare(model) if request.param else model, slots=3, capacity=40, chunk=8))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


@pytest.mark.parametrize("kind", CAUSAL)
def test_they_are_the_models_in_pieces_and_beside_others(kind: str, engine_of: Any) -> None:
    engine, model = engine_of(kind), model_of(kind)
    other = [5, *IDS[1:]]
    tickets = [engine.submit(asked(IDS)), engine.submit(asked(IDS, prompt_log_probs=3)), engine.submit(asked(other, prompt_log_probs=0))]
    plain, scored, bare = (ticket.result(WAIT) for ticket in tickets)
    assert plain.prompt == []
    assert scored.ids == plain.ids
    assert_scores(scored.prompt, model, IDS, 3)
    assert_scores(bare.prompt, model, other, 0)
    with pytest.raises(AssertionError):
        assert_scores(scored.prompt, model, other, 3)


def test_a_prompt_that_is_there_already_is_read_again(engine_of: Any) -> None:
    engine = engine_of("plain")
    first = engine.submit(asked(IDS)).result(WAIT)
    again = engine.submit(asked(IDS, prompt_log_probs=1))
    assert again.result(WAIT).ids == first.ids
    assert again.reused == 0
    assert_scores(again.run.prompt, model_of("plain"), IDS, 1)
    behind = engine.submit(asked(IDS))
    assert behind.result(WAIT).ids == first.ids
    assert behind.reused > 0, "others still begin in its keys and values"


def test_one_token_has_none(engine_of: Any) -> None:
    assert engine_of("plain").submit(asked(IDS[:1], prompt_log_probs=2)).result(WAIT).prompt == []


def test_numbers_that_are_none_fail_alone() -> None:
    model = copy.deepcopy(model_of("plain"))
    with torch.no_grad():
        model.decoder.input.token.weight[9] = float("nan")
    with Engine(model, slots=2, capacity=40, chunk=8) as engine:
        broken = engine.submit(asked([1, 9, *IDS], prompt_log_probs=0))
        fine = engine.submit(asked([one if one != 9 else 8 for one in IDS], prompt_log_probs=0))
        with pytest.raises(ValueError, match="not finite"):
            broken.result(WAIT)
        assert len(fine.result(WAIT).prompt) == len(IDS) - 1


@pytest.mark.parametrize(
    ("kind", "top", "says"), [("prefix", 0, "left to right"), ("both", 0, "left to right"), ("plain", -1, "at least 0")]
)
def test_what_cannot_be_told_is_refused(kind: str, top: int, says: str) -> None:
    request = Request(ids=IDS, sampling=Sampling(max_new_tokens=1), start=(3,), prompt_log_probs=top)
    with Engine(model_of(kind), slots=1, capacity=40) as engine, pytest.raises(ValueError, match=says):
        engine.submit(request)
