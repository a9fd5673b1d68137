"""Charts as inline SVG and HTML, coloured by the page's style sheet so that they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from triform.planner.svg import text_width

WIDTH, HEIGHT = 480, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 26, 40
_POINTS = 100  # of one curve; longer ones are averaged down
_TOKENS = 64  # rows or columns of an attention map that are drawn

Point = tuple[float, float]


def number(value: float) -> str:
    """A figure with four digits."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def measure(value: float, unit: str) -> str:
    """A figure with its unit."""
    return f"{value:.{1 if unit.startswith('%') else 3}f} {unit}".rstrip()


def line_chart(curves: Sequence[dict[str, Any]], unit: str) -> str:
    """Curves over the step, as an SVG with a legend below; each curve has a `name` and `points` [[step, value], ...]."""
    series = [(str(curve["name"]), _thin(curve["points"])) for curve in curves]
    series = [(name, points) for name, points in series if points]
    if not series:
        return ""
    xs = [x for _, points in series for x, _ in points]
    ys = [y for _, points in series for _, y in points]
    x_ticks, y_ticks = _ticks(min(xs), max(xs), 6), _ticks(min(ys), max(ys), 6)
    low, high = min(min(ys), y_ticks[0]), max(max(ys), y_ticks[-1])

    def place(x: float, y: float) -> Point:
        across = (x - min(xs)) / ((max(xs) - min(xs)) or 1)
        up = (y - low) / ((high - low) or 1)
        return _LEFT + across * (WIDTH - _LEFT - _RIGHT), HEIGHT - _BOTTOM - up * (HEIGHT - _TOP - _BOTTOM)

    parts = [f'<text class="axis" x="0" y="13">{escape(unit)}</text>']
    for tick in y_ticks:
        y = place(xs[0], tick)[1]
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}"/>')
        parts.append(f'<text class="axis" x="{_LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{number(tick)}</text>')
    for tick in x_ticks:
        x = place(tick, low)[0]
        parts.append(f'<text class="axis" x="{x:.1f}" y="{HEIGHT - _BOTTOM + 18}" text-anchor="middle">{number(tick)}</text>')
    parts.append(f'<text class="axis" x="{(WIDTH + _LEFT) / 2:.0f}" y="{HEIGHT - 4}" text-anchor="middle">step</text>')
    legend = []
    for index, (name, points) in enumerate(series):
        colour = f"c{index % 6}"
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in (place(*point) for point in points))
        parts.append(f'<path class="curve {colour}" d="M{path}"/>')
        for x, y in points[:: max(1, len(points) // 40)]:
            at = place(x, y)
            dot = " dot" if len(points) <= 40 else ""
            tip = f"{escape(name)}, step {x:,.0f}: {number(y)}"
            centre = f'cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="{3 if dot else 6}"'
            parts.append(f'<circle class="{colour} hit{dot}" {centre}><title>{tip}</title></circle>')
        legend.append(f'<span><i class="{colour}"></i>{escape(name)} <b>{number(points[-1][1])}</b></span>')
    label = f"{', '.join(name for name, _ in series)} over the steps, in {unit}"
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
        f'<div class="legend">{"".join(legend)}</div>'
    )


def _thin(points: Sequence[Sequence[float]]) -> list[Point]:
    """At most `_POINTS` finite points, each the mean of its neighbours."""
    kept = [(float(x), float(y)) for x, y in points if y is not None and math.isfinite(y)]
    size = math.ceil(len(kept) / _POINTS)
    if size <= 1:
        return kept
    groups = [kept[start : start + size] for start in range(0, len(kept), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers inside [low, high], at most `most`; the two ends where none fits."""
    span = high - low
    if span <= 0:
        return [low]
    rough = span / (most - 1)
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    ticks = [round(index * step, 12) for index in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return ticks or [low, high]


def bars(figures: Sequence[dict[str, Any]]) -> str:
    """Figures of one unit as labelled bars from zero, ours and the best one marked."""
    unit, lower = str(figures[0]["unit"]), figures[0]["better"] == "lower"
    percent = unit.startswith("%")
    largest = 100 if percent else max(abs(figure["value"]) for figure in figures) or 1
    best = (min if lower else max)(figure["value"] for figure in figures)
    rows = []
    for figure in sorted(figures, key=lambda figure: figure["value"], reverse=not lower):
        mine = " ours" if figure["ours"] else ""
        tag = '<span class="tag">best</span>' if figure["value"] == best and len(figures) > 1 else ""
        note = f"<small>{escape(str(figure['note']))}</small>" if figure.get("note") else ""
        width = 100 * abs(figure["value"]) / largest
        rows.append(
            f'<div class="bar{mine}"><span class="label">{escape(str(figure["label"]))} {tag}{note}</span>'
            f'<span class="track"><i style="width:{width:.2f}%"></i></span>'
            f'<span class="value">{escape(measure(figure["value"], "%" if percent else ""))}</span></div>'
        )
    direction = "lower" if lower else "higher"
    return f'<div class="bars"><p class="unit">{escape(unit)}, {direction} is better</p>{"".join(rows)}</div>'


def attention_map(name: str, rows: Sequence[str], columns: Sequence[str], weights: Sequence[Sequence[float]]) -> str:
    """One head's attention as an SVG: rows are queries, columns are keys; every cell tells its value."""
    if len(weights) != len(rows) or any(len(row) != len(columns) for row in weights):
        raise ValueError(f"attention {name!r}: expected {len(rows)} rows of {len(columns)} weights, as many as there are tokens")
    cut = max(len(rows), len(columns)) > _TOKENS
    down, across = [_visible(t) for t in rows[:_TOKENS]], [_visible(t) for t in columns[:_TOKENS]]
    cell = 20 if max(len(down), len(across)) <= 32 else 15
    size = 12 if cell == 20 else 10
    upright = all(text_width(token, size) <= cell for token in across)
    left = max([text_width(token, size) for token in down], default=0) + 8
    top = size + 8 if upright else max([text_width(token, size) for token in across], default=0) * 0.87 + 12
    slack = 0 if upright else top * 0.5
    width, height = left + cell * len(across) + slack, top + cell * len(down)
    parts = [f'<rect class="plate" x="{left:.1f}" y="{top:.1f}" width="{cell * len(across)}" height="{cell * len(down)}"/>']
    for index, token in enumerate(across):
        x, y = left + (index + 0.5) * cell, top - 5
        place = f'text-anchor="middle" x="{x:.1f}" y="{y:.1f}"' if upright else f'transform="translate({x + 3:.1f} {y:.1f}) rotate(-60)"'
        parts.append(f'<text font-size="{size}" {place}>{escape(token)}</text>')
    for index, token in enumerate(down):
        y = top + (index + 0.5) * cell + size * 0.36
        parts.append(f'<text font-size="{size}" text-anchor="end" x="{left - 5:.1f}" y="{y:.1f}">{escape(token)}</text>')
    for query, row in enumerate(weights[:_TOKENS]):
        for key, weight in enumerate(row[:_TOKENS]):
            if weight >= 0.005:
                tip = f"{escape(down[query])} → {escape(across[key])}: {100 * weight:.1f} %"
                parts.append(
                    f'<rect x="{left + key * cell:.1f}" y="{top + query * cell:.1f}" width="{cell - 1}" height="{cell - 1}" '
                    f'fill-opacity="{min(1.0, weight**0.6):.2f}"><title>{tip}</title></rect>'
                )
    note = f" (the first {_TOKENS} tokens)" if cut else ""
    return (
        f'<figure class="map"><figcaption>{escape(name)}{note}</figcaption><div class="scroll">'
        f'<svg width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
        f'aria-label="Attention of {escape(name)}">{"".join(parts)}</svg></div></figure>'
    )


def _visible(token: str) -> str:
    """A token's text with blanks made visible; a dot for a token without text."""
    shown = token.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣")
    if not shown:
        return "·"
    return shown if len(shown) <= 14 else shown[:13] + "…"
