"""A server of small models under load and abuse: `python benchmarks/load.py --clients 200 --seconds 120`.

A third of the clients go away in the middle of answers, and one in eight sends nonsense: truncated JSON, bodies of 10 MB, negative
counts, NaN, models that are not there, wrong keys. Counted are crashes (5xx, or a server that does not answer), answers that are not
those of a lone request, slots that are still taken at the end, and the growth of memory over the last half. Exit code 1 if any is there.
The server runs in a process of its own and is ended by SIGTERM in the middle of streams, each of which must get its end or an error.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import psutil
import torch

import triform
from triform import config
from triform.text import train_tokenizer

KEY = "load-test-key"
TIMEOUT = httpx2.Timeout(330, write=None)  # longer than the server takes; 10 MB from one thread of 200 clients take their time
LINES = (
    "话说天下大势，分久必合，合久必分。",
    "The quick brown fox jumps over the lazy dog 0123456789.",
    "酒店😀房间很干净，服务也好👍🏽，下次还来！",
)
CHAT = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"


def make_model(folder: Path, head: config.Head, width: int = 32) -> None:
    """A model with random weights, and a tokenizer that chats."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<|im_start|>", "<|im_end|>"]
    tokenizer = train_tokenizer(LINES * 4, kind="byte-bpe", vocab_size=340, min_frequency=1, special_tokens=special)
    tokenizer.roles["eos"] = "<|im_end|>"
    writes = isinstance(head, config.LanguageModel)
    position = config.Rotary()
    attention = config.Attention(heads=2, mask="causal" if writes else "bidirectional", position=position, bias="none")
    gated = config.FeedForward(hidden=64, activation="silu", gated=True, bias=False)
    block = config.Block(attention=attention, feed_forward=gated, norm=config.RMSNorm())
    tokens = config.Tokens(vocab_size=tokenizer.vocab_size)
    stack = config.Stack(width=width, depth=2, input=tokens, pattern=(block,), norm=config.RMSNorm())
    spec = config.Transformer(**{"decoder" if writes else "encoder": stack}, head=head)
    model = triform.build(spec, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    if writes:
        tokenizer.chat_template = CHAT
    triform.save(model, tokenizer, folder)


@dataclass
class Server:
    """`triform serve` in a process of its own."""

    folder: Path
    drain: float = 0.5
    process: subprocess.Popen[str] = field(init=False)
    url: str = field(init=False)

    def __post_init__(self) -> None:
        make_model(self.folder / "writer", config.LanguageModel(tied=False))
        make_model(self.folder / "judge", config.Classify(labels=3, pool="mean"))
        (self.folder / "keys.txt").write_text(KEY + "\n", encoding="utf-8")
        command = [sys.executable, "-c", "from triform.cli import main; main()", "serve", "writer", "judge", "--port", "0"]
        command += ["--keys", "keys.txt", "--slots", "8", "--queue", "64", "--capacity", "512", "--max-prompt-tokens", "400"]
        command += ["--drain", str(self.drain)]
        with (self.folder / "log.jsonl").open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(command, cwd=self.folder, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        assert " at http://" in said, (self.folder / "log.jsonl").read_text(encoding="utf-8")
        self.url = said.split(" at ")[1].split()[0]

    def memory(self) -> int:
        """Resident bytes."""
        return int(psutil.Process(self.process.pid).memory_info().rss)


@dataclass
class Tally:
    """What happened."""

    done: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)


def question(number: int, **more: Any) -> dict[str, Any]:
    """A request whose answer is known beforehand, as it is drawn with a seed of its own."""
    lead = LINES[number % len(LINES)][: 4 + number % 9]
    messages = [{"role": "user", "content": f"{lead}{number}"}]
    return {"model": "writer", "messages": messages, "seed": number, "max_tokens": 4 + 7 * (number % 6)} | more


NONSENSE: list[tuple[str, bytes | dict[str, Any], dict[str, str], set[int]]] = [
    ("/v1/chat/completions", b'{"model": "writer", "messages": [', {}, {400}),
    ("/v1/chat/completions", b'{"prompt": "' + b"x" * 10_000_000 + b'"}', {}, {413}),
    ("/v1/chat/completions", question(1, max_tokens=-3), {}, {400}),
    ("/v1/chat/completions", json.dumps(question(1, temperature=float("nan"))).encode(), {}, {400}),
    ("/v1/chat/completions", question(1, model="nobody"), {}, {404}),
    ("/v1/chat/completions", question(1), {"Authorization": "Bearer wrong-key-here"}, {401}),
    ("/v1/chat/completions", question(1, messages=[{"role": "user", "content": "长" * 2000}]), {}, {400}),
    ("/v1/chat/completions", question(1, n=1000), {}, {400}),
    ("/v1/completions", b"\xff\xfe\x00", {}, {400}),
    ("/v1/classify", {"input": []}, {}, {400}),
]


async def nonsense(client: httpx2.AsyncClient, tally: Tally, chance: random.Random) -> None:
    """One request that must be refused, and with the right status."""
    path, body, headers, wanted = chance.choice(NONSENSE)
    sent: dict[str, Any] = {"json": body} if isinstance(body, dict) else {"content": body}
    found = await client.post(path, headers={"Content-Type": "application/json"} | headers, **sent)
    tally.done[f"nonsense {found.status_code}"] += 1
    if found.status_code not in wanted | {429}:
        tally.wrong.append(f"{path} {str(body)[:60]}: {found.status_code}")


async def ask(client: httpx2.AsyncClient, tally: Tally, number: int, answers: dict[int, str], leaves: float | None, **more: Any) -> None:
    """One question, streamed; with `leaves` the client goes away after so many seconds."""
    said, ended = "", None
    try:
        body = question(number, stream=True, **more)
        async with asyncio.timeout(leaves), client.stream("POST", "/v1/chat/completions", json=body) as found:
            if found.status_code != 200:
                tally.done[str(found.status_code)] += 1
                if found.status_code != 429:
                    tally.wrong.append(f"question {number}: {found.status_code} {(await found.aread())[:200]!r}")
                return
            async for line in found.aiter_lines():
                if line.startswith("data: {"):
                    chunk = json.loads(line[6:])
                    if "error" in chunk:
                        ended = f"error {chunk['error']['code']}"
                    elif chunk["choices"]:
                        said += chunk["choices"][0]["delta"].get("content", "")
                elif line == "data: [DONE]":
                    ended = "done"
    except TimeoutError:
        tally.done["left"] += 1
        return
    tally.done[str(ended)] += 1
    if ended is None:
        tally.wrong.append(f"question {number}: a stream without an end")
    elif ended == "done" and said != answers.setdefault(number, said):
        tally.wrong.append(f"question {number}: {said!r} and not {answers[number]!r}")


async def client(url: str, place: int, until: float, tally: Tally, answers: dict[int, str]) -> None:
    """One client's life: every third goes away in the middle of answers, and each sends nonsense now and then."""
    chance = random.Random(place)
    headers = {"Authorization": f"Bearer {KEY}"}
    async with httpx2.AsyncClient(base_url=url, headers=headers, timeout=TIMEOUT) as http:
        while time.monotonic() < until:
            try:
                if chance.random() < 0.125:
                    await nonsense(http, tally, chance)
                elif chance.random() < 0.1:
                    found = await http.post("/v1/classify", json={"input": [LINES[place % 3]] * chance.randint(1, 4)})
                    tally.done[f"classify {found.status_code}"] += 1
                else:
                    leaves = chance.uniform(0.01, 1.5) if place % 3 == 0 else None
                    await ask(http, tally, chance.randrange(60), answers, leaves)
            except httpx2.HTTPError as error:
                tally.done[type(error).__name__] += 1
                tally.wrong.append(f"client {place}: {type(error).__name__} {error}")
            await asyncio.sleep(chance.uniform(0, 0.2))


async def watch(server: Server, until: float, tally: Tally) -> None:
    """Take the server's memory twice a second."""
    while time.monotonic() < until:
        tally.memory.append(server.memory())
        await asyncio.sleep(0.5)


def figure(url: str, name: str) -> float:
    """A figure of /metrics, summed over its labels."""
    text = httpx2.get(f"{url}/metrics", headers={"Authorization": f"Bearer {KEY}"}, timeout=60).text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name + "{"))


