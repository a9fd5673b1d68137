"""Requests that come, go on together and leave: each has the tokens that it would have alone."""

from __future__ import annotations

import copy
import gc
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from triform import config
from triform.generate import Sampling, generate, generate_ids
from triform.generate.admission import row_of
from triform.generate.batch import Batch
from triform.generate.engine import Engine
from triform.generate.prepared import prepare
from triform.generate.requests import Event, Full, Request, Ticket
from triform.generate.runner import Runner
from triform.generate.sampling import Beams
from triform.generate.slots import Slots

from .conftest import CAUSAL, built, decoder_only, encoder_decoder, encoder_only, tokenizer_of

WAIT = 20.0  # seconds, after which a test has failed

WINDOWED = config.Attention(heads=2, mask="causal", window=4, position=config.Rotary())
PLAIN = config.Attention(heads=2, mask="causal")
KINDS: dict[str, tuple[config.Attention, ...]] = {
    "plain": (CAUSAL,),
    "window": (WINDOWED,),
    "mixed": (WINDOWED, CAUSAL),
    "learned": (PLAIN,),
    "alibi": (replace(PLAIN, position=config.Alibi()),),
    "bucketed": (replace(PLAIN, position=config.Bucketed(buckets=8, max_distance=16)),),
    "prefix": (config.Attention(heads=2, mask="prefix", position=config.Rotary()),),
}
FORMS = [*KINDS, "both"]


@lru_cache(maxsize=None)
def model_of(kind: str) -> Any:
    if kind == "both":
        return built(encoder_decoder(60))
    return built(decoder_only(60, *KINDS[kind], learned=64 if kind == "learned" else None))


def asked(seed: int, length: int, new: int, kind: str = "plain", **more: Any) -> Request:
    """A request of random ids; every other one draws its tokens."""
    ids = torch.randint(60, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    how: dict[str, Any] = {"temperature": 1.0, "top_k": 20, "seed": seed} if seed % 2 else {}
    start = (3,) if kind == "both" else None
    return Request(ids=ids, sampling=Sampling(max_new_tokens=new, **how), start=start, eos=(7, 11), **more)


def alone(model: Any, request: Request) -> list[int]:
    """What the request gives in a batch of its own."""
    ids = torch.tensor([list(request.ids)])
    assert request.eos is not None
    return generate_ids(model, ids, None, request.sampling, eos=request.eos, start=request.start, barred=request.barred)[0].ids


@pytest.fixture
def settled() -> Iterator[Any]:
    """Engines whose slots must be empty in the end."""
    made: list[Engine] = []

    def make(*arguments: Any, **more: Any) -> Engine:
        made.append(Engine(*arguments, **more))
        return made[-1]

    yield make
    for engine in made:
        engine.close(timeout=WAIT)
        assert engine.stats().slots_used == engine.stats().waiting == engine.stats().cache_tokens_used == 0


def runs(engine: Engine, requests: list[Request]) -> list[list[int]]:
    return [ticket.result(WAIT).ids for ticket in [engine.submit(request) for request in requests]]


@pytest.mark.parametrize("kind", FORMS)
def test_many_together_have_the_tokens_of_each_alone(kind: str, settled: Any) -> None:
    model = model_of(kind)
    requests = [asked(seed, 1 + 5 * seed % 23, 4 + 3 * seed, kind) for seed in range(9)]
    engine = settled(model, slots=4, capacity=64, chunk=8)
    found = runs(engine, requests)
    assert found == [alone(model, request) for request in requests]
    assert len({tuple(run) for run in found}) > 5, "runs that are alike would hide a mixed up batch"
    assert engine.stats().tokens_generated == sum(map(len, found))


class Stepped:
    """A batch that is stepped by hand, so that every schedule can be had."""

    def __init__(self, model: Any, slots: int, chunk: int) -> None:
        like = next(model.parameters())
        self.batch = Batch(Runner(model, Slots(model.config, slots, 64, 64, like)), chunk)

    def submit(self, request: Request) -> Ticket:
        ticket = Ticket(request)
        self.batch.add(row_of(self.batch.runner.net, None, ticket, self.batch.slots))
        return ticket

    @torch.inference_mode()
    def step(self, times: int = 1) -> None:
        for _ in range(times):
            self.batch.step()

    def finish(self) -> None:
        while self.batch.scheduler.busy:
            self.step()


SCHEDULES = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(0, 11)),
        st.tuples(st.just("step"), st.integers(1, 6)),
        st.tuples(st.just("cancel"), st.integers(0, 9)),
    ),
    max_size=16,
)


