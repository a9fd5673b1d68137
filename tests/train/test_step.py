"""What one step does: the loss and its gradients, the learning rate, decay, clipping, and which samples it takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recipes import OBJECTIVES, model, plain, recipe

from triform.nn import Layout, build
from triform.nn.dropout import Dropout
from triform.objectives import Batch, Samples
from triform.train import TrainRecipe, read_recipe
from triform.train.batches import Batches
from triform.train.loop import Trainer
from triform.train.optimizer import Optimizer, clip_factor, norm_of_gradients, schedule
from triform.train.rollouts import Rollouts

AMONG_OTHERS = ("Contrastive", "SentenceEmbedding", "KTO")
"""What a sample costs depends on the others of its micro-batch: on what it is told apart from, or on the divergence measured there."""
WITHOUT_DROPOUT = ("DPO", "IPO", "SimPO", "KTO", "PPO", "GRPO")
"""Answers are scored as the reference, or the policy that drew them, scored them."""
EXPERTS = {"kind": "Experts", "expert": {"kind": "FeedForward", "hidden": 16}, "count": 3, "top_k": 1}


def trainer(data: Path, folder: Path, kind: str = "Causal", experts: bool = False, **train: Any) -> Trainer:
    """A trainer in fp64 without dropout."""
    settings = plain(kind, data, **train)
    settings["data"]["validation"] = 0
    if experts:
        settings["model"] = model("decoder", feed_forward=EXPERTS)
    found = Trainer(read_recipe(settings), folder, progress=False)
    found.model.double()
    for module in found.model.modules():
        if isinstance(module, Dropout):
            module.p = 0.0
    return found


def gradients(made: Trainer, batches: Sequence[Batch]) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    made.model.zero_grad()
    made.model.train()
    losses = made._backward(batches, sum(batch.tokens for batch in batches))
    return losses, {n: p.grad.clone() for n, p in made.model.named_parameters() if p.grad is not None}


def apart(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    return max(float((left[n] - right[n]).abs().max()) for n in left)


def collated(made: Trainer, *splits: Sequence[int]) -> list[list[Batch]]:
    """The samples of the first step, or as many answers of a rollout, in micro-batches of so many.

    The weights are then moved away from those that the reference had, or that drew the answers.
    """
    if isinstance(made.train, Rollouts):
        made.train.step(0)
        assert made.train.held is not None
        samples = made.train.held[: made.settings.batch * made.settings.accumulate]
    else:
        samples = [made.train.samples[i] for i in made.train.indices(0)]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    seeds = [(0, 0, i) for i in range(len(samples))]
    ends = [[sum(sizes[:i]) for i in range(len(sizes) + 1)] for sizes in splits]
    assert all(end[-1] == len(samples) for end in ends)
    return [[made.objective.collate(samples[i:j], seeds[i:j]) for i, j in pairwise(end)] for end in ends]


def smoothed(made: Trainer) -> Trainer:
    """A trainer with smoothing and z-loss where its objective takes them."""
    if made.objective.smooths:
        made.settings = replace(made.settings, smoothing=0.1, z_loss=0.01)
    return made


@pytest.mark.parametrize("kind", [kind for kind in OBJECTIVES if kind not in AMONG_OTHERS])
def test_micro_batches_add_up_to_one_batch(kind: str, data: Path, tmp_path: Path) -> None:
    """In fp64, where rounding leaves 1e-12, a mean of means would be off by 1e-5, as far as their labels differ in number."""
    small = smoothed(trainer(data, tmp_path / "small", kind, batch=2, accumulate=4))
    whole, parts = collated(small, [8], [1, 3, 2, 2])
    one, four = gradients(small, whole), gradients(small, parts)
    assert one[0] == pytest.approx(four[0], abs=1e-12)
    assert apart(one[1], four[1]) < 1e-12
    means = [gradients(small, [part]) for part in parts]
    mean = {n: torch.stack([m[1][n] for m in means]).mean(0) for n in one[1]}
    assert apart(one[1], mean) > 1e-5


@pytest.mark.parametrize("kind", AMONG_OTHERS)
def test_samples_of_other_micro_batches_are_not_looked_at(kind: str, data: Path, tmp_path: Path) -> None:
    """A step is the mean of its micro-batches, each by its own samples, to 1e-12 in fp64, and so not that of one large batch."""
    made = smoothed(trainer(data, tmp_path / "run", kind, batch=3, accumulate=2))
    whole, parts = collated(made, [6], [2, 4])
    each = [gradients(made, [part])[1] for part in parts]
    found = gradients(made, parts)[1]
    assert apart(found, {n: (2 * each[0][n] + 4 * each[1][n]) / 6 for n in found}) < 1e-12
    assert apart(found, gradients(made, whole)[1]) > 1e-7


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_recomputing_changes_no_bit_of_a_gradient(kind: str, data: Path, tmp_path: Path) -> None:
    """With dropout, in fp32; another step's dropout is the control, or its batches where there is none."""
    made = Trainer(recipe(kind, data), tmp_path / "run", progress=False)
    *_, before, batches = [made.train.step(step) for step in range(4)]

    def found(step: int, recompute: Any, batches: Sequence[Batch] = batches) -> dict[str, torch.Tensor]:
        made.model.zero_grad()
        made.settings = replace(made.settings, recompute=recompute)
        made.gradients(step, batches)
        return {n: p.grad.clone() for n, p in made.model.named_parameters() if p.grad is not None}

    plainly = found(3, "none")
    for how in ("selective", "full"):
        again = found(3, how)
        assert all(torch.equal(plainly[n], again[n]) for n in plainly)
    assert (apart(plainly, found(4, "full")) > 0) == (kind not in WITHOUT_DROPOUT)
    assert apart(plainly, found(3, "full", before)) > 0


