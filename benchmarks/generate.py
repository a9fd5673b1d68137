"""Generation on the CPU against transformers, llama.cpp and CTranslate2: the same weights at the same precision.

    python benchmarks/generate.py                       # both models, all precisions; under a quarter of an hour
    python benchmarks/generate.py --quick               # the small model, two rounds
    python benchmarks/generate.py --precision int8 --json generate.json
    python benchmarks/generate.py --peer-python peers/bin/python    # a Python that has ctranslate2 (and transformers)

Contestants take turns, each in a process of its own; the figures are medians of the rounds. A round times a prompt of 128
tokens up to the first token (prefill), and the tokens after it (decoding), for one row and for eight. The share of the
limit is the bytes of weights that a token reads, over the bytes a second that a loop which only reads gets in the same rounds.
Quality is the perplexity of this repository's English guides, which no model was trained on, in windows of 512 tokens.
llama.cpp reads 16 bits as bf16 and as fp16; its faster one counts. Wants an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triform
from triform import hub

HERE = Path(__file__).resolve().parent
MODELS = {"smollm2-135m-instruct": 64, "qwen2.5-0.5b": 24}  # tokens made in a round; the second has random weights of that shape
PRECISIONS = ("fp32", "bf16", "int8", "int4")
FILES = {"fp32": ("fp32",), "bf16": ("bf16", "fp16"), "int8": ("q8_0",), "int4": ("q4_0",)}
SCORED = 4096  # tokens whose perplexity is taken
BATCH = 8


@dataclass(frozen=True)
class Row:
    """One contestant at one precision: tokens a second, milliseconds for the prompt, and Triform's times over it."""

    model: str
    precision: str
    name: str
    one: float
    batch: float
    prefill: float
    ratio_one: float
    ratio_batch: float
    ratio_prefill: float
    limit: float | None  # share of the bandwidth's limit, of one stream


@dataclass(frozen=True)
class Quality:
    """Triform's perplexity at a precision, and how much more that is than in fp32."""

    precision: str
    perplexity: float
    over: float


class Worker:
    """A contestant's process."""

    def __init__(self, python: str, name: str, path: Path, precision: str) -> None:
        command = [python, str(HERE / "contestants.py"), name, str(path), precision]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.bytes: int = self._answer()["bytes"]

    def ask(self, **request: Any) -> dict[str, Any]:
        """A request's answer."""
        assert self.process.stdin is not None
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise ValueError(f"it ended early; run {' '.join(map(str, self.process.args))} by hand to see why")  # type: ignore[arg-type]
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def worker(python: str, name: str, path: Path, precision: str) -> Iterator[Worker]:
    """A contestant, as long as it is needed."""
    found = Worker(python, name, path, precision)
    try:
        yield found
    finally:
        found.process.kill()
        found.process.wait()


def write_files(name: str, folder: Path, precisions: Sequence[str]) -> None:
    """The weights for everybody, where they are not there yet: a folder for transformers, and a GGUF file for each precision."""
    if (folder / "hf").is_dir() and all((folder / f"{dtype}.gguf").is_file() for precision in precisions for dtype in FILES[precision]):
        return
    if name == "smollm2-135m-instruct":
        model, tokenizer = hub.load(name, dtype="fp32")
    else:
        model, tokenizer = triform.build(name, seed=0), None
    if not (folder / "hf").is_dir():
        hub.save(model, tokenizer, folder / "hf")
    for dtype in [dtype for precision in precisions for dtype in FILES[precision]]:
        if not (folder / f"{dtype}.gguf").is_file():
            hub.gguf.write(model, None, folder / f"{dtype}.gguf", dtype)


def entrants(precision: str, folder: Path, peer_python: str | None) -> list[tuple[str, str, str, Path]]:
    """Python, contestant, what the report calls it, and its weights; ours first."""
    quantized = precision in ("int8", "int4")
    found = [(sys.executable, "triform", "triform", folder / f"{FILES[precision][0]}.gguf" if quantized else folder / "hf")]
    found += [(sys.executable, "llama.cpp", f"llama.cpp {dtype}", folder / f"{dtype}.gguf") for dtype in FILES[precision]]
    if not quantized:
        found.append((sys.executable, "transformers", "transformers", folder / "hf"))
    if peer_python and precision != "int4":
        found.append((peer_python, "ctranslate2", "ctranslate2", folder / "hf"))
    return found


