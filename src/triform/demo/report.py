"""The demo's report: one page that stands by itself, made from what each stage wrote down."""

from __future__ import annotations

import difflib
import json
import math
import re
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from triform import config
from triform.config.files import replacing
from triform.planner import diagram, mask_svg

from .charts import attention_map, bars, line_chart, measure

STAGES = ("storyteller", "critic", "translator")

Stage = dict[str, Any]


def write_report(folder: Path) -> Path:
    """Write `report.html` to the demo's folder from `<stage>/result.json` there, and return its path.

    A stage without a result is said to be missing. The page loads nothing from
    elsewhere. Raises ValueError that names the file if a result cannot be read.
    """
    target = folder / "report.html"
    text = _page({name: _read(name, folder / name / "result.json") for name in STAGES})
    with replacing(target) as file:
        file.write_text(text, encoding="utf-8")
    return target


def _read(name: str, file: Path) -> Stage | None:
    """A stage's result, its `model`, and what the page shows of it: `section` and `mask_figures`.

    They are made here so that whatever is wrong in the file is reported with its name.
    """
    if not file.is_file():
        return None
    again = "delete it and run the stage again"
    try:
        stage: Stage = json.loads(file.read_text(encoding="utf-8"))
        stage["model"] = config.resolve(stage["config"])
        _check(stage)
        stage["section"], stage["mask_figures"] = _section(name, stage), _masks(stage)
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: expected JSON, got {error}; {again}") from None
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{file}: expected a stage's result, and {error} is missing or of the wrong kind; {again}") from None
    except ValueError as error:
        raise ValueError(f"{file}: {error}; {again}") from None
    return stage


def _check(stage: Stage) -> None:
    """Raise KeyError or TypeError for what the page cannot do without."""
    for key in ("title", "form", "task"):
        if not isinstance(stage[key], str):
            raise TypeError(key)
    for key in ("parameters", "training_flops", "seconds", "tokens"):
        if not isinstance(stage[key], int | float):
            raise TypeError(key)
    for key in ("curves", "figures", "samples", "masks", "attention"):
        stage.setdefault(key, [])
    for figure in stage["figures"]:
        if not isinstance(figure["value"], int | float) or figure["better"] not in ("lower", "higher"):
            raise TypeError("figures")
        figure["label"], figure["unit"], figure["ours"] = str(figure["label"]), str(figure["unit"]), bool(figure["ours"])


def _resource(name: str) -> str:
    return files("triform.demo").joinpath(name).read_text(encoding="utf-8")


def _page(results: dict[str, Stage | None]) -> str:
    present = {name: stage for name, stage in results.items() if stage is not None}
    links = "".join(f'<a href="#{name}">{escape(stage["title"])}</a>' for name, stage in present.items())
    sections = [_summary(results)]
    if present:
        sections.append(_architectures(list(present.values())))
    missing = '<section id="{0}"><h2>{1}</h2><p class="muted">This stage has not run yet: it left no result.json.</p></section>'
    sections += [stage["section"] if stage else missing.format(name, name.capitalize()) for name, stage in results.items()]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Triform: three Transformers from one core</title>