@lru_cache(maxsize=None)
def known(kind: str, number: int) -> tuple[Request, list[int]]:
    """One of twelve requests, many of which begin alike, and what it gives alone."""
    request = asked(number, 3 + 4 * number % 19, 1 + 2 * number, kind)
    shared = torch.randint(60, (20,), generator=torch.Generator().manual_seed(99)).tolist()
    if number % 3:
        request = replace(request, ids=[*shared[: 7 * (number % 4)], *request.ids])
    return request, alone(model_of(kind), request)


@settings(max_examples=25, deadline=None)
@given(schedule=SCHEDULES, slots=st.integers(1, 4), chunk=st.integers(1, 12))
@pytest.mark.parametrize("kind", ["plain", "mixed", "both"])
def test_no_schedule_changes_a_requests_tokens(kind: str, schedule: list[tuple[str, int]], slots: int, chunk: int) -> None:
    stepped = Stepped(model_of(kind), slots, chunk)
    asked_for: list[tuple[int, Ticket]] = []
    for what, number in schedule:
        if what == "submit":
            asked_for.append((number, stepped.submit(known(kind, number)[0])))
        elif what == "step":
            stepped.step(number)
        elif asked_for:
            asked_for[number % len(asked_for)][1].cancel()
    stepped.finish()
    for number, ticket in asked_for:
        expected, run = known(kind, number)[1], ticket.result(0)
        if run.finish_reason == "cancelled":
            assert run.ids == expected[: len(run.ids)]
        else:
            assert run.ids == expected
    assert stepped.batch.scheduler.rows == {}
    assert sorted(stepped.batch.scheduler._free) == list(range(slots))


@pytest.mark.parametrize("kind", ["plain", "window", "mixed", "learned", "alibi", "bucketed"])
def test_what_prompts_begin_with_alike_is_read_once(kind: str) -> None:
    model = model_of(kind)
    system = asked(50, 24, 1).ids
    requests = [replace(asked(seed, 5 + seed, 8), ids=[*system, *asked(seed, 5 + seed, 8).ids]) for seed in range(6)]
    expected = [alone(model, request) for request in requests]
    together = Stepped(model, 6, 16)
    tickets = [together.submit(request) for request in requests]
    together.finish()
    assert [ticket.run.ids for ticket in tickets] == expected
    assert [ticket.reused for ticket in tickets] == [0, 24, 24, 24, 24, 24]
    later = [together.submit(request) for request in requests]
    together.finish()
    assert [ticket.run.ids for ticket in later] == expected
    assert [ticket.reused for ticket in later] == [len(request.ids) - 1 for request in requests]
    assert together.batch.read == sum(len(request.ids) for request in requests) - 5 * 24 + len(requests)


def test_a_conversation_goes_on_where_it_was() -> None:
    stepped = Stepped(model_of("plain"), 2, 64)
    first = stepped.submit(asked(2, 12, 10))
    stepped.finish()
    longer = [*first.request.ids, *first.run.ids, 5, 6]
    second = stepped.submit(replace(asked(4, 1, 6), ids=longer))
    stepped.finish()
    assert second.reused == 12 + len(first.run.ids) - 1  # the last token made was never read
    assert second.run.ids == alone(model_of("plain"), second.request)


def test_the_prefix_that_was_used_longest_ago_goes_first() -> None:
    stepped = Stepped(model_of("plain"), 2, 64)
    one, two, three = (asked(seed, 20, 2) for seed in (2, 4, 6))
    for request in (one, two, one, three):
        stepped.submit(request)
        stepped.finish()
    kept, lost = stepped.submit(one), None
    stepped.finish()
    lost = stepped.submit(two)
    stepped.finish()
    assert (kept.reused, lost.reused) == (19, 0)