@pytest.mark.parametrize("how", ["selective", "full"])
def test_gradients_of_recomputed_layers_stay_as_narrow(how: str, data: Path, tmp_path: Path) -> None:
    """Those of the layers' matrices in 16 bits, where products are, with or without recomputing, and all else in 32."""
    made = Trainer(recipe("Causal", data, precision="bf16"), tmp_path / "run", progress=False)
    batches, found = made.train.step(0), []
    for choice in ("none", how):
        made.model.zero_grad()
        made.settings = replace(made.settings, recompute=choice)
        made.gradients(0, batches)
        found.append({n: p.grad.clone() for n, p in made.model.named_parameters() if p.grad is not None})
    plainly, again = found
    assert {n: g.dtype for n, g in again.items()} == {n: g.dtype for n, g in plainly.items()}
    assert all(torch.equal(plainly[n], again[n]) for n in plainly)
    assert {n for n, g in again.items() if g.dtype == torch.bfloat16} == {
        n for n, g in plainly.items() if ".layers." in n and g.ndim == 2
    }


def documents_of(batch: Batch) -> list[Batch]:
    """The packed documents of a batch, each as a row of a batch of its own."""
    found = []
    for row in range(len(batch.inputs)):
        size = batch.inputs.shape[1] if batch.mask is None else int(batch.mask[row].sum())
        numbers = torch.zeros(size) if batch.layout is None else batch.layout.documents[row, :size]
        for number in numbers.unique():
            here = [row], torch.nonzero(numbers == number)[:, 0]
            prefix = None if batch.layout is None or batch.layout.prefix is None else batch.layout.prefix[here][None]
            found.append(Batch(batch.inputs[here][None], batch.labels[here][None], layout=Layout(prefix=prefix)))
    return found


@pytest.mark.parametrize("kind", ["Causal", "Prefix", "FillInTheMiddle", "Masked"])
def test_packed_documents_train_like_documents_alone(kind: str, data: Path, tmp_path: Path) -> None:
    """In fp64, to 1e-12; documents that are not told apart are the control."""
    made = trainer(data, tmp_path / "run", kind, batch=6, smoothing=0.1, z_loss=0.01)
    (batch,) = made.train.step(0)
    assert batch.layout is not None
    alone = documents_of(batch)
    assert len(alone) > len(batch.inputs)
    one, other = gradients(made, [batch]), gradients(made, alone)
    assert one[0] == pytest.approx(other[0], abs=1e-12)
    assert apart(one[1], other[1]) < 1e-12
    merged = replace(batch, layout=replace(batch.layout, documents=torch.zeros_like(batch.inputs)))
    assert apart(one[1], gradients(made, [merged])[1]) > 1e-5


