"""What a run will take, said before it begins, and held against what it took."""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import psutil
import torch

from triform import config
from triform.config.files import replacing
from triform.objectives import PPO, Causal, Masked
from triform.objectives.on_policy import OnPolicy, longest_rows
from triform.planner import Plan, Setting, cost, hardware, memory, plan
from triform.planner.calibration import recall
from triform.planner.describe import short
from triform.planner.explain import Line
from triform.planner.forecast import positions, stored_dtype
from triform.planner.quantities import data_size, duration
from triform.planner.time import answers

from .energy import Energy, meter
from .peak import choose_precision
from .recipe import Recipe
from .rollouts import ROWS_AT_ONCE

PLAN, FORECAST = "plan.json", "forecast.json"
_PROCESS = psutil.Process()


def device_here() -> Literal["cpu", "cuda"]:
    """What a run uses here."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def setting_of(recipe: Recipe, model: config.Model | None = None, precision: str | None = None) -> Setting:
    """The setting that a recipe trains with; rows count with their full length."""
    spec = model if model is not None else recipe.architecture()
    longest = {stack: tokens for stack, (_, tokens) in longest_rows(recipe.objective, spec.form).items()}
    both = spec.form == "encoder-decoder"
    return Setting(
        batch=recipe.train.batch * getattr(recipe.objective, "rows_a_sample", 1),
        accumulate=recipe.train.accumulate,
        sequence=longest.get("encoder" if spec.form != "decoder-only" and "encoder" in longest else "decoder", 1),
        target=longest["decoder"] if both else None,
        precision=precision or choose_precision(recipe.train.precision, device_here()),  # type: ignore[arg-type]
        optimizer=recipe.train.optimizer,
        recompute=recipe.train.recompute,
        rows="packed" if isinstance(recipe.objective, Causal | Masked) else "padded",
        average=recipe.train.ema is not None,
        offload=recipe.train.offload,
        adapter=recipe.train.adapter,
        device=device_here(),
    )


def check_memory(recipe: Recipe, room: int | None) -> None:
    """Raise ValueError for a recipe whose step takes more than `room` bytes, by part and with what would help."""
    model = recipe.architecture()
    held = memory.training(model, setting_of(recipe, model))
    if room is None or held.total <= room:
        return
    largest = ", ".join(f"{name} {data_size(size)}" for name, size in sorted(held.parts.items(), key=lambda part: -part[1])[:3])
    raise ValueError(
        f"a step of this recipe takes {data_size(held.total)} ({largest}), and this machine has {data_size(room)}; lower train.batch or "
        "the model's size, set train.recompute=full or train.optimizer=adamw8bit, or run it all the same with --force"
    )


def outlook(recipe: Recipe, model: config.Model, precision: str) -> Plan:
    """The plan of a whole run on this machine, by its calibration where there is one."""
    how, fleet = setting_of(recipe, model, precision), hardware("this")
    if how.precision not in fleet.card.peak:
        # what the processor only emulates was not measured
        how = replace(how, precision="bf16" if how.precision == "fp8" and "bf16" in fleet.card.peak else "fp32")
    found = plan(model, tokens=positions_of(recipe, model, asdict(how)), hardware="this", **asdict(how))
    return with_rollouts(found, recipe)


def positions_of(recipe: Recipe, model: config.Model, setting: Mapping[str, Any]) -> int:
    """The tokens that a recipe's steps read, rows counted with their full length; setting: the fields of `Setting`."""
    how = Setting(**setting)
    return recipe.train.steps * how.batch * how.accumulate * positions(model, how)


