"""Training steps a second, peak memory and losses: Triform beside transformers, nanoGPT and litgpt, on the CPU.

    python benchmarks/train.py                          # every model in fp32 and bf16; prints Markdown
    python benchmarks/train.py --models llama --precisions bf16
    python benchmarks/train.py --nanogpt FOLDER         # with nanoGPT, a checkout of it
    python benchmarks/train.py --peer-python PYTHON     # with litgpt, by an interpreter that has it
    python benchmarks/train.py --quick                  # two layers and one round, to see that it runs

Each contestant has a process of its own, begins with the same weights and gets the same random tokens, 1,024 a step. They take
turns, a few steps each, so that whatever else the machine does falls on all; times are medians, ratios medians over the
turns. All have torch's fused AdamW, decay on matrices only, gradients clipped to a norm of 1, and no dropout. Their
losses are compared step by step. Peak memory is what torch's CPU allocator has given out at once in a step after the first; the
share of the peak is that of a square matrix product measured in the same turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROWS, LENGTH, SOURCE, TARGET = 4, 256, 192, 64  # 1,024 tokens a step in every model
RATE, BETAS, DECAY, CLIP = 1e-4, (0.9, 0.95), 0.1, 1.0
WARM_UP = 2  # steps, of which the second is measured for memory
APART = {"fp32": 1e-3, "bf16": 2e-2}  # nats between the losses of one step
LLAMA = [
    "decoder.width=768", "decoder.depth=12", "decoder.pattern[0].attention.heads=12", "decoder.pattern[0].attention.kv_heads=4",
    "decoder.pattern[0].feed_forward.hidden=2048", "decoder.input.vocab_size=32000", "head.tied=true",
    "decoder.pattern[0].attention.position={kind: Rotary, theta: 10000.0}",
]  # fmt: skip
BERT_HEAD = "head={kind: LanguageModel, transform: gelu, bias: learned, norm: {kind: LayerNorm, eps: 1.0e-12}}"
MODELS: dict[str, tuple[str, str, list[str]]] = {
    "gpt2": ("GPT-2 124M", "gpt2", []),
    "llama": ("LLaMA shape 100M", "llama-3-8b", LLAMA),
    "bert": ("BERT-base masked", "bert-base", [BERT_HEAD]),
    "t5": ("T5-small", "t5-small", []),
}


def specification(name: str, quick: bool) -> Any:
    """The model's configuration without dropout."""
    from triform import config

    _, preset, overrides = MODELS[name]
    found = config.resolve(preset, overrides)
    if quick:
        found = config.resolve(found, [f"{side}.depth=2" for side in ("encoder", "decoder") if getattr(found, side) is not None])
    return config.from_dict(config.Model, _without_dropout(config.to_dict(found, hint=config.Model)))


def _without_dropout(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: 0.0 if key == "dropout" else _without_dropout(value) for key, value in data.items()}
    return [_without_dropout(value) for value in data] if isinstance(data, list | tuple) else data


def tokens(name: str, vocabulary: int, step: int) -> dict[str, Any]:
    """The inputs and labels of a step, and the decoder's input of T5; -100 where nothing is scored."""
    import torch

    random = torch.Generator().manual_seed(step)

    def ids(length: int) -> Any:
        return torch.randint(2, vocabulary, (ROWS, length), generator=random)

    if name == "t5":
        source, labels = ids(SOURCE), ids(TARGET)
        start = torch.zeros(ROWS, 1, dtype=torch.long)
        return {"inputs": source, "labels": labels, "target": torch.cat((start, labels[:, :-1]), 1)}
    if name == "bert":
        inputs, labels = ids(LENGTH), ids(LENGTH)
        return {"inputs": inputs, "labels": labels.masked_fill(torch.rand(ROWS, LENGTH, generator=random) >= 0.15, -100)}
    stream = ids(LENGTH + 1)
    return {"inputs": stream[:, :-1].contiguous(), "labels": stream[:, 1:].contiguous()}


