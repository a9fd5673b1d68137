"""Memory predicted from the configuration is what training and generating take."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import strategies
import torch
from benchmarks import memory as benchmark
from hypothesis import given, settings
from hypothesis import strategies as st

from triform import config, nn
from triform.generate.batch import _CHUNK
from triform.generate.scheduler import Row, Scheduler
from triform.kernels import training
from triform.planner import memory, serving
from triform.planner.memory import Memory
from triform.planner.parameters import parameters
from triform.planner.setting import Setting
from triform.train.live import Allocations, LiveBytes, tensors_of

TOLERANCE = 0.05  # the claim; most are within 0.005


def small(name: str, *overrides: str) -> Any:
    """A preset's kind of model, small enough to train in a moment."""
    found, sizes = config.preset(name), list[str]()
    for side in ("encoder", "decoder"):
        if (stack := getattr(found, side)) is None:
            continue
        sizes += [f"{side}.width=96", f"{side}.depth=2"]
        sizes += [f"{side}.input.vocab_size=2000"] if isinstance(stack.input, config.Tokens) else [f"{side}.input.image=64"]
        for index, block in enumerate(stack.pattern):
            part = f"{side}.pattern[{index}]"
            for kind, attention in (("attention", block.attention), ("cross", block.cross)):
                if attention is not None:
                    sizes += [f"{part}.{kind}.heads=4", f"{part}.{kind}.head_width=24"]
                    sizes += [f"{part}.{kind}.kv_heads=2"] if attention.kv_heads else []
            if isinstance(block.feed_forward, config.Experts):
                sizes += [f"{part}.feed_forward.expert.hidden=256", f"{part}.feed_forward.count=4"]
            else:
                sizes += [f"{part}.feed_forward.hidden=256"]
    return config.resolve(found, [*sizes, *overrides])


def trained(model: Any, setting: Setting) -> int:
    with Allocations() as allocations:
        benchmark.train_two_steps(model, setting, allocations.mark)
    return allocations.peak


def off(predicted: float, measured: float) -> float:
    return abs(predicted / measured - 1)


MLM = ("head={kind: LanguageModel, transform: gelu, bias: learned}",)
MANY = ("encoder.input.vocab_size=9000", "decoder.input.vocab_size=9000")
LONG = {"batch": 2, "sequence": 272}  # beyond the keys that the CPU attends to in fp32
CASES: list[tuple[str, tuple[str, ...], dict[str, Any]]] = [
    ("gpt2", (), {}),
    ("gpt2", (), {"precision": "fp32", "batch": 1, "sequence": 16}),  # the peak is at the token table's two gradients
    ("gpt2", (), {"recompute": "full", "optimizer": "adafactor"}),
    ("gpt2", (), {"recompute": "full", "batch": 1, "sequence": 16}),  # the gradients of layers stay in 16 bits there too
    ("gpt2", ("decoder.pattern[0].attention.dropout=0",), {**LONG, "recompute": "selective"}),
    ("gpt2", (), {"average": True, "batch": 1}),
    ("gpt2", (), {"accumulate": 3, "optimizer": "sgd", "batch": 2}),
    ("llama-3-8b", (), LONG),
    ("llama-3-8b", (), {**LONG, "rows": "packed", "optimizer": "adamw8bit"}),
    ("llama-3-8b", (), {"attention": "eager", "precision": "fp32"}),
    ("qwen3-0.6b", (), {**LONG, "precision": "fp32", "optimizer": "muon"}),
    ("gemma3-270m", ("decoder.pattern[0].attention.window=32",), {"recompute": "selective"}),
    ("mixtral-8x7b", (), {"precision": "fp32"}),
    ("mixtral-8x7b", (), {"batch": 1}),
    ("bert-base", MLM, {"scored": 10, "optimizer": "adafactor"}),
    ("bert-base", MLM, {"scored": 10, "rows": "packed", "recompute": "full", "precision": "fp32"}),
    ("distilbert-base", ("head={kind: Classify, labels: 2, transform: tanh}",), {"rows": "padded", "batch": 8}),
    ("vit-base-patch16-224", (), {"batch": 16}),
    ("t5-small", (), {"target": 32}),
    ("t5-small", (), {"target": 32, "rows": "padded", "recompute": "full", "precision": "fp32"}),
    ("bart-base", (), {"target": 32, "recompute": "selective"}),
    ("transformer-base", MANY, {"target": 16, "batch": 1, "accumulate": 2}),  # the token table's gradient is added to
    ("transformer-base", (), {"target": 64, "accumulate": 2, "rows": "packed"}),
    ("llama-3-8b", (), {"adapter": config.Adapter(rank=4)}),
    ("llama-3-8b", (), {"adapter": config.Adapter(rank=4, quantize="nf4"), "precision": "fp32", "recompute": "full"}),
    ("gpt2", (), {"adapter": config.Adapter(rank=8, kind="dora", targets=("query", "up")), "batch": 8}),
    ("t5-small", (), {"target": 32, "adapter": config.Adapter(rank=4, kind="dora"), "precision": "fp32"}),
    ("distilbert-base", ("head={kind: Classify, labels: 2, transform: tanh}",), {"adapter": config.Adapter(rank=4), "batch": 8}),
]


