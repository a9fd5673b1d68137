"""Commands of triform that are killed at random instants and started again, and what that comes to.

Run as a script, it reads jobs from standard input, a line of JSON each, and answers each with a line. Every command runs in a child that
is forked after the heavy imports, so that a start costs hundredths of a second and hundreds of kills are affordable.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
CHANGING = {"result.json", "forecast.json", "plan.json", "metrics.jsonl", "state.json", "SHA256SUMS", "training.json"}  # they hold timings


@dataclass
class Report:
    """What a job came to.

    kills: how many, by where they landed. finished: runs that reached their end. seconds: of the undisturbed one. wrong: how an
    outcome differed, or a command failed, with what it said; None where all went well.
    """

    kills: dict[str, int] = field(default_factory=dict)
    finished: int = 0
    seconds: float = 0.0
    wrong: str | None = None


class Killer:
    """The process that the jobs are given to."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | ONE_THREAD
        )

    def work(self, command: list[str], folder: Path, kills: int, seed: int) -> Report:
        """Run `command`, which works in `folder` and goes on where it was, once undisturbed and then with so many kills."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"command": command, "folder": str(folder), "kills": kills, "seed": seed}) + "\n")
        self.process.stdin.flush()
        return Report(**json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        """End it."""
        self.process.communicate(timeout=60)


# Everything below runs in the script


def start(command: list[str], log: Path) -> int:
    """The process id of a child that runs a command of triform; what it says goes to `log`."""
    from triform.cli import run

    assert len(list(Path("/proc/self/task").iterdir())) == 1, "threads do not survive a fork, and what they held stays locked"
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        code = run(command)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(child: int, seconds: float) -> int | None:
    """The exit code of a child, None when it still runs after so many seconds."""
    end = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= end:
            return None
        time.sleep(0.0005)


def landed(folder: Path) -> str:
    """What a process was at when it was killed, by what it left."""

    def any_of(*patterns: str) -> bool:
        return any(any(folder.glob(pattern)) for pattern in patterns)

    if any_of("checkpoints/.step-*.tmp"):
        return "in the middle of a checkpoint"
    if any_of("model/.saved*", "result.json"):
        return "at the end"
    if any_of("metrics.jsonl"):
        return "in the steps"
    if any_of("state.sqlite"):
        return "in the cleaning"
    if any_of("tokenizer/settings.json"):
        return "in the shards"
    return "in the tokenizer" if any_of("recipe.yaml", "manifest.json") else "before all"


def outcome(folder: Path) -> dict[str, Any]:
    """All that a command left, but for timings: the names of its files, what they hold, and what a run's hold within."""
    import runs

    files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    same = {name: path for name, path in files.items() if path.name not in CHANGING and path.suffix != ".svg"}
    found: dict[str, Any] = {"files": [name for name in files if not name.endswith(".lock")]}
    found["content"] = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in same.items()}
    if (folder / "result.json").exists():
        found["run"] = {part: held for part, held in runs.outcome(folder).items() if part in ("state", "metrics")}
        result = json.loads((folder / "result.json").read_text("utf-8"))
        found["result"] = {name: held for name, held in result.items() if name != "seconds"}
    return found


def differences(left: Any, right: Any, where: str = "") -> list[str]:
    """Where two outcomes differ."""
    if isinstance(left, dict) and isinstance(right, dict) and left.keys() == right.keys():
        return [line for key in left for line in differences(left[key], right[key], f"{where}/{key}")]
    if isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        return [line for i, pair in enumerate(zip(left, right, strict=True)) for line in differences(*pair, f"{where}/{i}")]
    return [] if left == right else [f"{where}: {left!r} without, {right!r} with kills"]


def job(command: list[str], folder: str, kills: int, seed: int) -> Report:
    """Work one off. Half of the kills come at any instant of a whole run, and half while it has not begun its steps."""
    draw, place, report = random.Random(seed), Path(folder), Report()
    log, counts = place.with_name(f"{place.name}.log"), Counter[str]()
    whole, early = undisturbed(command, place, log)
    report.seconds = whole
    wanted = outcome(place)
    shutil.rmtree(place)
    while counts.total() < kills or place.exists():
        fresh, begin = not place.exists(), time.monotonic()
        child = start(command, log)
        code = ended(child, whole * draw.random() * draw.choice((early, 1)) if counts.total() < kills else 600)
        if code is None:
            os.kill(child, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == -signal.SIGKILL:
            counts[landed(place)] += 1
            continue
        if fresh:
            whole = min(whole, time.monotonic() - begin)  # the first may have been slow, as on a busy machine
        report.kills = dict(counts)
        report.finished += 1
        wrong = [log.read_text("utf-8")] if code else differences(wanted, outcome(place))
        if wrong:
            report.wrong = "; ".join(wrong[:5])
            return report
        shutil.rmtree(place)
    report.kills = dict(counts)  # the last may have come before there was a folder
    return report


def undisturbed(command: list[str], folder: Path, log: Path) -> tuple[float, float]:
    """The seconds that a command takes, and their share until its metrics begin, or a third where there are none."""
    begin, early = time.monotonic(), 0.0
    child = start(command, log)
    while (code := ended(child, 0.002)) is None:
        early = early or (time.monotonic() - begin if (folder / "metrics.jsonl").exists() else 0.0)
    if code:
        raise RuntimeError(log.read_text("utf-8"))
    whole = time.monotonic() - begin
    return whole, early / whole or 1 / 3


def prepared() -> None:
    """Import and work out what every child would, by a run of each kind, and have the work committed often."""
    from recipes import plain, write_data

    from triform.cli import run
    from triform.data import pipeline, shards

    with TemporaryDirectory() as name, redirect_stdout(sys.stderr):
        write_data(Path(name))
        for kind in ("Masked", "Contrastive"):
            settings = plain(kind, Path(name))
            settings["data"] |= {"clean": {"deduplicate": {"near": 0.9}}, "folder": f"{name}/{kind}-data"}
            Path(name, "recipe.yaml").write_text(json.dumps(settings), encoding="utf-8")
            for command in (["data", "prepare", f"{name}/recipe.yaml"], ["train", f"{name}/recipe.yaml", "--out", f"{name}/{kind}"]):
                if run(command):
                    raise RuntimeError(f"{command} failed")
    pipeline.FILE_CHARACTERS, pipeline.BATCH_ROWS, shards.COMMIT_TOKENS = 4_000, 32, 4_000


def main(work: Callable[..., Report]) -> None:
    """Answer jobs until there are no more."""
    for line in sys.stdin:
        try:
            report = work(**json.loads(line))
        except Exception:
            report = Report(wrong=traceback.format_exc())
        print(json.dumps(asdict(report)), flush=True)


if __name__ == "__main__":
    prepared()
    main(job)
