"""Many requests at once: Triform's engine against transformers' static batches and its continuous batching.

The same weights at the same precision, sixteen greedy requests with short and long prompts and outputs, the contestants
by turns, medians, ratios; Triform once more over HTTP, by `triform serve` in a process of its own. A static batch runs until
its longest row is done; transformers' is tried in batches of 4, 8 and 16, of which the fastest counts. Only the tokens that
were asked for count. Then the time to the first token of a short prompt, of the engine alone and over HTTP: idle, and with
fifteen other requests running, each replaced by a new one when it ends.
Wants an otherwise idle machine:

    python benchmarks/serve.py
    python benchmarks/serve.py --dtype bf16 --rounds 5 --json serve.json
    python benchmarks/serve.py --quick                                  # a tiny random model, to see that it works
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx2
import torch

import triform
from triform import hub
from triform.generate import Sampling
from triform.generate.engine import Engine
from triform.generate.prepared import prepare
from triform.generate.requests import Request
from triform.text import train_tokenizer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Prompt and output in tokens: questions, short and long, and documents, summed up or gone on with.
MIXED = ((24, 32), (16, 64), (48, 24), (32, 96), (20, 48), (64, 16), (28, 200), (512, 24), (40, 40), (384, 128), (18, 80), (56, 32),
         (256, 192), (30, 56), (22, 24), (448, 48))  # fmt: skip
PROBE = 24  # tokens of the short prompt whose first token is timed
SLOTS = 24


@dataclass(frozen=True)
class Row:
    """One contestant: seconds for the requests, the tokens asked for a second, and how many times the static batches'."""

    name: str
    seconds: float
    tokens_a_second: float
    ratio: float
    spread: float


@dataclass(frozen=True)
class FirstToken:
    """Seconds to the first token of a short prompt: medians and the ninth of ten."""

    idle: float
    idle_p90: float
    loaded: float
    loaded_p90: float
    ratio: float


def prompts(vocab_size: int, seed: int, scale: float) -> list[tuple[list[int], int]]:
    """Ids and output lengths of the requests; each seed has others, so that nothing is read twice."""
    draw = random.Random(seed)
    shapes = [(max(2, round(length * scale)), max(2, round(new * scale))) for length, new in MIXED]
    return [([draw.randrange(5, vocab_size) for _ in range(length)], new) for length, new in shapes]


class Static:
    """transformers' `generate` on batches padded to their longest prompt, which run to their longest output."""

    def __init__(self, model: Any, size: int | None = None) -> None:
        self.model, self.size, self.fixed = model, size or 16, size is not None

    def run(self, asked: list[tuple[list[int], int]]) -> list[list[int]]:
        found: list[list[int]] = []
        for at in range(0, len(asked), self.size):
            some = asked[at : at + self.size]
            width, most = max(len(ids) for ids, _ in some), max(new for _, new in some)
            ids = torch.tensor([[0] * (width - len(ids)) + ids for ids, _ in some])
            mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids, _ in some])
            how = {"max_new_tokens": most, "min_new_tokens": most, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
            with torch.inference_mode():
                out = self.model.generate(input_ids=ids, attention_mask=mask, **how)
            found += [row[width : width + new].tolist() for row, (_, new) in zip(out, some, strict=True)]
        return found

    def choose_size(self, asked: list[tuple[list[int], int]]) -> None:
        """Take the size that is fastest, unless one is given."""
        if self.fixed:
            return
        times = {}
        for size in (16, 8, 4):
            self.size = size
            times[size] = timed(self, asked)[0]
        self.size = min(times, key=lambda size: times[size])


class Continuous:
    """transformers' continuous batching."""

    def __init__(self, model: Any) -> None:
        from transformers import GenerationConfig

        how = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0, max_new_tokens=max(new for _, new in MIXED))
        self.manager = model.init_continuous_batching(generation_config=how)
        self.manager.start()

    def run(self, asked: list[tuple[list[int], int]]) -> list[list[int]]:
        names = [self.manager.add_request(ids, max_new_tokens=new) for ids, new in asked]
        found: dict[str, list[int]] = {}
        while len(found) < len(names):
            result = self.manager.get_result(timeout=1)
            if result is not None and result.is_finished():
                found[result.request_id] = list(result.generated_tokens)
            elif result is None and not self.manager.is_running():
                raise RuntimeError("transformers' continuous batching stopped")
        return [found[name] for name in names]

    def close(self) -> None:
        self.manager.stop(block=True)