# Contestants: each is built from the folder of the starting weights and gives a step, which returns its loss

Step = Callable[[dict[str, Any]], float]


def triform(asked: argparse.Namespace) -> Step:
    """The training loop's own step."""
    from triform import nn
    from triform.objectives import Batch, Causal
    from triform.objectives.causal import CausalObjective
    from triform.train.allocator import keeping_memory
    from triform.train.recipe import TrainRecipe
    from triform.train.step import Steps

    asked.stack.enter_context(keeping_memory())
    spec = specification(asked.model, asked.quick)
    recipe = TrainRecipe(
        steps=1_000_000, batch=ROWS, rate=RATE, betas=BETAS, weight_decay=DECAY, clip=CLIP, warmup=0, schedule="constant", floor=1.0
    )
    objective: Any = CausalObjective(Causal(), None)
    steps = Steps(spec, nn.build(spec, seed=0), objective, recipe, precision=asked.precision)
    count = iter(range(1_000_000))
    return lambda batch: float(steps.take(next(count), [Batch(**batch)])["loss"])


def transformers(asked: argparse.Namespace, compiled: bool = False) -> Step:
    """transformers' modules in a plain loop."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, T5ForConditionalGeneration

    kinds: dict[str, Any] = {"bert": AutoModelForMaskedLM, "t5": T5ForConditionalGeneration}
    settings = AutoConfig.from_pretrained(asked.folder)
    for key in vars(settings):
        if key.endswith(("dropout", "_pdrop", "dropout_rate", "dropout_prob")) and getattr(settings, key):
            setattr(settings, key, 0.0)
    model = kinds.get(asked.model, AutoModelForCausalLM).from_pretrained(asked.folder, config=settings, dtype=torch.float32)
    forward: Any = torch.compile(model) if compiled else model

    def loss(batch: dict[str, Any]) -> Any:
        named: dict[str, Any] = {"input_ids": batch["inputs"], "labels": batch["labels"]}
        if asked.model == "t5":
            named["decoder_input_ids"] = batch["target"]
        elif asked.model != "bert":
            named |= {"shift_labels": batch["labels"], "use_cache": False}
        return forward(**named).loss

    return _plain_step(model, loss, asked.precision)


def nanogpt(asked: argparse.Namespace) -> Step:
    """nanoGPT's model in a plain loop, as its train.py has it."""
    import torch
    from safetensors.torch import load_file

    sys.path.insert(0, asked.nanogpt)
    from model import GPT, GPTConfig  # type: ignore[import-not-found]

    spec = specification(asked.model, asked.quick).decoder
    made = GPTConfig(
        block_size=1024, vocab_size=spec.input.vocab_size, n_layer=spec.depth, n_head=12, n_embd=spec.width, dropout=0.0, bias=True
    )
    model, own = GPT(made), load_file(Path(asked.folder) / "model.safetensors")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            found = own.get(name, own.get(name.removeprefix("transformer.")))
            assert found is not None, name
            parameter.copy_(found.t() if found.shape != parameter.shape or ("c_" in name and found.ndim == 2) else found)
    return _plain_step(model, lambda batch: model(batch["inputs"], batch["labels"])[1], asked.precision)


def litgpt(asked: argparse.Namespace) -> Step:
    """litgpt's model in a plain loop."""
    import torch
    from litgpt import GPT, Config  # type: ignore[import-not-found]
    from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama  # type: ignore[import-not-found]
    from safetensors.torch import load_file

    shape = json.loads((Path(asked.folder) / "config.json").read_text(encoding="utf-8"))
    made = Config(
        name="shape", block_size=2048, vocab_size=shape["vocab_size"], padded_vocab_size=shape["vocab_size"],
        n_layer=shape["num_hidden_layers"], n_head=shape["num_attention_heads"], n_query_groups=shape["num_key_value_heads"],
        n_embd=shape["hidden_size"], intermediate_size=shape["intermediate_size"], mlp_class_name="LLaMAMLP", norm_class_name="RMSNorm",
        norm_eps=shape["rms_norm_eps"], bias=False, parallel_residual=False, rotary_percentage=1.0, head_size=64,
    )  # fmt: skip
    weights: dict[str, Any] = {}
    copy_weights_hf_llama(made, {}, weights, load_file(Path(asked.folder) / "model.safetensors"))
    model = GPT(made)
    weights.setdefault("lm_head.weight", weights["transformer.wte.weight"])
    model.load_state_dict(weights, strict=True)
    model.lm_head.weight = model.transformer.wte.weight
    model.max_seq_length = LENGTH

    def loss(batch: dict[str, Any]) -> Any:
        logits = model(batch["inputs"]).float()
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())

    return _plain_step(model, loss, asked.precision)