@pytest.mark.parametrize(("name", "overrides", "how"), CASES, ids=[f"{name}-{number}" for number, (name, *_) in enumerate(CASES)])
def test_training(name: str, overrides: tuple[str, ...], how: dict[str, Any]) -> None:
    model, setting = small(name, *overrides), Setting(**{"batch": 4, "sequence": 64, "device": "cpu"} | how)
    assert off(memory.training(model, setting).total, trained(model, setting)) < TOLERANCE


def test_controls_of_training() -> None:
    """What is measured is not met when a part is forgotten, or by another setting."""
    model, plain = small("llama-3-8b", "decoder.depth=6"), {"batch": 8, "sequence": 64, "device": "cpu"}
    found, measured = memory.training(model, Setting(**plain)), trained(model, Setting(**plain))
    assert off(found.total, measured) < TOLERANCE
    for part in ("weights", "optimizer", "activations", "logits"):
        assert off(found.total - found.parts[part], measured) > TOLERANCE, part
    changes: list[dict[str, Any]] = [
        {"recompute": "full"}, {"recompute": "selective"}, {"optimizer": "sgd"}, {"batch": 12}, {"sequence": 96},
    ]  # fmt: skip
    for change in changes:
        assert off(memory.training(model, Setting(**plain | change)).total, measured) > TOLERANCE, change


GENERATING = [
    ("gpt2", 4, 100, 8, "fp32", False), ("gpt2", 4, 100, 8, "bf16", True), ("llama-3-8b", 8, 4, 60, "fp32", False),
    ("gemma3-270m", 4, 100, 8, "fp32", False), ("t5-small", 4, 100, 8, "bf16", False), ("bart-base", 4, 100, 8, "fp32", False),
    # more prompts, longer ones and longer sources than are read at once
    ("llama-3-8b", 3, 600, 8, "fp32", False), ("gpt2", 2, 1000, 8, "bf16", False), ("gemma3-270m", 1, 1500, 8, "fp32", False),
    ("t5-small", 4, 500, 30, "fp32", False), ("qwen3-0.6b", 2, 100, 8, "fp32", False),
]  # fmt: skip


def generated(model: Any, case: benchmark.Generating) -> tuple[Memory, int]:
    with Allocations() as allocations:
        benchmark.generate_once(model, case, allocations.mark)
    return benchmark.predicted_generation(model, case), allocations.peak


@pytest.mark.parametrize(("name", "batch", "prompt", "new", "dtype", "padded"), GENERATING)
def test_generation(name: str, batch: int, prompt: int, new: int, dtype: str, padded: bool) -> None:
    overrides = ("decoder.pattern[0].attention.window=32",) if name.startswith("gemma") else ()
    found, measured = generated(small(name, *overrides), benchmark.Generating(name, batch, prompt, new, dtype, padded))
    assert off(found.total, measured) < TOLERANCE


def test_controls_of_generation() -> None:
    found, measured = generated(small("gpt2"), benchmark.Generating("gpt2", 4, 200, 40))
    assert off(found.total, measured) < TOLERANCE
    for part in ("weights", "cache", "workspace"):
        assert off(found.total - found.parts[part], measured) > TOLERANCE, part
    for other in ((5, 200, 40), (4, 250, 40), (4, 200, 120)):
        assert off(benchmark.predicted_generation(small("gpt2"), benchmark.Generating("gpt2", *other)).total, measured) > TOLERANCE, other


