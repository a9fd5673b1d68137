"""`triform plan`: what a model will cost, before the first step."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .models import bar, progress

if TYPE_CHECKING:
    from triform.planner import Candidate, Plan
    from triform.train.recipe import Recipe

app = typer.Typer(add_completion=False)

_EXAMPLES = (
    "Examples: triform plan 120M --tokens 1.2B --hardware A100  ·  triform plan llama-7b --recompute full --html plan.html  ·  "
    'triform plan --budget "1x RTX3090, 24h, form=decoder, corpus=300M tokens" --write recipe.yaml  ·  triform plan --fits 24GB'
)


@app.command(epilog=_EXAMPLES)
def plan(
    model: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL|RECIPE [override=...]",
            help="A preset, a configuration, a checkpoint (folder, .gguf, name), a recipe, or a size such as 120M; overrides by path.",
        ),
    ] = None,
    tokens: Annotated[str | None, typer.Option(help="Tokens that training reads, such as 1.2B; left out: 20 for each parameter.")] = None,
    batch: Annotated[int | None, typer.Option(help="Sequences of a micro-batch on one device; 32.")] = None,
    sequence: Annotated[int | None, typer.Option(help="Tokens of a sequence (the encoder's of an encoder-decoder); 1024.")] = None,
    target: Annotated[int | None, typer.Option(help="Tokens of an encoder-decoder's target; left out: as --sequence.")] = None,
    accumulate: Annotated[int | None, typer.Option(help="Micro-batches of a step; 1.")] = None,
    hardware: Annotated[str | None, typer.Option(help='Such as 8xA100-80G, RTX4090, or "this", which is measured once; A100-80G.')] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, bf16, fp16 or fp8; bf16.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="adamw, adamw8bit, adafactor, muon or sgd; adamw.")] = None,
    recompute: Annotated[str | None, typer.Option(help="Activations made again going backward: none, selective or full; none.")] = None,
    offload: Annotated[bool, typer.Option("--offload", help="Keep activations in the processor's memory until they are wanted.")] = False,
    attention: Annotated[str | None, typer.Option(help="sdpa, which never holds the scores, or eager; sdpa.")] = None,
    parallel: Annotated[
        str | None, typer.Option(help="A layout such as dp=4,tp=2,pp=1 (zero=0..3, micro=8), or auto for the best few.")
    ] = None,
    corpus: Annotated[str | None, typer.Option(help="Unique tokens that there are, where text is read more than once.")] = None,
    price: Annotated[float | None, typer.Option(help="USD an hour of one device, in place of the catalogue's.")] = None,
    region: Annotated[str, typer.Option(help="Whose grid: world, china, cn-beijing, us, ..., or grams of CO2 a kilowatt-hour.")] = "world",
    calibrate: Annotated[bool, typer.Option("--calibrate", help="Run some real steps on this machine and go by them.")] = False,
    budget: Annotated[str | None, typer.Option(help='Find the best models for "1x RTX3090, 24h, form=decoder, corpus=300M".')] = None,
    fits: Annotated[str | None, typer.Option(metavar="SIZE", help="List what fits in so much memory, such as 24GB.")] = None,
    write: Annotated[Path | None, typer.Option(metavar="RECIPE.yaml", help="With --budget: write the best candidate's recipe.")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Print every figure's formula, the numbers put in, and the source.")] = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Write a one-page report.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Forecast a model's parameters, FLOPs, memory, time, money, energy and CO2, or find the best model for a budget."""
    given = {"batch": batch, "sequence": sequence, "target": target, "accumulate": accumulate, "precision": precision,
             "optimizer": optimizer, "recompute": recompute, "attention": attention, "offload": offload or None}  # fmt: skip
    setting = {name: value for name, value in given.items() if value is not None}
    about = {"tokens": tokens, "corpus": corpus, "price": price, "region": region}
    if write is not None and budget is None:
        raise ValueError('--write: expected beside --budget, such as --budget "1x RTX3090, 24h"')
    if sum(option is not None for option in (budget, fits, model)) != 1:
        raise ValueError("expected one of: a model (or a size such as 120M), --budget, --fits")
    if budget is not None:
        _search(budget, setting, {"price": price, "region": region}, write, as_json)
    elif fits is not None:
        _fits(fits, setting, as_json)
    else:
        assert model is not None
        _forecast(model, hardware, setting, about, (parallel, calibrate, explain, html, as_json))