def _plain_step(model: Any, loss: Callable[[dict[str, Any]], Any], precision: str) -> Step:
    import torch

    model.train()
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=BETAS, eps=1e-8, fused=True)

    def step(batch: dict[str, Any]) -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            value = loss(batch)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(value.detach())

    return step


CONTESTANTS: dict[str, tuple[str, Callable[[argparse.Namespace], Step], tuple[str, ...]]] = {
    "triform": ("Triform", triform, tuple(MODELS)),
    "transformers": ("transformers", transformers, tuple(MODELS)),
    "compiled": ("transformers, compiled", lambda asked: transformers(asked, compiled=True), tuple(MODELS)),
    "nanogpt": ("nanoGPT", nanogpt, ("gpt2",)),
    "litgpt": ("litgpt", litgpt, ("llama",)),
}


def work(asked: argparse.Namespace) -> None:
    """A contestant's process: warms up, then takes as many steps as each line of standard input says."""
    import torch

    from triform.planner.machine import matmul_peak
    from triform.train.live import Allocations

    spec = specification(asked.model, asked.quick)
    vocabulary, number = spec.last.input.vocab_size, WARM_UP - 1
    with ExitStack() as asked.stack:
        losses = []
        with Allocations() as allocations:
            torch.manual_seed(0)
            step = CONTESTANTS[asked.one][1](asked)
            for warming in range(WARM_UP):
                allocations.mark()
                losses.append(step(tokens(asked.model, vocabulary, warming)))
        _say({"memory": allocations.peak, "losses": losses})
        for line in sys.stdin:
            seconds, losses = [], []
            for _ in range(int(line)):
                number += 1
                batch = tokens(asked.model, vocabulary, number)
                start = time.perf_counter()
                losses.append(step(batch))
                seconds.append(time.perf_counter() - start)
            matmul_peak.cache_clear()
            _say({"seconds": seconds, "losses": losses, "peak": matmul_peak(asked.precision) if asked.one == "triform" else None})


def _say(found: dict[str, Any]) -> None:
    print(json.dumps(found), flush=True)


# The contest


@dataclass
class Runner:
    """A contestant's process, and what it has told."""

    name: str
    process: subprocess.Popen[str]
    memory: int = 0
    losses: list[float] = field(default_factory=list)
    turns: list[float] = field(default_factory=list)  # seconds a step, the median of each turn
    peaks: list[float] = field(default_factory=list)

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                self.losses += found["losses"]
                return found
        raise SystemExit(f"{self.name} ended with {self.process.wait()}")

    def turn(self, steps: int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        found = self.hear()
        self.turns.append(statistics.median(found["seconds"]))
        if found["peak"]:
            self.peaks.append(found["peak"])


@contextmanager
def running(asked: argparse.Namespace, name: str, model: str, precision: str, folder: str) -> Iterator[Runner]:
    """A contestant, warmed up and waiting."""
    python = asked.peer_python if name == "litgpt" else sys.executable
    command = [python, __file__, "--one", name, "--model", model, "--precision", precision, "--folder", folder]
    command += ["--nanogpt", asked.nanogpt] if asked.nanogpt else []
    command += ["--quick"] if asked.quick else []
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "OMP_NUM_THREADS": str(asked.threads)}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=None if asked.verbose else subprocess.DEVNULL, text=True,
        env=os.environ | quiet,
    )  # fmt: skip
    runner = Runner(name, process)
    try:
        runner.memory = runner.hear()["memory"]
        yield runner
    finally:
        process.terminate()
        process.wait()