def test_a_prefix_model_never_begins_in_anothers_prompt() -> None:
    stepped = Stepped(model_of("prefix"), 2, 4)
    for _ in range(2):
        ticket = stepped.submit(asked(2, 20, 4))
        stepped.finish()
        assert ticket.reused == 0
        assert ticket.run.ids == alone(model_of("prefix"), ticket.request)


def test_an_encoder_reads_a_source_once() -> None:
    stepped = Stepped(model_of("both"), 3, 64)
    tickets = [stepped.submit(asked(2, 20, 6 + n, "both")) for n in range(3)]
    encoded: list[int] = []
    encode = stepped.batch.runner.encode
    stepped.batch.runner.encode = lambda sources, *more: (encoded.append(len(sources)), encode(sources, *more))  # type: ignore[assignment, misc, func-returns-value]
    stepped.finish()
    assert encoded == [1]
    assert [ticket.run.ids for ticket in tickets] == [alone(model_of("both"), ticket.request) for ticket in tickets]


def test_a_long_prompt_holds_up_neither_those_that_run_nor_short_ones() -> None:
    stepped = Stepped(model_of("plain"), 3, 8)
    running = stepped.submit(asked(2, 3, 40))
    stepped.step(3)
    made = len(running.run.ids)
    long = stepped.submit(asked(4, 40, 4))
    stepped.step(2)
    assert len(running.run.ids) == made + 2
    short = stepped.submit(asked(6, 4, 4))
    stepped.step()
    assert len(short.run.ids) == 1, "a short prompt has the next step for itself"
    steps = 0
    while not long.run.ids:
        stepped.step()
        steps += 1
    assert len(running.run.ids) >= made + 2 + steps - 1, "the others go on every step but those"
    assert steps == 15, "the long prompt has a quarter of each chunk, and its end a step for itself"


def test_short_prompts_without_end_stop_nobody() -> None:
    stepped = Stepped(model_of("plain"), 4, 8)
    running = stepped.submit(replace(asked(2, 3, 60), eos=()))
    stepped.step(3)
    long = stepped.submit(asked(4, 21, 4))
    made, steps = len(running.run.ids), 0
    while not long.run.ids:
        stepped.submit(asked(6 + 2 * steps, 4, 1))
        stepped.step()
        steps += 1
        assert steps < 60
    assert len(running.run.ids) - made >= steps // 2, "a step for prompts alone is followed by one for all"
    assert steps <= 2 * 21, "an eighth of each other chunk"


def test_order_is_first_come_first_served_but_for_priorities() -> None:
    stepped = Stepped(model_of("plain"), 1, 64)
    levels = [0, 0, 2, 1, 2, 0]
    order: list[int] = []
    tickets = [Ticket(asked(2, 3, 1, priority=level), lambda _, n=n: order.append(n)) for n, level in enumerate(levels)]  # type: ignore[misc]
    for ticket in tickets:
        stepped.batch.add(row_of(stepped.batch.runner.net, None, ticket, stepped.batch.slots))
    stepped.finish()
    assert order == [2, 4, 3, 0, 1, 5]


def test_nobody_waits_for_ever_behind_a_higher_priority() -> None:
    stepped = Stepped(model_of("plain"), 1, 64)
    patient = stepped.submit(asked(2, 3, 1))
    for _ in range(100):
        stepped.submit(asked(4, 3, 1, priority=1))
    served = 0
    while not patient.done:
        stepped.step()
        served += 1
    assert 60 < served < 70
    stepped.finish()


def test_who_is_cancelled_or_late_leaves_with_what_it_has() -> None:
    stepped = Stepped(model_of("plain"), 1, 64)
    running, waiting, late = stepped.submit(asked(2, 3, 40)), stepped.submit(asked(4, 3, 40)), stepped.submit(asked(6, 3, 4, deadline=0.0))
    free = stepped.submit(asked(8, 3, 4))
    stepped.step(5)
    assert late.run.finish_reason == "deadline"
    assert late.done
    running.cancel()
    waiting.cancel()
    stepped.step()
    assert (running.run.finish_reason, len(running.run.ids)) == ("cancelled", 5)
    assert (waiting.run.finish_reason, waiting.run.ids) == ("cancelled", [])
    assert free.run.ids == alone(model_of("plain"), free.request)[:1], "the slot is free in the same step"
    stepped.finish()


