"""Predicted and measured memory of training and generation, on the CPU.

    python benchmarks/memory.py                # every setting, a process each; prints the tables
    python benchmarks/memory.py --only bert    # those whose name has this in it
    python benchmarks/memory.py --table generation
    python benchmarks/memory.py --write        # and puts the tables into docs/memory.md and docs/zh/memory.md

Predicted is `triform.planner.memory`. Measured is the peak of what torch's CPU allocator has given out, from before the model
is built, during the second step of `triform.train.step` or a call of `triform.generate`. Beside it stand the live bytes of
tensors that a dispatch mode counts, and by how much the process' resident size grew at its peak (without the profiler).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from triform import config
from triform.planner import memory
from triform.planner.parameters import parameters
from triform.planner.setting import Setting

DOCS = Path(__file__).resolve().parents[1] / "docs"
MLM = "head={kind: LanguageModel, transform: gelu, bias: learned}"
CLASSIFIER = "head={kind: Classify, labels: 2}"


@dataclass(frozen=True)
class Training:
    """A model, and how it is trained."""

    model: str
    setting: dict[str, Any]
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Generating:
    """A model, prompts of a length and so many new tokens for each."""

    model: str
    batch: int
    prompt: int
    new: int
    dtype: memory.Dtype = "fp32"
    padded: bool = False
    overrides: tuple[str, ...] = ()


def small(side: str, width: int, depth: int, heads: int, hidden: int, vocabulary: int, *rest: str) -> tuple[str, ...]:
    """Overrides that make a stack of these sizes."""
    part = f"{side}.pattern[0]"
    sizes = (f"{side}.width={width}", f"{side}.depth={depth}", f"{part}.attention.heads={heads}", f"{part}.feed_forward.hidden={hidden}")
    return (*sizes, f"{side}.input.vocab_size={vocabulary}", *rest)


LLAMA = small("decoder", 512, 8, 8, 1408, 16000, "decoder.pattern[0].attention.kv_heads=4", "head.tied=true")
TINY = small("decoder", 320, 6, 5, 1280, 8000)
WIDE = ("decoder.depth=19",)
QWEN = small("decoder", 512, 8, 8, 1408, 32000, "decoder.pattern[0].attention.kv_heads=2", "decoder.pattern[0].attention.head_width=64")
EXPERTS = (
    "decoder.width=384", "decoder.depth=6", "decoder.pattern[0].attention.heads=6", "decoder.pattern[0].attention.kv_heads=2",
    "decoder.pattern[0].feed_forward.expert.hidden=1024", "decoder.input.vocab_size=16000",
)  # fmt: skip

TRAININGS = [
    Training("gpt2", {"batch": 1, "sequence": 128, "precision": "fp32"}),
    Training("gpt2", {"batch": 2, "sequence": 256}),
    Training("gpt2", {"batch": 2, "sequence": 256, "recompute": "selective"}),
    Training("gpt2", {"batch": 2, "sequence": 256, "recompute": "full", "optimizer": "adafactor"}),
    Training("gpt2", {"batch": 16, "sequence": 256, "precision": "fp32"}, TINY),
    Training("gpt2", {"batch": 4, "sequence": 64, "accumulate": 3, "optimizer": "sgd"}, TINY),
    Training("gpt2-medium", {"batch": 1, "sequence": 128, "optimizer": "adamw8bit"}, WIDE),
    Training("gpt2-medium", {"batch": 1, "sequence": 192, "recompute": "full"}, WIDE),
    Training("smollm2-135m", {"batch": 1, "sequence": 512}),
    Training("smollm2-135m", {"batch": 1, "sequence": 256, "precision": "fp32", "optimizer": "muon", "recompute": "full"}),
    Training("llama-3-8b", {"batch": 4, "sequence": 512}, LLAMA),
    Training("llama-3-8b", {"batch": 2, "sequence": 512, "rows": "packed", "recompute": "selective"}, LLAMA),
    Training("llama-3-8b", {"batch": 4, "sequence": 320, "attention": "eager", "precision": "fp32"}, LLAMA),
    Training("qwen3-0.6b", {"batch": 4, "sequence": 300, "precision": "fp32"}, QWEN),
    Training("gemma3-270m", {"batch": 1, "sequence": 128, "optimizer": "adafactor"}),
    Training("mixtral-8x7b", {"batch": 4, "sequence": 256}, EXPERTS),
    Training("bert-base", {"batch": 4, "sequence": 128, "scored": 19}, (MLM,)),
    Training("bert-base", {"batch": 4, "sequence": 128, "scored": 19, "precision": "fp32", "recompute": "selective"}, (MLM,)),
    Training("bert-base", {"batch": 1, "sequence": 512, "scored": 77, "rows": "packed", "recompute": "full"}, (MLM,)),
    Training("distilbert-base", {"batch": 6, "sequence": 128, "rows": "padded", "precision": "fp32"}, (CLASSIFIER,)),
    Training("vit-base-patch16-224", {"batch": 4}),
    Training("t5-small", {"batch": 3, "sequence": 256, "target": 64}),
    Training("t5-small", {"batch": 3, "sequence": 256, "target": 64, "precision": "fp32", "recompute": "selective", "rows": "padded"}),
    Training("t5-base", {"batch": 1, "sequence": 128, "target": 64, "precision": "fp32", "optimizer": "muon"}),
    Training("transformer-base", {"batch": 3, "sequence": 128, "target": 128, "accumulate": 2}),
    Training("bart-base", {"batch": 2, "sequence": 256, "target": 64, "rows": "padded"}),
    Training("bart-base", {"batch": 1, "sequence": 384, "target": 96, "recompute": "full", "optimizer": "adamw8bit"}),
    Training("chatlm-mini-chinese", {"batch": 1, "sequence": 128, "target": 128, "optimizer": "adafactor", "recompute": "full"}),
    Training("smollm2-135m", {"batch": 4, "sequence": 256, "adapter": config.Adapter(rank=16)}),
    Training("smollm2-135m", {"batch": 4, "sequence": 256, "adapter": config.Adapter(rank=16, quantize="nf4"), "recompute": "full"}),
    Training("t5-base", {"batch": 2, "sequence": 128, "target": 64, "precision": "fp32", "adapter": config.Adapter(kind="dora")}),
]

GENERATIONS = [
    Generating("gpt2", 1, 128, 32),
    Generating("gpt2", 4, 512, 32, "bf16"),
    Generating("gpt2-medium", 2, 128, 16, "bf16", False, WIDE),
    Generating("smollm2-135m", 2, 512, 16),
    Generating("smollm2-135m", 8, 128, 32, "bf16", True),
    Generating("gemma3-270m", 1, 900, 16, "bf16"),
    Generating("qwen3-0.6b", 4, 1024, 16, "fp32", False, QWEN),
    Generating("mixtral-8x7b", 4, 256, 16, "fp32", False, EXPERTS),
    Generating("t5-small", 4, 512, 64),
    Generating("bart-base", 4, 512, 32, "bf16"),
    Generating("chatlm-mini-chinese", 4, 256, 64, "bf16"),
]


def train_two_steps(model: config.Model, setting: Setting, begun: Callable[[], None]) -> Callable[[], None]:
    """Build a model and take two steps, of which the second counts; returns what takes another."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from triform import nn
    from triform.objectives import Causal, Classification
    from triform.objectives.causal import CausalObjective
    from triform.objectives.classification import ClassificationObjective
    from triform.train.recipe import TrainRecipe
    from triform.train.step import Steps

    is_language_model = isinstance(getattr(model, "head", None), config.LanguageModel)
    kind: Any = CausalObjective if is_language_model else ClassificationObjective
    spec = Causal() if is_language_model else Classification(labels=("a", "b"))
    names, adapter = ("batch", "accumulate", "optimizer", "recompute", "offload", "adapter"), setting.adapter
    more: dict[str, Any] = {"ema": 0.999 if setting.average else None, "start": None if adapter is None else "-"}
    recipe = TrainRecipe(steps=10, warmup=0, **more, **{name: getattr(setting, name) for name in names})
    built = nn.build(model, seed=0)
    if adapter is not None:
        nn.add_adapter(built, adapter, seed=0)
    steps = Steps(model, built, kind(spec, None), recipe, precision=setting.precision)

    def step(number: int = 2) -> None:
        batches = [made_batch(model, setting, number + place) for place in range(setting.accumulate)]
        with sdpa_kernel(SDPBackend.MATH) if setting.attention == "eager" else nullcontext():
            steps.take(number, batches)

    step(0)
    begun()
    step(1)
    step.tensors = [*_tensors(steps.model), *_states(steps.optimizer)]  # type: ignore[attr-defined]
    return step


