"""Conversations and the model's own answers: template, stop token, truncation, first rewards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from recipes import LINES, plain, write_data

from triform.doctor import Examiner
from triform.doctor.findings import Finding
from triform.text import train_tokenizer
from triform.text.templates import TEMPLATES
from triform.train import read_recipe, run
from triform.train.rollouts import Rollouts

KINDS = ["Instruction", "InstructionPairs", "DPO", "IPO", "KTO", "RewardModel", "PPO", "GRPO", "TokenClassification", "QuestionAnswering",
         "SentenceEmbedding"]  # fmt: skip
FORGETFUL = (  # earlier answers are written without their first character once there are later ones
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' and not loop.last %}"
    "{% generation %}{{ m.content[1:] + '<|im_end|>' }}{% endgeneration %}{% elif m.role == 'assistant' %}"
    "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
BIASED = TEMPLATES["chatml"].replace("{% if add_generation_prompt %}{{ '", "{% if add_generation_prompt %}{{ 'Well: ")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the tiny recipes, long conversations, and a tokenizer that knows all of their characters."""
    made = tmp_path_factory.mktemp("conversations")
    write_data(made)
    turns = [
        [{"role": role, "content": line} for role, line in zip(("user", "assistant") * 2, LINES[i : i + 4], strict=True)]
        for i in range(len(LINES) - 3)
    ]
    (made / "turns.jsonl").write_text("".join(json.dumps({"messages": talk}, ensure_ascii=False) + "\n" for talk in turns), "utf-8")
    texts = [*LINES, *(line[::-1] for line in LINES), "user assistant Well: 0123456789"]
    tokenizer = train_tokenizer(texts, kind="characters", min_frequency=1)
    tokenizer.backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.save(made / "tokenizer")
    for name, template in (("biased", BIASED), ("forgetful", FORGETFUL)):
        (made / f"{name}.jinja").write_text(template, encoding="utf-8")
    (made / "alike.py").write_text("def alike(completions, **columns):\n    return [1.0] * len(completions)\n", encoding="utf-8")
    return made


def made(kind: str, folder: Path, length: int = 128, **tokenizer: Any) -> dict[str, Any]:
    """A recipe with room for its rows and a tokenizer that knows their characters."""
    found = plain(kind, folder, steps=20)
    found["tokenizer"] = {"path": str(folder / "tokenizer"), **tokenizer}
    found["objective"]["length"] = length
    if "target_length" in found["objective"]:
        found["objective"]["target_length"] = 64
    for side in ("encoder", "decoder"):
        if side in found["model"]:
            found["model"][side]["input"]["position"]["length"] = 256
    return found


def examined(recipe: dict[str, Any]) -> dict[str, Finding]:
    """The findings by their checks, the worst of each."""
    order = ("fine", "note", "warning", "error")
    found = Examiner().examine(read_recipe(recipe)).findings
    return {each.check: each for each in sorted(found, key=lambda one: order.index(one.severity))}


@pytest.mark.parametrize("kind", KINDS)
def test_healthy_recipes(kind: str, folder: Path) -> None:
    found = examined(made(kind, folder))
    bad = [each.line for each in found.values() if each.severity in ("warning", "error")]
    allowed = "length of answers" if kind in ("PPO", "GRPO") else "nothing"  # of a model that has learnt nothing
    assert [line for line in bad if not line.startswith(allowed)] == []
    assert ("template in use" in found) == (kind in ("Instruction", "InstructionPairs", "DPO", "IPO", "KTO", "PPO", "GRPO"))
    assert ("stop token" in found) == (kind in ("Instruction", "InstructionPairs", "DPO", "IPO", "KTO"))
    assert ("first answers" in found) == (kind in ("PPO", "GRPO"))


@pytest.mark.parametrize("kind", ["Instruction", "DPO"])
def test_answers_that_are_cut_off_do_not_stop(kind: str, folder: Path) -> None:
    found = examined(made(kind, folder, length=16))
    assert found["truncation"].severity in ("warning", "error")
    assert found["stop token"].severity in ("warning", "error")
    assert "cut off" in found["stop token"].advice


