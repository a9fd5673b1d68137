"""A small drawing surface that becomes an SVG.

The SVG needs nothing from outside, and has neither ids nor a style sheet, so that several can stand in one page.
"""

from __future__ import annotations

from html import escape

FONTS = (
    "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'PingFang SC', 'Hiragino Sans GB', 'Microsoft YaHei', "
    "'Noto Sans CJK SC', 'Source Han Sans SC', 'WenQuanYi Micro Hei', sans-serif"
)
INK, MUTED, LINE = "#1f2937", "#4b5563", "#6b7280"

_NARROW, _WIDE = set("iljtfrI.,:;'|!()[] "), set("mwMW@%—")


def text_width(text: str, size: float, bold: bool = False) -> float:
    """A careful estimate, in pixels, of how wide a text is in any of the fonts."""
    units = 0.0
    for character in text:
        if ord(character) > 0x2E7F:
            units += 1.0
        elif character in _NARROW:
            units += 0.34
        elif character in _WIDE:
            units += 0.9
        else:
            units += 0.68 if character.isupper() else 0.59
    return units * size * (1.06 if bold else 1.0)


def fit(text: str, size: float, width: float, bold: bool = False) -> str:
    """The text, its end cut off with an ellipsis if it is wider than `width` pixels."""
    if text_width(text, size, bold) <= width:
        return text
    while text and text_width(text + "…", size, bold) > width:
        text = text[:-1]
    return text.rstrip() + "…"


class Canvas:
    """Shapes in pixels, y downward; the picture is as large as what was drawn on it."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.left = self.top = float("inf")
        self.right = self.bottom = float("-inf")

    def cover(self, x: float, y: float, width: float = 0, height: float = 0) -> None:
        """Make the picture reach over a rectangle."""
        self.left, self.top = min(self.left, x), min(self.top, y)
        self.right, self.bottom = max(self.right, x + width), max(self.bottom, y + height)

    def rect(
        self, x: float, y: float, width: float, height: float, *, fill: str, stroke: str = "none", radius: float = 0, at: int | None = None
    ) -> None:
        """A rectangle; `at` puts it behind what was drawn from that place in `parts` on."""
        self.cover(x, y, width, height)
        line = "" if stroke == "none" else f' stroke="{stroke}"'
        rounded = f' rx="{radius:g}"' if radius else ""
        shape = f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"{rounded} fill="{fill}"{line}/>'
        self.parts.insert(len(self.parts) if at is None else at, shape)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = 12,
        bold: bool = False,
        fill: str = INK,
        anchor: str = "start",
        turn: bool = False,
    ) -> None:
        """A line of text whose baseline is at y; `turn` writes it upward."""
        width = text_width(text, size, bold)
        if not turn:
            self.cover(x - {"start": 0, "middle": width / 2, "end": width}[anchor], y - size, width, size * 1.3)
        weight = ' font-weight="600"' if bold else ""
        side = "" if anchor == "start" else f' text-anchor="{anchor}"'
        turned = f' transform="rotate(-90 {x:g} {y:g})"' if turn else ""
        self.parts.append(f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{fill}"{weight}{side}{turned}>{escape(text)}</text>')

    def line(self, *points: tuple[float, float], stroke: str = LINE, width: float = 1.6, dashed: bool = False, arrow: bool = False) -> None:
        """A line through points, corners rounded; `arrow` puts a head on its end."""
        for point in points:
            self.cover(*point)
        dashes = ' stroke-dasharray="5 4"' if dashed else ""
        path = _rounded(points, 7)
        self.parts.append(f'<path d="{path}" fill="none" stroke="{stroke}" stroke-width="{width:g}"{dashes}/>')
        if arrow:
            (a, b), (x, y) = points[-2], points[-1]
            dx, dy = (x > a) - (x < a), (y > b) - (y < b)
            wings = f"L{x - 8 * dx - 4 * dy:g} {y - 8 * dy - 4 * dx:g} L{x - 8 * dx + 4 * dy:g} {y - 8 * dy + 4 * dx:g}Z"
            self.parts.append(f'<path d="M{x:g} {y:g} {wings}" fill="{stroke}"/>')

    def circle(self, x: float, y: float, radius: float, *, fill: str, stroke: str = "none") -> None:
        self.cover(x - radius, y - radius, 2 * radius, 2 * radius)
        self.parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="{radius:g}" fill="{fill}" stroke="{stroke}" stroke-width="1.6"/>')

    def place(self, other: Canvas, x: float, y: float, label: str = "") -> None:
        """Another canvas, moved by (x, y), as a group."""
        self.cover(other.left + x, other.top + y, other.right - other.left, other.bottom - other.top)
        title = f"<title>{escape(label)}</title>" if label else ""
        self.parts.append(f'<g transform="translate({x:g} {y:g})">{title}{"".join(other.parts)}</g>')

    def svg(self, title: str, description: str, *, margin: float = 0, background: str | None = None) -> str:
        """The picture as an SVG document."""
        x, y = self.left - margin, self.top - margin
        width, height = self.right - self.left + 2 * margin, self.bottom - self.top + 2 * margin
        back = f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{background}"/>' if background else ""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{width:g}" height="{height:g}" '
            f'viewBox="{x:g} {y:g} {width:g} {height:g}" font-family="{escape(FONTS)}">\n'
            f"<title>{escape(title)}</title>\n<desc>{escape(description)}</desc>\n{back}" + "\n".join(self.parts) + "\n</svg>\n"
        )


def _rounded(points: tuple[tuple[float, float], ...], radius: float) -> str:
    """A path through points of right-angled turns."""
    path = f"M{points[0][0]:g} {points[0][1]:g}"
    for before, here, after in zip(points, points[1:], points[2:]):
        room = min(radius, _distance(before, here) / 2, _distance(here, after) / 2)
        (ax, ay), (bx, by) = _towards(here, before, room), _towards(here, after, room)
        path += f" L{ax:g} {ay:g} Q{here[0]:g} {here[1]:g} {bx:g} {by:g}"
    return path + f" L{points[-1][0]:g} {points[-1][1]:g}"


def _distance(a: tuple[float, float], b: tuple[float, float]) -> float:
    return abs(a[0] - b[0]) + abs(a[1] - b[1])


def _towards(start: tuple[float, float], end: tuple[float, float], room: float) -> tuple[float, float]:
    length = _distance(start, end) or 1
    return start[0] + (end[0] - start[0]) * room / length, start[1] + (end[1] - start[1]) * room / length
