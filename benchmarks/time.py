"""How near a calibrated forecast of training time comes to the run itself, for three models of different form.

For each form: calibrate on the recipe, forecast a run of at least `--seconds`, run it, compare. What is compared is from
the first step's start to the last one's end, validations and checkpoints included; data preparation comes before. That
is done `--rounds` times over, the forms taking turns, and the median round of each form counts: a machine's own speed
drifts from one minute to the next, and that no forecast can know. Wants an otherwise idle machine:

    python benchmarks/time.py
    python benchmarks/time.py --rounds 1 --seconds 5 --calibrate 3     # to see that it works
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from triform import config
from triform.planner import parameters
from triform.planner import time as timing
from triform.planner.machine import measure
from triform.train import Recipe, read_recipe, run
from triform.train.calibrate import calibrate
from triform.train.energy import meter

TRAIN = {"batch": 8, "warmup": 10, "validate_every": 200, "validation_batches": 20, "checkpoint_every": 200, "keep": 1}
FORMS: dict[str, dict[str, Any]] = {
    "decoder-only": {"model": "storyteller", "data": "text.jsonl", "objective": {"kind": "Causal", "length": 128}, "train": {}},
    "encoder-only": {"model": "critic", "data": "text.jsonl", "objective": {"kind": "Masked", "length": 128}, "train": {"batch": 16}},
    "encoder-decoder": {
        "model": "translator",
        "data": "pairs.jsonl",
        "objective": {"kind": "SequenceToSequence", "length": 96, "target_length": 96},
        "train": {"bucket": 8},
    },
}


@dataclass(frozen=True)
class Row:
    """One form: seconds forecast with calibration, by default, and measured."""

    form: str
    model: str
    parameters: int
    steps: int
    calibrated: float
    default: float
    measured: float
    ratio: float
    utilisation: float
    spread: float
    energy: str
    rounds: tuple[float, ...] = ()


def write_text(folder: Path, seed: int = 0) -> None:
    """Lines of Chinese characters of uneven length, frequent ones more often, and pairs of them."""
    draw = random.Random(seed)
    characters = [chr(0x4E00 + i) for i in range(2000)]
    weights = [1 / (rank + 3) for rank in range(len(characters))]

    def line() -> str:
        return "".join(draw.choices(characters, weights, k=draw.randint(8, 90)))

    with (folder / "text.jsonl").open("w", encoding="utf-8") as text, (folder / "pairs.jsonl").open("w", encoding="utf-8") as pairs:
        for _ in range(20_000):
            written = line()
            text.write(json.dumps({"text": written}, ensure_ascii=False) + "\n")
            pairs.write(json.dumps({"source": written, "target": written[::-1]}, ensure_ascii=False) + "\n")


def recipe_of(form: str, data: Path, steps: int) -> Recipe:
    """The recipe of a form."""
    chosen = FORMS[form]
    return read_recipe(
        {
            "model": chosen["model"],
            "data": {"source": str(data / chosen["data"]), "validation": 0.05},
            "tokenizer": {"kind": "characters", "vocab_size": 2000},
            "objective": chosen["objective"],
            "train": TRAIN | chosen["train"] | {"steps": steps},
        }
    )


def train(recipe: Recipe, folder: Path) -> float:
    """Seconds from the first step's start to the last one's end."""
    marks: list[float] = []
    first: list[float] = []

    def report(row: dict[str, Any]) -> None:
        marks.append(time.perf_counter())
        if not first:
            first.append(row["seconds"])
        if sys.stderr.isatty():
            print(f"\r  step {row['step']}/{recipe.train.steps}", end="", file=sys.stderr, flush=True)

    run(recipe, folder, report=report)
    return marks[-1] - marks[0] + first[0]


def compare(form: str, data: Path, place: Path, seconds: float, budget: float) -> Row:
    """Calibrate, forecast, run, in a folder `place`."""
    found = calibrate(recipe_of(form, data, 1000), seconds=budget, folder=place / f"{form}-calibration")
    steps = max(2, math.ceil(seconds / found.step_seconds))
    recipe = recipe_of(form, data, steps)
    forecast = found.run_seconds(steps, validate_every=recipe.train.validate_every, checkpoint_every=recipe.train.checkpoint_every)
    print(f"{form}: {found.reason}; {steps} steps forecast to take {forecast:.1f} s", file=sys.stderr, flush=True)
    with meter() as energy:
        measured = train(recipe, place / form)
    print(f"{form}: took {measured:.1f} s, {measured / forecast:.3f} of the forecast", file=sys.stderr, flush=True)
    spec = recipe.architecture(2000)
    assert isinstance(spec, config.Transformer)
    plain = timing.estimate(found.step_flops * steps, measure(), found.precision, width=spec.last.width)
    said = energy.reason if energy.kwh is None else f"{energy.kwh * 1000:.1f} Wh, {energy.reason}"
    return Row(
        form, FORMS[form]["model"], parameters(spec).total, steps, forecast, plain.expected_seconds, measured, measured / forecast,
        found.utilisation, found.spread, said,
    )  # fmt: skip


def median(rounds: list[Row]) -> Row:
    """The round whose ratio of measured to forecast is the median one (the lower of two), with the ratios of all."""
    middle = statistics.median_low(row.ratio for row in rounds)
    return replace(next(row for row in rounds if row.ratio == middle), rounds=tuple(row.ratio for row in rounds))


def main() -> None:
    """Print the table; leave with 1 where the median forecast of a form is off by more than `--within`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=130.0, help="least time of each run (default 130)")
    parser.add_argument("--calibrate", type=float, default=60.0, help="time of each calibration (default 60)")
    parser.add_argument("--rounds", type=int, default=3, help="calibrations and runs of each form (default 3)")
    parser.add_argument("--within", type=float, default=0.10, help="error allowed (default 0.10)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    rounds: dict[str, list[Row]] = {form: [] for form in FORMS}
    with tempfile.TemporaryDirectory() as name:
        write_text(Path(name))
        for number in range(max(1, options.rounds)):
            for form, found in rounds.items():
                place = Path(name) / str(number)
                found.append(compare(form, Path(name), place, options.seconds, options.calibrate))
    rows = [median(found) for found in rounds.values()]
    if options.json:
        print(json.dumps({"machine": measure().card.name, "rows": [asdict(row) for row in rows]}, indent=2))
    else:
        print("| form | model | parameters | steps | default forecast | calibrated | measured | measured / forecast | all rounds |")
        print(f"|{'---|' * 9}")
        for row in rows:
            print(
                f"| {row.form} | {row.model} | {row.parameters:,} | {row.steps:,} | {row.default:.1f} s | {row.calibrated:.1f} s | "
                f"{row.measured:.1f} s | {row.ratio:.3f} | {', '.join(f'{ratio:.3f}' for ratio in row.rounds)} |"
            )
        print(f"\n{measure().card.name}; energy: {rows[0].energy}")
    worst = max(abs(row.ratio - 1) for row in rows)
    if worst > options.within:
        print(f"a forecast is off by {worst:.1%}, more than {options.within:.0%}", file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    main()