def test_the_routers_losses_add_up_too(data: Path, tmp_path: Path) -> None:
    """The z-loss is a mean over tokens, so micro-batches of different sizes give that of the whole."""
    made = trainer(data, tmp_path / "run", experts=True, load_balance=0.0, router_z=1.0)
    made.validation = None
    documents = [made.train.samples[i] for i in range(6)]
    documents[1] = {name: values[:5] for name, values in documents[1].items()}
    seeds = [(0, 0, i) for i in range(6)]
    whole = [made.objective.collate(documents, seeds)]
    parts = [made.objective.collate(documents[i:j], seeds[i:j]) for i, j in ((0, 1), (1, 2), (2, 6))]
    assert len({part.tokens for part in parts}) == 3
    one, three = gradients(made, whole), gradients(made, parts)
    assert apart(one[1], three[1]) < 1e-12
    made.settings = replace(made.settings, router_z=0.0)
    assert apart(one[1], gradients(made, whole)[1]) > 1e-4


def test_load_balance_is_of_each_micro_batch_by_its_tokens(data: Path, tmp_path: Path) -> None:
    made = trainer(data, tmp_path / "run", experts=True, load_balance=1.0, router_z=0.0, accumulate=2)
    parts = made.train.step(0)
    found = gradients(made, parts)[1]
    tokens, count = sum(part.tokens for part in parts), sum(part.count for part in parts)
    made.model.zero_grad()
    for part in parts:
        loss = made.objective.loss(made.model, part)
        (loss.total / count + loss.auxiliary["load_balance"] * part.tokens / tokens).backward()
    assert apart(found, {n: p.grad for n, p in made.model.named_parameters()}) < 1e-12
    made.settings = replace(made.settings, load_balance=0.0)
    assert apart(found, gradients(made, parts)[1]) > 1e-4


def cosine(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * done))


@settings(deadline=None)
@given(steps=st.integers(1, 500), warmup=st.integers(0, 600), decay=st.floats(0, 1), floor=st.floats(0, 1))
def test_warm_up_stable_decay(steps: int, warmup: int, decay: float, floor: float) -> None:
    made = TrainRecipe(steps=steps, warmup=warmup, floor=floor, decay=decay, schedule="wsd")
    shares = [schedule(step, made) for step in range(steps)]
    assert shares[:warmup] == [(step + 1) / warmup for step in range(min(steps, warmup))]
    falls = max(warmup, steps - decay * steps)
    assert all(share == pytest.approx(1, abs=1e-9) for step, share in enumerate(shares) if warmup <= step <= falls)
    rest = [share for step, share in enumerate(shares) if step >= falls]
    assert rest == sorted(rest, reverse=True)
    assert all(floor <= share <= 1 for share in rest)
    if falls < steps:  # the step after the last would be at the floor
        assert schedule(steps, made) == pytest.approx(floor, abs=1e-9)


@pytest.mark.parametrize(("width", "warmup"), [(512, 4000), (64, 10)])
def test_the_schedule_of_2017(width: int, warmup: int) -> None:
    """Vaswani et al. 2017, equation 3, for its steps 1, 2, ...; the peak rate is the formula's constant."""
    made = TrainRecipe(steps=100_000, warmup=warmup, schedule="inverse_sqrt", floor=0.0)
    for step in (1, 2, warmup - 1, warmup, warmup + 1, 2 * warmup, 90_000):
        paper = width**-0.5 * min(step**-0.5, step * warmup**-1.5)
        assert width**-0.5 * warmup**-0.5 * schedule(step - 1, made) == pytest.approx(paper, rel=1e-12)
    floored = replace(made, floor=0.5)
    assert schedule(5 * warmup, floored) == 0.5