@pytest.mark.parametrize(
    ("template", "severity", "says"),
    [("chatml", "fine", "are written in training as when the model is asked"), ("biased.jinja", "error", "begin otherwise in training"),
     ("forgetful.jinja", "warning", "earlier turns are written otherwise")],
)  # fmt: skip
def test_what_the_model_meets_when_it_is_asked(template: str, severity: str, says: str, folder: Path) -> None:
    chosen = template if template == "chatml" else str(folder / template)
    recipe = made("Instruction", folder, chat_template=chosen)
    recipe["data"] = {"source": str(folder / "turns.jsonl"), "tail": 4}
    found = examined(recipe)["template in use"]
    assert found.severity == severity, found.line
    assert says in found.says


def test_a_base_model_that_was_taught_another_template(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triform.train.loop.plot_curves", lambda place: place)
    first = made("Instruction", folder, chat_template="chatml")
    first["train"]["steps"] = 2
    run(read_recipe(first), tmp_path / "first", report=lambda row: None)
    base = str(tmp_path / "first" / "model")
    second = made("Instruction", folder, chat_template="plain")
    second["tokenizer"] |= {"path": base}
    second["train"]["start"] = base
    found = examined(second)
    assert found["template of the base"].severity == "warning"
    second["tokenizer"].pop("chat_template")
    found = examined(second)
    assert "template of the base" not in found
    assert found["loss at step 0"].figures["base"] == pytest.approx(found["loss at step 0"].figures["loss"], rel=1e-5)
    second["tokenizer"] = {"kind": "characters", "vocab_size": 100}
    assert "has another tokenizer" in examined(second)["beginning"].says


def test_an_adapter_begins_as_its_base(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triform.train.loop.plot_curves", lambda place: place)
    first = made("Instruction", folder)
    first["train"] |= {"steps": 30, "rate": 1e-2}
    run(read_recipe(first), tmp_path / "first", report=lambda row: None)
    base = str(tmp_path / "first" / "model")
    for adapter in ({"rank": 2}, {"rank": 2, "quantize": "nf4"}):
        recipe = made("Instruction", folder) | {"tokenizer": {"path": base}}
        recipe["train"] |= {"start": base, "adapter": adapter}
        found = examined(recipe)
        assert found["loss at step 0"].severity == "fine", found["loss at step 0"].line
        assert "on an adapter" in found["learning rate"].says
    recipe["train"]["rate"] = 0.5
    assert examined(recipe)["learning rate"].severity == "error"


def test_rewards_that_are_all_alike_teach_nothing(folder: Path) -> None:
    recipe = made("GRPO", folder)
    recipe["objective"]["rewards"] = [f"{folder}/alike.py:alike"]
    found = examined(recipe)["first answers"]
    assert (found.severity, found.figures["alike_share"]) == ("error", 1.0)
    assert "partial reward" in found.advice


@pytest.mark.parametrize(("ended", "severity"), [(0.1, "warning"), (0.9, "fine")])
def test_answers_that_are_cut_off(ended: float, severity: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(self: Rollouts, number: int) -> None:
        self.policy.memory["figures"] = {"reward": 0.5, "alike_share": 0.2, "ended_share": ended}

    monkeypatch.setattr(Rollouts, "step", step)
    found = examined(made("GRPO", folder))
    assert found["first answers"].severity == "fine"
    assert ("length of answers" in found) == (severity == "warning")


def test_training_on_conversations_warns_first(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from triform.cli import run as command

    for kind, length, says in (("Instruction", 16, "warning: truncation: "), ("GRPO", 128, "warning: learning rate: ")):
        recipe = made(kind, folder, length=length)
        recipe["train"] |= {"steps": 2} | ({"rate": 0.5} if kind == "GRPO" else {})
        (tmp_path / f"{kind}.yaml").write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")
        assert command(["train", str(tmp_path / f"{kind}.yaml"), "--out", str(tmp_path / kind)]) == 0
        assert any(line.startswith(says) for line in capsys.readouterr().err.splitlines())
