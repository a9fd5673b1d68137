"""The demo as a whole, with a few steps of each model: it runs, can be killed, and goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from triform.cli import run
from triform.demo.stages import document_bits, examples


def test_a_document_is_scored_whole_whatever_the_window() -> None:
    """Every token after the first is scored once; with a window as long as the document that is the plain loss."""
    import triform

    small = ["decoder.width=32", "decoder.depth=1", "decoder.input.vocab_size=50", "decoder.pattern[0].feed_forward.hidden=32"]
    model = triform.build("storyteller", small, seed=0).eval()
    ids = torch.randint(50, (101,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = torch.nn.functional.cross_entropy(model(ids[None, :-1]).logits[0], ids[1:], reduction="sum") / torch.log(torch.tensor(2.0))
    assert document_bits(model, ids.tolist(), 1, 256) == pytest.approx(float(whole), rel=1e-5)
    short = document_bits(model, ids.tolist(), 1, 16)
    assert short == pytest.approx(float(whole), rel=0.05)
    assert document_bits(model, ids.tolist(), 50, 16) < 0.7 * short  # the control: fewer tokens scored


@pytest.mark.slow
def test_killed_and_started_again_it_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    code = "import sys; from triform.cli import run; sys.exit(run(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "demo", "--quick", "--out", str(folder)]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    first = folder / "storyteller" / "result.json"
    deadline = time.monotonic() + 600
    while not first.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert first.exists()
    before = first.read_bytes()
    assert not (folder / "report.html").exists()
    assert run(["demo", "--quick", "--out", str(folder), "--json"]) == 0
    assert first.read_bytes() == before
    for stage in ("storyteller", "critic", "translator"):
        result = json.loads((folder / stage / "result.json").read_text(encoding="utf-8"))
        assert result["figures"]
        assert result["attention"]
    assert (folder / "report.html").stat().st_size > 50_000
    assert run(["demo", "--out", str(folder)]) == 2  # a quick demo's folder is not taken for a whole one's


def test_the_recipes_of_the_demo_are_the_examples() -> None:
    assert {"storyteller.yaml", "critic-pretrain.yaml", "critic.yaml", "translator.yaml"} <= {f.name for f in examples().iterdir()}