def with_rollouts(found: Plan, recipe: Recipe, *, price: float | None = None, region: str | float = "world") -> Plan:
    """A plan with the time in which the answers are written and scored that PPO and GRPO learn from, each as long as it may be.

    Of another objective, and where the recipe was calibrated on this machine, whose steps then had that in them, it stays as it is.
    """
    spec = recipe.objective
    measured = recall(found.model, found.setting)
    if not isinstance(spec, OnPolicy) or (measured is not None and found.time.reason == measured.reason):
        return found
    how, model, rollouts = found.setting, found.model, -(-recipe.train.steps // spec.updates)
    rows = how.batch * how.accumulate * spec.minibatches
    before = 0 if model.form == "encoder-decoder" else spec.length
    at_once, mean = min(rows, ROWS_AT_ONCE), before + (spec.max_new_tokens + 1) // 2
    speed = answers(model, found.hardware, prompt=spec.length, context=mean, batch=at_once, dtype=stored_dtype(how))
    if speed is None:
        return found
    writing = rows / at_once * (speed.prefill_seconds + spec.max_new_tokens * speed.step_seconds)
    readings = (spec.kl > 0) + (spec.updates > 1 or isinstance(spec, PPO))
    work = readings * rows * positions(model, how) * found.flops.forward
    scoring = found.time.expected_seconds * work / found.flops.exact
    line = Line(
        name="time of the answers", formula="T = rollouts x (writing + scoring)", value=rollouts * (writing + scoring), unit="s",
        numbers={"rollouts": rollouts, "writing": writing, "scoring": scoring}, source="every answer of max_new_tokens tokens",
    )  # fmt: skip
    spent = replace(
        found.time,
        expected_seconds=found.time.expected_seconds + line.value,
        reason=f"{found.time.reason}; {duration(line.value)} of it to write and score answers of {spec.max_new_tokens} tokens",
        lines=(*found.time.lines, line),
    )
    charged = cost.estimate(spent.expected_seconds, found.hardware, price=price, region=region, utilisation=spent.utilisation)
    return replace(found, time=spent, cost=charged)


def announce(found: Plan) -> str:
    """A plan in a line, for before the first step."""
    held, room = data_size(found.memory.training.total), data_size(found.memory.capacity)
    size, work = short(found.parameters.total), f"{found.flops.exact:.3g} FLOP"
    return (
        f"plan: {size} parameters, {short(found.tokens)} tokens in {found.steps:,} steps, {work}; "
        f"memory {held} of {room}; about {duration(found.time.expected_seconds)} ({found.time.reason})"
    )


@dataclass
class Measured:
    """What a run took. seconds: in steps and validation. memory: bytes, None where it cannot be told."""

    seconds: float = 0.0
    memory: int | None = None
    memory_is: str = ""
    energy: Energy = field(default_factory=Energy)


@contextmanager
def measuring(device: str) -> Iterator[Measured]:
    """Measure the memory and the energy of what runs inside."""
    found = Measured()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before, highest = _PROCESS.memory_info().rss, _highest()
    with meter() as found.energy:
        yield found
    if device == "cuda":
        found.memory, found.memory_is = int(torch.cuda.max_memory_allocated()), "allocated on the device"
    elif _highest() > highest:
        found.memory, found.memory_is = _highest() - before, "growth of the process, the interpreter's own and caches included"


def resident(device: str) -> dict[str, int]:
    """Bytes that are held now and that were at most: of tensors on a GPU, else of the process."""
    if device == "cuda":
        return {"memory": torch.cuda.memory_allocated(), "peak_memory": torch.cuda.max_memory_allocated()}
    now = int(_PROCESS.memory_info().rss)
    return {"memory": now, "peak_memory": max(now, _highest())}  # the system notes the highest only now and then


def _highest() -> int:
    """The most bytes that this process has had resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def write_plan(folder: Path, found: Plan) -> None:
    """Put a run's plan into its folder, once."""
    if not (folder / PLAN).exists():
        _write(folder / PLAN, found.to_dict())


def write_comparison(folder: Path, found: Plan, measured: Measured) -> dict[str, Any]:
    """Put the forecast beside what was measured into a run's folder; returns what was written."""
    held = found.memory.training.total
    rows: dict[str, Any] = {
        "seconds": {"forecast": found.time.expected_seconds, "measured": measured.seconds, "forecast_by": found.time.reason},
        "memory": {"forecast": held, "measured": measured.memory, "measured_is": measured.memory_is, "forecast_is": "live tensors"},
        "energy_kwh": {"forecast": found.cost.energy_kwh, "measured": measured.energy.kwh, "measured_is": measured.energy.reason},
        "co2_kg": {"forecast": found.cost.co2_kg, "region": found.cost.region.name},
    }
    _write(folder / FORECAST, rows)
    return rows


def _write(file: Path, data: dict[str, Any]) -> None:
    with replacing(file) as temporary:
        temporary.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