def _forecast(model: list[str], hardware: str | None, setting: dict[str, Any], about: dict[str, Any], how: tuple[Any, ...]) -> None:
    from triform.planner import plan as make
    from triform.planner.page import write_page

    parallel, calibrate, explain, html, as_json = how
    name, found, recipe = _model(model)
    if recipe is not None:
        if calibrate and setting:
            told = "a recipe is timed as it is; change it by path, as train.batch=8"
            raise ValueError(f"--calibrate: expected no --{next(iter(setting))} beside it: {told}")
        from triform.train.outlook import positions_of, setting_of, with_rollouts

        setting = asdict(setting_of(recipe)) | setting
        del setting["device"]  # the plan's hardware decides
        about["tokens"] = about["tokens"] or positions_of(recipe, found, setting)
    if calibrate:
        hardware = _calibrated(recipe or found, hardware, setting)
    made = replace(make(found, hardware=hardware or "A100-80G", parallel=parallel, **about, **setting), name=name)
    if recipe is not None:
        made = with_rollouts(made, recipe, price=about["price"], region=about["region"])
    if html is not None:
        write_page(made, html)
    if as_json:
        more = {"explain": [line.to_dict() for line in made.lines()]} if explain else {}
        print(json.dumps(made.to_dict() | more, indent=2, ensure_ascii=False))
        return
    _print(made)
    if explain:
        print()
        for line in made.lines():
            print(line)
    if html is not None:
        print(f"The report is in {html}")


def _calibrated(model: Any, hardware: str | None, setting: dict[str, Any]) -> str:
    """Measure some real steps of the plan on this machine, for a forecast that goes by them."""
    from triform.planner import Setting
    from triform.planner.calibration import remember
    from triform.planner.forecast import find
    from triform.planner.hardware import hardware as fleet_of
    from triform.train.calibrate import calibrate
    from triform.train.recipe import Recipe

    if hardware not in (None, "this"):
        raise ValueError(f"--calibrate: expected --hardware this, as only this machine can be measured, got {hardware!r}")
    how = Setting(**{"device": "cpu" if fleet_of("this").card.kind == "cpu" else "cuda"} | setting)
    with progress(100, "%") as report:
        if isinstance(model, Recipe):  # its tokenizer may have come to fewer tokens than it plans for
            remember(model.architecture(), how, calibrate(model, report=lambda share: report(round(100 * share))))
        else:
            calibrate(find(model)[1], how, report=lambda share: report(round(100 * share)))
    return "this"


def _search(text: str, setting: dict[str, Any], about: dict[str, Any], write: Path | None, as_json: bool) -> None:
    import yaml

    from triform.config.files import replacing
    from triform.planner import read_budget, recipe, search

    wanted = read_budget(text, about["price"])
    found = search(wanted, **about, **setting)
    if write is not None:
        if write.exists():
            raise ValueError(f"--write: {write} is there already; name another file")
        with replacing(write) as file:
            file.write_text(yaml.safe_dump(recipe(found[0], wanted), sort_keys=False, allow_unicode=True), encoding="utf-8")
    if as_json:
        print(json.dumps([candidate.to_dict() for candidate in found], indent=2, ensure_ascii=False))
        return
    _candidates(found)
    if write is not None:
        print(f"The first one's recipe is in {write}; it reads {wanted.data}: `triform train {write} --out runs/{write.stem}`")


def _candidates(found: list[Candidate]) -> None:
    from triform.planner.describe import short
    from triform.planner.quantities import data_size, duration

    columns = ("parameters", "width", "layers", "batch", "recompute", "tokens", "epochs", "loss", "time", "memory", "USD", "kWh")
    rows: list[tuple[str, ...]] = []
    for one in found:
        row = one.to_dict()
        money, energy = (f"{row[name]:,.2f}" if row[name] is not None else "" for name in ("money", "energy_kwh"))
        batch = f"{row['accumulate']} × {row['batch']} × {row['sequence']:,}"
        rows.append((short(one.parameters), str(row["width"]), str(row["depth"]), batch, row["recompute"], short(one.tokens),
                     f"{one.epochs:.1f}", f"{one.loss:.3f}", duration(one.seconds), data_size(one.memory), money, energy))  # fmt: skip
    _table(columns, rows)


