"""Decoding by torch.compile: the tokens of the plain pass, from as many graphs as there are sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest
import tiny
import torch

from triform import config
from triform.generate import Sampling
from triform.generate.admission import row_of
from triform.generate.batch import Batch
from triform.generate.compiled import CompiledStepper
from triform.generate.engine import Engine
from triform.generate.prepared import prepare
from triform.generate.requests import Request, Ticket
from triform.generate.runner import Runner
from triform.generate.slots import Slots
from triform.generate.stepper import Stepper
from triform.nn import compiler

from .conftest import CAUSAL, built, decoder_only, encoder_decoder

WAIT = 300.0
PLAIN = config.Attention(heads=2, mask="causal")
WINDOWED = config.Attention(heads=2, mask="causal", window=4, position=config.Rotary())
KINDS: dict[str, tuple[config.Attention, ...]] = {
    "mixed": (WINDOWED, CAUSAL),
    "learned": (PLAIN,),
    "alibi": (replace(PLAIN, position=config.Alibi()),),
    "bucketed": (replace(PLAIN, position=config.Bucketed(buckets=8, max_distance=16)),),
    "prefix": (config.Attention(heads=2, mask="prefix", position=config.Rotary()),),
}
Schedule = dict[int, list[Request]]  # the requests that join before each step


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@lru_cache(maxsize=None)
def model_of(kind: str) -> Any:
    if kind == "both":
        return built(encoder_decoder(60))
    return built(decoder_only(60, *KINDS[kind], learned=64 if kind == "learned" else None))


def asked(seed: int, length: int, new: int, kind: str) -> Request:
    ids = torch.randint(60, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Request(ids=ids, sampling=Sampling(max_new_tokens=new), start=(3,) if kind == "both" else None, eos=())


def schedule_of(kind: str) -> Schedule:
    """Seven requests of different lengths over four slots, which join and leave at different steps."""
    lengths = [(0, 3, 12), (0, 9, 30), (3, 14, 5), (4, 1, 40), (4, 6, 9), (9, 20, 20), (30, 5, 12)]
    schedule: Schedule = {}
    for seed, (step, length, new) in enumerate(lengths):
        schedule.setdefault(step, []).append(asked(seed, length, new, kind))
    return schedule


class Counting:
    """A backend that runs graphs as they are, and counts them."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward


def batch_of(model: Any, stepper: CompiledStepper | None, slots: int = 4) -> Batch:
    runner = Runner(model, Slots(model.config, slots, 64, 32, next(model.parameters())))
    runner.stepper = stepper
    return Batch(runner, 8)


@torch.inference_mode()
def run(batch: Batch, schedule: Schedule) -> tuple[list[list[int]], list[list[float]]]:
    """The tokens of each request, and their log-probabilities."""
    tickets: list[Ticket] = []
    for step in range(200):
        for request in schedule.get(step, ()):
            tickets.append(Ticket(request))
            batch.add(row_of(batch.runner.net, None, tickets[-1], batch.slots))
        batch.step()
        if batch.error is not None:
            raise batch.error
    assert not batch.scheduler.busy
    return [ticket.run.ids for ticket in tickets], [ticket.run.log_probs for ticket in tickets]


