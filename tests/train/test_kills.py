"""Commands that are killed by SIGKILL at random instants, and started again each time, end where undisturbed ones end, bit for bit.

The instants follow from a seed, which is told; TRIFORM_KILLS_SEED gives one, and TRIFORM_KILLS how many kills there are.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kills import Killer, Report, differences
from recipes import LINES, OBJECTIVES, plain, recipe, write_data

from triform.train import run

KILLS = int(os.environ.get("TRIFORM_KILLS", 20))
SEED = int(os.environ.get("TRIFORM_KILLS_SEED", random.SystemRandom().randrange(10**6)))
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
    found = Killer()
    yield found
    found.close()


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the tiny recipes name, with enough in them for preparing to take a while."""
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    for name in ("lines.txt", "paragraphs.txt", "pairs.jsonl", "reviews.jsonl", "pictures.jsonl"):
        text = (folder / name).read_text("utf-8")
        (folder / name).write_text(text * (20 if name == "pictures.jsonl" else 60), encoding="utf-8")
    return folder


def check(report: Report, kills: int, name: str) -> None:
    told = ", ".join(f"{count} {where}" for where, count in sorted(report.kills.items()))
    print(f"{name}: seed {SEED}, {report.seconds:.2f} s undisturbed, killed {told}; {report.finished} finished")
    assert report.wrong is None, f"TRIFORM_KILLS_SEED={SEED}: {report.wrong}"
    assert sum(report.kills.values()) == kills
    assert report.finished >= 1


def save(folder: Path, settings: dict[str, Any]) -> str:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings, allow_unicode=True), encoding="utf-8")
    return str(folder / "recipe.yaml")


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_a_run_of_each_objective(kind: str, killer: Killer, texts: Path, tmp_path: Path) -> None:
    settings = plain(kind, texts, steps=12, checkpoint_every=1, validate_every=4, validation_batches=2, keep=2, guard={}, ema=0.9)
    command = ["train", save(tmp_path, settings), "--resume", "--out", str(tmp_path / "run")]
    check(killer.work(command, tmp_path / "run", KILLS, SEED), KILLS, kind)


@pytest.mark.parametrize(
    ("kind", "adapter"),
    [("Instruction", {"quantize": "nf4"}), ("DPO", {}), ("GRPO", {"kind": "dora"}), ("Classification", {})],
)
def test_a_run_of_an_adapter(kind: str, adapter: dict[str, Any], killer: Killer, texts: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    run(recipe("Masked" if kind == "Classification" else "Causal", texts, steps=3), base, report=lambda row: None)
    adapted = {"rank": 2, "dropout": 0.1} | adapter
    settings = plain(kind, texts, steps=12, checkpoint_every=1, validate_every=4, keep=2, start=str(base / "model"), adapter=adapted)
    settings["tokenizer"] = {"path": str(base / "model")}
    command = ["train", save(tmp_path, settings), "--resume", "--out", str(tmp_path / "run")]
    check(killer.work(command, tmp_path / "run", KILLS, SEED), KILLS, f"{kind}, an adapter")


def test_data_that_are_prepared(killer: Killer, tmp_path: Path) -> None:
    lines = [f"{LINES[i % len(LINES)]}{LINES[i * 7 % len(LINES)]}第{i % 900}回" for i in range(1200)]
    (tmp_path / "text.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = plain("Causal", tmp_path)
    settings["data"] = {"source": str(tmp_path / "text.txt"), "folder": str(tmp_path / "made"), "validation": 0.1}
    settings["data"]["clean"] = {"deduplicate": {"near": 0.9}}
    settings["tokenizer"] = {"kind": "bpe", "vocab_size": 600}
    command = ["data", "prepare", save(tmp_path, settings), "--workers", "1"]
    check(killer.work(command, tmp_path / "made", KILLS, SEED), KILLS, "data prepare")


def test_the_comparison_sees_one_bit_one_file_and_one_figure() -> None:
    left = {"content": {"a": "00"}, "files": ["a"], "run": {"metrics": [{"step": 1, "loss": 2.5}]}}
    assert not differences(left, dict(left))
    for part, other in {"content": {"a": "01"}, "files": ["a", "b"], "run": {"metrics": [{"step": 1, "loss": 2.5000000001}]}}.items():
        assert differences(left, left | {part: other})
