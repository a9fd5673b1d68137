"""`triform doctor RECIPE`: each check finds what is sick, and is content with what is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from recipes import LINES, REVIEWS, plain, write_data

from triform.doctor import Examination, Examiner
from triform.doctor.findings import Finding
from triform.train import read_recipe

Change = Callable[[dict[str, Any], Path], None]
LONG = "".join(LINES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the tiny recipes, and sick ones."""
    made = tmp_path_factory.mktemp("doctor")
    write_data(made)
    (made / "again.txt").write_text("\n".join(LINES * 3) + "\n", encoding="utf-8")
    (made / "others.txt").write_text("\n".join(line[::-1] for line in LINES) + "\n", encoding="utf-8")
    (made / "exam.jsonl").write_text(json.dumps({"question": f"据说{LINES[3]}", "answer": "是"}, ensure_ascii=False) + "\n", "utf-8")
    (made / "exam-of-others.jsonl").write_text(json.dumps({"question": LINES[3][::-1], "answer": "否"}, ensure_ascii=False) + "\n", "utf-8")
    rows = [{"text": f"{text}{i}", "label": label} for i in range(12) for text, label in REVIEWS]
    _write(made / "broken.jsonl", [*rows[:9], {"text": 7, "label": "positive"}, *rows[9:]])
    many = [{"text": f"{text}{i}", "label": label} for i in range(99) for text, label in REVIEWS if label == "positive"]
    _write(made / "one-class.jsonl", [*many, *(row for row in rows[:12] if row["label"] == "negative")])
    _write(made / "no-class.jsonl", [row for row in rows if row["label"] == "positive"])
    _write(made / "torn.jsonl", [*rows, *({**row, "label": REVIEWS[0][1]} for row in rows if row["label"] != REVIEWS[0][1])])
    return made


def _write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def healthy(kind: str, folder: Path) -> dict[str, Any]:
    """A recipe that nothing is wrong with, as plain data."""
    made = plain(kind, folder, steps=20)
    made["tokenizer"] = made["tokenizer"] | {"kind": "bpe", "vocab_size": 560}
    if kind in ("Classification", "Contrastive"):
        made["tokenizer"] = {"kind": "bpe", "vocab_size": 309}
    return made


def examined(made: dict[str, Any], **how: Any) -> dict[str, Finding]:
    """The findings of a recipe by their checks, the worst of each."""
    found: Examination = Examiner(**how).examine(read_recipe(made))
    order = ("fine", "note", "warning", "error")
    return {each.check: each for each in sorted(found.findings, key=lambda one: order.index(one.severity))}


def put(path: str, value: Any) -> Change:
    """Set a field of a recipe by its path."""

    def change(made: dict[str, Any], folder: Path) -> None:
        *parts, last = path.split(".")
        place = made
        for part in parts:
            place = place.setdefault(part, {})
        place[last] = value

    return change


def source(name: str, field: str = "source") -> Change:
    """Take another file."""
    return lambda made, folder: made["data"].__setitem__(field, str(folder / name))


OBJECTIVES = [
    "Causal", "Prefix", "FillInTheMiddle", "Masked", "NextSentence", "SentenceOrder", "SpanCorruption", "Mixture", "Denoising",
    "SequenceToSequence", "Classification", "ImageClassification", "Contrastive",
]  # fmt: skip


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_a_healthy_recipe_of_every_objective(kind: str, folder: Path) -> None:
    made = plain(kind, folder, steps=20)
    if kind in ("Causal", "SequenceToSequence", "Classification"):
        made = healthy(kind, folder)
    found = examined(made)
    spoilt = [each.line for each in found.values() if each.severity == "error"]
    known = ("unknown tokens", "overlap") if kind in ("NextSentence", "SentenceOrder") else "unknown tokens"  # paragraphs share sentences
    assert not [line for line in spoilt if not line.startswith(known)]
    assert {"learning rate", "memory", "time", "steps", "duplicates", "overlap", "loss at step 0"} <= found.keys()
    if kind in ("Causal", "SequenceToSequence", "Classification"):
        assert [each.line for each in found.values() if each.severity in ("warning", "error")] == []


def _thrice(made: dict[str, Any], folder: Path) -> None:
    made["data"]["source"] = [{"source": made["data"]["source"], "weight": 3}]