class Ours:
    """Triform's engine."""

    def __init__(self, model: Any, capacity: int) -> None:
        self.engine = Engine(model, slots=SLOTS, capacity=capacity)

    def run(self, asked: list[tuple[list[int], int]]) -> list[list[int]]:
        return [ticket.result().ids for ticket in [self.engine.submit(request(ids, new)) for ids, new in asked]]

    def first(self, ids: list[int]) -> float:
        """Seconds to the first token."""
        ticket = self.engine.submit(request(ids, 4))
        ticket.result()
        assert ticket.first_token_at is not None
        return ticket.first_token_at - ticket.submitted_at

    def keep_busy(self, ids: list[int], new: int, stopping: threading.Event) -> None:
        """One request, to its end or until it is over."""
        ticket = self.engine.submit(request(ids, new))
        while not ticket.done:
            if stopping.wait(0.02):
                ticket.cancel()
                ticket.result()

    def close(self) -> None:
        self.engine.close()


class Served:
    """`triform serve` in a process of its own, asked over HTTP by streams."""

    def __init__(self, folder: Path, dtype: str, capacity: int) -> None:
        command = [sys.executable, "-c", "from triform.cli import main; main()", "serve", f"model={folder}", "--port", "0"]
        command += ["--dtype", dtype, "--slots", str(SLOTS), "--capacity", str(capacity)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        if " at http://" not in said:
            raise RuntimeError(f"the server did not start: {said}")
        self.client = httpx2.Client(base_url=said.split(" at ")[1].split()[0], timeout=600, limits=httpx2.Limits(max_connections=64))

    def _lines(self, ids: list[int], new: int) -> Iterator[str]:
        body = {"prompt": ids, "max_tokens": new, "min_tokens": new, "temperature": 0, "stream": True}
        with self.client.stream("POST", "/v1/completions", json=body | {"stream_options": {"include_usage": True}}) as found:
            found.raise_for_status()
            yield from (line for line in found.iter_lines() if line.startswith("data: {"))

    def run(self, asked: list[tuple[list[int], int]]) -> list[list[int]]:
        with ThreadPoolExecutor(len(asked)) as clients:
            counts = clients.map(lambda pair: json.loads(list(self._lines(*pair))[-1][6:])["usage"]["completion_tokens"], asked)
            return [[0] * count for count in counts]

    def first(self, ids: list[int]) -> float:
        """Seconds from the request to the first token."""
        began = time.perf_counter()
        lines = self._lines(ids, 4)
        next(lines)
        seconds = time.perf_counter() - began
        for _ in lines:
            pass
        return seconds

    def keep_busy(self, ids: list[int], new: int, stopping: threading.Event) -> None:
        """One request, to its end or until it is over."""
        lines = self._lines(ids, new)
        for _ in lines:
            if stopping.is_set():
                lines.close()

    def close(self) -> None:
        self.client.close()
        self.process.terminate()
        self.process.wait(60)


def request(ids: list[int], new: int) -> Request:
    """A greedy request that nothing ends early."""
    return Request(ids=ids, sampling=Sampling(max_new_tokens=new), eos=())


def timed(contestant: Any, asked: list[tuple[list[int], int]]) -> tuple[float, list[list[int]]]:
    """Seconds and result."""
    began = time.perf_counter()
    found = contestant.run(asked)
    return time.perf_counter() - began, found


def first_token(contestant: Ours | Served, vocab_size: int, probes: int, scale: float) -> FirstToken:
    """The time to the first token of a short prompt, idle and with fifteen others."""
    draw = random.Random(7)

    def probe() -> float:
        return contestant.first([draw.randrange(5, vocab_size) for _ in range(max(2, round(PROBE * scale)))])

    probe()
    idle = [probe() for _ in range(probes)]
    stopping, begun = threading.Event(), threading.Barrier(16)

    def client(number: int) -> None:
        turn = number
        begun.wait()
        while not stopping.is_set():
            ids, new = prompts(vocab_size, 1000 + turn, scale)[turn % len(MIXED)]
            contestant.keep_busy(ids, new, stopping)
            turn += 15

    clients = [threading.Thread(target=client, args=(number,)) for number in range(15)]
    for thread in clients:
        thread.start()
    begun.wait()
    time.sleep(2)
    loaded = []
    for _ in range(probes):
        time.sleep(draw.uniform(0.02, 0.2))  # wherever the engine happens to be
        loaded.append(probe())
    stopping.set()
    for thread in clients:
        thread.join()
    nine = round(0.9 * (probes - 1))
    middle = statistics.median(idle), statistics.median(loaded)
    return FirstToken(middle[0], sorted(idle)[nine], middle[1], sorted(loaded)[nine], middle[1] / middle[0])


def compare(contestants: dict[str, Any], vocab_size: int, rounds: int, scale: float) -> tuple[list[Row], float]:
    """Every contestant on every round's requests, by turns; and the share of tokens that ours and the static batches agree on."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    asked = prompts(vocab_size, 0, scale)
    contestants["transformers, static batches"].choose_size(asked)
    for contestant in contestants.values():
        contestant.run(asked)
    same = total = 0
    for number in range(rounds):
        asked = prompts(vocab_size, 1 + number, scale)
        found = {}
        for name, contestant in contestants.items():
            seconds, found[name] = timed(contestant, asked)
            times[name].append(seconds)
            assert [len(row) for row in found[name]] == [new for _, new in asked], name
        for one, other in zip(found["triform"], found["transformers, static batches"], strict=True):
            agree = next((i for i, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1]), len(one))
            same, total = same + agree, total + len(one)
    tokens, base = sum(new for _, new in asked), times["transformers, static batches"]
    rows = []
    for name, seconds in times.items():
        ratios = [b / s for b, s in zip(base, seconds, strict=True)]
        middle = statistics.median(seconds)
        rows.append(Row(name, middle, tokens / middle, statistics.median(ratios), max(ratios) - min(ratios)))
    return rows, same / total


def report(rows: list[Row], agreement: float, firsts: dict[str, FirstToken], size: int) -> str:
    """The results as Markdown."""
    lines = ["| contestant | seconds | tokens/s | times static | spread |", "|---|---|---|---|---|"]
    lines += [f"| {r.name} | {r.seconds:.2f} | {r.tokens_a_second:.1f} | {r.ratio:.2f} | {r.spread:.2f} |" for r in rows]
    lines += ["", f"Static batches of {size}. Tokens up to the first that differs from theirs: {agreement:.1%}.", ""]
    lines = lines if rows else []
    lines += ["| first token of a short prompt, ms | idle | 9 of 10 | fifteen others | 9 of 10 | loaded over idle |"]
    lines += ["|---|---|---|---|---|---|"]
    for name, one in firsts.items():
        times = (one.idle, one.idle_p90, one.loaded, one.loaded_p90)
        lines.append(f"| {name} | {' | '.join(f'{1000 * seconds:.1f}' for seconds in times)} | {one.ratio:.2f} |")
    return "\n".join(lines)


def ours_in(name: str, dtype: str, folder: Path, quick: bool) -> Any:
    """Our model, written to a folder too, from which the others read the same weights."""
    if quick:
        model = triform.build("smollm2-135m", ["decoder.width=72", "decoder.depth=2"], seed=0).eval()
        tokenizer = train_tokenizer(["a few lines"], kind="byte-bpe", vocab_size=266, min_frequency=1)
    else:
        model, tokenizer = triform.load(name)
    model = model.to(DTYPES[dtype])
    hub.save(model, tokenizer, folder)
    return model


def peers(folder: Path, settings: argparse.Namespace) -> dict[str, Any]:
    """transformers' ways of doing it, each with the weights in a folder."""
    from transformers import AutoModelForCausalLM

    def load() -> Any:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[settings.dtype]).eval()

    found: dict[str, Any] = {"transformers, static batches": Static(load(), settings.static_size)}
    if "continuous" in settings.peers:
        found["transformers, continuous batching"] = Continuous(load())
    return found


