"""Time to quality on the CPU: how soon a model of characters reads Shakespeare with a loss of 1.88 nats, beside nanoGPT.

    python benchmarks/speedrun.py --text tinyshakespeare.txt --nanogpt FOLDER      # the race, then the best loss within 3 minutes
    python benchmarks/speedrun.py --text tinyshakespeare.txt --minutes 3 10        # without the race's peer; also within 10 minutes
    python benchmarks/speedrun.py --text tinyshakespeare.txt --nanogpt FOLDER --quick      # a few steps of each, to see that it runs

nanoGPT (a checkout of it) runs its README's command for the CPU unchanged, but that it saves its weights every 100 steps.
The two take turns, each in a process of its own with the same number of threads; times are medians. Both learn from the first
nine tenths of the text, and one function scores both over the whole last tenth, in blocks of 64 characters that begin
without context, as nanoGPT's do; models that read more at once are also scored in blocks of that length.

Time is that of the training steps, without start-up, validation and saving, on both sides; `process` is all of it, from the start
of a process to its end. nanoGPT's counts up to the first saved weights that reach the loss. Ours is a run of so many
steps, with a rate that falls to zero, so its end counts. What comes within so many minutes begins with
a measurement of a step's time, which says how many steps fit; that is not part of the minutes. Where the machine was slower in the
run, it is run once more with so many fewer steps. Wants an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

TARGET, BLOCK, SCORED_AT_ONCE = 1.88, 64, 128
README = [
    "--device=cpu", "--compile=False", "--eval_iters=20", "--log_interval=1", "--block_size=64", "--batch_size=12", "--n_layer=4",
    "--n_head=4", "--n_embd=128", "--max_iters=2000", "--lr_decay_iters=2000", "--dropout=0.0",
]  # fmt: skip
SAVING = ["--always_save_checkpoint=True", "--eval_interval=100"]
CALIBRATION = 12  # steps whose median says how long one takes


# Our recipes


def recipe(name: str, folder: Path, steps: int | None = None, seed: int = 0) -> dict[str, Any]:
    """A recipe of Triform for the texts in a folder: `race`, or one for so many minutes."""
    shape, train, length = RECIPES[name]
    steps, vocabulary = steps or train["steps"], len(set((folder / "train.txt").read_text(encoding="utf-8"))) + SPECIAL
    feed_forward = {"kind": "FeedForward", "hidden": 4 * shape["width"], "activation": "relu", "bias": False}
    attention = {
        "heads": shape["heads"], "mask": "causal", "position": {"kind": "Rotary", "theta": 1000.0}, "qk_norm": {"kind": "RMSNorm"},
        "bias": "none",
    }  # fmt: skip
    block = {"attention": attention, "feed_forward": feed_forward, "norm": {"kind": "RMSNorm"}, "dropout": shape["dropout"]}
    decoder = {
        "width": shape["width"], "depth": shape["depth"], "input": {"kind": "Tokens", "vocab_size": vocabulary}, "pattern": [block],
        "norm": {"kind": "RMSNorm"},
    }  # fmt: skip
    return {
        "model": {
            "kind": "Transformer", "decoder": decoder, "head": {"kind": "LanguageModel", "tied": False}, "init": {"scale_residuals": True}
        },
        "data": {"source": str(folder / "train.txt"), "validation_source": str(folder / "held_out.txt"), "by": "file"},
        "tokenizer": {"kind": "characters", "vocab_size": vocabulary},
        "objective": {"kind": "Causal", "length": length},
        "train": COMMON | train | {"steps": steps, "validate_every": steps, "checkpoint_every": steps, "seed": seed},
    }  # fmt: skip


SPECIAL = 7  # the tokenizer's own tokens
COMMON = {
    "optimizer": "muon", "rate": 4e-3, "muon_rate": 0.025, "warmup": 10, "schedule": "linear", "floor": 0.0, "precision": "bf16",
    "validation_batches": 1,
}  # fmt: skip
RECIPES: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "race": ({"width": 128, "depth": 4, "heads": 4, "dropout": 0.0}, {"steps": 200, "batch": 24}, BLOCK),
    "3 minutes": ({"width": 192, "depth": 6, "heads": 6, "dropout": 0.0}, {"batch": 16}, 128),
    "10 minutes": ({"width": 256, "depth": 6, "heads": 8, "dropout": 0.1}, {"batch": 16}, 256),
}


# The held-out tenth


def blocks_loss(nats: Callable[[Any, Any], float], ids: list[int], length: int) -> float:
    """Nats a character over the whole of `ids`, in blocks of `length`; nats(inputs, labels), both (B, T), is a sum."""
    import torch

    stream = torch.tensor(ids)
    count = (len(ids) - 1) // length
    inputs, labels = stream[: count * length].view(count, length), stream[1 : count * length + 1].view(count, length)
    total = sum(nats(x, y) for x, y in zip(inputs.split(SCORED_AT_ONCE), labels.split(SCORED_AT_ONCE), strict=True))
    if count * length < len(ids) - 1:
        total += nats(stream[None, count * length : -1], stream[None, count * length + 1 :])
    return total / (len(ids) - 1)


def ours(asked: argparse.Namespace) -> dict[str, Any]:
    """A run of one of our recipes, in this process: its seconds in steps, and the losses of what it exported."""
    import torch

    from triform import hub
    from triform.train import read_metrics, read_recipe, run

    folder, place = Path(asked.folder), Path(tempfile.mkdtemp(dir=asked.folder))
    settings = recipe(asked.one, folder, asked.steps, asked.seed)
    result = run(read_recipe(settings), place / "run", report=lambda row: None)
    rows = [row for row in read_metrics(place / "run" / "metrics.jsonl") if "loss" in row]
    times = [after["seconds"] - before["seconds"] for before, after in pairwise(rows)]
    found = {"seconds": rows[-1]["seconds"], "steps": result.steps, "tokens": result.tokens, "parameters": result.parameters}
    found["step"] = statistics.median(times)
    if not asked.only_time:
        model, tokenizer = hub.load(place / "run" / "model")
        assert tokenizer is not None
        ids = tokenizer.encode((folder / "held_out.txt").read_text(encoding="utf-8"))

        @torch.inference_mode()
        def nats(inputs: Any, labels: Any) -> float:
            return float(model.language_model_loss(model(inputs, logits=False).hidden, labels))

        length = settings["objective"]["length"]
        found |= {"loss": blocks_loss(nats, ids, BLOCK), "length": length}
        found["loss_at_length"] = found["loss"] if length == BLOCK else blocks_loss(nats, ids, length)
    shutil.rmtree(place)
    return found


# nanoGPT


def nanogpt(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """A run of nanoGPT's own command: seconds in steps until its saved weights reach the loss, None where they never do."""
    place = folder / "nanogpt"
    if not place.exists():
        shutil.copytree(asked.nanogpt, place, ignore=shutil.ignore_patterns(".git"))
        shutil.copy(folder / "text.txt", place / "data/shakespeare_char/input.txt")
        subprocess.run([sys.executable, "data/shakespeare_char/prepare.py"], cwd=place, check=True, stdout=subprocess.DEVNULL)
    command = [sys.executable, "-u", "train.py", "config/train_shakespeare_char.py", *README, *SAVING]
    command += ["--max_iters=20", "--eval_interval=10"] if asked.quick else []
    begun, times, saved, pending = time.perf_counter(), {}, [], False
    with subprocess.Popen(command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.match(r"iter (\d+): loss [\d.]+, time ([\d.]+)ms", line):
                step = int(found[1])
                times[step] = None if pending or step == 0 else float(found[2]) / 1000
                if pending:
                    saved.append((step, shutil.copy(place / "out-shakespeare-char/ckpt.pt", folder / f"nanogpt-{step}.pt")))
                pending = False
            pending |= line.startswith("saving checkpoint")
    if process.returncode:
        raise SystemExit(f"nanoGPT ended with {process.returncode}")
    usual = statistics.median(seconds for seconds in times.values() if seconds is not None)
    row: dict[str, Any] = {"process": time.perf_counter() - begun, "step": usual, "reached": None}
    seconds_until = {step: sum(times[i] or usual for i in range(step)) for step, _ in saved}
    for step, file in reversed(saved):
        loss = _child(asked, ["--score", str(file), "--folder", str(folder)])["loss"]
        row.setdefault("loss", loss)
        row.setdefault("seconds", seconds_until[step])
        if loss > TARGET:
            break
        row |= {"reached": seconds_until[step], "reached_step": step, "reached_loss": loss}
    for _, file in saved:
        Path(file).unlink()
    return row


def score(asked: argparse.Namespace) -> dict[str, Any]:
    """The loss over the held-out tenth of weights that nanoGPT saved."""
    import numpy as np
    import torch

    place = Path(asked.folder) / "nanogpt"
    sys.path.insert(0, str(place))
    from model import GPT, GPTConfig  # type: ignore[import-not-found]

    saved = torch.load(asked.score, map_location="cpu", weights_only=True)
    model = GPT(GPTConfig(**saved["model_args"])).eval()
    model.load_state_dict(saved["model"])
    ids = np.fromfile(place / "data/shakespeare_char/val.bin", dtype=np.uint16).astype(np.int64).tolist()

    @torch.inference_mode()
    def nats(inputs: Any, labels: Any) -> float:
        return float(model(inputs, labels)[1]) * labels.numel()

    return {"loss": blocks_loss(nats, ids, BLOCK)}


# The contest


def _child(asked: argparse.Namespace, arguments: list[str]) -> dict[str, Any]:
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found | {"process": time.perf_counter() - begun}


def one_of_ours(asked: argparse.Namespace, folder: Path, name: str, steps: int | None, *more: str) -> dict[str, Any]:
    """A run of ours in a process of its own."""
    return _child(asked, ["--one", name, "--folder", str(folder), *([] if steps is None else ["--steps", str(steps)]), *more])


def race(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Both by turns; the medians, and how many times sooner we are there."""
    mine, theirs = [], []
    for turn in range(1 if asked.quick else asked.runs):
        mine.append(one_of_ours(asked, folder, "race", 12 if asked.quick else None, "--seed", str(turn)))
        _say(f"ours: loss {mine[-1]['loss']:.4f} after {mine[-1]['seconds']:.1f} s")
        if asked.nanogpt:
            theirs.append(nanogpt(asked, folder))
            _say(f"nanoGPT: loss {theirs[-1]['loss']:.4f} after {theirs[-1]['seconds']:.1f} s, {TARGET} after {theirs[-1]['reached']} s")
    found: dict[str, Any] = {"ours": mine, "nanogpt": theirs, "reached": all(row["loss"] <= TARGET for row in mine)}
    if theirs:
        found["sooner"] = statistics.median((b["reached"] or b["seconds"]) / a["seconds"] for a, b in zip(mine, theirs, strict=True))
        found["at_least"] = any(row["reached"] is None for row in theirs)
    return found


def within(asked: argparse.Namespace, folder: Path, minutes: float) -> dict[str, Any]:
    """The loss of the recipe for so many minutes, with as many steps as fit."""
    name = min((n for n in RECIPES if n != "race"), key=lambda n: abs(float(n.split()[0]) - minutes))
    usual = one_of_ours(asked, folder, name, CALIBRATION, "--only-time")["step"]
    steps = CALIBRATION if asked.quick else max(CALIBRATION, int(0.97 * 60 * minutes / usual))
    found = one_of_ours(asked, folder, name, steps)
    if found["seconds"] > 60 * minutes:
        found = one_of_ours(asked, folder, name, int(0.93 * steps * 60 * minutes / found["seconds"]))
    _say(f"{minutes:g} minutes: loss {found['loss_at_length']:.4f} after {found['seconds']:.1f} s")
    return {"minutes": minutes, **found}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def markdown(found: dict[str, Any]) -> str:
    """The report."""
    contest, lines = found["race"], []
    lines += [f"| to a held-out loss of {TARGET} | loss | seconds of training | of the whole process |", "|---|---|---|---|"]

    def median(rows: list[dict[str, Any]], *names: str) -> float:
        return float(statistics.median(next(row[name] for name in names if row.get(name) is not None) for row in rows))

    for name, rows in (("Triform", contest["ours"]), ("nanoGPT", contest["nanogpt"])):
        if rows:
            loss, seconds, process = median(rows, "reached_loss", "loss"), median(rows, "reached", "seconds"), median(rows, "process")
            lines.append(f"| {name} | {loss:.4f} | {seconds:.1f} | {process:.1f} |")
    if contest["nanogpt"]:
        bound = "at least " if contest["at_least"] else ""
        lines += ["", f"{bound}{contest['sooner']:.2f} times as soon" + ("" if contest["reached"] else f"; but ours missed {TARGET}")]
    elif not contest["reached"]:
        lines += ["", f"ours missed {TARGET}"]
    if found["within"]:
        lines += ["", "| best within | seconds | parameters | tokens | loss in blocks of 64 | of its length |"]
        lines.append("|---|---|---|---|---|---|")
    for row in found["within"]:
        lines.append(
            f"| {row['minutes']:g} minutes | {row['seconds']:.0f} | {row['parameters'] / 1e6:.1f}M | {row['tokens']:,} | {row['loss']:.4f} "
            f"| {row['loss_at_length']:.4f} ({row['length']}) |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--text", help="the corpus, tinyshakespeare.txt")
    parser.add_argument("--nanogpt", help="a checkout of nanoGPT")
    parser.add_argument("--runs", type=int, default=3, help="of the race")
    parser.add_argument("--minutes", type=float, nargs="*", default=[3.0], help="within which to find the best loss")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", metavar="FILE", help="write all figures here")
    for name in ("--one", "--folder", "--score"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--only-time", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one or asked.score:
        print(json.dumps(ours(asked) if asked.one else score(asked)))
        return
    if not asked.text:
        parser.error("--text: expected the corpus, tinyshakespeare.txt")
    os.environ["OMP_NUM_THREADS"] = str(asked.threads)
    text = Path(asked.text).read_bytes().decode("utf-8")[: 50_000 if asked.quick else None]
    with tempfile.TemporaryDirectory() as temporary:
        folder, cut = Path(temporary), int(0.9 * len(text))
        (folder / "text.txt").write_bytes(text.encode())
        (folder / "train.txt").write_bytes(text[:cut].encode())
        (folder / "held_out.txt").write_bytes(text[cut:].encode())
        found = {"race": race(asked, folder), "within": [within(asked, folder, minutes) for minutes in asked.minutes]}
    print(markdown(found))
    if asked.json:
        Path(asked.json).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
