"""Bad rows in a run: told with file and line, or left out, counted and listed if the recipe says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from recipes import LINES, REVIEWS, plain
from runs import quiet

from triform.data.shards import Shards
from triform.train import read_recipe, run

GOOD: dict[str, list[dict[str, Any]]] = {
    "Instruction": [{"prompt": line[:6], "response": line[6:] or line} for line in LINES],
    "Classification": [{"text": f"{text}{i}", "label": label} for i in range(6) for text, label in REVIEWS],
    "TokenClassification": [{"tokens": list(line[:15]), "labels": ["O"] * len(line[:15])} for line in LINES],
    "QuestionAnswering": [{"question": line[:3], "context": line[:15], "answers": line[3:6]} for line in LINES],
}
BAD = {
    "Instruction": [
        ('{"prompt": "天下", "response": ', "not JSON"),
        ('{"text": "天下"}', "expected a conversation in 'messages'"),
        ('{"prompt": "天下", "response": ""}', "'response' is empty"),
        ('{"messages": [{"role": "sage", "content": "天"}]}', "unknown role 'sage'"),
        ('{"messages": [{"role": "user", "content": "天"}, {"role": "assistant", "content": "下"}, {"role": "user", "content": "大"}, '
         '{"role": "assistant", "content": "势"}]}', "without a chat template"),
    ],
    "Classification": [('{"text": "好"}', "no field 'label'"), ('{"text": "好", "label": "so so"}', "label 'so so': expected one of")],
    "TokenClassification": [('{"tokens": ["天"], "labels": ["B-Y"]}', "label 'B-Y': expected one of")],
    "QuestionAnswering": [('{"question": "何", "context": "天下", "answers": "曹操"}', "the answer '曹操' does not stand in the passage")],
}  # fmt: skip
CASES = [(kind, line, reason) for kind, rows in BAD.items() for line, reason in rows]


def written(kind: str, folder: Path, bad: list[str], **data: Any) -> dict[str, Any]:
    """A recipe whose file has good rows and, from its third line on, bad ones."""
    made = plain(kind, folder, steps=2)
    lines = [json.dumps(row, ensure_ascii=False) for row in GOOD[kind]]
    (folder / "rows.jsonl").write_text("\n".join([*lines[:2], *bad, *lines[2:]]) + "\n", "utf-8")
    made["data"] = {"source": str(folder / "rows.jsonl"), "validation": 0.2, **data}
    return made


@pytest.mark.parametrize(("kind", "line", "reason"), CASES)
def test_the_first_ends_the_run_and_is_told_with_its_line(kind: str, line: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 3: .*; mend it, or leave such rows out with data\.skip_bad=true") as caught:
        run(read_recipe(written(kind, tmp_path, [line])), tmp_path / "run", report=quiet)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", BAD)
def test_they_are_left_out_and_listed_if_asked(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line for line, _ in BAD[kind]]
    run(read_recipe(written(kind, tmp_path, lines, skip_bad=True)), tmp_path / "run", report=quiet)
    told = [json.loads(line) for line in (tmp_path / "run" / "bad_rows.jsonl").read_text("utf-8").splitlines()]
    assert sorted(row["place"] for row in told) == sorted(f"{tmp_path / 'rows.jsonl'}, line {3 + i}" for i in range(len(lines)))
    assert all(reason in " ".join(row["reason"] for row in told) for _, reason in BAD[kind])
    assert f"{len(lines)} bad rows are left out, listed in" in capsys.readouterr().err
    kept = sum(len(Shards.open(tmp_path / "run" / "data" / part)) for part in ("train", "validation"))
    assert kept == len(GOOD[kind])


def test_nothing_but_bad_rows_is_an_error_that_says_why(tmp_path: Path) -> None:
    made = written("Instruction", tmp_path, [], skip_bad=True)
    (tmp_path / "rows.jsonl").write_text('{"text": "天下"}\n' * 30, "utf-8")
    with pytest.raises(ValueError, match="expected a conversation in 'messages'") as caught:
        run(read_recipe(made), tmp_path / "run", report=quiet)
    assert "\n" not in str(caught.value)
