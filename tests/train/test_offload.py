"""Activations that wait in another memory, and products in 8 bits: emulated here, refused where they cannot run."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks import memory as benchmark
from recipes import recipe
from torch import Tensor, nn

from triform import config
from triform.planner import memory, plan
from triform.planner.setting import Setting
from triform.train import offload, run
from triform.train.fp8 import check_fp8, to_fp8
from triform.train.live import Allocations
from triform.train.loop import Trainer
from triform.train.offload import offloading
from triform.train.step import Steps


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the processor's own products, which add to a table's gradient in place."""
    monkeypatch.setattr("triform.train.step.training_products", lambda ways: nullcontext())


def stepped(kind: str, data: Path, folder: Path, **train: Any) -> dict[str, Tensor]:
    trainer = Trainer(recipe(kind, data, **{name: value for name, value in train.items() if name != "offload"}), folder, progress=False)
    trainer.settings = recipe(kind, data, **train).train
    trainer.gradients(0, trainer.train.step(0))
    return {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("kind", ["Causal", "SequenceToSequence", "ImageClassification"])
def test_gradients_are_the_same_to_the_bit(
    kind: str, recompute: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[int] = []
    plainly = offload.away
    monkeypatch.setattr(offload, "LEAST", 1)
    monkeypatch.setattr(offload, "away", lambda x: (moved.append(x.numel()), plainly(x))[1])
    before = stepped(kind, data, tmp_path / "a", recompute=recompute)
    assert not moved
    after = stepped(kind, data, tmp_path / "b", recompute=recompute, offload=True)
    assert len(moved) > 3
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    monkeypatch.setattr(offload, "back", lambda x, device: x * 1.01 if x.is_floating_point() else x)
    spoilt = stepped(kind, data, tmp_path / "c", recompute=recompute, offload=True)
    assert not all(torch.equal(before[name], spoilt[name]) for name in before)  # control: what is moved is what is used


def test_parameters_and_small_tensors_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[tuple[int, ...]] = []
    monkeypatch.setattr(offload, "away", lambda x: (moved.append(tuple(x.shape)), x.clone())[1])
    layer = nn.Linear(512, 256)
    with offloading(True, layer.parameters()):
        layer(torch.randn(128, 512)).square().sum().backward()
        layer(torch.randn(2, 512)).square().sum().backward()
    assert sorted(moved) == [(128, 256), (128, 512)]
    moved.clear()
    with offloading(False, layer.parameters()):
        layer(torch.randn(128, 512)).sum().backward()
    assert not moved


def to_numpy(x: Tensor) -> Any:
    """A copy outside of torch's allocator, as another memory is."""
    values = np.empty(x.numel() * x.element_size(), np.uint8)
    torch.from_numpy(values).view(x.dtype).view(x.shape).copy_(x.detach())
    return x.dtype, x.shape, values


def from_numpy(x: Any, device: torch.device) -> Tensor:
    kind, shape, values = x
    return torch.from_numpy(values).view(kind).view(shape).clone()


@pytest.mark.parametrize(("name", "recompute"), [("gpt2", "none"), ("llama", "none"), ("llama", "selective"), ("gpt2", "full")])
def test_the_planner_foresees_what_stays(name: str, recompute: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offload, "away", to_numpy)
    monkeypatch.setattr(offload, "back", from_numpy)
    overrides = benchmark.small("decoder", 192, 4, 4, 512, 2000, *(["decoder.pattern[0].attention.kv_heads=2"] if name == "llama" else []))
    model = config.resolve({"llama": "llama-3-8b", "gpt2": "gpt2"}[name], overrides)
    how: dict[str, Any] = {"batch": 4, "sequence": 256, "device": "cpu", "precision": "fp32", "recompute": recompute}
    with Allocations() as allocations:
        benchmark.train_two_steps(model, Setting(**how, offload=True), allocations.mark)
    # the processor's own fused modules, which offloading never meets on a GPU, are counted a little high
    assert memory.training(model, Setting(**how, offload=True)).total == pytest.approx(allocations.peak, rel=0.08)
    if recompute != "full":  # control: there is something to foresee (the block that runs again makes the peak of the full one)
        assert memory.training(model, Setting(**how)).total > 1.03 * allocations.peak


def test_what_cannot_run_is_refused_in_one_line(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [
        ({"offload": True}, "train.offload: moves activations from a GPU to the processor's memory, and this run is on the processor"),
        ({"precision": "fp8"}, "train.precision: fp8 needs an NVIDIA GPU of compute capability 8.9 or more, and this run is on the proc"),
    ]
    for settings, says in cases:
        with pytest.raises(ValueError, match=says) as caught:
            run(recipe("Causal", data, **settings), tmp_path / "run")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "run").exists()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *a: (8, 0))
    with pytest.raises(ValueError, match=r"and this one has 8\.0; choose bf16"):
        check_fp8("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *a: (9, 0))
    check_fp8("cuda")
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    with pytest.raises(ValueError, match=r'pip install "triform\[fp8\]"'):
        check_fp8("cuda")


def test_the_planner_knows_who_can() -> None:
    with pytest.raises(ValueError, match="A100-80G-SXM has no fp8; choose one of"):
        plan("gpt2", precision="fp8", hardware="A100-80G")
    fp8, bf16 = (plan("llama-7b", precision=precision, hardware="H100", batch=1, sequence=4096) for precision in ("fp8", "bf16"))
    assert fp8.time.ideal_seconds < 0.6 * bf16.time.ideal_seconds
    assert fp8.memory.training.total < bf16.memory.training.total  # no cast of a layer's matrix is kept
    away = plan("llama-7b", offload=True, hardware="H100", batch=1, sequence=4096)
    assert away.memory.training.parts["activations"] < 0.2 * bf16.memory.training.parts["activations"]
    with pytest.raises(ValueError, match="is a processor, whose memory is where offloading moves"):
        plan("gpt2", offload=True, hardware="this")


def test_layers_in_8_bits_learn_nearly_the_same(data: Path, tmp_path: Path) -> None:
    """torchao's own emulation: numbers are rounded to 8 bits as on a GPU, and multiplied in fp32."""
    losses: dict[str, list[float]] = {}
    for name in ("fp32", "fp8"):
        trainer = Trainer(recipe("Causal", data, steps=8, rate=0.01, warmup=1), tmp_path / name, progress=False)
        names = list(trainer.model.state_dict())
        if name == "fp8":
            # width 16, and a feed-forward of 24, which is no multiple of 16
            assert to_fp8(trainer.model, emulate=True) == 4
        steps = Steps(trainer.spec, trainer.model, trainer.objective, trainer.settings, precision="fp32")
        losses[name] = [steps.take(step, trainer.train.step(step))["loss"] for step in range(8)]
        assert list(trainer.model.state_dict()) == names
        assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
    assert losses["fp8"] == pytest.approx(losses["fp32"], rel=0.02)
    assert losses["fp8"] != pytest.approx(losses["fp32"], rel=1e-5)  # control: something was rounded


def test_a_model_whose_sides_do_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="fp8 needs layers whose sides are multiples of 16"):
        to_fp8(nn.Sequential(nn.Linear(16, 16)))
