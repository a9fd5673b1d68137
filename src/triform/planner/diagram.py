"""A picture of one or several architectures, side by side.

Each stack is drawn bottom to top: its input, one block of each distinct kind, its
head. Coordinates are pixels, and y = 0 is the foot of every stack's input box.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from triform import config

from . import describe
from .mask import LEGEND, draw_grid, mask_grid
from .parameters import parameters
from .svg import INK, LINE, MUTED, Canvas, fit, text_width

# role: (fill, outline)
COLOURS = {
    "attention": ("#dbeafe", "#2563eb"),
    "cross": ("#ccfbf1", "#0f766e"),
    "feed_forward": ("#fef3c7", "#b45309"),
    "norm": ("#f1f5f9", "#64748b"),
    "embedding": ("#dcfce7", "#15803d"),
    "head": ("#fce7f3", "#be185d"),
}
KINDS = ("#0369a1", "#b45309", "#7e22ce", "#15803d", "#be123c", "#374151")  # a colour for each kind of block, then round again
BOX, PAD, LANE = 244.0, 16.0, 32.0  # width of a box; of the frame's left edge; of the residual's lane on its right
FRAME = PAD + BOX + LANE
GUTTER = 64.0  # between the stacks of one model
CELL, SIDE = 7.0, 8  # a mask's cell, and how many queries it shows


@dataclass
class _Box:
    x: float
    top: float
    height: float
    width: float = BOX

    @property
    def middle(self) -> float:
        return self.top + self.height / 2


@dataclass
class _Column:
    """A pen that draws one stack upward; `y` is where the stream has come to."""

    canvas: Canvas
    x: float
    y: float = 0.0
    crosses: list[float] = field(default_factory=list)
    embedding: _Box | None = None
    right: float = 0.0

    @property
    def centre(self) -> float:
        return self.x + PAD + BOX / 2

    def rise(self, gap: float) -> None:
        self.canvas.line((self.centre, self.y), (self.centre, self.y - gap), arrow=True)
        self.y -= gap

    def frame_of(self, role: str, height: float, gap: float = 16) -> _Box:
        if gap:
            self.rise(gap)
        self.y -= height
        fill, stroke = COLOURS[role]
        self.canvas.rect(self.centre - BOX / 2, self.y, BOX, height, fill=fill, stroke=stroke, radius=7)
        return _Box(self.centre - BOX / 2, self.y, height)

    def box(self, role: str, title: str, lines: list[str], gap: float = 16, grid: list[list[int]] | None = None) -> _Box:
        """A box with a title, lines of detail, and a mask at its right if there is one."""
        height = 30.0 + 15 * len(lines) + (4 if lines else 0)
        room = BOX - 24
        if grid:
            height = max(height, CELL * len(grid) + 20)
            room -= CELL * SIDE + 12
        box = self.frame_of(role, height, gap)
        first = box.middle - 7.5 * len(lines) + (3 if lines else 5)
        self.canvas.text(box.x + 12, first, fit(title, 13, room, bold=True), size=13, bold=True)
        for index, line in enumerate(lines):
            self.canvas.text(box.x + 12, first + 17 + 15 * index, fit(line, 11.5, room), size=11.5, fill=MUTED)
        if grid:
            draw_grid(
                self.canvas, box.x + BOX - 12 - CELL * len(grid[0]), box.middle - CELL * len(grid) / 2, grid, CELL, cross=role == "cross"
            )
        return box

    def norm(self, norm: config.Norm | None, gap: float = 16) -> None:
        if norm is None:
            return
        box = self.frame_of("norm", 24, gap)
        self.canvas.text(self.centre, box.middle + 4, describe.norm(norm), size=12, anchor="middle")

    def sublayer(self, block: config.Block, body: Callable[[float], None]) -> None:
        """A body on the residual stream, the norms where the block puts them."""
        branch, lead = self.y - 9, 26.0
        if block.placement != "post":
            self.norm(block.norm, lead)
            lead = 16.0
        body(lead)
        if block.placement == "sandwich":
            self.norm(block.norm)
        self.rise(14)
        sum_at = self.y - 9
        lane = self.centre + BOX / 2 + 17
        self.canvas.circle(self.centre, branch, 2.5, fill=LINE)
        self.canvas.line((self.centre, branch), (lane, branch), (lane, sum_at), (self.centre + 10, sum_at), arrow=True)
        self.canvas.circle(self.centre, sum_at, 9, fill="#ffffff", stroke=INK)
        for dx, dy in ((4.5, 0), (0, 4.5)):
            self.canvas.line((self.centre - dx, sum_at - dy), (self.centre + dx, sum_at + dy), stroke=INK)
        self.y -= 18
        if block.placement == "post":
            self.norm(block.norm)


def diagram(models: list[tuple[str, config.Model]]) -> str:
    """An SVG of the architectures of named models: stacks, blocks with their norms and residuals, masks, heads, shared weights."""
    if not models:
        raise ValueError("expected at least one model to draw, got none")
    drawings = [_draw(model) for _, model in models]
    page = Canvas()
    top = min(drawing.top for drawing in drawings) - 76
    bottom = max(drawing.bottom for drawing in drawings) + 20
    x, texts = 0.0, []
    for (name, model), drawing in zip(models, drawings):
        count = parameters(model)
        figures = f"{model.form}, {describe.short(count.total)} parameters"
        if count.active != count.total:
            figures += f", {describe.short(count.active)} active"
        width = max(drawing.right - drawing.left, text_width(figures, 13)) + 48
        page.rect(x, top, width, bottom - top, fill="#ffffff", stroke="#cbd5e1", radius=12)
        page.text(x + 24, top + 34, fit(name, 19, width - 48, bold=True), size=19, bold=True)
        page.text(x + 24, top + 55, figures, size=13, fill=MUTED)
        page.place(drawing, x + (width - drawing.right + drawing.left) / 2 - drawing.left, 0, f"Architecture of {name}")
        x += width + 20
        texts.append(f"{name} ({model.form}, {count.total:,} parameters)")
    _legend(page, bottom + 26)
    text = "; ".join(texts)
    about = "Read from bottom to top. Small grids show what a query (row) may see of the keys (columns); circles with + are residual sums."
    return page.svg(f"Architecture of {' and '.join(name for name, _ in models)}", f"{text}. {about}", margin=20, background="#f8fafc")


def _legend(page: Canvas, y: float) -> None:
    x, drawn = 4.0, "".join(page.parts)
    page.text(x, y, "A query sees", size=12, fill=MUTED)
    x += text_width("A query sees", 12) + 10
    if x + 380 > page.right:
        x, y = 4.0, y + 20
    for name, colour in LEGEND:
        if f'fill="{colour}"' not in drawn:
            continue
        page.rect(x, y - 10, 11, 11, fill=colour, stroke="#94a3b8")
        page.text(x + 16, y, name, size=12, fill=INK)
        x += 16 + text_width(name, 12) + 16


def _draw(model: config.Model) -> Canvas:
    canvas = Canvas()
    if isinstance(model, config.DualEncoder):
        _dual_encoder(canvas, model)
        return canvas
    x, encoder = 0.0, None
    if model.encoder is not None:
        encoder = _stack(canvas, x, "Encoder", model.encoder, "source token ids" if model.decoder else "token ids")
        x = encoder.right + GUTTER
    last = encoder
    if model.decoder is not None:
        last = _stack(canvas, x, "Decoder", model.decoder, "target token ids" if model.encoder else "token ids")
        if encoder is not None:
            _memory(canvas, encoder, last)
            if model.share_tokens and encoder.embedding and last.embedding:
                left, right, y = encoder.embedding.x + BOX, last.embedding.x, -16.0
                canvas.line((left, y), (right, y), stroke=COLOURS["embedding"][1], dashed=True)
                canvas.text((left + right) / 2, y - 6, "shared", size=11, fill=COLOURS["embedding"][1], anchor="middle")
    assert last is not None
    _heads(canvas, model, last)
    return canvas


def _memory(canvas: Canvas, encoder: _Column, decoder: _Column) -> None:
    """The encoder's output to every cross-attention."""
    colour, gutter = COLOURS["cross"][1], decoder.x - GUTTER / 2
    up = encoder.y - 22
    ends = {min([y for y in decoder.crosses if y <= up], default=up), max([y for y in decoder.crosses if y > up], default=up)}
    for y in decoder.crosses:
        start = [(encoder.centre, encoder.y), (encoder.centre, up), (gutter, up)] if y in ends else [(gutter, y + (12 if y < up else -12))]
        canvas.line(*start, (gutter, y), (decoder.x + PAD, y), stroke=colour, arrow=True)
    canvas.text(gutter - 6, (min(up, *decoder.crosses) + max(up, *decoder.crosses)) / 2, "keys and values", size=11, fill=colour,
                anchor="middle", turn=True)  # fmt: skip