def compete(model: str, precision: str, found: Sequence[tuple[str, str, str, Path]], rounds: int, new: int) -> list[Row]:
    """Rounds in which all take their turns."""
    rates: list[float] = []
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for python, name, label, path in found:
            try:
                workers[label] = stack.enter_context(worker(python, name, path, precision))
            except ValueError as error:  # such as CTranslate2 in bf16, on processors that it has no form for
                if name == "triform":
                    raise
                print(f"{label} is left out in {precision}: {error}", file=sys.stderr)
        ours = workers["triform"]
        took: dict[str, dict[str, list[float]]] = {label: {"one": [], "batch": [], "prefill": []} for label in workers}
        for number in range(rounds + 1):
            order = list(workers.items())
            for label, one in order if number % 2 else order[::-1]:
                for kind, rows, tokens in (("one", 1, new), ("batch", BATCH, new // 2)):
                    answer = one.ask(rows=rows, new=tokens)
                    if number:  # the first round is for warming up
                        took[label][kind].append(rows * (tokens - 1) / answer["rest"])
                        if rows == 1:
                            took[label]["prefill"].append(1e3 * answer["first"])
            rates += [ours.ask(read=1)["rate"] for _ in range(3)]
    middle = {label: {kind: statistics.median(values) for kind, values in kinds.items()} for label, kinds in took.items()}
    limit = statistics.median(rates) / ours.bytes
    mine = middle["triform"]
    return [
        Row(
            model, precision, label, one["one"], one["batch"], one["prefill"], mine["one"] / one["one"], mine["batch"] / one["batch"],
            one["prefill"] / mine["prefill"], one["one"] / limit,
        )
        for label, one in middle.items()
    ]  # fmt: skip


def quality(folder: Path, precisions: Sequence[str]) -> list[Quality]:
    """The perplexity of every precision."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted((HERE.parent / "docs").glob("*.md")))
    _, tokenizer = hub.load("smollm2-135m-instruct")
    assert tokenizer is not None
    ids = tokenizer.encode(text)[:SCORED]
    nats = {}
    for precision in ("fp32", *(p for p in precisions if p != "fp32")):
        path = folder / f"{FILES[precision][0]}.gguf" if precision in ("int8", "int4") else folder / "hf"
        with worker(sys.executable, "triform", path, precision) as one:
            nats[precision] = one.ask(score=ids)["nats"]
    return [Quality(p, math.exp(n), math.exp(n - nats["fp32"]) - 1) for p, n in nats.items()]


def tables(rows: Sequence[Row], qualities: Sequence[Quality]) -> str:
    """Everything in Markdown."""
    lines = []
    for model in dict.fromkeys(row.model for row in rows):
        lines += [f"## {model}", "", "| precision | | one stream, tokens/s | share of the limit | Triform's times | batch of 8, tokens/s |"
                  " Triform's times | prompt of 128, ms | Triform's times |", "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
        for row in (row for row in rows if row.model == model):
            lines.append(
                f"| {row.precision} | {row.name} | {row.one:.1f} | {row.limit:.0%} | {row.ratio_one:.2f} | {row.batch:.0f} | "
                f"{row.ratio_batch:.2f} | {row.prefill:.0f} | {row.ratio_prefill:.2f} |"
            )
        lines.append("")
    if qualities:
        lines += ["## Perplexity", "", "| precision | perplexity | over fp32 |", "|---|---|---|"]
        lines += [f"| {q.precision} | {q.perplexity:.3f} | {q.over:+.2%} |" for q in qualities]
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, help="one of the models; left out: both")
    parser.add_argument("--precision", choices=PRECISIONS, action="append", help="may be given several times; left out: all")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="the small model alone, two rounds")
    parser.add_argument("--peer-python", help="a Python that has ctranslate2")
    parser.add_argument("--files", type=Path, help="keep the weights' files here, and use those that are here")
    parser.add_argument("--json", type=Path, help="write everything here, too")
    arguments = parser.parse_args()
    models = [arguments.model] if arguments.model else list(MODELS)[: 1 if arguments.quick else None]
    precisions = arguments.precision or list(PRECISIONS)
    rows: list[Row] = []
    qualities: list[Quality] = []
    for model in models:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) if arguments.files is None else arguments.files / model
            folder.mkdir(parents=True, exist_ok=True)
            write_files(model, folder, precisions)
            for precision in precisions:
                print(f"{model}, {precision} ...", file=sys.stderr)
                found = entrants(precision, folder, arguments.peer_python)
                rows += compete(model, precision, found, 2 if arguments.quick else arguments.rounds, MODELS[model])
            if model == "smollm2-135m-instruct":
                qualities = quality(folder, precisions)
    print(tables(rows, qualities))
    if arguments.json:
        found_all = {"rows": [asdict(row) for row in rows], "quality": [asdict(q) for q in qualities]}
        arguments.json.write_text(json.dumps(found_all, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
