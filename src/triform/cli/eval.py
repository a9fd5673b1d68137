"""`triform eval`: models measured by tasks, and two compared."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .models import MODEL, bar, open_model, print_table

if TYPE_CHECKING:
    from triform.evaluate.run import Asked, Comparison
    from triform.evaluate.task import Result, Settings

app = typer.Typer(add_completion=False)


@app.command(epilog="Example: triform eval runs/story/model --tasks perplexity=valid.txt --tasks blimp=pairs/ --plot figures.svg")
def evaluate(
    names: Annotated[list[str], typer.Argument(metavar="MODEL", help=f"{MODEL}. Of two, the second is compared with the first.")],
    tasks: Annotated[list[str] | None, typer.Option(metavar="KIND=PATH", help="A task and its data; may be given several times.")] = None,
    harness: Annotated[str, typer.Option(metavar="TASKS", help="lm-evaluation-harness' tasks: names or .yaml files, commas between.")] = "",
    limit: Annotated[int | None, typer.Option(help="Only so many items of each task, the first ones.")] = None,
    shots: Annotated[int | None, typer.Option(help="So many worked examples before each question; as is usual for the task.")] = None,
    window: Annotated[int | None, typer.Option(help="Perplexity: tokens that are read at a time; at most 1024.")] = None,
    stride: Annotated[int | None, typer.Option(help="Perplexity: a window begins so many tokens after the last; half a window.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Of a written answer; as is usual for the task.")] = None,
    prompt: Annotated[str, typer.Option(help="Translation, summarisation, exact: what is written around {text}.")] = "{text}",
    chat: Annotated[bool, typer.Option("--chat", help="Ask for written answers as turns of a conversation.")] = False,
    samples: Annotated[int, typer.Option(help="humaneval: programs that are written for each problem.")] = 1,
    temperature: Annotated[float | None, typer.Option(help="humaneval: of several samples; as is usual.")] = None,
    allow_code: Annotated[bool, typer.Option("--allow-code", help="Run programs that the model wrote, with limits.")] = False,
    seed: Annotated[int, typer.Option(help="Of resampling, and of samples.")] = 0,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave bad lines of data out and count them.")] = False,
    items: Annotated[Path | None, typer.Option(metavar="FILE.jsonl", help="Write what was asked, expected and answered.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Draw the figures beside those of earlier evaluations.")] = None,
    confusion: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Draw the confusion matrix of a classification.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure a model by tasks, each figure with its 95 % interval, and write them to evaluations.jsonl beside the model.

    Tasks: perplexity, blimp, choice, mmlu, cmmlu, ceval, classification, ner, squad, cmrc, translation,
    summarisation, gsm8k, exact, preference, humaneval. A path may be that of a recipe: the rows that it holds out.
    """
    from triform import hub
    from triform.evaluate.run import Asked, compare_results
    from triform.evaluate.task import Settings

    if len(names) > 2:
        raise ValueError(f"expected one model, or two to compare, got {len(names)}")
    asked = [Asked.parse(one) for one in tasks or ()]
    of_harness = [name.strip() for name in harness.split(",") if name.strip()]
    settings = Settings(
        limit=limit, shots=shots, window=window, stride=stride, max_new_tokens=max_new_tokens, prompt=prompt, chat=chat, samples=samples,
        temperature=temperature, allow_code=allow_code, seed=seed, skip_bad=skip_bad,
    )  # fmt: skip
    _check(asked, of_harness, settings, (plot, confusion))
    places = [hub.locate(name) for name in names]
    results = [_measure(place, asked, of_harness, settings) for place in places]
    compared = [compare_results(a, b, seed) for a, b in zip(*results, strict=True)] if len(results) == 2 else []
    _write(names, places, results, (items, plot, confusion))
    if as_json:
        _print_json(names, results, compared, seed)
        return
    for name, own in zip(names, results, strict=True):
        if len(names) > 1:
            print(name)
        _print_results(own, seed)
    if compared:
        _print_comparisons(compared)


def _check(asked: list[Asked], of_harness: list[str], settings: Settings, pictures: tuple[Path | None, Path | None]) -> None:
    if not asked and not of_harness:
        raise ValueError("expected a task: --tasks KIND=PATH, or --harness NAME")
    if of_harness:
        from triform.evaluate.files import library

        library("lm_eval", "harness")
    if any(one.kind == "humaneval" for one in asked):
        from triform.evaluate.programs import check_allowed

        check_allowed(settings)
    for picture in pictures:
        if picture is not None and picture.suffix not in (".svg", ".png", ".pdf"):
            raise ValueError(f"{picture}: expected a picture to end in .svg, .png or .pdf")
    if pictures[-1] is not None and not any(one.kind == "classification" for one in asked):
        raise ValueError("--confusion: expected a task classification=PATH beside it, found none")