SICK: list[tuple[str, str, str, list[Change], str, str]] = [
    ("duplicates", "Causal", "warning", [source("again.txt")], "repeat an earlier one", "data.clean"),
    ("duplicates", "Causal", "note", [_thrice], "as the weights of the sources ask", ""),
    ("duplicates", "Causal", "warning", [source("again.txt"), put("data.transform", ["sentences"])], "repeat", "data.transform"),
    ("overlap", "Causal", "error", [source("lines.txt", "validation_source")], "100 % of", "validation would measure memory"),
    ("validation", "Causal", "warning", [put("data.validation", 0)], "nothing is held out", "data.validation"),
    ("truncation", "SequenceToSequence", "error", [put("objective.length", 4), put("objective.target_length", 4)], "are cut off", "raise"),
    ("unknown tokens", "Causal", "error", [put("tokenizer", {"kind": "characters", "vocab_size": 40})], "are unknown: ", "vocab_size"),
    ("compression", "Causal", "warning", [put("tokenizer", {"kind": "byte-bpe", "vocab_size": 263})], "tokens a character", "tokenizer"),
    ("learning rate", "Causal", "error", [put("train.rate", 1.0)], "train.rate is 1,", "--find-rate"),
    ("learning rate", "Causal", "warning", [put("train.rate", 1e-5)], "little may be learnt", "set train.rate="),
    ("learning rate", "Causal", "warning", [put("train.optimizer", "muon"), put("train.muon_rate", 0.5)], "train.muon_rate is 0.5", "muon"),
    ("warm-up", "Causal", "warning", [put("train.warmup", 20)], "still rises when the run ends", "train.warmup=1"),
    ("steps", "Causal", "warning", [put("train.steps", 9000)], "by heart", "train.steps"),
    ("loss at step 0", "Causal", "error", [put("model.init", {"std": 4.0})], "knows nothing has", "model.init.std"),
    ("classes", "Classification", "error", [source("no-class.jsonl")], "no example of negative", "objective.labels"),
    ("classes", "Classification", "warning", [source("one-class.jsonl")], "one class makes up", "F1"),
    ("contradictions", "Classification", "warning", [source("torn.jsonl")], "with different labels", "decide"),
    ("bad rows", "Classification", "error", [source("broken.jsonl")], "broken.jsonl, line 10", "data.skip_bad=true"),
    ("bad rows", "Classification", "warning", [source("broken.jsonl"), put("data.skip_bad", True)], "broken.jsonl, line 10", "left out"),
]


@pytest.mark.parametrize(("check", "kind", "severity", "changes", "says", "advice"), SICK, ids=lambda part: str(part)[:20])
def test_what_is_sick_is_found(
    check: str, kind: str, severity: str, changes: list[Change], says: str, advice: str, folder: Path
) -> None:  # fmt: skip
    made = healthy(kind, folder)
    for change in changes:
        change(made, folder)
    found = examined(made)[check]
    assert found.severity == severity, found.line
    assert says in found.says
    assert advice in found.advice


@pytest.mark.parametrize(("name", "severity", "share"), [("exam.jsonl", "error", 1.0), ("exam-of-others.jsonl", "fine", 0.0)])
def test_evaluation_sets_in_the_training_text(name: str, severity: str, share: float, folder: Path) -> None:
    found = examined(healthy("Causal", folder) | {"data": {"source": str(folder / "lines.txt"), "tail": 2}}, against=[str(folder / name)])
    assert (found["contamination"].severity, found["contamination"].figures["share"]) == (severity, share)


def test_evaluation_sets_that_cleaning_names_are_looked_for(folder: Path) -> None:
    made = healthy("Causal", folder)
    clean = {"filter": None, "deduplicate": None, "overlap": {"sources": [str(folder / "exam.jsonl")], "action": "report"}}
    made["data"] |= {"clean": clean, "folder": str(folder / "prepared"), "tail": 2}
    made["data"].pop("validation")
    assert examined(made)["contamination"].severity == "error"


def test_only_the_first_rows_are_read_where_asked(folder: Path) -> None:
    found = examined(healthy("Causal", folder), rows=5)
    assert "the first 5 rows" in found["duplicates"].says
    assert "steps" not in found  # nobody counted the rows


def _slow(plan: Any) -> Any:
    return replace(plan, time=replace(plan.time, expected_seconds=7200.0))


def test_memory_and_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from triform.doctor import recipe as examining
    from triform.train.outlook import outlook

    def tight(room: float) -> Any:
        def planned(*args: Any) -> Any:
            plan = outlook(*args)
            return replace(plan, memory=replace(plan.memory, capacity=int(plan.memory.training.total * room)))

        return planned

    for room, severity in ((1.05, "warning"), (0.5, "error"), (2.0, "fine")):
        monkeypatch.setattr(examining, "outlook", tight(room))
        assert examined(healthy("Causal", folder))["memory"].severity == severity
    monkeypatch.setattr(examining, "outlook", lambda *args: _slow(outlook(*args)))
    assert examined(healthy("Causal", folder))["time"].severity == "note"
    monkeypatch.setattr(examining, "outlook", tight(0.5))
    monkeypatch.setattr(examining, "total_memory", lambda device: 1)
    assert "loss at step 0" not in examined(healthy("Causal", folder))  # a model that does not fit is not built


def test_a_recipe_that_its_run_would_refuse_is_a_mistake(folder: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        examined(healthy("Causal", folder) | {"data": {"source": "nowhere.txt"}})