def main() -> None:
    """Compare, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="fp32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="of the lengths of prompts and outputs")
    parser.add_argument("--quick", action="store_true", help="a tiny random model")
    parser.add_argument("--peers", default="static,continuous", help="which of transformers' ways to run, beside static")
    parser.add_argument("--first-token", action="store_true", help="measure the time to the first token over HTTP alone")
    parser.add_argument("--static-size", type=int, help="rows of a static batch; left out: the fastest of 4, 8 and 16")
    parser.add_argument("--json", type=Path, help="write the results here too")
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = ours_in(settings.model, settings.dtype, Path(folder), settings.quick)
        scale, probes = 0.1 if settings.quick else settings.scale, 5 if settings.quick else 20
        vocab_size = model.config.last.input.vocab_size
        contestants: dict[str, Any] = {} if settings.first_token else peers(Path(folder), settings)
        ours: dict[str, Ours | Served] = {"triform, over HTTP": Served(Path(folder), settings.dtype, capacity=1024)}
        if not settings.first_token:
            ours["triform"] = Ours(prepare(model, settings.dtype), capacity=1024)
        rows, agreement, size = [], 0.0, 0
        try:
            if contestants:
                rows, agreement = compare(contestants | ours, vocab_size, settings.rounds, scale)
                size = contestants["transformers, static batches"].size
            firsts = {name: first_token(one, vocab_size, probes, scale) for name, one in ours.items()}
        finally:
            for contestant in (*ours.values(), *contestants.values()):
                if hasattr(contestant, "close"):
                    contestant.close()
    print(report(rows, agreement, firsts, size))
    if settings.json is not None:
        found = {"dtype": settings.dtype, "threads": torch.get_num_threads(), "rows": [asdict(row) for row in rows],
                 "agreement": agreement, "first_token": {name: asdict(one) for name, one in firsts.items()}}  # fmt: skip
        settings.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