def close(one: list[list[float]], other: list[list[float]]) -> bool:
    return all(torch.allclose(torch.tensor(a), torch.tensor(b), atol=1e-4, rtol=0) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("kind", [*KINDS, "both"])
def test_tokens_are_those_of_the_plain_pass(kind: str) -> None:
    model, schedule, backend = model_of(kind), schedule_of(kind), Counting()
    stepper = CompiledStepper(model, backend, least=32 if kind == "both" else 64, say=pytest.fail)
    slots = 4 if kind == "mixed" else 2
    ids, log_probs = run(batch_of(model, None, slots), schedule)
    found, scores = run(batch_of(model, stepper, slots), schedule)
    assert found == ids
    assert close(scores, log_probs)
    assert backend.graphs > 1, "or the pass was not compiled"
    assert len({tuple(each) for each in ids}) == len(ids), "runs that are alike would hide mixed up rows"


def test_rows_that_read_anothers_keys_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the test above."""
    model, schedule = model_of("mixed"), schedule_of("mixed")
    plain = run(batch_of(model, None, 2), schedule)
    rows = CompiledStepper._rows
    monkeypatch.setattr(CompiledStepper, "_rows", lambda self, slots, cache: [*reversed(rows(self, slots, cache))])
    wrong = run(batch_of(model, CompiledStepper(model, Counting(), least=64, say=pytest.fail), 2), schedule)
    assert wrong[0] != plain[0]
    assert not close(wrong[1], plain[1])


def test_there_is_a_graph_for_each_size_and_no_more() -> None:
    model, backend, sizes = model_of("mixed"), Counting(), Counter[tuple[int, int, bool]]()
    stepper = CompiledStepper(model, backend, least=16, say=pytest.fail)
    compiled = stepper._call

    def call(model: Any, layers: Any, crosses: Any, inputs: torch.Tensor, reads: int, whole: bool) -> torch.Tensor:
        sizes[inputs.shape[1], reads, whole] += 1
        return compiled(model, layers, crosses, inputs, reads, whole)

    stepper._call = call  # type: ignore[assignment]
    batch = batch_of(model, stepper, 2)
    run(batch, schedule_of("mixed"))
    assert set(sizes) <= {(rows, keys, rows == 2) for rows in (1, 2) for keys in (16, 32, 64)}
    assert {rows for rows, *_ in sizes} == {1, 2}
    assert {keys for _, keys, _ in sizes} == {16, 32, 64}
    assert backend.graphs == len(sizes) < sum(sizes.values())
    with torch._dynamo.config.patch(error_on_recompile=True):  # type: ignore[attr-defined]
        run(batch, schedule_of("mixed"))
    assert backend.graphs == len(sizes)


def test_without_padding_there_are_more_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the test above: it counts what sizes that are not rounded up would cost."""
    model, backend = model_of("mixed"), Counting()
    monkeypatch.setattr(CompiledStepper, "_keys", lambda self, length, cache: length)
    run(batch_of(model, CompiledStepper(model, backend, say=pytest.fail), slots=1), {0: [asked(1, 6, 5, "mixed")]})
    assert backend.graphs == 4  # the first token comes from the prompt's pass


def test_slots_that_do_not_go_on_keep_what_they_hold() -> None:
    model = model_of("mixed")
    batch = batch_of(model, CompiledStepper(model, Counting(), say=pytest.fail))
    run(batch, {0: [asked(seed, 6, 4, "mixed") for seed in range(4)]})
    before = [layer.key.clone() for layer in batch.slots.layers]
    tokens, slots = torch.tensor([5, 9, 2]), torch.tensor([0, 1, 3])  # of which a pass over all four is made
    places = batch.slots.lengths[slots]
    with torch.inference_mode():
        assert batch.runner.stepper is not None
        batch.runner.stepper.step(tokens, slots, batch.slots)
    for old, layer in zip(before, batch.slots.layers, strict=True):
        changed = (old != layer.key).any(-1).any(1).nonzero().tolist()
        assert changed == [[slot, place] for slot, place in zip(slots.tolist(), places.tolist(), strict=True)]


def test_a_compiler_that_fails_is_told_of_once() -> None:
    def fails(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no such processor\nand more of it")

    said: list[str] = []
    model, schedule = model_of("mixed"), schedule_of("mixed")
    batch = batch_of(model, CompiledStepper(model, fails, say=said.append))
    assert run(batch, schedule)[0] == run(batch_of(model, None), schedule)[0]
    assert batch.runner.stepper is None
    assert len(said) == 1
    assert said[0].endswith("(RuntimeError: no such processor); the run goes on without it")


def test_experts_are_left_to_the_plain_pass() -> None:
    said: list[str] = []
    plain = decoder_only(60)
    assert plain.decoder is not None
    pattern = tuple(replace(block, feed_forward=tiny.EXPERTS) for block in plain.decoder.pattern)
    model, schedule = built(replace(plain, decoder=replace(plain.decoder, pattern=pattern))), schedule_of("mixed")
    batch = batch_of(model, CompiledStepper(model, Counting(), say=said.append))
    assert run(batch, schedule)[0] == run(batch_of(model, None), schedule)[0]
    assert (batch.runner.stepper, len(said)) == (None, 1)


def test_who_compiles(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    model = model_of("mixed")

    def stepper(**how: Any) -> Any:
        with Engine(how.pop("model", model), slots=1, capacity=32, **how) as engine:
            return engine.batch.runner.stepper

    monkeypatch.setattr(compiler, "_lacking", lambda device: None)
    assert stepper() is None, "auto compiles on an accelerator alone"
    assert isinstance(stepper(compile=True), CompiledStepper)
    assert isinstance(stepper(compile=True, model=prepare(built(decoder_only(60)))), Stepper), "native kernels come first"
    monkeypatch.setattr(compiler, "_lacking", lambda device: "C++ compiler")
    assert stepper(compile=True) is None
    assert capsys.readouterr().err == "compile: there is no C++ compiler here; the run goes on without compiling\n"


def through_engine(model: Any, wanted: bool) -> tuple[list[list[int]], Any]:
    requests = [request for some in schedule_of("mixed").values() for request in some]
    with Engine(model, slots=4, capacity=64, chunk=8, compile=wanted) as engine:
        found = [ticket.result(WAIT).ids for ticket in [engine.submit(request) for request in requests]]
        return found, engine.batch.runner.stepper


@pytest.mark.slow
def test_an_engine_compiles_by_inductor() -> None:
    found, stepper = through_engine(model_of("mixed"), True)
    assert isinstance(stepper, CompiledStepper), "it was given up"
    assert found == through_engine(model_of("mixed"), False)[0]


@pytest.mark.gpu
def test_an_engine_records_cuda_graphs() -> None:
    model = built(decoder_only(60, *KINDS["mixed"])).to("cuda")
    skipped = torch._dynamo.utils.counters["inductor"]["cudagraph_skips"]
    found, stepper = through_engine(model, True)
    assert isinstance(stepper, CompiledStepper), "it was given up"
    assert torch._dynamo.utils.counters["inductor"]["cudagraph_skips"] == skipped
    assert found == through_engine(model, False)[0]
