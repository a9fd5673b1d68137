"""What a server refuses, and how it ends."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
import time
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from served import Running, Scripted, judge, random_writer, scripted_writer, serving

from triform import config
from triform.serve import Settings, read_keys
from triform.serve.batcher import Batcher
from triform.serve.errors import ServeError
from triform.serve.stream import event

ASK: list[Any] = [{"role": "user", "content": "你好"}]
LONG = "话说天下大势，分久必合，合久必分。" * 40


def until(true: Any, seconds: float = 10) -> None:
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.01)


def engine_of(server: Running) -> Scripted:
    found: Scripted = server.models.by_name["scripted"].engine  # type: ignore[assignment, union-attr]
    return found


# Keys, names and origins


def test_keys_are_asked_for() -> None:
    with serving(scripted_writer("yes"), keys=("first-key", "second-key")) as server:
        for key in ("first-key", "second-key"):
            assert server.client(key).chat.completions.create(model="scripted", messages=ASK).choices[0].message.content == "yes"
        for key in ("first-ke", "first-key2", "x"):
            with pytest.raises(openai.AuthenticationError):
                server.client(key).models.list()
        assert server.get("/v1/models", headers={"Authorization": "Basic first-key"}).status_code == 401
        assert server.get("/metrics").status_code == 401
        assert [server.get(path).status_code for path in ("/health", "/ready", "/", "/docs", "/openapi.json")] == [200] * 5


def test_keys_come_from_a_file_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys.txt"
    file.write_text("# ours\nfirst-key  # Anna\n\nsecond-key\n", encoding="utf-8")
    monkeypatch.setenv("TRIFORM_API_KEYS", "third-key, first-key")
    assert read_keys(file) == ("third-key", "first-key", "second-key")
    file.write_text("# none\n", encoding="utf-8")
    with pytest.raises(ValueError, match="found none"):
        read_keys(file)
    with pytest.raises(ValueError, match="8 to 512"):
        Settings(keys=("short",))


def test_another_host_name_is_refused() -> None:
    with serving(scripted_writer("yes"), hosts=("127.0.0.1", "localhost", "[::1]")) as server:
        assert server.get("/v1/models").status_code == 200
        assert server.get("/v1/models", headers={"Host": "localhost:99"}).status_code == 200
        assert server.get("/v1/models", headers={"Host": "evil.example"}).status_code == 403


def test_other_origins_are_closed_unless_named() -> None:
    preflight = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    with serving(scripted_writer("yes"), origins=("https://a.example",), keys=("first-key",)) as server:
        allowed = httpx2.options(f"{server.url}/v1/completions", headers=preflight)
        assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, "https://a.example")
        other = httpx2.options(f"{server.url}/v1/completions", headers=preflight | {"Origin": "https://b.example"})
        assert "access-control-allow-origin" not in other.headers
    with serving(scripted_writer("yes")) as server:
        assert "access-control-allow-origin" not in server.get("/v1/models", headers={"Origin": "https://a.example"}).headers


# Bodies


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"messages": [', "not JSON"),
        (b"", "field required"),
        (b"[]", "object"),
        (b"null", ""),
        (b'{"messages": "x"}', "messages"),
        (b'{"messages": [{"role": "user", "content": "a"}], "temperature": NaN}', "not JSON"),
        (b'{"messages": [{"role": "user", "content": "a"}], "temperature": 1e999}', "temperature"),
        (b'{"messages": [{"role": "user", "content": "a"}], "max_tokens": -5}', "max_tokens"),
        (b'{"messages": [{"role": "user", "content": "a"}], "max_tokens": 1e30}', "max_tokens"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"a":' * 100_000, "not JSON"),
        (b"\xff\xfe", "not JSON"),
    ],
)
def test_nonsense_is_a_400_in_one_line(server: Running, body: bytes, says: str) -> None:
    found = server.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert found.status_code == 400
    error = found.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert says in error["message"]
    assert "\n" not in error["message"]


def test_a_form_is_no_json(server: Running) -> None:
    found = server.post("/v1/completions", content=b'{"prompt": "a"}', headers={"Content-Type": "text/plain"})
    assert found.status_code == 400


@pytest.mark.parametrize("path", ["/v1/nothing", "/page/../app.py", "/page/%2e%2e%2fapp.py", "/page/none.js"])
def test_what_is_not_there_is_a_404(server: Running, path: str) -> None:
    found = server.get(path)
    assert (found.status_code, found.json()["error"]["type"]) == (404, "not_found_error")
    assert server.get("/v1/completions").status_code == 405


def test_a_body_that_is_too_long_is_not_read() -> None:
    with serving(scripted_writer("yes"), body_bytes=10_000) as server:
        for stream in (False, True):
            content: Any = iter([b"x" * 1000] * 50) if stream else b"x" * 50_000
            assert server.post("/v1/completions", content=content).status_code == 413
        assert server.post("/v1/completions", {"prompt": "x" * 3000}).status_code == 200


def test_long_prompts_are_refused_by_their_tokens() -> None:
    with serving(scripted_writer("yes"), prompt_tokens=100) as server:
        error = server.post("/v1/completions", {"prompt": LONG}).json()["error"]
        assert error["code"] == "context_length_exceeded"
        assert server.post("/v1/completions", {"prompt": "话"}).status_code == 200


# Queues, deadlines, clients that leave


def test_a_full_queue_is_a_429_with_a_hint() -> None:
    with serving(random_writer(slots=1, queue=1)) as server, httpx2.Client(timeout=20) as client:
        body = {"prompt": "a", "max_tokens": 9, "stream": True}
        url = f"{server.url}/v1/completions"
        engine = server.models.by_name["tiny"].engine  # type: ignore[union-attr]
        gate, step = threading.Event(), engine.batch.step
        engine.batch.step = lambda: (gate.wait(20), step())  # type: ignore[method-assign, assignment, return-value]
        with client.stream("POST", url, json=body) as first, client.stream("POST", url, json=body) as second:
            assert first.status_code == second.status_code == 200
            found = client.post(url, json=body)
            assert found.status_code == 429
            assert int(found.headers["Retry-After"]) >= 1
            with pytest.raises(openai.RateLimitError):
                server.client().chat.completions.create(model="tiny", messages=ASK)
            gate.set()
        until(lambda: engine.stats().slots_used + engine.stats().waiting == 0)
        assert client.post(url, json=body | {"stream": False, "max_tokens": 2}).status_code == 200


def test_too_many_at_once_is_a_429() -> None:
    with serving(scripted_writer(LONG, pause=0.01), concurrent=1) as server:
        stream = server.client().chat.completions.create(model="scripted", messages=ASK, stream=True)
        next(iter(stream))
        assert server.get("/v1/models").status_code == 429
        stream.close()
        until(lambda: server.get("/v1/models").status_code == 200)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_slot(stream: bool) -> None:
    with serving(scripted_writer(LONG, pause=0.01)) as server:
        if stream:
            coming = server.client().chat.completions.create(model="scripted", messages=ASK, stream=True, n=2)
            next(iter(coming))
            assert len(engine_of(server).live) == 2
            coming.close()
        else:
            body = json.dumps({"messages": ASK}).encode()
            with socket.create_connection(server.socket.getsockname()) as raw:
                head = f"Host: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
                raw.sendall(b"POST /v1/chat/completions HTTP/1.1\r\n" + head.encode() + body)
                until(lambda: engine_of(server).live)
        until(lambda: not engine_of(server).live)
        until(lambda: server.state.running == 0)


@pytest.mark.parametrize("stream", [False, True])
def test_a_deadline_ends_a_request(stream: bool) -> None:
    writer = random_writer(capacity=1024)
    with serving(writer, deadline=0.15) as server:
        body = {"messages": ASK, "max_tokens": 900, "stream": stream, "logit_bias": {str(writer.tokenizer.eos): -100}}
        found = server.post("/v1/chat/completions", body)
        if stream:
            last = found.text.strip().split("\n\n")[-1]
            assert json.loads(last.removeprefix("data: "))["error"]["code"] == "deadline_exceeded"
        else:
            assert (found.status_code, found.json()["error"]["code"]) == (504, "deadline_exceeded")
        until(lambda: writer.engine.stats().slots_used == 0)


def test_what_fails_on_the_way_is_told_and_nothing_else_of_it(caplog: pytest.LogCaptureFixture) -> None:
    def broken(*_: Any) -> str:
        raise RuntimeError("a secret")

    with serving(scripted_writer("yes")) as server:
        server.models.by_name["scripted"].read_chat = broken  # type: ignore[union-attr]
        with caplog.at_level(logging.ERROR, "triform.serve"):
            found = server.post("/v1/chat/completions", {"messages": ASK})
            until(lambda: "RuntimeError" in caplog.text)
        assert found.status_code == 500
        assert "secret" not in found.text
        assert server.get("/health").status_code == 200


# The end


def test_an_event_is_one_line_for_every_client() -> None:
    said = "a\x85b\u2028c\u2029d\x1ce\nf你"
    assert len(event(said).decode().splitlines()) == 2
    assert json.loads(event(said)[6:]) == said


@pytest.mark.parametrize("drain", [0.2, 30.0])
def test_what_runs_is_finished_or_told_of_the_end(drain: float) -> None:
    with serving(scripted_writer(LONG[:60], pause=0.01), drain=drain) as server:
        chunks: list[str] = []

        def read() -> None:
            with httpx2.stream("POST", f"{server.url}/v1/chat/completions", json={"messages": ASK, "stream": True}, timeout=20) as found:
                chunks.extend(line for line in found.iter_lines() if line)

        reader = threading.Thread(target=read)
        reader.start()
        until(lambda: engine_of(server).live)
        server.stop()
        reader.join(10)
        if drain > 1:
            assert chunks[-1] == "data: [DONE]"
        else:
            assert json.loads(chunks[-1].removeprefix("data: "))["error"]["code"] == "shutting_down"


# Figures and logs


def test_figures_for_prometheus(server: Running) -> None:
    def value(name: str) -> float:
        return sum(float(line.split()[-1]) for line in server.get("/metrics").text.splitlines() if line.startswith(name))

    before = value('triform_generated_tokens_total{model="tiny"}')
    server.post("/v1/completions", {"prompt": "话说", "max_tokens": 7, "logit_bias": {"3": -100}, "temperature": 0})
    assert 1 <= value('triform_generated_tokens_total{model="tiny"}') - before <= 7
    assert value('triform_slots_used{model="tiny"}') == 0
    assert value('triform_time_to_first_token_seconds_count{model="tiny"}') >= 1
    assert value('triform_requests_total{route="/v1/completions",status="200"}') >= 1


@pytest.mark.parametrize("prompts", [False, True])
def test_logs_hold_prompts_only_where_asked(caplog: pytest.LogCaptureFixture, prompts: bool) -> None:
    with serving(scripted_writer("an answer"), log_prompts=prompts) as server, caplog.at_level(logging.INFO, "triform.serve"):
        found = server.post("/v1/completions", {"prompt": "a secret"}, headers={"X-Request-ID": "mine-1"})
        assert found.headers["X-Request-ID"] == "mine-1"
        until(lambda: caplog.records)
        told = json.dumps([record.__dict__["fields"] for record in caplog.records if record.name == "triform.serve"])
    assert ("a secret" in told) == prompts
    assert '"id": "mine-1"' in told
    assert '"prompt_tokens"' in told


# The batcher


def test_texts_of_many_requests_run_together_and_fail_alone() -> None:
    batches: list[list[str]] = []
    gate = threading.Event()

    def run(items: Any, option: Any) -> list[str]:
        gate.wait(5)
        batches.append(list(items))
        if "bad" in items:
            raise ValueError("no such text")
        return [f"{option}:{item}" for item in items]

    async def ask() -> list[Any]:
        jobs = [asyncio.ensure_future(batcher([text, text + "2"], option)) for text, option in (("a", 1), ("b", 1), ("bad", 1), ("c", 2))]
        await asyncio.sleep(0.05)
        jobs.append(asyncio.ensure_future(batcher(["gone"], 1)))
        await asyncio.sleep(0)
        jobs[-1].cancel()
        gate.set()
        return await asyncio.gather(*jobs, return_exceptions=True)

    batcher = Batcher(run, size=8)
    a, b, bad, c, gone = asyncio.run(ask())
    batcher.close()
    assert (a, b, c) == (["1:a", "1:a2"], ["1:b", "1:b2"], ["2:c", "2:c2"])
    assert isinstance(bad, ServeError)
    assert bad.status == 400
    assert isinstance(gone, asyncio.CancelledError)
    assert any({"b", "b2", "bad", "bad2"} <= set(batch) for batch in batches)
    assert all("gone" not in batch for batch in batches)


def test_a_batcher_says_when_it_is_full() -> None:
    async def ask() -> None:
        with pytest.raises(ServeError) as caught:
            await batcher(["a"] * 5)
        assert caught.value.status == 429

    batcher = Batcher(lambda items, _: list(items), queue=4)
    asyncio.run(ask())
    batcher.close()


def test_variables_of_a_template_cannot_take_the_place_of_its_own(server: Running) -> None:
    variables = {"messages": [], "tools": "x", "generation_prompt": False, "tokenizer": None}
    options = {"temperature": 0, "max_tokens": 4}
    plain = server.post("/v1/chat/completions", {"messages": ASK} | options).json()
    found = server.post("/v1/chat/completions", {"messages": ASK, "chat_template_kwargs": variables} | options).json()
    assert found["choices"] == plain["choices"]


def test_many_texts_and_many_masks(server: Running) -> None:
    found = server.post("/v1/embeddings", {"input": [f"{number}" for number in range(70)]}).json()["data"]
    alone = server.post("/v1/embeddings", {"input": "69"}).json()["data"][0]["embedding"]
    assert len(found) == 70
    assert found[69]["embedding"] == pytest.approx(alone, abs=1e-5)
    assert server.post("/v1/embeddings", {"input": ["a"] * 2049}).status_code == 400
    assert server.post("/v1/fill-mask", {"input": "[MASK]" * 65}).json()["error"]["message"].startswith("input: expected at most 64 masks")


def test_texts_to_judge_have_a_deadline_too() -> None:
    slow = judge("vectors", config.Embed())
    run = slow.batcher._run
    slow.batcher._run = lambda items, option: (time.sleep(0.5), run(items, option))[1]
    with serving(slow, deadline=0.1) as server:
        assert server.post("/v1/embeddings", {"input": "a"}).status_code == 504
