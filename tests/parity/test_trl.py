"""The losses of preferences against those of TRL's trainers, on the same rows and weights."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from recipes import LINES

from triform import hub
from triform.objectives import KTO, Batch, Preference, RewardModel, build_objective, log_probs
from triform.objectives.preference import AnswerRows
from triform.objectives.preference_losses import DPO, IPO, ORPO, Answers, SimPO
from triform.text import Tokenizer, train_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # TRL's imports take long, and warn of what is not ours

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}: {{ message.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}"
)
ROWS = [{"prompt": LINES[i], "chosen": LINES[i + 1], "rejected": LINES[-i]} for i in range(1, 7)]
BETA = 0.3


def said(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    special = ("[PAD]", "[UNK]", "[BOS]", "<|im_end|>", "<|im_start|>")
    made = train_tokenizer([*LINES, "system: user: assistant: "], kind="byte-bpe", vocab_size=320, special_tokens=special)
    made = Tokenizer(made.backend, {"pad": "[PAD]", "bos": "[BOS]", "eos": "<|im_end|>"})
    made.chat_template = TEMPLATE
    return made


def saved(folder: Path, tokenizer: Tokenizer, seed: int, judges: bool = False) -> Path:
    """A small LLaMA of transformers with its tokenizer."""
    import transformers

    torch.manual_seed(seed)
    settings = transformers.LlamaConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, num_labels=1, pad_token_id=tokenizer.pad, eos_token_id=tokenizer.eos, initializer_range=0.3,
    )  # fmt: skip
    kind = transformers.LlamaForSequenceClassification if judges else transformers.LlamaForCausalLM
    kind(settings).save_pretrained(folder)
    tokenizer.save(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    made = {name: saved(root / name, tokenizer, seed) for seed, name in enumerate(("policy", "reference"))}
    return made | {"judge": saved(root / "judge", tokenizer, 2, judges=True)}


def trainer_of(kind: str, folders: dict[str, Path], rows: list[dict[str, Any]], out: Path, **settings: Any) -> Any:
    """TRL's trainer of a kind, with the rows as its data, all of them one batch."""
    import datasets
    import transformers
    import trl

    common = {"output_dir": str(out), "per_device_train_batch_size": len(rows), "report_to": [], "use_cpu": True, "bf16": False}
    args = getattr(trl, f"{kind}Config")(**common, gradient_checkpointing=False, max_length=None, **settings)
    name = "judge" if kind == "Reward" else "policy"
    auto = transformers.AutoModelForSequenceClassification if kind == "Reward" else transformers.AutoModelForCausalLM
    models = {"model": auto.from_pretrained(folders[name], dtype=torch.float32)}
    if kind != "Reward":
        models["ref_model"] = auto.from_pretrained(folders["reference"], dtype=torch.float32)
    reading = transformers.AutoTokenizer.from_pretrained(folders[name])
    data = datasets.Dataset.from_list(rows)
    return getattr(trl, f"{kind}Trainer")(**models, args=args, processing_class=reading, train_dataset=data)


def loss_of(trainer: Any) -> tuple[float, dict[str, torch.Tensor]]:
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.eval()
    return float(trainer.compute_loss(trainer.model, dict(batch)).detach()), batch


def encoded(spec: Any, tokenizer: Tokenizer, rows: list[dict[str, Any]]) -> tuple[Any, Any]:
    """The objective of a specification, and all rows as one batch."""
    import numpy as np

    objective = build_objective(spec, tokenizer)
    found = [{name: np.asarray(ids) for name, ids in columns.items()} for columns in objective.encode(rows)]
    return objective, objective.collate(found, [(0, i) for i in range(len(found))])


def chats(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: said("user" if key == "prompt" else "assistant", text) for key, text in row.items()} for row in rows]