def test_events_tell_every_token_and_the_end(settled: Any) -> None:
    tokenizer = tokenizer_of("byte-bpe")
    model = built(decoder_only(tokenizer.vocab_size))
    sampling = Sampling(max_new_tokens=40, temperature=1.0, seed=3, top_log_probs=2)
    whole = generate(model, tokenizer, "话说天下", sampling)[0]
    ticket = settled(model, tokenizer).submit(Request(ids=whole.prompt_ids, sampling=sampling))
    events = list(ticket)
    run = ticket.result(WAIT)
    assert [event.token for event in events] == run.ids
    assert [event.log_prob for event in events] == run.log_probs
    assert [event.top for event in events] == run.tops
    assert "".join(event.text for event in events) == run.text != ""
    assert [event.finish_reason for event in events[:-1]] == [None] * (len(events) - 1)
    for event in events:
        (best, value), (_, second) = event.top
        assert value >= second
        assert value >= event.log_prob
        assert (best == event.token) == (value == event.log_prob)
    assert (run.ids, run.text) == (whole.ids, whole.text)


def test_a_stop_string_ends_one_request(settled: Any) -> None:
    tokenizer = tokenizer_of("characters")
    model = built(decoder_only(tokenizer.vocab_size))
    engine = settled(model, tokenizer)
    prompts = [Request(ids=tokenizer.encode("话说"), sampling=Sampling(max_new_tokens=40, temperature=1.0, seed=seed)) for seed in range(3)]
    free = [engine.submit(request).result(WAIT) for request in prompts]
    stop = free[1].text[10:14]
    again = [engine.submit(replace(one, sampling=replace(one.sampling, stop=(stop,)))) for one in prompts]
    found = [ticket.result(WAIT) for ticket in again]
    assert [run.finish_reason for run in found] == ["length", "stop_string", "length"]
    assert found[1].text == free[1].text[: free[1].text.index(stop)] == "".join(event.text for event in again[1])
    assert [found[0].ids, found[2].ids] == [free[0].ids, free[2].ids]


@pytest.mark.parametrize(
    ("kind", "wrong", "message"),
    [
        ("plain", {"ids": []}, "at least one token"),
        ("plain", {"ids": [60]}, "the model has 60 tokens"),
        ("plain", {"ids": [-1]}, "from 0 on, got -1"),
        ("plain", {"ids": [1] * 100}, "has 100 tokens and the engine's slots hold 64"),
        ("learned", {"ids": [1] * 65}, "64 learned positions"),
        ("plain", {"ids": [1], "sampling": Sampling(stop=("a",))}, "expected a tokenizer too"),
        ("plain", {"ids": [1], "sampling": Sampling(search=Beams())}, "use `generate`"),
        ("plain", {"ids": [1], "sampling": Sampling(logit_bias={60: 1.0})}, "below the model's 60 tokens"),
        ("both", {"ids": [1]}, "start: expected"),
        ("both", {"ids": [1], "start": [60]}, "the model has 60 tokens"),
        ("both", {"ids": [1] * 100, "start": [1]}, "has 100 tokens"),
    ],
)
def test_wrong_requests_are_refused_and_nothing_else_is(kind: str, wrong: dict[str, Any], message: str, settled: Any) -> None:
    engine = settled(model_of(kind), capacity=64)
    with pytest.raises(ValueError, match=message) as error:
        engine.submit(Request(**wrong))
    assert "\n" not in str(error.value)
    fine = asked(2, 5, 6, kind)
    assert runs(engine, [fine]) == [alone(model_of(kind), fine)]