@pytest.mark.parametrize(
    ("rows", "length"),
    [(4, 100), (4, 512), (2, 1024), (2, 1000), (8, 900), (5, 700), (1, 1025), (1, 3000), (3, 1500), (200, 30), (16, 600), (8, 512)],
)
def test_prompts_are_read_as_the_scheduler_plans(rows: int, length: int) -> None:
    scheduler = Scheduler(rows, _CHUNK, reuse=False, whole=False)
    for number in range(rows):
        row = Row(SimpleNamespace(submitted_at=number), range(length), (), None, 8)  # type: ignore[arg-type]
        row.slot, row.begun, scheduler.rows[number] = number, True, row
    sizes, again = [], []
    while any(row.computed < length for row in scheduler.rows.values()):
        work = scheduler.plan()
        sizes.append(sum(count for _, count in work))
        again += [count * (row.computed + count) for row, count in work if count > 1 and row.computed]
        for row, count in work:
            row.computed += count
            row.tokens += [0] * (row.computed == len(row.tokens))
    forecast = serving.prompt_passes(rows, length)
    assert max(sizes) == pytest.approx(max(sum(piece.tokens for piece in pieces) for pieces in forecast), rel=1e-9)
    pairs = [piece.tokens * (piece.tokens + piece.past) for pieces in forecast for piece in pieces if piece.past and piece.tokens > 1]
    assert max(pairs, default=0) == pytest.approx(max(again, default=0), rel=0.15)
    assert serving.CHUNK == _CHUNK


def test_both_ways_of_measuring_see_known_tensors() -> None:
    with Allocations() as allocations:
        torch.ones(10_000)
        allocations.mark()
        kept = torch.ones(1000)
        twice = torch.ones(500).double()
        del kept, twice
        torch.ones(10)
    assert allocations.peak == 4000 + 500 * 12
    live = LiveBytes()
    with live:
        kept = torch.ones(1000)
        view = kept[:10].view(2, 5)
        del kept
        assert live.now == 4000
        del view
        assert live.now == 0
    assert live.peak == 4000


def test_fake_tensors_are_as_large_as_real_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "library", lambda: None)  # which knows real ones alone
    from torch._subclasses.fake_tensor import FakeTensorMode

    def peak() -> int:
        model, ids = nn.Transformer(small("llama-3-8b")), torch.zeros(2, 16, dtype=torch.long)
        with LiveBytes([*tensors_of(model), ids]) as live:
            model(ids).logits.sum().backward()
        return live.peak

    real = peak()
    with FakeTensorMode():
        assert peak() == real


MODELS = st.builds(
    lambda side, width, depth, gated: config.resolve(
        {"decoder": "gpt2", "encoder": "bert-base"}[side],
        [f"{side}.width={width}", f"{side}.depth={depth}", f"{side}.pattern[0].feed_forward.gated={gated}",
         *(MLM if side == "encoder" else ())],
    ),
    st.sampled_from(["encoder", "decoder"]), st.sampled_from([96, 192, 768]), st.integers(4, 12), st.booleans(),
)  # fmt: skip
SETTINGS = st.fixed_dictionaries({
    "batch": st.integers(1, 64), "sequence": st.integers(16, 512), "precision": st.sampled_from(["fp32", "bf16"]),
    "optimizer": st.sampled_from(["adamw", "adamw8bit", "adafactor", "muon", "sgd"]), "device": st.sampled_from(["cpu", "cuda"]),
    "attention": st.sampled_from(["sdpa", "eager"]), "rows": st.sampled_from(["full", "padded", "packed"]),
})  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(MODELS, SETTINGS)
def test_more_takes_more_and_recomputing_less(model: config.Model, how: dict[str, Any]) -> None:
    plain = memory.training(model, Setting(**how))
    assert plain.total == sum(plain.parts.values())
    assert all(plain.largest[name] >= size for name, size in plain.parts.items())
    assert sum(plain.layers.values()) == plain.parts["activations"]
    for more in ({"batch": how["batch"] + 1}, {"sequence": how["sequence"] + 64}):
        assert memory.training(model, Setting(**how | more)).total >= plain.total
    selective, full = (memory.training(model, Setting(**how | {"recompute": choice})).total for choice in ("selective", "full"))
    # To a thousandth: in a block that runs again, what its inner products read lives until its end.
    assert full <= 1.001 * selective
    assert selective <= 1.001 * plain.total


@settings(max_examples=60, deadline=None)
@given(strategies.models(), SETTINGS, st.sampled_from(["none", "selective", "full"]), st.sampled_from(["fp32", "bf16", "int8", "int4"]))
def test_any_model_has_an_answer(model: config.Model, how: dict[str, Any], recompute: str, dtype: memory.Dtype) -> None:
    found = memory.training(model, Setting(**how | {"recompute": recompute}))
    assert found.total == sum(found.parts.values()) > 12 * parameters(model).total // (3 if how["optimizer"] != "adamw" else 1)
    served = memory.inference(model, batch=2, context=8, dtype=dtype)
    assert served.total > served.parts["weights"] > 0