def _tensors(model: Any) -> list[Any]:
    from triform.train.live import tensors_of

    return tensors_of(model)


def _states(optimizer: Any) -> list[Any]:
    import torch

    values = [value for part in optimizer.parts for state in part.state.values() for value in state.values()]
    return [value for value in values if isinstance(value, torch.Tensor)]


def made_batch(model: Any, setting: Setting, seed: int) -> Any:
    """A micro-batch as objectives make them, of random tokens."""
    import torch

    from triform.nn import IGNORE, Layout
    from triform.objectives import Batch

    random = torch.Generator().manual_seed(seed)
    first, both = model.encoder or model.decoder, model.encoder is not None and model.decoder is not None

    def ids(stack: config.Stack, length: int) -> torch.Tensor:
        if isinstance(stack.input, config.Patches):
            side = stack.input.image
            return torch.randn(setting.batch, stack.input.channels, side, side, generator=random)
        return torch.randint(stack.input.vocab_size, (setting.batch, length), generator=random)

    inputs = ids(first, setting.sequence)
    target = ids(model.decoder, setting.target_length) if both else None
    if not isinstance(model.head, config.LanguageModel):
        labels = torch.zeros(setting.batch, dtype=torch.long)
    else:
        labels = ids(model.last, setting.target_length if both else setting.sequence)
        if setting.scored is not None:
            labels[:, setting.scored :] = IGNORE
    mask = target_mask = layout = None
    if setting.rows == "padded":
        mask = _padded(inputs)
        target_mask = None if target is None else _padded(target)
    if setting.rows == "packed":
        layout = Layout(documents=_halves(inputs), target_documents=None if target is None else _halves(target))
    if setting.rows != "full" and labels.ndim == 2:
        labels[0, -1] = IGNORE
    return Batch(inputs, labels, mask, target, target_mask, layout)