def _stack(canvas: Canvas, x: float, name: str, stack: config.Stack, feed: str) -> _Column:
    pen = _Column(canvas, x)
    canvas.line((pen.centre, 28), (pen.centre, 0), arrow=True)
    spec = stack.input
    canvas.text(pen.centre, 43, "pixels" if isinstance(spec, config.Patches) else feed, size=12, fill=MUTED, anchor="middle")
    canvas.text(pen.centre, 70, name, size=15, bold=True, anchor="middle")
    layers = f"{stack.depth} layer{'s' if stack.depth > 1 else ''}, width {stack.width:,}"
    canvas.text(pen.centre, 88, layers, size=12, fill=MUTED, anchor="middle")
    if isinstance(spec, config.Patches):
        lines = [
            f"{spec.length - 1:,} patches of {spec.patch} × {spec.patch} pixels",
            f"from {spec.image} × {spec.image}, {spec.channels} channels",
            f"+ class token, {spec.length:,} positions",
        ]
        pen.embedding = pen.box("embedding", "Patch embedding", lines, gap=0)
    else:
        lines = [f"vocabulary {spec.vocab_size:,}, width {stack.width:,}"]
        lines += [f"vectors × {spec.scale:.4g}"] if spec.scale != 1 else []
        lines += [f"+ {describe.position(spec.position)}"] if spec.position else []
        lines += [f"+ {spec.segments} segment{'s' if spec.segments > 1 else ''}"] if spec.segments else []
        pen.embedding = pen.box("embedding", "Token embedding", lines, gap=0)
    pen.norm(spec.norm)
    _blocks(pen, stack)
    pen.norm(stack.norm)
    return pen


