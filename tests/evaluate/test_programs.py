"""Programs that a model wrote: judged by their tests, kept to their limits, counted without bias."""

from __future__ import annotations

import gzip
import json
import os
import sys
from itertools import combinations
from math import comb
from pathlib import Path
from typing import Any

import pytest
from generate.conftest import built, decoder_only, tokenizer_of

from triform.cli import run
from triform.evaluate import programs, sandbox
from triform.evaluate.sandbox import run_program, run_programs
from triform.evaluate.task import Judged, Settings

ADD = {
    "task_id": "own/0", "prompt": 'def add(a: int, b: int) -> int:\n    """The sum."""\n', "entry_point": "add",
    "test": "def check(candidate):\n    assert candidate(2, 3) == 5\n    assert candidate(-1, 1) == 0\n",
}  # fmt: skip
DOUBLE = {
    "task_id": "own/1", "prompt": 'import math\n\n\ndef area(r: float) -> float:\n    """Of a circle."""\n', "entry_point": "area",
    "test": "def check(candidate):\n    assert abs(candidate(1.0) - 3.14159) < 1e-3\n",
}  # fmt: skip
FORGED = """import os
for number in range(1, 32):
    try:
        os.write(number, b'{"key": "", "told": "passed"}')
    except OSError:
        pass
"""


def problems(file: Path, *rows: Any) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return file


def judged() -> Judged:
    tokenizer = tokenizer_of("byte-bpe")
    return Judged(built(decoder_only(tokenizer.vocab_size)), tokenizer)


def writing(monkeypatch: pytest.MonkeyPatch, *texts: str) -> list[Any]:
    """Let the model write these texts; gives what it was asked."""
    asked: list[Any] = []

    def written(judged: Judged, prompts: list[str], *rest: Any, **how: Any) -> list[str]:
        asked.append((prompts, how))
        return list(texts)

    monkeypatch.setattr(programs, "written", written)
    return asked


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("assert sorted([2, 1]) == [1, 2]", "passed"),
        ("print('x' * 10**6)\nopen('a.txt', 'w').write('a')\nassert open('a.txt').read() == 'a'", "passed"),
        ("from dataclasses import dataclass\n@dataclass\nclass A:\n    a: int\nassert A(1) == A(1)", "passed"),
        ("import asyncio\nasync def one():\n    return 1\nassert asyncio.run(one()) == 1", "passed"),
        ("import tempfile\nwith tempfile.TemporaryDirectory() as folder:\n    open(folder + '/a', 'w').close()", "passed"),
        ("assert 1 == 2, 'no'", "AssertionError: no"),
        ("def f(:", "SyntaxError: invalid syntax (solution.py, line 1)"),
        ("x = '\ud800'", "UnicodeEncodeError"),
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("import os\nos._exit(0)", "ended before its tests did"),
        ("while True:\n    pass", "ran longer than 1 s"),
        ("x = bytearray(2**31)", "MemoryError"),
        ("x = [0]\nwhile True:\n    x += x", "MemoryError"),
        ("import os\nwhile True:\n    os.fork()", "PermissionError: os.fork is not allowed"),
        ("import subprocess\nsubprocess.run(['ls'])", "PermissionError: subprocess.Popen is not allowed"),
        ("import os\nos.system('ls')", "PermissionError: os.system is not allowed"),
        ("import os\nos.kill(os.getppid(), 9)", "PermissionError: os.kill is not allowed"),
        ("import socket\nsocket.create_connection(('127.0.0.1', 80))", "PermissionError: socket."),
        ("import socket\nsocket.socket(socket.AF_UNIX).connect('/var/run/docker.sock')", "PermissionError: "),
        ("import urllib.request\nurllib.request.urlopen('http://localhost')", "PermissionError: urllib.Request is not allowed"),
        ("import ctypes\nctypes.CDLL(None)", "PermissionError: ctypes.dlopen is not allowed"),
        ("open('big', 'wb').write(bytes(2**21))", "OSError: [Errno 27] File too large"),
        ("import os\nos.symlink('/etc', 'etc')", "PermissionError: os.symlink is not allowed"),
        (FORGED + "assert False", "ended before its tests did"),
        (FORGED + "os._exit(0)", "ended before its tests did"),
    ],
)
def test_a_program_ends_within_its_limits(program: str, told: str) -> None:
    outcome = run_program(program, seconds=1, memory=2**29)
    assert outcome.told.startswith(told)
    assert outcome.passed == (told == "passed")


def test_nothing_outside_is_changed(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("as it was", "utf-8")
    changes = [f"open({str(kept)!r}, 'w')", f"os.open({str(kept)!r}, os.O_WRONLY | os.O_TRUNC)", f"os.remove({str(kept)!r})",
               f"os.rename({str(kept)!r}, 'mine')", f"os.mkdir({str(tmp_path / 'new')!r})", f"shutil.rmtree({str(tmp_path)!r})",
               f"os.chdir({str(tmp_path)!r}); open('kept', 'w')",
               f"os.open('kept', os.O_WRONLY | os.O_TRUNC, dir_fd=os.open({str(tmp_path)!r}, os.O_RDONLY))",
               f"pathlib.Path({str(kept)!r}).write_text('')"]  # fmt: skip
    outcomes = run_programs([f"import os, shutil, pathlib\n{change}" for change in changes])
    assert [outcome.told.split(":")[0] for outcome in outcomes] == ["PermissionError"] * len(changes)
    assert kept.read_text("utf-8") == "as it was"
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_program_finds_an_empty_folder_and_a_bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "told to nobody")
    program = "import os\nassert os.listdir() == []\nassert 'SECRET' not in os.environ\nassert os.environ['HOME'] == os.getcwd()"
    assert run_program(program).told == "passed"
    if sys.platform == "linux":
        assert run_program("assert 'Seccomp:\\t2' in open('/proc/self/status').read()").told == "passed"