def _fits(text: str, setting: dict[str, Any], as_json: bool) -> None:
    from triform.planner import fits
    from triform.planner.describe import short
    from triform.planner.quantities import size

    with bar("presets") as report:
        found = fits(size(text, "--fits"), report=report, **{n: value for n, value in setting.items() if n not in ("batch", "target")})
    if as_json:
        print(json.dumps([asdict(fit) for fit in found], indent=2, ensure_ascii=False))
        return
    columns = ("model", "parameters", "training", "largest batch", "context bf16", "int8", "int4")
    rows = [
        (fit.name, short(fit.parameters), fit.training or "no", f"{fit.batch:,}" if fit.batch else "",
         *(f"{fit.context[kind]:,}" if fit.context.get(kind) else "" for kind in ("bf16", "int8", "int4")))
        for fit in found
    ]  # fmt: skip
    _table(columns, rows)


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = 160
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 or column in ("training", "recompute") else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _model(words: list[str]) -> tuple[str, Any, Recipe | None]:
    """A model's name, what it is, and the recipe where one is named."""
    from triform import hub
    from triform.planner.quantities import is_count

    overrides = [word for word in words if "=" in word and not Path(word).exists()]
    names = [word for word in words if word not in overrides]
    if len(names) != 1:
        raise ValueError(f"expected one model, or a size such as 120M, beside the overrides, got {len(names)}")
    name = names[0]
    if is_count(name) and not Path(name).exists():
        if overrides:
            raise ValueError(f"a size has no fields to override, got {overrides[0]!r}; name a preset or a configuration")
        return name, name, None
    if _is_recipe(name):
        from triform.train.recipe import read_recipe

        recipe = read_recipe(name, overrides)
        return name, recipe.architecture(), recipe
    return name, hub.find_spec(name, overrides)[0], None


def _is_recipe(name: str) -> bool:
    """Whether a file says what to train."""
    if not name.endswith((".yaml", ".yml")) or not Path(name).is_file():
        return False
    return any(line.startswith("objective:") for line in Path(name).read_text(encoding="utf-8", errors="replace").splitlines())


def _print(made: Plan) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from triform.planner.page import facts, summary

    console = Console(highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = 140
    console.print(Text.assemble((made.name, "bold"), f"  {summary(made)}"))
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim")
    for figure, text in facts(made):
        table.add_row(figure, Text(text))
    console.print(table)
    _memory(console, made)
    if made.layouts:
        _layouts(made)
    for note in made.notes:
        console.print(Text(f"note: {note}", style="dim"))


def _layouts(made: Plan) -> None:
    from triform.planner.quantities import data_size, duration

    columns = ("layout", "a device's step", "memory", "sent a step", "bubble", "time")
    rows: list[tuple[str, ...]] = []
    for one in made.layouts:
        step = f"{one.setting.accumulate} × {one.setting.batch} × {one.setting.sequence:,}"
        sent, whole = data_size(sum(one.communication.values())), duration(one.step_seconds * made.steps)
        rows.append((str(one.layout), step, data_size(one.total), sent, f"{one.bubble:.0%}", whole))
    _table(columns, rows)


def _memory(console: Any, made: Plan) -> None:
    from rich.table import Table

    from triform.planner.quantities import data_size

    training, inference, room = made.memory.training, made.memory.inference, made.memory.capacity
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("memory by part", no_wrap=True)
    for column in ("training, at the peak", "at most", "inference"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("")
    for part in dict.fromkeys([*training.parts, *inference.parts]):
        values = [training.parts.get(part, 0), training.largest.get(part, 0), inference.parts.get(part, 0)]
        if any(values):
            bar = "█" * min(24, round(24 * values[0] / room))
            table.add_row(part.replace("_", " "), *(data_size(value) if value else "" for value in values), bar)
    advice = "try --recompute full, --optimizer adamw8bit, a smaller --batch, or --parallel auto"
    verdict = "fits" if made.memory.fits else f"DOES NOT FIT: {advice}"
    table.add_row("total", data_size(training.total), "", data_size(inference.total), f"of {data_size(room)}: {verdict}")
    console.print(table)
    context = made.memory.longest_context
    longest = f"a context of {context:,} tokens, or " if context is not None else ""
    batch = f"{made.memory.largest_batch:,} sequences of {made.setting.sequence:,} tokens"
    console.print(f"Inference in {made.setting.precision} fits {longest}{batch}")
    for name, found in (("training", training), ("inference", inference)):
        for line in found.published:
            console.print(f"[dim]published rule, {name}: {line.name}: {data_size(line.value)}  ({line.formula})[/]")