@settings(deadline=None)
@given(steps=st.integers(1, 500), warmup=st.integers(0, 600), floor=st.floats(0, 1), at=st.floats(0, 1))
@pytest.mark.parametrize(("name", "curve"), [("cosine", cosine), ("linear", lambda done: 1 - done), ("constant", lambda done: 1.0)])
def test_schedules(name: Any, curve: Any, steps: int, warmup: int, floor: float, at: float) -> None:
    step, made = int(at * (steps - 1)), TrainRecipe(steps=steps, warmup=warmup, floor=floor, schedule=name)
    wanted = (step + 1) / warmup if step < warmup else floor + (1 - floor) * curve((step - warmup) / (steps - warmup))
    assert schedule(step, made) == pytest.approx(wanted, abs=1e-12)
    if warmup < steps:
        assert schedule(warmup, made) == pytest.approx(1.0, abs=1e-12)


def tiny(width: int = 16) -> Any:
    return build(model("encoder", feed_forward=EXPERTS, width=width) | {"head": {"kind": "LanguageModel", "bias": "learned"}}, seed=0)


OPTIMIZERS = get_args(get_type_hints(TrainRecipe)["optimizer"])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_only_matrices_decay_and_muon_takes_those_of_the_layers(optimizer: Any) -> None:
    module = tiny()
    made = Optimizer(module, TrainRecipe(steps=1, optimizer=optimizer, weight_decay=0.3))
    decay, owner = {}, {}
    for part in made.parts:
        for group in part.param_groups:
            for parameter in group["params"]:
                decay[made.names[parameter]] = group["weight_decay"]
                owner[made.names[parameter]] = type(part).__name__
    assert decay == {n: 0.3 if p.ndim >= 2 else 0.0 for n, p in module.named_parameters()}
    by_muon = {n for n, p in module.named_parameters() if ".layers." in n and p.ndim == 2} if optimizer == "muon" else set()
    assert {n for n, name in owner.items() if name == "Muon"} == by_muon
    assert (len(by_muon) > 3) == (optimizer == "muon")


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit", "adafactor", "sgd"])
def test_without_gradients_matrices_shrink_by_rate_times_decay(optimizer: Any) -> None:
    module = tiny()
    made = Optimizer(module, TrainRecipe(steps=1, optimizer=optimizer, rate=0.1, weight_decay=0.3))
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    made.step(0.5)
    for name, parameter in module.named_parameters():
        expected = before[name] * (1 - 0.1 * 0.5 * 0.3) if parameter.ndim >= 2 else before[name]
        assert torch.allclose(parameter, expected, rtol=1e-6, atol=0)
        assert parameter.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_clipped_to_a_norm(dtype: torch.dtype) -> None:
    module = tiny().to(dtype)
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    count = sum(p.numel() for p in module.parameters())
    norm = norm_of_gradients(module)
    assert norm == pytest.approx(math.sqrt(count), rel=1e-6)
    assert norm * clip_factor(norm, 2.0) == pytest.approx(2.0, rel=1e-5)
    assert clip_factor(norm, norm + 1) == 1
    theirs = torch.nn.utils.clip_grad_norm_(module.parameters(), 2.0)
    assert float(theirs) == pytest.approx(norm, rel=1e-6)
    assert float(next(module.parameters()).grad.flatten()[0]) == pytest.approx(clip_factor(norm, 2.0), rel=1e-6)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_scales_its_gradients(optimizer: Any) -> None:
    """As if they had been so much smaller; the learning rate of sgd shows it, the others' moments do."""
    made = [tiny(64) for _ in range(3)]
    for module, factor, scale in zip(made, (1.0, 0.25, 1.0), (0.25, 1.0, 1.0), strict=True):
        parts, generator = Optimizer(module, TrainRecipe(steps=1, optimizer=optimizer)), torch.Generator().manual_seed(1)
        for parameter in module.parameters():
            parameter.grad = factor * torch.randn(parameter.shape, generator=generator)
        parts.step(1.0, scale)
        module.state = parts.state()
    ours, scaled, plain = (module.state for module in made)
    assert all(torch.allclose(ours[n].float(), scaled[n].float(), rtol=1e-5, atol=1e-12) for n in ours)
    assert not all(torch.allclose(plain[n].float(), scaled[n].float(), rtol=1e-5, atol=1e-12) for n in ours)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizer_state_goes_out_and_in(optimizer: Any) -> None:
    recipe = TrainRecipe(steps=1, optimizer=optimizer)
    module, other = tiny(64), tiny(64)
    one, two = Optimizer(module, recipe), Optimizer(other, recipe)
    fresh = one.state()
    for parameter in list(module.parameters())[1:]:  # the first never gets a gradient
        parameter.grad = torch.randn_like(parameter)
    one.step(1.0)
    saved = {name: tensor.clone() for name, tensor in one.state().items()}
    assert saved.keys() == fresh.keys()
    assert all("/" in name and name.split("/", 1)[1] in one.names.values() for name in saved)
    two.load(saved)
    other.load_state_dict(module.state_dict())
    generator = torch.Generator().manual_seed(3)
    for left, right in zip(module.parameters(), other.parameters(), strict=True):
        left.grad = torch.randn(left.shape, generator=generator)
        right.grad = left.grad.clone()
    one.step(1.0)
    two.step(1.0)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, two.state()[n]) for n, a in one.state().items())
    with pytest.raises(ValueError, match="of another model or another optimizer"):
        Optimizer(tiny(64), replace(recipe, optimizer="muon" if optimizer == "adamw" else "adamw")).load(saved)


