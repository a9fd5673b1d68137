"""A plan as one HTML page that needs nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path

from triform.config.files import replacing

from .describe import short
from .explain import Line
from .forecast import Plan
from .quantities import data_size, duration

_STYLE = """
:root { --ink: #1d2733; --soft: #5b6876; --paper: #fff; --line: #dde3ea; --bar: #3b76c4; --over: #c0453c; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e9ef; --soft: #9aa7b4; --paper: #14191f; --line: #2c3641; --bar: #6ba0e6; --over: #e07a72; }
}
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 60rem; padding: 1.5rem 1rem 4rem; background: var(--paper); color: var(--ink);
       font: 16px/1.5 system-ui, "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", sans-serif }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.05rem; margin: 2rem 0 .5rem } p { margin: .3rem 0; color: var(--soft) }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .75rem; margin-top: 1rem }
.fact { border: 1px solid var(--line); border-radius: 6px; padding: .6rem .75rem } .fact b { display: block; font-size: 1.25rem }
.fact span { color: var(--soft); font-size: .85rem }
.bars { display: grid; grid-template-columns: fit-content(10rem) minmax(2rem, 1fr) max-content; gap: .3rem .75rem; align-items: center;
        font-size: .92rem }
.track { background: var(--line); height: .8rem; border-radius: 3px; overflow: hidden } .fill { background: var(--bar); height: 100% }
.fill.over { background: var(--over) } .number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums }
table { border-collapse: collapse; font-size: .92rem } td, th { padding: .25rem .9rem .25rem 0; text-align: left; font-weight: normal;
         white-space: nowrap }
th { color: var(--soft) } .scroll { overflow-x: auto }
details { border-top: 1px solid var(--line); padding: .35rem 0; font-size: .9rem } summary { cursor: pointer }
.over-text { color: var(--over) } code { overflow-wrap: anywhere }
"""


def write_page(plan: Plan, file: str | Path) -> None:
    """Write a plan's page. Raises ValueError as `write_html` does."""
    write_html(page(plan), file)


