"""Instruction tuning as a run: its chat template goes along with the model, the first example is shown, samples are answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from recipes import plain
from runs import quiet

from triform import hub
from triform.objectives import Objective, Samples
from triform.text.templates import TEMPLATES
from triform.train import read_recipe, run
from triform.train.preview import show_example


def chatting(data: Path, **fields: Any) -> dict[str, Any]:
    made = plain("Instruction", data, steps=2)
    made["objective"] |= {"length": 64}
    made["set"] = {"decoder.input.position.length": 96}
    made["tokenizer"] |= {"vocab_size": 100, "chat_template": "plain"}
    return made | fields


def test_the_template_goes_along_with_the_model(data: Path, tmp_path: Path) -> None:
    run(read_recipe(chatting(data)), tmp_path / "run", report=quiet)
    _, tokenizer = hub.load(tmp_path / "run" / "model")
    assert tokenizer is not None
    assert tokenizer.chat_template == TEMPLATES["plain"]
    made = chatting(data, tokenizer={"path": str(tmp_path / "run" / "model")})
    made["train"] |= {"start": str(tmp_path / "run" / "model")}
    run(read_recipe(made), tmp_path / "again", report=quiet)
    _, other = hub.load(tmp_path / "again" / "model")
    assert other is not None
    assert other.chat_template == TEMPLATES["plain"]


def test_another_template_is_another_run(data: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_text(TEMPLATES["plain"], "utf-8")
    made = chatting(data)
    made["tokenizer"]["chat_template"] = str(tmp_path / "mine.jinja")
    run(read_recipe(made | {"train": made["train"] | {"steps": 3}}), tmp_path / "run", report=stopping)
    (tmp_path / "mine.jinja").write_text(TEMPLATES["plain"].replace("User:", "问："), "utf-8")
    (tmp_path / "run" / "tokenizer" / "settings.json").unlink()
    with pytest.raises(ValueError, match="the tokenizer is not the one this run began with"):
        run(read_recipe(made | {"train": made["train"] | {"steps": 3}}), tmp_path / "run", resume=True, report=quiet)


def stopping(row: dict[str, Any]) -> None:
    """A report that stops a run after its second step, which has a checkpoint."""
    import os
    import signal

    if row["step"] == 2:
        os.kill(os.getpid(), signal.SIGINT)


def test_samples_are_answers(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from triform.train import samples

    asked: list[Any] = []
    generate = samples.generate
    monkeypatch.setattr(samples, "generate", lambda *some: asked.append(some[2]) or generate(*some))
    made = chatting(data)
    made["train"] |= {"samples": {"prompts": ["汉朝"], "every": 1, "max_new_tokens": 2}}
    run(read_recipe(made), tmp_path / "run", report=quiet)
    assert asked[-1] == [[{"role": "user", "content": "汉朝"}]]
    assert json.loads((tmp_path / "run" / "samples.jsonl").read_text("utf-8").splitlines()[0])["prompt"] == "汉朝"


class _Shows:
    def __init__(self, runs: list[tuple[str, bool]] | None) -> None:
        self.runs = runs

    def example(self, sample: Any) -> list[tuple[str, bool]] | None:
        return self.runs


def shown(runs: list[tuple[str, bool]] | None, capsys: pytest.CaptureFixture[str], count: int = 1) -> str:
    import numpy as np

    objective: Objective = _Shows(runs)  # type: ignore[assignment]
    show_example(objective, Samples(np.ones(count), lambda index: {}))
    return capsys.readouterr().err


def test_the_first_example_is_shown_with_what_is_learned(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [("User: [bold]天下[/]\n", False), ("大势</s>", True)]
    assert shown(runs, capsys).endswith("User: [bold]天下[/]\n【大势</s>】\n")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = shown(runs, capsys)
    assert "\x1b[1;32m大势</s>" in coloured
    assert "【" not in coloured.split(":\n", 1)[1]
    assert shown(None, capsys) == shown(runs, capsys, count=0) == ""
    assert len(shown([("天" * 9000, False), ("大势", True)], capsys)) < 3000
