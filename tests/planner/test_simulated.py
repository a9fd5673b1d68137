"""Layouts over a thousand ranks, held against one rank of them simulated: torch's own sharding on fake tensors, nothing sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch._subclasses import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.testing._internal.distributed.fake_pg import FakeStore

from triform import config, nn
from triform.planner import Setting, hardware
from triform.planner.parallel import Layout, share

TOLERANCE = 0.14  # seen: 1 to 12 %
MODEL = config.resolve(
    "llama-3.2-1b",
    ["decoder.depth=6", "decoder.width=512", "decoder.pattern[0].attention.heads=8", "decoder.pattern[0].attention.kv_heads=8",
     "decoder.pattern[0].attention.head_width=64", "decoder.pattern[0].feed_forward.hidden=1408", "decoder.input.vocab_size=8192",
     "head=null"],
)  # fmt: skip
assert isinstance(MODEL, config.Transformer)
SETTING = Setting(batch=2, sequence=256, precision="fp32", device="cpu")


@contextmanager
def ranks(count: int) -> Iterator[None]:
    """As rank 0 of so many, of which there are no others."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=count)
    try:
        yield
    finally:
        dist.destroy_process_group()


def tensor_parallel(model: torch.nn.Module, mesh: DeviceMesh) -> None:
    """Megatron's shares: projections in by columns, projections out by rows, the table by rows."""
    plan: dict[str, ColwiseParallel | RowwiseParallel] = {"decoder.input.token": RowwiseParallel(input_layouts=Replicate())}
    for side in ("query", "key", "value"):
        plan[f"decoder.layers.*.attention.body.{side}"] = ColwiseParallel()
    for side in ("gate", "up"):
        plan[f"decoder.layers.*.feed_forward.body.{side}"] = ColwiseParallel()
    for side in ("attention.body.out", "feed_forward.body.down"):
        plan[f"decoder.layers.*.{side}"] = RowwiseParallel()
    parallelize_module(model, mesh, plan)


def simulated(model: config.Model, layout: Layout, setting: Setting) -> int:
    """Bytes of rank 0's tensors at the peak of a step after the first; a pipeline's first stage holds one micro-batch for each stage."""
    assert isinstance(model, config.Transformer)
    assert model.decoder is not None
    stage = replace(model, decoder=replace(model.decoder, depth=model.decoder.depth // layout.pipeline))
    with ranks(layout.devices):
        mesh = init_device_mesh("cpu", (layout.pipeline, layout.data, layout.tensor), mesh_dim_names=("pp", "dp", "tp"))
        module = nn.build(stage, device="meta")
        if layout.tensor > 1:
            tensor_parallel(module, mesh["tp"])
        if layout.zero == 3:
            for layer in module.decoder.layers.values():
                fully_shard(layer, mesh=mesh["dp"])
            fully_shard(module, mesh=mesh["dp"])
        with FakeTensorMode(allow_non_fake_inputs=True):
            module.to_empty(device="cpu")
            optimizer = torch.optim.AdamW(module.parameters(), fused=False, foreach=False)
            step(module, optimizer, setting, layout.pipeline)
            tracker = MemTracker()
            tracker.track_external(module, optimizer)
            with tracker:
                step(module, optimizer, setting, layout.pipeline, tracker.reset_mod_stats)
            return sum(int(parts["Total"]) for parts in tracker.get_tracker_snapshot("peak").values())


def step(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, setting: Setting, stages: int, between: Callable[[], None] | None = None
) -> None:
    """A first stage's one-forward-one-backward over twice as many micro-batches; `between` is called between two forward passes."""
    ids, outputs = torch.randint(64, (setting.batch, setting.sequence)), []
    for number in range(1 if stages == 1 else 2 * stages):
        if number and between is not None:
            between()
        outputs.append(model(ids).hidden)
        if len(outputs) == stages:
            outputs.pop(0).sum().backward()
    for output in outputs:
        output.sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def planned(model: config.Model, layout: Layout, setting: Setting) -> int:
    fleet = hardware(f"{layout.devices}xA100-80G")
    micro_batches = 1 if layout.pipeline == 1 else 2 * layout.pipeline
    return share(model, replace(setting, accumulate=micro_batches), layout, fleet).total


CASES = [Layout(data=1024, zero=3), Layout(tensor=8), Layout(data=128, tensor=8, zero=3), Layout(pipeline=3)]


@pytest.mark.parametrize("layout", CASES, ids=str)
def test_a_rank_holds_what_is_planned(layout: Layout) -> None:
    got = simulated(MODEL, layout, SETTING)
    assert planned(MODEL, layout, SETTING) == pytest.approx(got, rel=TOLERANCE)
    for other in CASES:
        if other != layout:
            assert planned(MODEL, other, SETTING) != pytest.approx(got, rel=TOLERANCE), other


@pytest.mark.slow
@pytest.mark.parametrize("layout", [Layout(data=1024, zero=3), Layout(data=128, tensor=8, zero=3)], ids=str)
def test_seven_billion_parameters_on_a_thousand_ranks(layout: Layout) -> None:
    model = config.resolve("llama-7b", ["head=null"])
    setting = replace(SETTING, batch=1, sequence=1024)
    assert planned(model, layout, setting) == pytest.approx(simulated(model, layout, setting), rel=TOLERANCE)