def test_a_full_queue_says_so(settled: Any) -> None:
    gate = threading.Event()
    engine = settled(model_of("plain"), slots=1, queue=2)
    first = engine.submit(asked(2, 3, 2), lambda _: gate.wait(WAIT))
    while engine.stats().running != 1:
        time.sleep(0.01)
    waiting = [engine.submit(asked(4, 3, 2)) for _ in range(2)]
    with pytest.raises(Full, match="2 requests wait already"):
        engine.submit(asked(6, 3, 2))
    assert engine.stats().waiting == 2
    gate.set()
    assert [ticket.result(WAIT).finish_reason for ticket in (first, *waiting)] == ["length"] * 3
    engine.submit(asked(6, 3, 2)).result(WAIT)


class Broken(torch.nn.Module):
    """A layer that fails, or gives NaN, when it is told to; NaN for the rows whose token is `victim`."""

    def __init__(self, body: torch.nn.Module, victim: int) -> None:
        super().__init__()
        self.body, self.victim, self.fails = body, victim, False

    @property
    def weight(self) -> Any:
        return self.body.weight

    def forward(self, ids: torch.Tensor) -> Any:
        if self.fails:
            raise RuntimeError("out of something")
        return self.body(ids).masked_fill((ids == self.victim)[..., None], torch.nan)


def broken() -> tuple[Any, Broken]:
    model = built(decoder_only(60))
    model.decoder.input.token = Broken(model.decoder.input.token, victim=59)
    return model, model.decoder.input.token


def test_a_request_whose_scores_are_not_numbers_ends_alone() -> None:
    model, _ = broken()
    stepped = Stepped(model, 3, 64)
    fine = [asked(seed, 9, 12, barred=(59,)) for seed in (2, 4)]
    fine = [replace(one, ids=[i % 58 for i in one.ids], eos=()) for one in fine]
    ill = replace(fine[0], ids=[5, 59, 6])
    tickets = [stepped.submit(request) for request in (fine[0], ill, fine[1])]
    stepped.finish()
    with pytest.raises(ValueError, match="not finite"):
        tickets[1].result(0)
    (event,) = tickets[1]
    assert (event.finish_reason, event.token) == ("error", None)
    assert event.error is not None
    assert [tickets[0].result(0).ids, tickets[2].result(0).ids] == [alone(model, request) for request in fine]
    after = [stepped.submit(replace(request, ids=[*request.ids, 3])) for request in (*fine, *fine)]
    stepped.finish()
    assert [ticket.result(0).ids for ticket in after] == [alone(model, ticket.request) for ticket in after], "NaN was left in a slot"


def test_a_pass_that_fails_ends_those_in_it_and_the_engine_goes_on(settled: Any) -> None:
    model, layer = broken()
    engine = settled(model, slots=2)
    fine = replace(asked(2, 6, 8), ids=[1, 2, 3])
    expected = alone(model, fine)
    layer.fails = True
    tickets = [engine.submit(fine) for _ in range(2)]
    for ticket in tickets:
        with pytest.raises(RuntimeError, match="out of something"):
            ticket.result(WAIT)
    layer.fails = False
    assert runs(engine, [fine]) == [expected]


def test_a_listener_that_fails_ends_its_own_request(settled: Any) -> None:
    engine = settled(model_of("plain"), slots=3)

    def fail(_: Event) -> None:
        raise OSError("gone")

    first, ill, last = engine.submit(asked(2, 5, 9)), engine.submit(asked(4, 5, 9), fail), engine.submit(asked(6, 5, 9))
    with pytest.raises(OSError, match="gone"):
        ill.result(WAIT)
    for ticket in (first, last):
        assert ticket.result(WAIT).ids == alone(model_of("plain"), ticket.request)


def test_many_threads_are_answered_each_with_its_own(settled: Any) -> None:
    model = model_of("plain")
    engine = settled(model, slots=5, capacity=64, chunk=16)
    expected = {number: known("plain", number)[1] for number in range(12)}
    wrong: list[int] = []

    def client(number: int) -> None:
        for turn in range(4):
            ticket = engine.submit(known("plain", (number + turn) % 12)[0])
            if (number + turn) % 5 == 0:
                ticket.cancel()
            found = ticket.result(WAIT)
            if found.ids != expected[(number + turn) % 12] and found.finish_reason != "cancelled":
                wrong.append(number)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert wrong == []