def test_a_program_that_sleeps_is_ended_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_PATIENCE", 1)
    assert run_program("import time\ntime.sleep(60)", seconds=1).told == "ran longer than 1 s"


def test_windows_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "name", "nt")
    with pytest.raises(ValueError, match="Linux and macOS"):
        programs.check_allowed(Settings(allow_code=True))


@pytest.mark.parametrize(("samples", "passed", "k"), [(5, 0, 1), (5, 2, 1), (5, 2, 3), (6, 3, 4), (6, 6, 2), (10, 1, 10)])
def test_pass_at_k_is_the_share_of_all_choices(samples: int, passed: int, k: int) -> None:
    chosen = list(combinations([True] * passed + [False] * (samples - passed), k))
    share = sum(any(one) for one in chosen) / comb(samples, k)
    assert programs.pass_at(samples, passed, k) == pytest.approx(share, abs=1e-12)
    if 0 < passed < samples and k > 1:
        biased = 1 - (1 - passed / samples) ** k
        assert abs(biased - share) > 1e-3


def test_programs_are_written_run_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = writing(monkeypatch, "    return a + b\n", "    return 2 * r\n")
    place = problems(tmp_path / "HumanEval.jsonl", ADD, DOUBLE)
    shown: list[tuple[int, int]] = []
    settings = Settings(allow_code=True, on_progress=lambda done, total: shown.append((done, total)))
    result = programs.humaneval(judged(), place, settings)
    assert asked[0][0] == [ADD["prompt"], DOUBLE["prompt"]]
    assert "\ndef" in asked[0][1]["stop"]
    assert [item["right"] for item in result.items] == [True, False]
    assert result.items[1]["told"] == "AssertionError"
    (metric,) = result.metrics
    assert (metric.name, metric.value, metric.share) == ("pass@1", 0.5, True)
    assert shown[-1] == (4, 4)


def test_several_samples_are_counted_without_bias(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = [True, False, False, True, False, False, False, False, False, False]
    asked = writing(monkeypatch, *("    return a + b" if one else "    return a" for one in right))
    with gzip.open(tmp_path / "own.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(json.dumps(ADD) + "\n")
    result = programs.humaneval(judged(), tmp_path, Settings(allow_code=True, samples=10))
    assert asked[0][1]["temperature"] == 0.8
    assert {one.name: one.value for one in result.metrics} == pytest.approx({"pass@1": 0.2, "pass@10": 1.0}, abs=1e-12)
    with pytest.raises(ValueError, match="temperature: expected more than 0"):
        programs.humaneval(judged(), tmp_path, Settings(allow_code=True, samples=2, temperature=0))


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ("Here:\n```python\ndef add(a, b):\n    return a + b\n```\nIt adds.", True),
        ("```\nimport os\n```\nthen\n```py\ndef add(a, b):\n    return a + b\n", True),
        ("```python\n    return a + b\n```", True),
        ("```python\ndef add(a, b):\n    return a - b\n```", False),
        ("I cannot.", False),
    ],
)
def test_of_an_answer_the_block_of_code_counts(text: str, passes: bool) -> None:
    problem = programs.Problem(ADD["task_id"], ADD["prompt"], ADD["test"], ADD["entry_point"])
    assert run_program(programs.program(problem, text, chat=True)).passed == passes
    bare = problem._replace(prompt="def add(a: int, b: int) -> int:\n")
    assert run_program(programs.program(bare, text, chat=True)).passed == passes


def test_a_model_really_writes_programs(tmp_path: Path) -> None:
    place = problems(tmp_path / "own.jsonl", ADD)
    found = [programs.humaneval(judged(), place, Settings(allow_code=True, samples=3, max_new_tokens=6, seed=seed)) for seed in (0, 0, 1)]
    texts = [[item["written"] for item in one.items] for one in found]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]
    assert len(set(texts[0])) > 1


def test_code_runs_only_where_it_is_allowed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = problems(tmp_path / "own.jsonl", ADD)
    with pytest.raises(ValueError, match="--allow-code"):
        programs.humaneval(judged(), place, Settings())
    assert run(["eval", "nowhere", "--tasks", f"humaneval={place}"]) == 2
    assert "--allow-code" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "says"),
    [({"entry_point": "a b"}, "expected the name of a function"), ({"test": " "}, "expected text in 'test'"), ({"prompt": 1}, "'prompt'")],
)
def test_a_bad_problem_is_told_with_its_line(change: dict[str, Any], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writing(monkeypatch, "    return a + b")
    place = problems(tmp_path / "own.jsonl", ADD, ADD | change)
    with pytest.raises(ValueError, match=rf"own\.jsonl:2: .*{says}"):
        programs.humaneval(judged(), place, Settings(allow_code=True))
    assert programs.humaneval(judged(), place, Settings(allow_code=True, skip_bad=True)).bad == 1


def test_a_damaged_archive_is_told(tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl.gz"
    file.write_bytes(gzip.compress(b"{}" * 1000)[:20])
    with pytest.raises(ValueError, match="expected a whole gzip file"):
        programs.humaneval(judged(), file, Settings(allow_code=True))