def _padded(ids: Any) -> Any:
    import torch

    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[0, -1] = False
    return mask


def _halves(ids: Any) -> Any:
    import torch

    return (torch.arange(ids.shape[1]) >= ids.shape[1] // 2).long().expand(ids.shape).contiguous()


def generate_once(model: Any, case: Generating, begun: Callable[[], None]) -> Callable[[], None]:
    """Build a model and generate; returns what does it again.

    The cache's buffers, which on the CPU the system gives page by page as they are written, are taken whole from torch's
    allocator here, so that its record has all of them.
    """
    import torch

    from triform import nn
    from triform.generate import slots
    from triform.generate.sampling import Sampling
    from triform.generate.search import generate_ids

    net = nn.build(model, seed=0, dtype={"fp32": torch.float32, "bf16": torch.bfloat16}[case.dtype])
    ids = torch.randint(10, 1000, (case.batch, case.prompt), generator=torch.Generator().manual_seed(0))
    mask = None
    if case.padded:
        mask = torch.ones_like(ids, dtype=torch.bool)
        mask[0, 0] = False

    @patch.object(slots, "_zeros", lambda shape, like: like.new_zeros(shape))
    def again() -> None:
        generate_ids(net, ids, mask, Sampling(max_new_tokens=case.new), start=0 if net.encoder is not None else None)

    begun()
    again()
    again.tensors = [*_tensors(net), ids]  # type: ignore[attr-defined]
    return again


def predicted_generation(model: Any, case: Generating) -> memory.Memory:
    """What the call that `generate_once` makes is predicted to take."""
    both = model.form == "encoder-decoder"
    cached = case.new if both else case.prompt + case.new - 1
    return memory.inference(
        model, batch=case.batch, context=case.prompt if both else cached, target=cached if both else None,
        dtype=case.dtype, device="cpu", prompt=None if both else case.prompt, padded=case.padded,
    )  # fmt: skip


def resident(peak: bool) -> int:
    """Bytes of this process in memory: the most so far, or now."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM" if peak else "VmRSS"))
    return int(line.split()[1]) * 1024


def measure(case: Training | Generating) -> dict[str, Any]:
    """What one setting is predicted to take and what it takes."""
    from triform.train.live import Allocations, LiveBytes

    model = config.resolve(case.model, list(case.overrides))
    if isinstance(case, Training):
        setting = Setting(device="cpu", **case.setting)
        predicted = memory.training(model, setting)
        run: Callable[[Callable[[], None]], Any] = lambda begun: train_two_steps(model, setting, begun)  # noqa: E731
    else:
        predicted = predicted_generation(model, case)
        run = lambda begun: generate_once(model, case, begun)  # noqa: E731
    import torch._dynamo  # noqa: F401  (what a first step imports is not the model's)

    before = resident(peak=False)
    run(lambda: None)
    grown = resident(peak=True) - before
    with Allocations() as allocations:
        again = run(allocations.mark)
    live = LiveBytes(again.tensors)
    with live:
        again()
    return {
        "parameters": parameters(model).total, "predicted": predicted.total, "measured": allocations.peak, "live": live.peak,
        "resident": grown, "baseline": before, "moment": predicted.moment, "parts": predicted.parts,
    }  # fmt: skip


def row(number: int, case: Training | Generating, found: dict[str, Any]) -> str:
    """A line of the table."""
    error = found["predicted"] / found["measured"] - 1
    what = case.model + (" (resized)" if any("=" in o and not o.startswith("head=") for o in case.overrides) else "")
    if isinstance(case, Training):
        s = Setting(device="cpu", **case.setting)
        lengths = f"{s.batch} x {s.sequence}" if s.target is None else f"{s.batch} x {s.sequence} + {s.target}"
        if what.startswith("vit"):
            lengths = f"{s.batch} x 197"
        extra = [s.rows] * (s.rows != "full") + [s.attention] * (s.attention != "sdpa")
        extra += [f"accumulate {s.accumulate}"] * (s.accumulate > 1)
        if s.adapter is not None:
            extra.append(f"{s.adapter.kind} of rank {s.adapter.rank}" + (f" on {s.adapter.quantize}" if s.adapter.quantize else ""))
        how = [lengths, s.optimizer, s.precision, s.recompute, ", ".join(extra)]
    else:
        how = [f"{case.batch} x {case.prompt} + {case.new}", case.dtype, "padded" if case.padded else ""]
    sizes = [f"{found[name] / 1e6:,.1f}" for name in ("predicted", "measured")]
    rest = [f"{found[name] / 1e6:,.1f}" for name in ("live", "resident")]
    cells = [str(number), what, f"{found['parameters'] / 1e6:,.0f}M", *how, *sizes, f"{100 * error:+.2f} %", *rest, found["moment"]]
    return "| " + " | ".join(cells) + " |"


def write(name: str, rows: list[str]) -> None:
    """Put rows between the marks of a table in both languages."""
    for file in (DOCS / "memory.md", DOCS / "zh" / "memory.md"):
        lines = file.read_text(encoding="utf-8").split("\n")
        first, last = lines.index(f"<!-- {name} -->"), lines.index(f"<!-- end of {name} -->")
        head = lines[first + 1 : first + 3]
        file.write_text("\n".join([*lines[: first + 1], *head, *rows, *lines[last:]]), encoding="utf-8")


def main() -> None:
    """Run the settings, each in a process of its own, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="settings whose model has this in its name")
    parser.add_argument("--table", choices=("training", "generation"), help="only this one")
    parser.add_argument("--write", action="store_true", help="put the tables into the documents")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    tables: dict[str, list[Any]] = {"training": TRAININGS, "generation": GENERATIONS}
    if asked.one:
        table, number = asked.one.split(":")
        print(json.dumps(measure(tables[table][int(number)])))
        return
    for table, cases in tables.items():
        if asked.table not in (None, table):
            continue
        rows = []
        for number, case in enumerate(cases):
            if asked.only not in case.model:
                continue
            command = [sys.executable, __file__, "--one", f"{table}:{number}"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{case}: {done.stderr[-2000:]}")
            rows.append(row(number + 1, case, json.loads(done.stdout.splitlines()[-1])))
            print(rows[-1], flush=True)
        if asked.write and not asked.only:
            write(table, rows)


if __name__ == "__main__":
    main()