@pytest.mark.parametrize("drain", [True, False])
def test_closing_ends_or_cancels_what_runs(drain: bool) -> None:
    model = model_of("plain").train()
    engine = Engine(model, slots=1, capacity=64)
    tickets = [engine.submit(asked(seed, 3, 40)) for seed in (2, 4)]
    engine.close(drain=drain)
    assert {ticket.run.finish_reason for ticket in tickets} <= ({"length", "stop"} if drain else {"cancelled", "length", "stop"})
    assert all(ticket.done for ticket in tickets)
    assert model.training
    with pytest.raises(ValueError, match="closed"):
        engine.submit(asked(2, 3, 1))
    engine.close()


def test_closing_waits_only_so_long(settled: Any) -> None:
    engine = Engine(model_of("plain"), slots=1)
    ticket = engine.submit(replace(asked(2, 3, 4000), eos=()), lambda _: time.sleep(0.01))
    began = time.monotonic()
    engine.close(timeout=0.1)
    assert time.monotonic() - began < 5
    assert ticket.result(0).finish_reason == "cancelled"
    with pytest.raises(TimeoutError):
        Ticket(asked(2, 3, 4)).result(0.01)


def test_the_memory_is_kept_to() -> None:
    model = model_of("plain")  # 2 layers, 1 key-value head of 12 numbers: 192 bytes a token
    with Engine(model, slots=16, capacity=100, memory=192 * 250) as engine:
        assert (engine.stats().slots, engine.stats().cache_bytes) == (2, 192 * 200)
    with Engine(model, slots=2, memory=192 * 50) as engine:
        assert (engine.stats().slots, engine.batch.slots.capacity) == (1, 50)
        assert len(engine.submit(replace(asked(2, 30, 100), eos=())).result(WAIT).ids) == 21  # the last needs no place
    for wrong in (192 * 99, 0, -1.0):
        with pytest.raises(ValueError, match="memory: ") as error:
            Engine(model, capacity=100, memory=wrong)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="`triform fill` fits it"):
        Engine(built(encoder_only(60)))
    for name in ("slots", "chunk", "queue", "capacity"):
        with pytest.raises(ValueError, match=f"{name}: expected at least 1"):
            Engine(model, **{name: 0})  # type: ignore[arg-type]


def test_nothing_is_kept_of_requests_that_have_ended() -> None:
    stepped = Stepped(model_of("plain"), 4, 32)

    def serve(count: int) -> int:
        for number in range(count):
            ticket = stepped.submit(known("plain", number % 4)[0])
            if number % 7 == 0:
                ticket.cancel()
            if number % 4 == 3:
                stepped.finish()
        stepped.finish()
        del ticket
        gc.collect()
        return len(gc.get_objects())

    serve(8)
    before = serve(8)
    kept = Ticket(known("plain", 0)[0])
    with_one = len(gc.get_objects())
    assert serve(80) - before < 72 * (with_one - before) / 4, "objects, a quarter of what the requests are themselves"
    assert kept.run.ids == []


@pytest.mark.parametrize("kind", ["plain", "mixed", "learned", "alibi", "bucketed", "prefix", "both"])
def test_a_prepared_model_gives_the_same_tokens(kind: str) -> None:
    model = prepare(copy.deepcopy(model_of(kind)), "fp32")
    stepped = Stepped(model, 3, 16)
    assert stepped.batch.runner.stepper is not None
    steps: list[int] = []
    step = stepped.batch.runner.stepper.step
    stepped.batch.runner.stepper.step = lambda *these: (steps.append(len(these[0])), step(*these))[1]  # type: ignore[method-assign]
    tickets = [stepped.submit(known(kind, number)[0]) for number in range(12)]
    stepped.finish()
    assert [ticket.result(0).ids for ticket in tickets] == [known(kind, number)[1] for number in range(12)]
    assert max(steps) > 2, "rows went through the layers together"