def _blocks(pen: _Column, stack: config.Stack) -> None:
    kinds = list(dict.fromkeys(stack.block(index) for index in range(stack.depth)))
    foot = 0.0
    for index, block in enumerate(kinds):
        pen.rise(18)
        behind, low = len(pen.canvas.parts), pen.y
        foot = foot or low
        pen.y -= 4
        pen.canvas.line((pen.centre, low), (pen.centre, pen.y))
        _block(pen, stack, block)
        times = sum(stack.block(layer) == block for layer in range(stack.depth))
        pen.canvas.line((pen.centre, pen.y), (pen.centre, pen.y - 30))
        pen.y -= 30
        colour = KINDS[index % len(KINDS)] if len(kinds) > 1 else INK
        pen.canvas.rect(pen.x, pen.y, FRAME, low - pen.y, fill="#f8fafc", stroke="#94a3b8", radius=10, at=behind)
        label = f"{_letter(index)}  × {times}" if len(kinds) > 1 else f"× {times}"
        pen.canvas.text(pen.x + PAD, pen.y + 21, label, size=15, bold=True, fill=colour)
    pen.right = pen.x + FRAME
    if len(kinds) > 1:
        _strip(pen, [kinds.index(stack.block(layer)) for layer in range(stack.depth)], foot)


def _letter(index: int) -> str:
    return chr(ord("A") + index) if index < 26 else f"A{index}"


