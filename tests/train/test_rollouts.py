"""Batches of a model's own answers: which they are, what is known of them, and that a run learns from them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recipes import plain, recipe
from runs import quiet
from safetensors.torch import save_file

from triform import config, hub, nn
from triform.data.conversations import prompt
from triform.generate import Sampling
from triform.generate.prepared import packed_copy
from triform.nn import IGNORE
from triform.train import Recipe, read_metrics, read_recipe, run
from triform.train.find_rate import find_rate
from triform.train.loop import Trainer
from triform.train.rewards import Answered, Rewards
from triform.train.rollouts import Rollouts

FORMS = {"GRPO": "decoder-only", "PPO": "encoder-decoder"}


def trainer(made: Recipe, folder: Path) -> Trainer:
    folder.mkdir(parents=True, exist_ok=True)
    return Trainer(made, folder, progress=False)


def rollouts(made: Recipe, folder: Path) -> Rollouts:
    found = trainer(made, folder).train
    assert isinstance(found, Rollouts)
    return found


def changed(made: Recipe, **objective: Any) -> Recipe:
    return replace(made, objective=replace(made.objective, **objective))


def rows_of(batches: list[Any]) -> list[tuple[Any, ...]]:
    """The rows of batches as data that can be compared."""
    pairs = [pair for batch in batches for pair in zip(batch.inputs, batch.labels, strict=True)]
    return [(tuple(row.tolist()), tuple(labels[labels != IGNORE].tolist())) for row, labels in pairs]


@pytest.mark.parametrize("kind", FORMS)
def test_answers_follow_from_the_seed_the_step_and_the_weights(kind: str, data: Path, tmp_path: Path) -> None:
    made = recipe(kind, data)
    first, again = (rollouts(made, tmp_path / name) for name in ("first", "again"))
    other = rollouts(replace(made, train=replace(made.train, seed=1)), tmp_path / "other")
    later = made.objective.updates
    found = rows_of(first.step(0))
    assert found == rows_of(again.step(0))
    assert found != rows_of(other.step(0))
    assert rows_of(first.step(later)) == rows_of(again.step(later))
    assert rows_of(first.step(later)) != found


def test_how_many_are_written_at_once_changes_no_answer(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipe("GRPO", data)
    found = rows_of(rollouts(made, tmp_path / "many").step(0))
    monkeypatch.setattr("triform.train.rollouts.ROWS_AT_ONCE", 1)
    assert rows_of(rollouts(made, tmp_path / "one").step(0)) == found


@pytest.mark.parametrize("kind", FORMS)
def test_each_pass_over_a_rollout_has_all_of_its_answers_once(kind: str, data: Path, tmp_path: Path) -> None:
    made = changed(recipe(kind, data), iterations=2, minibatches=3)
    found = rollouts(made, tmp_path / "run")
    passes = [[row for step in range(start, start + 3) for row in rows_of(found.step(step))] for start in (0, 3)]
    assert sorted(passes[0]) == sorted(passes[1])
    assert passes[0] != passes[1]
    assert len(passes[0]) == 3 * made.train.batch * made.objective.group
    asked = [{int(i) for step in range(start, start + 3) for i in found.indices(step)} for start in (0, 3)]
    assert asked[0] == asked[1]


@pytest.mark.parametrize("kind", FORMS)
def test_a_rollout_is_taken_up_where_it_was_left(kind: str, data: Path, tmp_path: Path) -> None:
    made = recipe(kind, data)
    first, other = (rollouts(made, tmp_path / name) for name in ("first", "other"))
    first.step(0)
    (parts,) = first.parts().items()
    save_file(parts[1], tmp_path / parts[0])
    other.take_up(tmp_path)
    for mine, theirs in zip(first.step(1), other.step(1), strict=True):
        for name, value in vars(mine).items():
            same = getattr(theirs, name)
            assert torch.equal(value, same) if isinstance(value, torch.Tensor) else value == same, name
    for step in range(2, made.objective.updates):
        first.step(step)
    assert first.parts() == {}


@pytest.mark.parametrize("kind", FORMS)
def test_the_engine_draws_from_the_model_that_is_trained(kind: str, data: Path, tmp_path: Path) -> None:
    """The log-probabilities of its tokens are those that the training pass gives; control: those of other weights are not."""
    made = trainer(recipe(kind, data), tmp_path / "run")
    found = made.train
    assert isinstance(found, Rollouts)
    rows = [found.samples[i] for i in range(4)]
    how = Sampling(max_new_tokens=6, temperature=1.0)
    runs = found._answers(rows, how, [1, 2, 3, 4])
    samples = [{"prompt": row["prompt"], "completion": np.array(each.ids)} for row, each in zip(rows, runs, strict=True)]
    found._read(made.model, samples, {"old": "old"})
    for each, sample in zip(runs, samples, strict=True):
        assert sample["old"] == pytest.approx(each.log_probs, abs=1e-4)
    with torch.no_grad():
        for parameter in made.model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    found._read(made.model, samples, {"old": "old"})
    assert samples[0]["old"] != pytest.approx(runs[0].log_probs, abs=1e-2)
    fresh = found._answers(rows, how, [1, 2, 3, 4])
    samples = [{"prompt": row["prompt"], "completion": np.array(each.ids)} for row, each in zip(rows, fresh, strict=True)]
    found._read(made.model, samples, {"old": "old"})
    assert samples[0]["old"] == pytest.approx(fresh[0].log_probs, abs=1e-4)


def test_a_packed_copy_leaves_the_model_as_it_was(data: Path, tmp_path: Path) -> None:
    model = trainer(recipe("GRPO", data), tmp_path / "run").model
    nn.add_adapter(model, config.Adapter(rank=2), seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_b"):
                parameter.normal_()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        wanted = model.eval()(ids).logits
        found = packed_copy(model)(ids).logits
        with nn.without_adapter(model):
            plain = model(ids).logits
    assert torch.allclose(found, wanted, atol=1e-4)
    assert not torch.allclose(plain, wanted, atol=1e-2)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("kind", FORMS)
def test_what_is_told_of_answers_is_in_the_metrics_and_on_record(kind: str, data: Path, tmp_path: Path) -> None:
    made = changed(recipe(kind, data, rate=0.02), record=5)
    result = run(made, tmp_path / "run", report=quiet)
    assert result.finished
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    steps, validations = [row for row in rows if "loss" in row], [row for row in rows if "validation_loss" in row]
    told = {"reward", "reward_different", "kl", "entropy", "clip_share", "answer_tokens", "ended_share"}
    assert all(told <= row.keys() for row in steps)
    assert ["rollout_seconds" in row for row in steps] == [step % made.objective.updates == 0 for step in range(len(steps))]
    assert steps[0]["kl"] == pytest.approx(0, abs=1e-6)  # nothing has been learned yet
    assert steps[-1]["kl"] > 1e-6
    for row in validations:
        assert row["validation_loss"] == pytest.approx(-row["validation_reward"])
        # of an empty answer one judge says nothing, so its mean is over fewer
        parts = row["validation_reward_different"] + 0.1 * row.get("validation_reward_short", 0)
        assert row["validation_reward_different"] <= row["validation_reward"] <= parts + 1e-6
    kept = [json.loads(line) for line in (tmp_path / "run" / "rollouts.jsonl").read_text("utf-8").splitlines()]
    starts = list(range(1, made.train.steps + 1, made.objective.updates))
    assert [row["step"] for row in kept] == [step for step in starts for _ in range(5)]
    first = [row["reward"] for row in kept[:5]]
    assert first == sorted(first)
    assert first[0] < steps[0]["reward"] < first[-1]
    for row in kept:
        assert row["reward"] == pytest.approx(row["reward_different"] + 0.1 * (row["reward_short"] or 0))
        assert 1 <= row["tokens"] <= made.objective.max_new_tokens


def test_the_reference_is_the_frozen_model_beneath_an_adapter(data: Path, tmp_path: Path) -> None:
    base = recipe("GRPO", data, steps=1)
    run(base, tmp_path / "base", report=quiet)
    start = str(tmp_path / "base" / "model")
    settings = plain("GRPO", data, steps=4, start=start, adapter={"rank": 4}, rate=0.05)
    settings["tokenizer"] = {"path": start}
    made = read_recipe(settings)
    found = trainer(made, tmp_path / "run")
    assert isinstance(found.train, Rollouts)
    assert found.train.policy.reference is not None
    assert found.train.policy.reference.copy is None
    for step in range(3):
        found.take(step, found.train.step(step))
    samples = [{"prompt": np.array([5, 6]), "completion": np.array([7, 8, 9])}]
    with found.train.policy.reference.used() as reference:
        found.train._read(reference, samples, {"old": "base"})
    found.train._read(found.model, samples, {"old": "now"})
    plainly, _ = hub.load(start)
    found.train._read(plainly, samples, {"old": "wanted"})
    assert samples[0]["base"] == pytest.approx(samples[0]["wanted"], abs=1e-5)
    assert samples[0]["now"] != pytest.approx(samples[0]["wanted"], abs=1e-4)


def test_with_an_adapter_and_a_value_function_a_run_goes_to_its_end(data: Path, tmp_path: Path) -> None:
    run(recipe("PPO", data, steps=1), tmp_path / "base", report=quiet)
    start = str(tmp_path / "base" / "model")
    settings = plain("PPO", data, steps=4, start=start, adapter={"rank": 2})
    settings["tokenizer"] = {"path": start}
    assert run(read_recipe(settings), tmp_path / "run", report=quiet).finished


def test_another_start_is_refused_when_a_run_goes_on(data: Path, tmp_path: Path) -> None:
    for seed, name in ((0, "base"), (1, "other")):
        run(recipe("GRPO", data, steps=1, seed=seed), tmp_path / name, report=quiet)
    start = tmp_path / "base" / "model"
    settings = plain("GRPO", data, start=str(start))
    settings["tokenizer"] = {"path": str(start)}
    made = read_recipe(settings)

    def stop(row: dict[str, Any]) -> None:
        if row["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(made, tmp_path / "run", report=stop)
    (tmp_path / "other" / "model" / "model.safetensors").replace(start / "model.safetensors")
    with pytest.raises(ValueError, match=r"train\.start is not the model"):
        run(made, tmp_path / "run", resume=True, report=quiet)


def test_a_reward_model_judges_answers(data: Path, tmp_path: Path) -> None:
    run(recipe("RewardModel", data, steps=4), tmp_path / "judge", report=quiet)
    judge = str(tmp_path / "judge" / "model")
    settings = plain("GRPO", data, steps=2)
    settings["objective"]["rewards"] = [{"model": judge, "weight": 2.0}, settings["objective"]["rewards"][0]]
    made = read_recipe(settings)
    run(made, tmp_path / "run", report=quiet)
    kept = [json.loads(line) for line in (tmp_path / "run" / "rollouts.jsonl").read_text("utf-8").splitlines()]
    rewards = Rewards(made.objective.judges, "cpu")
    asked = [prompt({"prompt": row["prompt"]}) for row in kept]
    said = rewards(Answered(asked, [row["text"] for row in kept], [[1]] * len(kept), [{}] * len(kept)))
    assert said[:, 1] == pytest.approx([row["reward_judge"] for row in kept], abs=1e-4)
    assert said[:, 0] == pytest.approx(2 * said[:, 1] + said[:, 2])
    assert len(set(np.round(said[:, 1], 4))) > 1
    with pytest.raises(ValueError, match="Classify head of one label"):
        Rewards([replace(made.objective.judges[0], model=str(tmp_path / "run" / "model"))], "cpu")


def test_an_answer_of_which_nobody_says_anything_is_told(data: Path, tmp_path: Path) -> None:
    (tmp_path / "silent.py").write_text("def silent(completions):\n    return [None for _ in completions]\n", "utf-8")
    settings = plain("GRPO", data)
    settings["objective"]["rewards"] = [f"{tmp_path}/silent.py:silent"]
    with pytest.raises(ValueError, match="no reward says anything"):
        run(read_recipe(settings), tmp_path / "run", report=quiet)


@pytest.mark.parametrize(("name", "value"), [("bucket", 2), ("curriculum", {})])
def test_settings_that_mean_nothing_here_are_refused(name: str, value: Any, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"train.{name}"):
        run(recipe("GRPO", data, **{name: value}), tmp_path / "run", report=quiet)


def test_a_rate_is_not_looked_for_by_a_policys_loss(data: Path) -> None:
    with pytest.raises(ValueError, match="GRPO"):
        find_rate(recipe("GRPO", data))


@pytest.mark.parametrize("kind", FORMS)
def test_a_policy_learns_what_is_rewarded(kind: str, data: Path, tmp_path: Path) -> None:
    """Short answers, of which a new model gives few; control: with weight 0 nothing is learned."""
    (tmp_path / "rewards.py").write_text("def short(completions):\n    return [float(len(text) <= 1) for text in completions]\n", "utf-8")
    found = {}
    for weight in (1.0, 0.0):
        calm = {"rate": 0.02, "warmup": 0, "schedule": "linear", "linear": "torch"}
        settings = plain(kind, data, steps=40, batch=8, validate_every=40, checkpoint_every=40, **calm)
        settings["objective"] |= {"rewards": [{"function": f"{tmp_path}/rewards.py:short", "weight": weight}], "kl": 0.0, "group": 4}
        settings["objective"] |= {"iterations": 1, "minibatches": 1} | ({"kl_target": None} if kind == "PPO" else {})
        run(read_recipe(settings), tmp_path / f"{weight}", report=quiet)
        rows = [row for row in read_metrics(tmp_path / f"{weight}" / "metrics.jsonl") if "loss" in row]
        found[weight] = [np.mean([row["reward_short"] for row in part]) for part in (rows[:5], rows[-5:])]
    assert found[1.0][0] < 0.4
    assert found[1.0][1] > 0.9
    assert found[0.0][1] < 0.5