def write_html(text: str, file: str | Path) -> None:
    """Write a page. Raises ValueError for a name that does not end in .html, or a folder that is not there."""
    file = Path(file)
    if file.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--html: expected a name that ends in .html, got {file}")
    if not file.parent.is_dir():
        raise ValueError(f"--html: expected a folder that exists, got {file.parent}")
    with replacing(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def page(plan: Plan) -> str:
    """The page's HTML."""
    return document(f"{plan.name}: plan", "\n".join(_sections(plan)))


def document(title: str, body: str) -> str:
    """A whole page around a body of HTML, in the style of all pages here."""
    title = escape(title)
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>'
    return f'<!doctype html>\n<html lang="en">\n<head>{head}<style>{_STYLE}</style></head>\n<body>\n{body}\n</body>\n</html>\n'


def _sections(plan: Plan) -> Iterator[str]:
    yield f"<h1>{escape(plan.name)}</h1><p>{escape(summary(plan))}</p>"
    boxes = (f'<div class="fact"><b>{escape(figure)}</b><span>{escape(text)}</span></div>' for figure, text in facts(plan))
    yield f'<div class="facts">{"".join(boxes)}</div>'
    for note in plan.notes:
        yield f"<p>{escape(note)}</p>"
    room = plan.memory.capacity
    verdict = "fits" if plan.memory.fits else "does not fit"
    yield f"<h2>Memory of training: {data_size(plan.memory.training.total)} of {data_size(room)} on a device; it {verdict}</h2>"
    yield _bars(plan.memory.training.parts, plan.memory.training.total, room)
    yield f"<h2>Memory of inference: {data_size(plan.memory.inference.total)} for one sequence of {plan.setting.sequence:,} tokens</h2>"
    yield _bars(plan.memory.inference.parts, plan.memory.inference.total, room)
    if plan.layouts:
        yield "<h2>Layouts that fit, the fastest first</h2>"
        yield _layouts(plan)
    yield "<h2>FLOPs: from the rule of thumb to the exact count</h2>"
    yield _bars(plan.flops.parts, plan.flops.exact, max(*plan.flops.parts.values(), plan.flops.exact), "FLOP")
    yield "<h2>Where each figure comes from</h2>"
    yield from (_line(line) for line in plan.lines())


def _layouts(plan: Plan) -> str:
    head = "".join(f"<th>{name}</th>" for name in ("layout", "micro-batches × sequences", "memory", "sent a step", "bubble", "time"))
    rows = []
    for one in plan.layouts:
        cells = (str(one.layout), f"{one.setting.accumulate} × {one.setting.batch}", data_size(one.total),
                 data_size(sum(one.communication.values())), f"{one.bubble:.0%}", duration(one.step_seconds * plan.steps))  # fmt: skip
        rows.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def summary(plan: Plan) -> str:
    """The plan's setting in one line."""
    how = plan.setting
    step = f"{how.batch} × {how.sequence:,}" + (f" and {how.target_length:,}" if plan.model.form == "encoder-decoder" else "")
    more = f", {how.accumulate} micro-batches a step" if how.accumulate > 1 else ""
    return (
        f"{plan.model.form}; {short(plan.tokens)} tokens in {plan.steps:,} steps of {step} tokens a device{more}; "
        f"{how.precision}, {how.optimizer}, recompute {how.recompute}{', offload' if how.offload else ''}; {plan.hardware.name}"
    )


def facts(plan: Plan) -> Iterator[tuple[str, str]]:
    """The figures that people look for first, each with what it is."""
    counted = plan.parameters
    active = f", {short(counted.active)} active per token" if counted.active != counted.total else ""
    yield short(counted.total), f"parameters ({short(counted.embedding)} in embeddings{active})"
    yield f"{plan.flops.exact:.3g} FLOP", f"training; rule of thumb 6 P D: {plan.flops.rule_of_thumb:.3g}"
    yield data_size(plan.memory.training.total), f"memory of training, of {data_size(plan.memory.capacity)} on a device"
    at_peak = f"{duration(plan.time.ideal_seconds)} at the peak"
    yield duration(plan.time.expected_seconds), f"expected at {plan.time.utilisation:.0%} of the peak; {at_peak}"
    if (speed := plan.generation) is not None:
        read = f"{plan.setting.sequence:,} tokens are read in {duration(speed.prefill_seconds)}"
        rate = speed.tokens_per_second
        yield f"{rate:,.0f} tokens/s" if rate >= 10 else f"{rate:.2g} tokens/s", f"written for one sequence, bound by {speed.bound}; {read}"
    spent = plan.cost
    if spent.money is not None:
        yield f"{spent.money:,.2f} USD", f"{spent.card_hours:,.1f} device hours"
    if spent.energy_kwh is not None and spent.co2_kg is not None:
        yield f"{spent.energy_kwh:,.2f} kWh", f"energy; {spent.co2_kg:,.2f} kg CO2 ({spent.region.name})"
    if plan.data is not None:
        yield f"{plan.data.loss.low:.2f} to {plan.data.loss.high:.2f}", "expected loss, nats a token (on the laws' own English text)"
        yield f"{plan.data.distance.tokens_a_parameter:.3g}", f"tokens a parameter; {plan.data.distance.advice}"
        if again := plan.data.repetition:
            yield f"{again.epochs:.3g} epochs", f"worth {short(round(again.tokens))} new tokens; {again.advice}"


def _bars(parts: Mapping[str, float], total: float, room: float, unit: str = "B") -> str:
    rows = []
    for name, value in [*sorted(((n, v) for n, v in parts.items() if v), key=lambda part: -part[1]), ("total", total)]:
        share, over = min(1.0, abs(value) / room), " over" if value > room or value < 0 else ""
        shown = data_size(value) if unit == "B" else f"{value:.3g} {unit}"
        fill = f'<div class="fill{over}" style="width:{100 * share:.2f}%"></div>'
        rows.append(f'<span>{escape(name.replace("_", " "))}</span><div class="track">{fill}</div><span class="number">{shown}</span>')
    return f'<div class="bars">{"".join(rows)}</div>'


def _line(line: Line) -> str:
    source = f"<p>{escape(line.source)}</p>" if line.source else ""
    text, numbers = str(line).partition(": ")[2], ""
    text = text.removesuffix(f" [{line.source}]") if line.source else text
    text, _, numbers = text.partition(" with ")
    more = f"<p>{escape(numbers)}</p>" if numbers else ""
    return f"<details><summary>{escape(line.name.strip())}</summary><code>{escape(text)}</code>{more}{source}</details>"