<style>
{_resource("report.css")}</style>
</head>
<body>
<header>
<h1>Three Transformers from one core</h1>
<p class="lead">A storyteller, a critic and a translator: a decoder, an encoder and an encoder with a decoder, built from the same
blocks and trained from nothing on Chinese text. Baselines were computed in the same run, on the same held-out text.</p>
<nav aria-label="Sections"><a href="#summary">Summary</a><a href="#architecture">Architectures and masks</a>{links}</nav>
</header>
<main>
{"".join(sections)}
</main>
<footer>Made by <code>triform demo</code>. Values appear under the pointer, or where you tap.</footer>
<div id="tip" role="status" hidden></div>
<script>
{_resource("report.js")}</script>
</body>
</html>
"""


def _scientific(value: float) -> str:
    if value < 1e6:
        return f"{value:,.0f}"
    power = math.floor(math.log10(value))
    return f"{value / 10**power:.2f} × 10<sup>{power}</sup>"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return " ".join(f"{n} {unit}" for n, unit in ((hours, "h"), (minutes, "min"), (rest, "s")) if n or (unit == "s" and seconds < 60))


def _standing(stage: Stage) -> tuple[str, str]:
    """The first figure of ours, and the best baseline of the same unit, in words."""
    ours = next((f for f in stage["figures"] if f["ours"]), None)
    if ours is None:
        return "none", "none"
    rivals = [f for f in stage["figures"] if not f["ours"] and f["unit"] == ours["unit"]]
    text = f"<b>{escape(measure(ours['value'], ours['unit']))}</b><small>{escape(ours['label'])}</small>"
    if not rivals:
        return text, "none"
    best = (min if ours["better"] == "lower" else max)(rivals, key=lambda f: f["value"])
    return text, f"{escape(measure(best['value'], best['unit']))}<small>{escape(best['label'])}</small>"


def _chip(stage: Stage) -> str:
    goal = stage.get("goal")
    if not goal:
        return ""
    return '<span class="chip met">✓ met</span>' if goal["met"] else '<span class="chip missed">✗ missed</span>'


def _summary(results: dict[str, Stage | None]) -> str:
    heads = ("Form", "Parameters", "Training FLOPs", "Time", "Result", "Best baseline", "Goal")
    rows = []
    for name, stage in results.items():
        if stage is None:
            rows.append(f'<tr><th scope="row">{name}</th><td colspan="{len(heads)}" data-label="">has not run yet</td></tr>')
            continue
        result, baseline = _standing(stage)
        goal = stage.get("goal") or {}
        detail = f"<small>{escape(goal.get('detail') or goal.get('text') or '')}</small>" if goal else ""
        cells = (
            escape(stage["form"]), f"{stage['parameters']:,}", _scientific(stage["training_flops"]), _duration(stage["seconds"]),
            result, baseline, _chip(stage) + detail,
        )  # fmt: skip
        body = "".join(f'<td data-label="{head}"><span>{cell}</span></td>' for head, cell in zip(heads, cells))
        rows.append(f'<tr><th scope="row"><a href="#{name}">{escape(stage["title"])}</a></th>{body}</tr>')
    titles = "".join(f"<th>{head}</th>" for head in heads)
    return (
        f'<section id="summary"><h2>Summary</h2><table class="cards"><thead><tr><th>Model</th>{titles}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></section>"
    )


def _architectures(stages: list[Stage]) -> str:
    picture = diagram([(stage["title"], stage["model"]) for stage in stages])
    drawn = "".join(stage["mask_figures"] for stage in stages)
    about = "Rows are queries, columns keys. Dark: the token itself; blue: earlier; amber: later; teal: another sequence; white: hidden."
    below = f'<h3>Attention masks</h3><p class="muted">{about}</p><div class="masks">{drawn}</div>' if drawn else ""
    return (
        '<section id="architecture"><h2>Architectures and masks</h2><p class="muted">Read from bottom to top.</p>'
        f'<div class="paper wide" tabindex="0">{picture}</div>{below}</section>'
    )


def _masks(stage: Stage) -> str:
    return "".join(
        f'<figure><div class="paper">{mask_svg(mask["grid"], cross=bool(re.search("cross| to ", mask["name"])))}</div>'
        f"<figcaption>{escape(stage['title'])}; {escape(mask['name'])}</figcaption></figure>"
        for mask in stage["masks"]
    )


def _section(name: str, stage: Stage) -> str:
    goal = stage.get("goal")
    verdict = ""
    if goal:
        detail = f": {escape(goal['detail'])}" if goal.get("detail") else ""
        aim = escape(goal["text"][:1].upper() + goal["text"][1:])
        verdict = f'<div class="goal{"" if goal["met"] else " missed"}"><p>{_chip(stage)} <b>{aim}</b>{detail}</p></div>'
    facts = {
        "Parameters": f"{stage['parameters']:,}",
        "Training FLOPs": _scientific(stage["training_flops"]),
        "Tokens seen": f"{stage['tokens']:,}",
        "Time": _duration(stage["seconds"]),
    }
    for key, value in stage.get("settings", {}).items():
        facts[escape(str(key))] = escape(f"{value:,}" if isinstance(value, int) else str(value))
    listed = "".join(f"<div><dt>{key}</dt><dd>{value}</dd></div>" for key, value in facts.items())
    return (
        f'<section id="{name}"><h2>{escape(stage["title"])}</h2><p><span class="chip">{escape(stage["form"])}</span></p>'
        f'<p>{escape(stage["task"])}</p>{verdict}<dl class="facts">{listed}</dl>'
        f"{_figures(stage)}{_curves(stage)}{_samples(stage)}{_attention(stage)}"
        f'<h3>Architecture</h3><div class="paper">{diagram([(stage["title"], stage["model"])])}</div></section>'
    )


def _figures(stage: Stage) -> str:
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for figure in stage["figures"]:
        groups.setdefault((figure["unit"], figure["better"]), []).append(figure)
    return "<h3>Against the baselines</h3>" + "".join(map(bars, groups.values())) if groups else ""


def _split(name: str) -> tuple[str, str]:
    run, *rest = re.split("[:,] ", name, maxsplit=1)
    return (run, rest[0]) if rest else ("", name)


def _curves(stage: Stage) -> str:
    """A chart for each run and unit; the run is what a curve's name has before a colon or comma."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for curve in stage["curves"]:
        run, name = _split(str(curve["name"]))
        groups.setdefault((run or "", str(curve.get("unit", ""))), []).append({"name": name, "points": curve["points"]})
    charts = [(run, line_chart(curves, unit)) for (run, unit), curves in groups.items()]
    figures = "".join(f"<figure><figcaption>{escape(run)}</figcaption>{chart}</figure>" for run, chart in charts if chart)
    return f'<h3>Learning curves</h3><div class="grid-of">{figures}</div>' if figures else ""