@torch.no_grad()
@pytest.mark.parametrize(("name", "loss"), [("sigmoid", DPO(beta=BETA)), ("ipo", IPO(beta=BETA))])
def test_dpo_and_ipo(name: str, loss: Any, folders: dict[str, Path], tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Tolerance 1e-5 of the loss, from the same token ids; the other model as the reference, and the other loss, differ."""
    wanted, theirs = loss_of(trainer_of("DPO", folders, chats(ROWS), tmp_path, beta=BETA, loss_type=name))
    policy, reference = (hub.load(folders[one])[0].eval() for one in ("policy", "reference"))

    def ours(loss: Any, against: Any) -> float:
        objective, made = encoded(Preference(loss=loss), tokenizer, ROWS)
        made.reference = torch.cat(list(objective.reference(against, made).values()))
        return float(objective.loss(policy, made).total) / len(ROWS)

    _, made = encoded(Preference(), tokenizer, ROWS)
    rows = {tuple(ids[mask.bool()].tolist()) for ids, mask in zip(theirs["input_ids"], theirs["attention_mask"], strict=True)}
    mask = torch.ones_like(made.inputs, dtype=torch.bool) if made.mask is None else made.mask
    assert {tuple(ids[seen].tolist()) for ids, seen in zip(made.inputs, mask, strict=True)} == {row[:-1] for row in rows}
    assert ours(loss, reference) == pytest.approx(wanted, rel=1e-5, abs=1e-5)
    assert ours(loss, policy) != pytest.approx(wanted, rel=1e-3)
    assert ours(SimPO(), reference) != pytest.approx(wanted, rel=1e-3)


@torch.no_grad()
def test_kto(folders: dict[str, Path], tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Tolerance 1e-5, on TRL's own batch, as it pairs prompts with other answers its own way; with another beta it differs."""
    rows = [{"prompt": said("user", row["prompt"]), "completion": said("assistant", row["chosen"]), "label": i % 2 == 0}
            for i, row in enumerate(ROWS)]  # fmt: skip
    wanted, theirs = loss_of(trainer_of("KTO", folders, rows, tmp_path, beta=BETA, desirable_weight=1.3, undesirable_weight=0.8))
    policy, reference = (hub.load(folders[one])[0].eval() for one in ("policy", "reference"))
    parts = [_rows(theirs[f"{name}input_ids"], theirs[f"{name}completion_mask"]) for name in ("", "KL_")]
    longest = max(part[0].shape[1] for part in parts)
    inputs, labels = (
        torch.cat([torch.nn.functional.pad(part[i], (0, longest - part[i].shape[1]), value=fill) for part in parts])
        for i, fill in ((0, 0), (1, -100))
    )
    made = AnswerRows(inputs, labels, wanted=torch.as_tensor(theirs["label"]).bool())
    made.reference = log_probs(reference, Batch(inputs, labels)).total
    for beta in (BETA, 0.2):
        objective = build_objective(KTO(beta=beta, desirable=1.3, undesirable=0.8), tokenizer)
        got = float(objective.loss(policy, made).total) / len(rows)
        assert (got == pytest.approx(wanted, rel=1e-5)) == (beta == BETA)


def _rows(ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return ids[:, :-1], ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)


@torch.no_grad()
def test_reward_model(folders: dict[str, Path], tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Tolerance 1e-5; without the pull to 0 it differs."""
    wanted, _ = loss_of(trainer_of("Reward", folders, chats(ROWS), tmp_path, center_rewards_coefficient=0.2))
    model = hub.load(folders["judge"])[0].eval()
    for center in (0.2, 0.0):
        objective, made = encoded(RewardModel(center=center), tokenizer, ROWS)
        objective.check(model.config)
        got = float(objective.loss(model, made).total) / len(ROWS)
        assert (got == pytest.approx(wanted, rel=1e-5)) == (center == 0.2)


def test_simpo_and_orpo() -> None:
    """From the same log-probabilities a token, tolerance 1e-5; with another margin and another weight they differ."""
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    device = SimpleNamespace(device="cpu")
    sides = [Answers(-40 * torch.rand(9, generator=torch.Generator().manual_seed(seed)), torch.arange(2, 11)) for seed in (0, 1)]
    means = [side.mean for side in sides]
    cpo = SimpleNamespace(alpha=0.0, accelerator=device, loss_type="simpo", simpo_gamma=0.7, beta=BETA, label_smoothing=0.0)
    wanted = CPOTrainer.cpo_loss(cpo, *means)[0]
    for margin in (0.7, 0.6):
        got = SimPO(beta=BETA, margin=margin).costs(*sides)
        assert torch.allclose(got, wanted, rtol=1e-5, atol=1e-5) == (margin == 0.7)
    ratio = ORPOTrainer.odds_ratio_loss(SimpleNamespace(beta=BETA, accelerator=device), *means)[0]
    for weight in (BETA, 0.2):
        got = ORPO(weight=weight).costs(*sides)
        assert torch.allclose(got, -means[0] - ratio, rtol=1e-5, atol=1e-5) == (weight == BETA)
