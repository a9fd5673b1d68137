"""`triform serve` as a command, from its start to its end."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmarks.load import Server, end, load

from triform import cli


@pytest.fixture(autouse=True)
def _own_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command's log goes to a standard error that ends with the test."""
    for name in ("triform.serve", "uvicorn.error"):
        logger = logging.getLogger(name)
        for field, value in {"handlers": [], "propagate": logger.propagate, "level": logger.level}.items():
            monkeypatch.setattr(logger, field, value)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "usage"),
        (["nowhere/model"], "nowhere/model"),
        (["bert=nowhere/model", "--port", "0"], "nowhere/model"),
        (["=x", "--port", "0"], "expected NAME=MODEL"),
        (["x", "--port", "70000"], "choose another --host or --port"),
        (["x", "--host", "no.such.host.invalid"], "choose another --host or --port"),
        (["x", "--keys", "nowhere.txt"], "nowhere.txt"),
        (["x", "--cors", "example.org"], "https://example.org"),
        (["x", "--deadline", "0"], "deadline"),
        (["x", "--max-new-tokens", "0"], "new_tokens"),
        (["x", "--max-body", "-1"], "body_bytes"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str], arguments: list[str], says: str) -> None:
    assert cli.run(["serve", *arguments]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert says in told.err
    assert told.err.count("\n") == 1


def test_help_needs_neither_torch_nor_fastapi() -> None:
    code = "import sys; from triform import cli; cli.run(['serve', '--help']); sys.exit('torch' in sys.modules or 'fastapi' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "triform serve smollm2-135m-instruct" in found.stdout


def test_without_the_extra_it_says_what_to_install(capsys: pytest.CaptureFixture[str]) -> None:
    code = "import sys; sys.modules['fastapi'] = None; from triform import cli; sys.exit(cli.run(['serve', 'x']))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (found.returncode, 'pip install "triform[serve]"' in found.stderr) == (2, True)


@pytest.mark.slow
def test_it_stands_load_and_abuse_and_ends_well(tmp_path: Path) -> None:
    server = Server(tmp_path)
    try:
        held: dict[str, Any] = asyncio.run(load(server, 40, 20))
        ended: dict[str, Any] = asyncio.run(end(server))
    finally:
        server.process.kill()
    assert (held["wrong"], held["left_in_use"]) == ([], 0)
    assert held["outcomes"]["done"] > 20
    assert held["outcomes"]["left"] > 5
    assert held["memory_growth"] < 0.05
    assert (ended["exit_code"], ended["wrong"]) == (0, [])
    assert sum(ended["streams"].values()) == 24
    assert set(ended["streams"]) <= {"done", "error shutting_down"}
    log = (tmp_path / "log.jsonl").read_text(encoding="utf-8")
    assert "话说" not in log
    assert "Traceback" not in log