def _text(text: str) -> str:
    """Escaped, and named as Chinese where it holds Chinese characters, which decides their shapes."""
    chinese = ' lang="zh-Hans"' if re.search(r"[\u4e00-\u9fff]", text) else ""
    return f"<span{chinese}>{escape(text)}</span>"


def _marked(output: str, reference: str) -> str:
    """The output with what differs from the reference marked."""
    parts = []
    for action, start, end, _, _ in difflib.SequenceMatcher(None, output, reference, autojunk=False).get_opcodes():
        piece = escape(output[start:end])
        parts.append(piece if action == "equal" or not piece else f"<mark>{piece}</mark>")
    return f'<span lang="zh-Hans">{"".join(parts)}</span>'


def _samples(stage: Stage) -> str:
    cards, marked = [], False
    for sample in stage["samples"]:
        output, reference = str(sample["output"]), sample.get("reference")
        shown = _text(output)
        if reference is not None and reference != output and len(str(reference)) > 4 and re.search(r"[\u4e00-\u9fff]", output):
            shown, marked = _marked(output, str(reference)), True
        rows = [("Input", "", _text(str(sample["input"]))), ("Output", ' class="output"', shown)]
        if reference is not None:
            rows.append(("Reference", "", _text(str(reference)) + (" ✓" if reference == output else " ✗")))
        if sample.get("note"):
            rows.append(("Note", "", _text(str(sample["note"]))))
        cards.append('<div class="sample"><dl>' + "".join(f"<dt>{k}</dt><dd{c}>{v}</dd>" for k, c, v in rows) + "</dl></div>")
    legend = '<p class="muted"><mark>Marked</mark>: differs from the reference.</p>' if marked else ""
    return f'<h3>Samples</h3>{legend}<div class="samples">{"".join(cards)}</div>' if cards else ""


def _attention(stage: Stage) -> str:
    maps = "".join(attention_map(str(m["name"]), m["rows"], m["columns"], m["weights"]) for m in stage["attention"])
    about = "Each row is a token that looks, each column one that is looked at; the stronger the colour, the more weight."
    return f'<h3>Attention</h3><p class="muted">{about}</p><div class="maps">{maps}</div>' if maps else ""
