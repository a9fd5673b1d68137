"""What an attention lets a query see, as a grid and as a picture."""

from __future__ import annotations

from collections.abc import Sequence

from triform import config

from .svg import INK, MUTED, Canvas

ITSELF, EARLIER, LATER, OTHER, HIDDEN = "#1e3a8a", "#60a5fa", "#f59e0b", "#14b8a6", "#ffffff"
LEGEND = (("itself", ITSELF), ("earlier", EARLIER), ("later", LATER), ("the other sequence", OTHER), ("hidden", HIDDEN))

Grid = Sequence[Sequence[int | bool]]


def mask_grid(attention: config.Attention, length: int, prefix: int = 0) -> list[list[int]]:
    """Rows of queries by columns of keys, 1 where the query sees the key.

    prefix: tokens at the start that see each other both ways, for a prefix mask.
    """

    def sees(query: int, key: int) -> bool:
        if attention.mask == "prefix" and query < prefix and key < prefix:
            return True
        near = attention.window is None or abs(query - key) < attention.window
        return near and (attention.mask == "bidirectional" or key <= query)

    return [[int(sees(query, key)) for key in range(length)] for query in range(length)]


def draw_grid(canvas: Canvas, x: float, y: float, grid: Grid, cell: float, cross: bool = False) -> None:
    """A grid at (x, y), cells coloured by what the query sees: itself, an earlier or later token, another sequence (`cross`)."""
    gap = 1 if cell > 4 else 0
    canvas.rect(x - gap, y - gap, cell * len(grid[0]) + gap, cell * len(grid) + gap, fill="#cbd5e1")
    runs: dict[str, list[str]] = {}
    for query, row in enumerate(grid):
        for key, seen in enumerate(row):
            where = OTHER if cross else ITSELF if key == query else EARLIER if key < query else LATER
            path = f"M{x + key * cell:g} {y + query * cell:g}h{cell - gap:g}v{cell - gap:g}h{gap - cell:g}z"
            runs.setdefault(where if seen else HIDDEN, []).append(path)
    canvas.parts += [f'<path d="{"".join(paths)}" fill="{colour}"/>' for colour, paths in runs.items()]


def mask_svg(mask: config.Attention | Grid, length: int = 16, *, title: str = "", cross: bool = False, cell: float = 12) -> str:
    """One mask as an SVG: rows are queries, columns are keys.

    mask: an attention, drawn for `length` tokens (a prefix mask with a third of them as
    prefix), or a grid of 0 and 1 as `mask_grid` gives it.
    """
    grid: Grid = mask_grid(mask, length, length // 3) if isinstance(mask, config.Attention) else mask
    if not grid or not grid[0] or any(len(row) != len(grid[0]) for row in grid):
        raise ValueError("mask: expected rows of one length, at least one of each")
    canvas = Canvas()
    width, height = cell * len(grid[0]), cell * len(grid)
    draw_grid(canvas, 0, 0, grid, cell, cross)
    canvas.text(width / 2, -6, "keys →", size=11, fill=MUTED, anchor="middle")
    canvas.text(-6, height / 2, "← queries", size=11, fill=MUTED, anchor="middle", turn=True)
    canvas.cover(-20, 0)
    if title:
        canvas.text(width / 2, -24, title, size=13, bold=True, fill=INK, anchor="middle")
    seen = sum(map(sum, grid))
    return canvas.svg(title or "Attention mask", f"{len(grid)} queries by {len(grid[0])} keys; {seen} pairs are seen.", margin=4)