def _measure(place: Path, asked: list[Asked], of_harness: list[str], settings: Settings) -> list[Result]:
    """The results of a model, each group of them kept in its history as soon as it is there."""
    from triform import hub
    from triform.evaluate.history import add, now
    from triform.evaluate.run import evaluate as measured
    from triform.evaluate.task import Judged

    model, tokenizer = open_model(place)
    judged = Judged(model, tokenizer, hub.task(place) if place.is_dir() else {})
    found: list[Result] = []
    began = now()

    def keep(results: list[Result]) -> None:
        found.extend(results)
        try:
            add(place, [one.to_dict(settings.seed) for one in results], began)
        except OSError as error:
            print(f"triform: the figures were not added to the model's evaluations.jsonl: {error}", file=sys.stderr)

    for one in asked:
        with bar(f"rows of {one.kind}") as show:
            keep(measured(judged, [one], replace(settings, on_progress=show)))
    if of_harness:
        from triform.evaluate.harness import harness

        with bar("requests of the harness") as show:
            keep(harness(judged, of_harness, replace(settings, on_progress=show)))
    return found


def _write(
    names: list[str], places: list[Path], results: list[list[Result]], files: tuple[Path | None, Path | None, Path | None]
) -> None:
    from triform.config.files import replacing
    from triform.evaluate import history
    from triform.evaluate.classes import confusion_plot

    items, plot, confusion = files
    if items is not None:
        rows = [
            {"model": name, "task": one.name, **item} for name, own in zip(names, results, strict=True) for one in own for item in one.items
        ]  # fmt: skip
        with replacing(items) as temporary:
            temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8", newline="")
    if plot is not None:
        wanted = {one.name for own in results for one in own}
        kept = dict(zip(names, places, strict=True)).items()
        rows = [{**row, "model": name} for name, place in kept for row in history.history(place) if row["task"] in wanted]
        history.plot(rows, plot)
    if confusion is not None:
        found = [one for own in results for one in own if "confusion" in one.details]
        if not found:
            raise ValueError("--confusion: expected a classifier of one label a text, found none")
        for number, one in enumerate(found):
            confusion_plot(one, confusion if number == 0 else confusion.with_stem(f"{confusion.stem}-{number + 1}"))


def _print_json(names: list[str], results: list[list[Result]], compared: list[Comparison], seed: int) -> None:
    found: dict[str, Any] = {
        "models": [{"model": name, "results": [one.to_dict(seed) for one in own]} for name, own in zip(names, results, strict=True)]
    }
    if compared:
        found["comparisons"] = [one.to_dict() for one in compared]
    print(json.dumps(found, ensure_ascii=False, indent=2))


def _print_results(results: list[Result], seed: int) -> None:
    rows: list[tuple[str, ...]] = []
    for one in results:
        found = one.to_dict(seed)
        for part, own in [("", found), *found["parts"].items()]:
            for name, each in own["metrics"].items():
                interval = "" if each["low"] is None else f"{_figure(each['low'])} to {_figure(each['high'])}"
                told = (_figure(each["value"]), interval, each["method"] if interval else "", f"{own['items']:,}")
                rows.append((found["task"], part, name.replace("_", " "), *told))
    print_table(("task", "part", "figure", "value", "95 % interval", "by", "items"), rows)
    for one in results:
        setting = ", ".join(_setting(name, value) for name, value in one.setting.items() if value is not False)
        for note in ([f"{one.name}: {setting}"] if setting else []) + [f"{one.name}: {note}" for note in one.notes]:
            print(note)
        if one.bad:
            print(f"{one.name}: {one.bad:,} bad lines of data were left out")


def _print_comparisons(compared: list[Comparison]) -> None:
    rows: list[tuple[str, ...]] = []
    for one in compared:
        for part, own in [("", one.differences), *one.parts.items()]:
            for name, each in own.items():
                interval = "" if each.low is None or each.high is None else f"{each.low:+.4g} to {each.high:+.4g}"
                p = "" if each.p is None else "< 0.001" if each.p < 0.001 else f"{each.p:.3f}"
                rows.append((one.task, part, name.replace("_", " "), f"{each.value:+.4g}", interval, p, each.test))
    print("the second less the first")
    print_table(("task", "part", "figure", "difference", "95 % interval", "p", "test"), rows)


def _figure(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 10 else f"{value:,.2f}"


def _setting(name: str, value: Any) -> str:
    return name if value is True else f"{name} {value:,}" if isinstance(value, int) else f"{name} {value}"
