"""PPO and GRPO: advantages and losses against the papers' formulas, written out here by themselves."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from collating import trained
from torch import Tensor

from triform import config, nn
from triform.nn import IGNORE
from triform.objectives import GRPO, PPO, build_objective
from triform.objectives.grpo import group_advantages
from triform.objectives.on_policy import AnswerBatch, OnPolicyObjective, Reward
from triform.objectives.ppo import adapted, advantages
from triform.text.framing import prompts

REWARD = ("triform.objectives.rewards:exact_match",)
TOLERANCE = 1e-5
FORMS = {"decoder-only": tiny.decoder(), "encoder-decoder": tiny.encoder_decoder()}


def objective(spec: GRPO | PPO, form: str = "decoder-only") -> Any:
    """An objective whose tokenizer has as many tokens as the tiny models know."""
    made = build_objective(spec, trained("characters"))
    assert isinstance(made, OnPolicyObjective)
    made.encodes = form == "encoder-decoder"
    return made


def answers(count: int, seed: int = 0, **columns: bool) -> list[dict[str, np.ndarray]]:
    """Samples of made-up answers of different lengths, with columns of made-up numbers of each token."""
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        length = int(draw.integers(1, 6))
        sample = {"prompt": draw.integers(5, tiny.VOCAB, draw.integers(1, 5)), "completion": draw.integers(5, tiny.VOCAB, length)}
        sample["ended"] = np.array([bool(draw.integers(2))])
        sample |= {name: (draw.normal(size=length) - 3 * (name in ("old", "reference"))).astype(np.float32) for name in columns}
        found.append(sample)
    return found


def log_probs(model: Any, batch: AnswerBatch, temperature: float) -> Tensor:
    """Of each label, by all logits, (B, T); 0 where there is no label."""
    logits = model(batch.inputs, batch.mask, batch.target, batch.target_mask).logits / temperature
    labels = batch.labels.clamp(min=0)
    found = logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0]
    return torch.where(batch.labels == IGNORE, 0.0, found)


def tokens_of(batch: AnswerBatch) -> list[tuple[int, int]]:
    return [(row, at) for row, at in product(*map(range, batch.labels.shape)) if batch.labels[row, at] != IGNORE]


@pytest.mark.parametrize("form", FORMS)
def test_a_batch_holds_each_answer_after_its_prompt(form: str) -> None:
    made, samples = objective(GRPO(rewards=REWARD), form), answers(5, advantages=True)
    batch = made.collate(samples, ())
    for row, sample in enumerate(samples):
        kept = batch.labels[row] != IGNORE
        assert batch.labels[row][kept].tolist() == sample["completion"].tolist()
        assert torch.equal(batch.advantages[row][kept], torch.from_numpy(sample["advantages"]))
        read = batch.inputs if form == "decoder-only" else batch.target
        first = int(kept.int().argmax())
        assert read[row, first + 1 : first + len(sample["completion"])].tolist() == sample["completion"][:-1].tolist()
        assert batch.inputs[row, : len(sample["prompt"])].tolist() == sample["prompt"].tolist()


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages_are_those_of_the_paper(scale: str) -> None:
    rewards = np.random.default_rng(0).normal(size=12)
    found = group_advantages(rewards, 4, scale)
    for at, reward in enumerate(rewards):
        group = rewards[at // 4 * 4 : at // 4 * 4 + 4]
        mean = sum(group) / 4
        spread = {"group": math.sqrt(sum((r - mean) ** 2 for r in group) / 3), "batch": rewards.std(ddof=1), "none": 1 - 1e-4}[scale]
        assert found[at] == pytest.approx((reward - mean) / (spread + 1e-4), abs=1e-12)
    assert not np.allclose(found, group_advantages(rewards, 3, scale), atol=1e-3)


def test_a_group_with_one_reward_teaches_nothing() -> None:
    assert not group_advantages(np.full(8, 0.7), 4, "group").any()


def grpo_loss(model: Any, batch: AnswerBatch, samples: list[dict[str, np.ndarray]], spec: GRPO) -> float:
    """Shao et al. 2024, equation 3, and the denominators of its kin, token by token."""
    now, total, parts = log_probs(model, batch, spec.temperature), 0.0, dict[int, list[float]]()
    assert batch.old is not None
    for row, at in tokens_of(batch):
        ratio = math.exp(float(now[row, at] - batch.old[row, at]))
        near = min(max(ratio, 1 - spec.clip), 1 + (spec.clip_high or spec.clip))
        gain = min(ratio * float(batch.advantages[row, at]), near * float(batch.advantages[row, at]))  # type: ignore[index]
        away = float(batch.reference[row, at] - now[row, at])  # type: ignore[index]
        parts.setdefault(row, []).append(spec.kl * (math.exp(away) - away - 1) - gain)
    match spec.loss:
        case "grpo":
            total = sum(sum(part) / len(part) for part in parts.values()) / len(samples)
        case "dr_grpo":
            total = sum(map(sum, parts.values())) / (len(samples) * spec.max_new_tokens)
        case _:
            total = sum(map(sum, parts.values())) / sum(map(len, parts.values()))
    return total


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("loss", ["grpo", "bnpo", "dr_grpo", "dapo"])
def test_the_loss_of_grpo_is_that_of_the_paper(loss: Any, form: str) -> None:
    spec = GRPO(rewards=REWARD, loss=loss, kl=0.3, clip_high=0.28, temperature=0.7, mask_truncated=True)
    made, samples = objective(spec, form), answers(8, old=True, reference=True, advantages=True)
    model, batch = tiny.build(FORMS[form]), objective(spec, form).collate(samples, ())
    with torch.no_grad():
        found = made.loss(model, batch)
        wanted = grpo_loss(model, batch, samples, spec)
        other = grpo_loss(model, batch, samples, replace(spec, clip=0.1))
    assert float(found.total) / batch.count == pytest.approx(wanted, abs=TOLERANCE)
    assert float(found.total) / batch.count != pytest.approx(other, abs=TOLERANCE)
    cut = [row for row, sample in enumerate(samples) if not sample["ended"]]
    assert cut
    assert bool((batch.labels[cut] == IGNORE).all())


def test_what_is_told_of_a_step_are_means_over_its_tokens() -> None:
    spec = GRPO(rewards=REWARD, kl=0.3)
    made, samples = objective(spec), answers(6, old=True, reference=True, advantages=True)
    model, batch = tiny.build(FORMS["decoder-only"]), made.collate(samples, ())
    with torch.no_grad():
        found, now = made.loss(model, batch), log_probs(model, batch, 1.0)
        chances = model(batch.inputs, batch.mask).logits.softmax(-1)
    kept = tokens_of(batch)
    entropy = sum(float(-(chances[at] * chances[at].log()).sum()) for at in kept) / len(kept)
    away = [float(batch.reference[at] - now[at]) for at in kept]
    ratios = [math.exp(float(now[at] - batch.old[at])) for at in kept]
    gains = [float(batch.advantages[at]) for at in kept]
    clipped = [(ratio < 0.8 and gain < 0) or (ratio > 1.2 and gain > 0) for ratio, gain in zip(ratios, gains, strict=True)]
    told = {name: found.metrics[name] / found.counts[name] for name in found.metrics}
    wanted = {"entropy": entropy, "kl": sum(math.exp(a) - a - 1 for a in away) / len(away), "clip_share": sum(clipped) / len(kept)}
    assert told == pytest.approx(wanted, abs=1e-4)
    assert 0 < told["clip_share"] < 1


def test_without_old_log_probs_the_gradient_is_the_plain_one() -> None:
    made, samples = objective(GRPO(rewards=REWARD, loss="dapo")), answers(4, advantages=True)
    model = nn.build(FORMS["decoder-only"], seed=0)
    batch = made.collate(samples, ())
    made.loss(model, batch).total.backward()
    found = tiny.gradients(model)
    (-(log_probs(model, batch, 1.0) * batch.advantages).sum()).backward()
    wanted = tiny.gradients(model)
    tiny.assert_close(found, wanted, TOLERANCE)
    assert any(float(gradient.abs().max()) > 1e-3 for gradient in wanted.values())


def test_generalised_advantages_are_the_weighted_sum_of_surprises() -> None:
    draw = np.random.default_rng(1)
    rewards, values, discount, trace = draw.normal(size=7), draw.normal(size=7), 0.9, 0.8
    after = [*values[1:], 0.0]
    surprises = [rewards[t] + discount * after[t] - values[t] for t in range(7)]
    wanted = [sum((discount * trace) ** (later - t) * surprises[later] for later in range(t, 7)) for t in range(7)]
    assert advantages(rewards, values, discount, trace) == pytest.approx(wanted, abs=1e-12)
    assert advantages(rewards, values, discount, 0.7) != pytest.approx(wanted, abs=1e-3)
    # with lambda 1 and gamma 1 it is what is still to come, less what was expected
    assert advantages(rewards, values, 1.0, 1.0)[0] == pytest.approx(rewards.sum() - values[0])


@pytest.mark.parametrize("kl_in", ["reward", "loss"])
def test_rewards_of_ppo_are_the_score_at_the_end_less_what_straying_costs(kl_in: Any) -> None:
    spec = PPO(rewards=REWARD, kl=0.2, kl_in=kl_in, whiten=False, missing_end_penalty=0.5, trace=1.0)
    samples, scores = answers(6, old=True, reference=True, values=True), np.arange(6.0)
    figures = objective(spec).judge(samples, scores, {})
    for sample, score in zip(samples, scores, strict=True):
        stray = sample["old"] - sample["reference"]
        whole = score - (0 if sample["ended"] else 0.5) - (0.2 * stray.sum() if kl_in == "reward" else 0)
        assert sample["returns"][0] == pytest.approx(whole, abs=1e-4)
        assert sample["advantages"][0] == pytest.approx(whole - sample["values"][0], abs=1e-4)
    assert figures["answer_kl"] == pytest.approx(np.mean([(s["old"] - s["reference"]).sum() for s in samples]), abs=1e-5)


def test_advantages_of_ppo_are_whitened_over_the_rollout() -> None:
    samples = answers(20, old=True, reference=True, values=True)
    objective(PPO(rewards=REWARD)).judge(samples, np.arange(20.0), {})
    every = np.concatenate([sample["advantages"] for sample in samples])
    assert every.mean() == pytest.approx(0, abs=1e-6)
    assert every.std(ddof=1) == pytest.approx(1, abs=1e-6)


def test_the_weight_of_the_divergence_goes_towards_its_target() -> None:
    assert adapted(0.1, 12.0, 6.0, 0.5) == pytest.approx(0.1 * 1.1)
    assert adapted(0.1, 0.0, 6.0, 0.5) == pytest.approx(0.1 * 0.9)
    assert adapted(0.1, 6.6, 6.0, 0.5) == pytest.approx(0.1 * 1.05)
    spec, memory = PPO(rewards=REWARD, kl=0.1, kl_target=1e-3, kl_horizon=100), dict[str, Any]()
    samples = answers(10, old=True, reference=True, values=True)
    for sample in samples:
        sample["reference"] = sample["old"] - 1
    figures = objective(spec).judge(samples, np.zeros(10), memory)
    assert figures["kl_weight"] == 0.1
    assert memory["kl_weight"] == pytest.approx(0.1 * 1.02)


@pytest.mark.parametrize("form", FORMS)
def test_the_loss_of_ppo_is_that_of_the_paper(form: str) -> None:
    spec = PPO(rewards=REWARD, kl=0.2, kl_in="loss", value_weight=0.3, value_clip=0.1)
    made, samples = objective(spec, form), answers(6, old=True, reference=True, advantages=True, values=True, returns=True)
    model, batch = nn.build(FORMS[form], seed=0).eval(), made.collate(samples, ())
    made.attach(model)
    torch.manual_seed(0)
    model.value.weight.data.normal_()
    with torch.no_grad():
        found = made.loss(model, batch)
        out = model(batch.inputs, batch.mask, batch.target, batch.target_mask)
        now, worth = log_probs(model, batch, 1.0), model.value(out.hidden)[..., 0]
    total, plain = 0.0, 0.0
    for at in tokens_of(batch):
        ratio, gain, before = math.exp(now[at] - batch.old[at]), float(batch.advantages[at]), float(batch.values[at])
        away, wanted = float(batch.reference[at] - now[at]), float(batch.returns[at])
        near = min(max(float(worth[at]), before - 0.1), before + 0.1)
        total -= min(ratio * gain, min(max(ratio, 0.8), 1.2) * gain)
        total += 0.2 * (math.exp(away) - away - 1)
        plain += 0.3 * 0.5 * (float(worth[at]) - wanted) ** 2
        total += 0.3 * 0.5 * max((float(worth[at]) - wanted) ** 2, (near - wanted) ** 2)
    assert float(found.total) / batch.count == pytest.approx(total / len(tokens_of(batch)), abs=TOLERANCE)
    assert found.metrics["value_loss"] * 0.3 != pytest.approx(plain, abs=TOLERANCE)  # the clip shows


def test_the_value_function_is_no_part_of_what_is_exported() -> None:
    made, model = objective(PPO(rewards=REWARD)), nn.build(FORMS["decoder-only"], seed=0)
    names = set(model.state_dict())
    made.attach(model)
    assert set(model.state_dict()) - names == {"value.weight", "value.bias"}
    with made.detached(model):
        assert set(model.state_dict()) == names
    assert model.value.weight.requires_grad


def test_answers_that_are_measured_cost_minus_their_reward() -> None:
    spec = GRPO(rewards=(*REWARD, Reward(function="triform.objectives.rewards:number_match", weight=0.5)))
    samples = answers(3)
    for sample, scores in zip(samples, ([1.5, 1, 1], [0.5, 0, 1], [0, 0, 0]), strict=True):
        sample["scores"] = np.array(scores)
    batch = objective(spec).collate(samples, ())
    found = objective(spec).loss(None, batch)
    assert float(found.total) == -2.0
    assert batch.count == 3
    told = {"reward": 2.0, "reward_exact_match": 1.0, "reward_number_match": 2.0}
    assert found.metrics == told | {"answer_tokens": sum(len(sample["completion"]) for sample in samples)}


@pytest.mark.parametrize(
    ("kind", "fields", "told"),
    [
        (GRPO, {"group": 1}, "group"), (GRPO, {"rewards": ()}, "rewards"), (GRPO, {"temperature": 0.0}, "temperature"),
        (GRPO, {"top_p": 1.5}, "top_p"), (GRPO, {"rewards": ("a:f", "b:f")}, "different names"), (GRPO, {"kl": -1.0}, "kl"),
        (PPO, {"discount": 2.0}, "discount"), (PPO, {"kl_target": 1.0, "kl_in": "loss"}, "kl_target"),
        (PPO, {"iterations": 0}, "iterations"),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(kind: Any, fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        kind(**{"rewards": REWARD} | fields)


def test_a_reward_is_a_function_or_a_model() -> None:
    assert Reward(function="a.b:c").name == "c"
    assert Reward(model="runs/reward/model").name == "reward"
    assert Reward(model="hub-name").name == "hub-name"
    for fields in ({}, {"function": "a:b", "model": "c"}):
        with pytest.raises(ValueError, match="function or a model"):
            Reward(**fields)


@pytest.mark.parametrize(
    "spec",
    [
        tiny.encoder(),
        config.Transformer(decoder=FORMS["decoder-only"].decoder, head=config.Classify(labels=2)),
        tiny.decoder(mask="bidirectional"),
    ],
)
def test_a_model_that_cannot_answer_is_refused(spec: config.Transformer) -> None:
    with pytest.raises(ValueError, match="GRPO"):
        objective(GRPO(rewards=REWARD)).check(spec)


def test_prompts_are_read_and_rows_are_kept_for_the_judges() -> None:
    made = objective(GRPO(rewards=REWARD, length=8))
    rows = [{"prompt": "话说天下", "answer": 7, "more": ["大势", None]}]
    column = made.encode(rows)[0]
    assert column["prompt"] == prompts(made.tokenizer, ["话说天下"])[0]
    assert made.row({"row": np.array(column["row"])}) == rows[0]
    with pytest.raises(ValueError, match=r"objective\.length"):
        made.encode([{"prompt": "话说天下大势，分久必合"}])