class Recorder:
    """An objective whose batch is the indices of its samples."""

    cuts_rows = False

    def collate(self, samples: Any, seeds: Any) -> Any:
        return [int(s["i"]) for s in samples], list(seeds)


def recorded(count: int, **train: Any) -> Batches:
    lengths = np.random.default_rng(0).integers(1, 100, count)
    made: Any = Samples(lengths, lambda i: {"i": np.array(i)})
    objective: Any = Recorder()
    return Batches(objective, made, TrainRecipe(steps=1, **train))


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 60), batch=st.integers(1, 6), accumulate=st.integers(1, 3), bucket=st.integers(1, 5))
def test_every_epoch_takes_every_sample_once(count: int, batch: int, accumulate: int, bucket: int) -> None:
    made = recorded(count, batch=batch, accumulate=accumulate, bucket=bucket)
    size = batch * accumulate
    rounds = math.lcm(count, size * bucket) // size
    taken = np.concatenate([made.indices(step) for step in range(rounds)])
    assert (np.bincount(taken, minlength=count) == rounds * size // count).all()
    micro: Any = made.step(rounds - 1)
    assert [i for found, _ in micro for i in found] == made.indices(rounds - 1).tolist()
    assert all(len(found) == batch for found, _ in micro)
    seeds = [seed for _, found in micro for seed in found]
    assert len(set(seeds)) == size


def test_buckets_put_like_lengths_together() -> None:
    def padding(bucket: int) -> int:
        made = recorded(640, batch=8, bucket=bucket)
        lengths = [made.samples.lengths[made.indices(step)] for step in range(80)]
        return sum(int(found.max()) * len(found) - int(found.sum()) for found in lengths)

    assert padding(8) < 0.3 * padding(1)


@pytest.mark.parametrize("most", [None, 1, 3, 100])
def test_held_out_samples_are_scored_once_or_evenly(most: int | None) -> None:
    made = recorded(100, batch=8, bucket=4)
    batches: list[Any] = list(made.once(most))
    taken = sorted(i for found, _ in batches for i in found)
    if most in (None, 100):
        assert taken == list(range(100))
    else:
        assert most is not None
        assert len(batches) == most
        assert taken[0] < 10
        assert taken[-1] > 80
        average = made.samples.lengths[taken].mean()
        assert abs(average - made.samples.lengths.mean()) < 3 * made.samples.lengths.std() / math.sqrt(len(taken))
    assert batches == list(made.once(most))


def test_dropout_differs_by_step_and_seed_alone(data: Path, tmp_path: Path) -> None:
    made = Trainer(recipe("Causal", data, rate=1e-30, muon_rate=1e-30, weight_decay=0.0), tmp_path / "a", progress=False)
    made.peak = 1.0
    made.train.indices = lambda step: np.arange(3)  # type: ignore[method-assign]
    losses = [made._step(step)["loss"] for step in (0, 1, 0)]
    assert losses[0] == losses[2] != losses[1]