async def load(server: Server, clients: int, seconds: float) -> dict[str, Any]:
    """Answers of lone requests first, then all clients at once; what is left in the end."""
    tally, answers = Tally(), dict[int, str]()
    async with httpx2.AsyncClient(base_url=server.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=TIMEOUT) as lone:
        for number in range(60):
            await ask(lone, tally, number, answers, None)
    until = time.monotonic() + seconds
    await asyncio.gather(watch(server, until, tally), *(client(server.url, place, until, tally, answers) for place in range(clients)))
    ends = time.monotonic() + 30
    while (left := figure(server.url, "triform_slots_used") + figure(server.url, "triform_cache_tokens_used")) and time.monotonic() < ends:
        await asyncio.sleep(0.2)
    half = tally.memory[len(tally.memory) // 2 :]
    growth = max(half[-len(half) // 3 :]) / max(half[: len(half) // 3]) - 1
    return {
        "requests": sum(tally.done.values()), "outcomes": dict(tally.done.most_common()), "wrong": tally.wrong[:20],
        "wrong_count": len(tally.wrong), "left_in_use": left, "memory_mib": round(max(half) / 2**20, 1), "memory_growth": round(growth, 4),
    }  # fmt: skip


async def end(server: Server, streams: int = 24) -> dict[str, Any]:
    """SIGTERM in the middle of streams."""
    tally = Tally()

    async def read(number: int) -> None:
        try:
            async with httpx2.AsyncClient(base_url=server.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=TIMEOUT) as http:
                await ask(http, tally, number, {}, None, max_tokens=400)
        except httpx2.HTTPError as error:
            tally.wrong.append(f"stream {number}: {type(error).__name__} {error}")

    reading = [asyncio.ensure_future(read(number)) for number in range(streams)]
    while await asyncio.to_thread(figure, server.url, "triform_running") + sum(tally.done.values()) < 2:
        await asyncio.sleep(0.05)
    while await asyncio.to_thread(figure, server.url, "triform_waiting") + sum(tally.done.values()) < streams - 8:
        await asyncio.sleep(0.05)
    began = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    await asyncio.gather(*reading)
    code = await asyncio.to_thread(server.process.wait, server.drain + 60)
    return {"exit_code": code, "seconds": round(time.monotonic() - began, 2), "streams": dict(tally.done), "wrong": tally.wrong}


def main() -> None:
    """Run it, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=120)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder))
        try:
            loaded = asyncio.run(load(server, asked.clients, asked.seconds))
            ended = asyncio.run(end(server))
        finally:
            server.process.kill()
    print(json.dumps({"load": loaded, "end": ended}, ensure_ascii=False, indent=2))
    held = not loaded["wrong_count"] and not loaded["left_in_use"] and loaded["memory_growth"] < 0.05
    fine = held and ended["exit_code"] == 0 and not ended["wrong"]
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