@pytest.mark.parametrize("name", ["llama-3-8b", "t5-base", "bert-base", "vit-base-patch16-224"])
@settings(max_examples=10, deadline=None)
@given(st.data())
def test_more_tokens_and_sequences_take_more_in_inference(name: str, data: st.DataObject) -> None:
    model, batch, context = config.preset(name), data.draw(st.integers(1, 64)), data.draw(st.integers(1, 500))
    plain = memory.inference(model, batch=batch, context=context)
    assert plain.total == sum(plain.parts.values())
    assert memory.inference(model, batch=batch + 1, context=context).total > plain.total
    longer = memory.inference(model, batch=batch, context=context + 1)
    if name == "t5-base":  # longer sources are read fewer at a time, in less room to work in; the rest grows
        assert all(longer.largest[part] >= size for part, size in plain.largest.items() if part != "workspace")
        assert longer.largest["cache"] > plain.largest["cache"]
        assert longer.largest["cross_cache"] > plain.largest["cross_cache"]
    else:
        assert longer.total >= plain.total


def test_what_fits_just_fits() -> None:
    model, room = config.preset("llama-3-8b"), 24 * 2**30
    length = memory.longest_context(model, room)
    assert memory.inference(model, context=length).total <= room < memory.inference(model, context=length + 1).total
    batch = memory.largest_batch(model, room, context=4096)
    assert memory.inference(model, batch=batch, context=4096).total <= room < memory.inference(model, batch=batch + 1, context=4096).total
    setting = Setting(recompute="full", optimizer="adafactor")
    gpt2 = config.preset("gpt2")
    most = memory.largest_training_batch(gpt2, setting, room)
    assert memory.training(gpt2, Setting(**vars(setting) | {"batch": most})).total <= room
    assert memory.training(gpt2, Setting(**vars(setting) | {"batch": most + 1})).total > room
    assert memory.longest_context(model, 2**30) == 0
    assert memory.longest_context(gpt2, 2**40) == 1024


def test_weights_by_dtype() -> None:
    model = config.preset("llama-7b")
    sizes = {dtype: memory.inference(model, context=8, dtype=dtype).parts for dtype in ("fp32", "bf16", "int8", "int4")}
    assert sizes["fp32"]["weights"] == 2 * sizes["bf16"]["weights"] == 4 * 6_738_415_616
    matrices = 6_738_415_616 - 65 * 4096
    assert sizes["int8"]["weights"] == matrices + 2 * 65 * 4096
    assert sizes["int4"]["weights"] == matrices // 2 + 2 * 65 * 4096
    assert sizes["int4"]["scales"] == matrices // 16


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ({"dtype": "fp8"}, "dtype: expected one of fp32, bf16, fp16, int8, int4, got 'fp8'"),
        ({"context": 8, "prompt": 9}, "prompt: expected from 1 to the 8 tokens"),
        ({"batch": 0}, "batch: expected a whole number of at least 1, got 0"),
        ({"context": -1}, "sequence: expected a whole number"),
    ],
)
def test_nonsense_is_refused(call: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        memory.inference(config.preset("gpt2"), **call)


def test_the_literature_stands_beside_it() -> None:
    gpt3 = memory.training(config.preset("gpt3-175b"), Setting(batch=1, sequence=2048))
    lines = {line.name: line for line in gpt3.published}
    layer = 2048 * 12288 * (34 + 5 * 96 * 2048 / 12288)  # Korthikanti et al. 2022, equation 1
    assert lines["activations, recompute none"].value == pytest.approx(96 * layer, rel=1e-9)
    assert lines["activations, recompute selective"].value == pytest.approx(96 * 2048 * 12288 * 34, rel=1e-9)
    assert lines["activations, recompute full"].value == pytest.approx(96 * 2048 * 12288 * 2, rel=1e-9)
    llama = memory.training(config.preset("llama-7b"), Setting(batch=1, sequence=2048, recompute="full"))
    held = {line.name: line.value for line in llama.published}
    assert held["weights, gradients and optimizer"] == 16 * 6_738_415_616 > 80e9
    assert llama.total > 80e9
    eight = memory.training(config.preset("llama-7b"), Setting(batch=1, optimizer="adamw8bit"))
    assert any(line.value == 6 * 6_738_415_616 for line in eight.published)
    assert memory.inference(config.preset("llama-7b")).published[0].value == pytest.approx(1.2 * 2 * 6_738_415_616)
    assert all(line.source and line.unit == "B" for line in (*gpt3.lines, *gpt3.published))


def test_every_preset_answers_without_torch() -> None:
    code = """
import sys
from triform import config
from triform.planner import memory
from triform.planner.setting import Setting
for name in config.presets():
    memory.training(config.preset(name), Setting(batch=4, sequence=256))
    memory.inference(config.preset(name), context=256)
assert "torch" not in sys.modules
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