def _strip(pen: _Column, layers: list[int], foot: float) -> None:
    """A ladder of all layers, bottom to top, that shows which kind each is of."""
    step, x = min(18.0, (foot - pen.y) / len(layers)), pen.right + 10
    for layer, kind in enumerate(layers):
        y = foot - (layer + 1) * step
        pen.canvas.rect(x, y, 16, step - 1.5, fill=KINDS[kind % len(KINDS)], radius=2)
        if step > 12:
            pen.canvas.text(x + 8, y + step / 2 + 3.2, _letter(kind), size=10, bold=True, fill="#ffffff", anchor="middle")
    pen.canvas.text(x + 8, foot + 12, "0", size=10, fill=MUTED, anchor="middle")
    pen.canvas.text(x + 8, foot - len(layers) * step - 5, str(len(layers) - 1), size=10, fill=MUTED, anchor="middle")
    pen.right = x + 18


def _block(pen: _Column, stack: config.Stack, block: config.Block) -> None:
    def attend(gap: float) -> None:
        attention = block.attention
        shown = config.Attention(heads=1, mask=attention.mask, window=attention.window and min(3, attention.window))
        lines = describe.attention(attention, stack)
        pen.box("attention", "Self-attention", lines, gap, mask_grid(shown, SIDE, prefix=4))

    def look_across(gap: float) -> None:
        assert block.cross is not None
        lines = describe.attention(block.cross, stack, cross=True)
        box = pen.box("cross", "Cross-attention", lines, gap, [[1] * (SIDE - 2)] * SIDE)
        pen.crosses.append(box.middle)

    def feed_forward(gap: float) -> None:
        spec = block.feed_forward
        if isinstance(spec, config.Experts):
            _experts(pen, spec, gap)
        else:
            pen.box("feed_forward", "Gated feed-forward" if spec.gated else "Feed-forward", [describe.feed_forward(spec)], gap)

    pen.sublayer(block, attend)
    if block.cross:
        pen.sublayer(block, look_across)
    pen.sublayer(block, feed_forward)


def _experts(pen: _Column, spec: config.Experts, gap: float) -> None:
    """A router, and the experts that it sends a token to drawn dark."""
    box = pen.frame_of("feed_forward", 146, gap)
    canvas, outline = pen.canvas, COLOURS["feed_forward"][1]
    canvas.text(box.x + 12, box.top + 20, "Mixture of experts", size=13, bold=True)
    canvas.text(box.x + 12, box.top + 37, f"each token to {spec.top_k} of {spec.count}", size=11.5, fill=MUTED)
    canvas.text(box.x + 12, box.top + 52, fit(describe.feed_forward(spec.expert), 11.5, BOX - 24), size=11.5, fill=MUTED)
    names = [str(n + 1) for n in range(spec.count)] if spec.count <= 6 else ["1", "2", "3", "4", "…", str(spec.count)]
    room = BOX - 24 - (62 if spec.shared else 0)
    tile, y = room / len(names), box.top + 64
    left, router_y = box.x + 12, box.top + 116
    chosen = {round(i * (len(names) - 1) / max(spec.top_k, 2)) for i in range(1, spec.top_k + 1)} if spec.count > 1 else {0}
    chosen = {i for i in chosen if names[i] != "…"} if spec.top_k < spec.count else set(range(len(names)))
    for index, name in enumerate(names):
        x = left + index * tile
        if name == "…":
            canvas.text(x + tile / 2, y + 15, name, size=13, fill=MUTED, anchor="middle")
            continue
        if index in chosen:
            canvas.line((left + room / 2, router_y), (x + tile / 2, y + 25), stroke=outline)
        else:
            canvas.line((left + room / 2, router_y), (x + tile / 2, y + 25), stroke="#e3c58f", width=1)
        dark = index in chosen
        canvas.rect(x + 2, y, tile - 4, 24, fill=outline if dark else "#fffbeb", stroke=outline, radius=4)
        canvas.text(x + tile / 2, y + 16, name, size=11.5, bold=dark, fill="#ffffff" if dark else INK, anchor="middle")
    if spec.shared:
        canvas.rect(box.x + BOX - 68, y, 56, 24, fill=outline, stroke=outline, radius=4)
        canvas.text(box.x + BOX - 40, y + 16, "shared", size=11.5, bold=True, fill="#ffffff", anchor="middle")
    canvas.rect(left + room / 2 - 38, router_y, 76, 22, fill="#ffffff", stroke=outline, radius=4)
    canvas.text(left + room / 2, router_y + 15, "router", size=11.5, anchor="middle")


