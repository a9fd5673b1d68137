"""The loss of GRPO against that of TRL's trainer, on the same answers and weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import transformers
import trl
from recipes import LINES
from torch import Tensor

from triform import config, hub, nn
from triform.objectives import GRPO, build_objective
from triform.text import train_tokenizer

pytestmark = pytest.mark.slow
REWARD = ("triform.objectives.rewards:exact_match",)
LONGEST = 7


def made_up(vocab_size: int) -> list[dict[str, np.ndarray]]:
    """Answers of different lengths with what was known of each token when they were drawn."""
    draw, found = np.random.default_rng(0), []
    for _ in range(6):
        length = int(draw.integers(2, LONGEST + 1))
        sample = {"prompt": draw.integers(8, vocab_size, draw.integers(1, 6)), "completion": draw.integers(8, vocab_size, length)}
        sample |= {name: (draw.normal(size=length) * 0.3 - 3).astype(np.float32) for name in ("old", "reference")}
        sample["advantages"] = np.full(length, draw.normal(), dtype=np.float32)
        found.append(sample | {"ended": np.array([True])})
    return found


def padded(rows: list[np.ndarray], *, left: bool = False, fill: float = 0) -> Tensor:
    width = max(map(len, rows))
    gaps = [np.full(width - len(row), fill, dtype=row.dtype) for row in rows]
    return torch.from_numpy(np.stack([np.concatenate((gap, row) if left else (row, gap)) for row, gap in zip(rows, gaps, strict=True)]))


def theirs(samples: list[dict[str, np.ndarray]]) -> dict[str, Tensor]:
    """Answers as TRL's loss takes them: prompts padded on the left, completions on the right."""
    ones = {name: [np.ones(len(s[name]), dtype=np.int64) for s in samples] for name in ("prompt", "completion")}
    return {
        "prompt_ids": padded([s["prompt"] for s in samples], left=True),
        "prompt_mask": padded(ones["prompt"], left=True),
        "completion_ids": padded([s["completion"] for s in samples]),
        "completion_mask": padded(ones["completion"]),
        "advantages": torch.tensor([float(s["advantages"][0]) for s in samples]),
        "old_per_token_logps": padded([s["old"] for s in samples]),
        "ref_per_token_logps": padded([s["reference"] for s in samples]),
        "num_items_in_batch": torch.tensor(float(sum(len(s["completion"]) for s in samples))),
    }


@pytest.mark.parametrize("loss", ["grpo", "bnpo", "dr_grpo", "dapo"])
def test_the_loss_and_its_gradient_are_those_of_trl(loss: Any, tmp_path: Path) -> None:
    tokenizer = train_tokenizer(LINES, kind="characters", vocab_size=120, min_frequency=1)
    small = ["decoder.depth=2", "decoder.width=32", "decoder.pattern[0].attention.heads=4", "decoder.pattern[0].attention.kv_heads=2"]
    size = f"decoder.input.vocab_size={tokenizer.vocab_size}"
    spec = config.resolve("smollm2-135m", [*small, size, "decoder.pattern[0].feed_forward.hidden=64"])
    model = nn.build(spec, seed=0)
    hub.save(model, tokenizer, tmp_path / "model")
    their_model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    settings = trl.GRPOConfig(
        output_dir=str(tmp_path / "trl"), use_cpu=True, bf16=False, report_to="none",
        loss_type=loss, beta=0.2, epsilon=0.1, epsilon_high=0.25,
        temperature=0.8, max_completion_length=LONGEST, num_generations=2, per_device_train_batch_size=6, gradient_accumulation_steps=1,
        gradient_checkpointing=False, use_bias_correction_kl=False,  # the KL term as in the paper
    )  # fmt: skip
    rows = datasets.Dataset.from_list([{"prompt": line} for line in LINES[:6]])
    trainer = trl.GRPOTrainer(
        their_model, reward_funcs=lambda completions, **rest: [0.0] * len(completions), args=settings, train_dataset=rows,
        processing_class=their_tokenizer,
    )  # fmt: skip
    trainer.current_gradient_accumulation_steps = 1
    their_model.train()
    samples = made_up(tokenizer.vocab_size)
    wanted = trainer._compute_loss(their_model, theirs(samples))
    wanted.backward()
    objective = build_objective(
        GRPO(rewards=REWARD, loss=loss, kl=0.2, clip=0.1, clip_high=0.25, temperature=0.8, max_new_tokens=LONGEST, group=2), tokenizer
    )
    batch = objective.collate(samples, ())
    found = objective.loss(model, batch)
    (found.total / batch.count).backward()
    assert found.total.item() / batch.count == pytest.approx(wanted.item(), abs=1e-5)
    gradients = {name: p.grad for name, p in their_model.named_parameters()}
    ours = model.decoder.layers["0"].feed_forward.body.up.weight.grad
    assert torch.allclose(ours, gradients["model.layers.0.mlp.up_proj.weight"], atol=1e-5)
    assert float(ours.abs().max()) > 1e-3
    # control: another clip is another loss
    other = build_objective(GRPO(rewards=REWARD, loss=loss, kl=0.2, clip=0.3, temperature=0.8, max_new_tokens=LONGEST, group=2), tokenizer)
    assert other.loss(model, other.collate(samples, ())).total.item() / batch.count != pytest.approx(wanted.item(), abs=1e-5)