def contest(asked: argparse.Namespace, model: str, precision: str) -> list[dict[str, Any]]:
    """All contestants over one model, a row each."""
    from triform import hub, nn
    from triform.planner import flops

    spec = specification(model, asked.quick)
    there = {"nanogpt": bool(asked.nanogpt), "litgpt": bool(asked.peer_python), "compiled": not asked.no_compile}
    names = [name for name, (_, _, models) in CONTESTANTS.items() if model in models and there.get(name, True)]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        hub.save(nn.build(spec, seed=0), None, folder)
        runners = [stack.enter_context(running(asked, name, model, precision, folder)) for name in names]
        for _ in range(1 if asked.quick else asked.rounds):
            for runner in runners:
                runner.turn(asked.steps)
    ours, lengths = runners[0], (SOURCE, TARGET) if model == "t5" else (LENGTH, None)
    example = tokens(model, spec.last.input.vocab_size, 0)
    scored = -(-int((example["labels"] != -100).sum()) // ROWS)
    steps_flops = 3.0 * ROWS * flops.forward(spec, lengths[0], lengths[1], scored)
    rows = []
    for runner in runners:
        apart = max(abs(a - b) for a, b in zip(runner.losses, ours.losses, strict=True))
        if apart > APART[precision]:
            print(f"{runner.name}: its losses of {model} in {precision} differ from ours by {apart:.2g} nats", file=sys.stderr)
        rows.append({
            "model": MODELS[model][0], "precision": precision, "contestant": CONTESTANTS[runner.name][0],
            "tokens_per_second": 1024 / statistics.median(runner.turns),
            "speed_of_ours": statistics.median(theirs / mine for theirs, mine in zip(runner.turns, ours.turns, strict=True)),
            "share_of_peak": statistics.median(steps_flops / t / p for t, p in zip(runner.turns, ours.peaks, strict=True)),
            "memory": runner.memory, "memory_of_ours": ours.memory / runner.memory, "losses_apart": apart, "seconds": runner.turns,
        })  # fmt: skip
    return rows


HEAD = ["model", "precision", "", "tokens/s", "Triform is", "share of peak", "peak memory, MB", "Triform's is", "losses apart"]


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    cells = [
        row["model"], row["precision"], row["contestant"], f"{row['tokens_per_second']:,.0f}", f"{row['speed_of_ours']:.2f} x",
        f"{100 * row['share_of_peak']:.0f} %", f"{row['memory'] / 1e6:,.0f}", f"{row['memory_of_ours']:.2f} x",
        f"{row['losses_apart']:.1g}",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Run the contests and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--precisions", nargs="+", choices=APART, default=list(APART))
    parser.add_argument("--rounds", type=int, default=4, help="turns of each contestant")
    parser.add_argument("--steps", type=int, default=2, help="steps of a turn")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--nanogpt", help="a checkout of nanoGPT")
    parser.add_argument("--peer-python", help="an interpreter that has litgpt, torch and this package")
    parser.add_argument("--no-compile", action="store_true", help="leave out transformers compiled, whose first step takes a minute")
    parser.add_argument("--quick", action="store_true", help="two layers, one round")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--verbose", action="store_true", help="show what the contestants say")
    for hidden in ("--one", "--model", "--precision", "--folder"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        work(asked)
        return
    if not asked.json:
        print("| " + " | ".join(HEAD) + " |\n" + "|---" * len(HEAD) + "|")
    rows = []
    for model in asked.models:
        for precision in asked.precisions:
            found = contest(asked, model, precision)
            rows += found
            if not asked.json:
                print("\n".join(map(line, found)), flush=True)
    if asked.json:
        print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