def _head_box(pen: _Column, head: config.Head, stack: config.Stack) -> _Box:
    width = stack.width
    title, lines, result = "", [describe.head(head)], ""
    match head:
        case config.LanguageModel():
            if head.transform:
                pen.box("head", "Linear", [f"{describe.activation(head.transform)}, {describe.norm(head.norm)}"])
            assert isinstance(stack.input, config.Tokens)
            title, lines = "Language-model head", [f"{width:,} → {stack.input.vocab_size:,}" + ("" if head.tied else ", own weights")]
            lines += [f"states × {head.scale:.3g}"] if head.scale != 1 else []
            result = "scores over the vocabulary"
        case config.Classify() | config.ClassifyTokens():
            title = "Classifier" if isinstance(head, config.Classify) else "Token classifier"
            result = f"{head.labels:,} scores" + ("" if isinstance(head, config.Classify) else " a token")
        case config.AnswerSpan():
            title, lines, result = "Answer span", [f"{width:,} → 2"], "start and end scores"
        case config.Embed():
            title, result = "Pooler", f"one vector of {head.width or width:,}"
    if isinstance(head, config.Classify | config.Embed) and head.transform:
        lines.append(f"linear {width:,} → {width:,}, {describe.activation(head.transform)}")
    box = pen.box("head", title, lines)
    pen.rise(18)
    pen.canvas.text(pen.centre, pen.y - 7, result, size=12, fill=MUTED, anchor="middle")
    return box


def _heads(canvas: Canvas, model: config.Transformer, pen: _Column) -> None:
    """What stands on the last stack, and the line between weights that are one."""
    fork = pen.y - 12
    if model.sentence_head is not None:
        canvas.line((pen.centre, pen.y), (pen.centre, pen.y - 20))
        canvas.circle(pen.centre, fork, 2.5, fill=LINE)
        pen.y -= 20
    if model.head is None:
        pen.rise(18)
        canvas.text(pen.centre, pen.y - 7, "hidden states", size=12, fill=MUTED, anchor="middle")
    else:
        box = _head_box(pen, model.head, model.last)
        if isinstance(model.head, config.LanguageModel) and model.head.tied and pen.embedding:
            colour, lane = COLOURS["embedding"][1], pen.right + 18
            start, end = pen.embedding.middle, box.middle
            canvas.line((pen.embedding.x + BOX, start), (lane, start), (lane, end), (box.x + BOX, end), stroke=colour, dashed=True)
            canvas.text(lane + 13, (start + end) / 2, "tied weights", size=11, fill=colour, anchor="middle", turn=True)
            canvas.cover(lane + 16, start)
            pen.right = lane + 16
    if model.sentence_head is not None:
        side = _Column(canvas, pen.right + 8, fork - 9)
        canvas.line((pen.centre, fork), (side.centre, fork), (side.centre, side.y))
        _head_box(side, model.sentence_head, model.last)


def _dual_encoder(canvas: Canvas, model: config.DualEncoder) -> None:
    text = _stack(canvas, 0.0, "Text encoder", model.text, "token ids")
    image = _stack(canvas, text.right + GUTTER / 2, "Image encoder", model.image, "pixels")
    for pen, stack, where in ((text, model.text, "end token"), (image, model.image, "class token")):
        pen.box("head", "Projection", [f"{where}, {stack.width:,} → {model.width:,}", "unit length"])
    top = min(text.y, image.y) - 24
    x, width = text.centre - BOX / 2, image.centre - text.centre + BOX
    for pen in (text, image):
        pen.rise(pen.y - top)
    fill, stroke = COLOURS["head"]
    canvas.rect(x, top - 52, width, 52, fill=fill, stroke=stroke, radius=7)
    centre = x + width / 2
    canvas.text(centre, top - 30, "Similarity", size=13, bold=True, anchor="middle")
    how = "dot product of every text and image, times a learned temperature"
    canvas.text(centre, top - 13, how, size=11.5, fill=MUTED, anchor="middle")
    canvas.line((centre, top - 52), (centre, top - 70), arrow=True)
    canvas.text(centre, top - 77, "scores, texts by images", size=12, fill=MUTED, anchor="middle")
