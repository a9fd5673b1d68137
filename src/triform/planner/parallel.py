"""Training on many devices: which layouts there are, what each holds, sends and waits for.

Symbols: d replicas (data parallelism), t devices that share each matrix (tensor parallelism), p stages of layers (pipeline
parallelism), m micro-batches of a step and replica.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from triform import config

from . import flops, memory, time
from .explain import Line
from .hardware import Fleet
from .parameters import parameters
from .setting import Setting

Zero = Literal[0, 1, 2, 3]
NODE = 8  # cards of one machine; tensor parallelism does not leave it
NETWORK = 50e9  # B/s of a card to another machine: 400 Gbit/s InfiniBand a card, as in NVIDIA's DGX H100
RESERVE = 0.08
_MEGATRON = "Narayanan et al. 2021, https://arxiv.org/abs/2104.04473"
_ZERO = "Rajbhandari et al. 2020, https://arxiv.org/abs/1910.02054"
_WIDTHS = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 2}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How devices share a training. zero: what replicas split: 0 nothing, 1 the optimizer's states, 2 gradients too, 3 weights too."""

    data: int = 1
    tensor: int = 1
    pipeline: int = 1
    zero: Zero = 0

    @property
    def devices(self) -> int:
        """d x t x p."""
        return self.data * self.tensor * self.pipeline

    def __str__(self) -> str:
        return f"dp={self.data},tp={self.tensor},pp={self.pipeline},zero={self.zero}"


@dataclass(frozen=True, kw_only=True)
class Shared:
    """A training under a layout. memory: bytes by part on the fullest device.

    communication: bytes that a device sends in a step, by kind. bubble: share of a step that a stage waits.
    step_seconds: with what is sent and waited for. setting: of one device's micro-batch.
    """

    layout: Layout
    setting: Setting
    memory: dict[str, int]
    communication: dict[str, float]
    bubble: float
    step_seconds: float
    lines: tuple[Line, ...]

    @property
    def total(self) -> int:
        """Bytes on the fullest device."""
        return sum(self.memory.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "layout": str(self.layout), **vars(self.layout), "micro_batch": self.setting.batch, "micro_batches": self.setting.accumulate,
            "memory": {"total": self.total, "parts": self.memory}, "communication": self.communication, "bubble": self.bubble,
            "step_seconds": self.step_seconds,
        }  # fmt: skip


def read_layout(text: str, devices: int) -> Layout:
    """A layout from "dp=4,tp=2,pp=1,zero=1". Raises ValueError for what is none, and for one of another number of devices."""
    names = {"dp": "data", "tp": "tensor", "pp": "pipeline", "zero": "zero"}
    found: dict[str, int] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        match = re.fullmatch(r"(dp|tp|pp|zero)\s*=\s*(\d+)", item)
        if match is None or names[match[1]] in found or (match[1] != "zero" and int(match[2]) < 1):
            raise ValueError(f"parallel: expected dp=, tp= and pp= of 1 or more and zero= of 0 to 3, each once, got {item!r}")
        found[names[match[1]]] = int(match[2])
    if found.get("zero", 0) > 3:
        raise ValueError(f"parallel: expected zero=0 to zero=3, got zero={found['zero']}")
    if "data" not in found:
        found["data"] = max(1, devices // (found.get("tensor", 1) * found.get("pipeline", 1)))
    layout = Layout(**cast(Any, found))
    if layout.devices != devices:
        raise ValueError(
            f"parallel: dp x tp x pp is {layout.devices:,}, and the hardware has {devices:,} devices; "
            f"name {layout.devices}x the card, or a layout of {devices}"
        )
    return layout


def check(model: config.Model, layout: Layout) -> None:
    """Raise ValueError for a layout that the model's heads, widths or layers cannot be shared out to."""
    if layout.tensor > NODE:
        raise ValueError(f"parallel: tp={layout.tensor} leaves a machine of {NODE} devices; take at most {NODE}")
    if isinstance(model, config.DualEncoder):
        if layout.tensor * layout.pipeline > 1:
            raise ValueError("parallel: two towers are shared out by dp alone; set tp=1,pp=1")
        return
    stacks = [stack for stack in (model.encoder, model.decoder) if stack is not None]
    if layout.pipeline > 1 and len(stacks) > 1:
        raise ValueError("parallel: the stages of an encoder-decoder are not planned; set pp=1")
    for stack in stacks:
        if stack.depth < layout.pipeline:
            raise ValueError(f"parallel: pp={layout.pipeline} is more stages than the {stack.depth} layers; take at most {stack.depth}")
        for block in stack.pattern:
            widths = {f"{a.heads} heads": a.heads for a in (block.attention, block.cross) if a is not None}
            body = block.feed_forward.expert if isinstance(block.feed_forward, config.Experts) else block.feed_forward
            for name, width in (widths | {f"hidden width {body.hidden:,}": body.hidden}).items():
                if width % layout.tensor:
                    raise ValueError(f"parallel: tp={layout.tensor} does not divide {name}; take one of {_divisors(width)}")


def _divisors(number: int) -> str:
    return ", ".join(str(d) for d in range(1, NODE + 1) if number % d == 0)


def shard(model: config.Transformer, tensor: int) -> config.Transformer:
    """The part of a model that one of `tensor` devices holds, itself a configuration: some heads, a slice of the hidden width
    and of the vocabulary."""
    if tensor == 1:
        return model

    def attention(spec: config.Attention | None, stack: config.Stack) -> config.Attention | None:
        if spec is None:
            return None
        keys = max(1, (spec.kv_heads or spec.heads) // tensor)  # fewer heads than devices are copied
        return replace(spec, heads=spec.heads // tensor, kv_heads=keys, head_width=stack.head_width(spec))

    def feed_forward(spec: config.FeedForward | config.Experts) -> config.FeedForward | config.Experts:
        if isinstance(spec, config.Experts):
            shared = None if spec.shared is None else cast(config.FeedForward, feed_forward(spec.shared))
            return replace(spec, expert=cast(config.FeedForward, feed_forward(spec.expert)), shared=shared)
        return replace(spec, hidden=spec.hidden // tensor)

    def stack(spec: config.Stack | None) -> config.Stack | None:
        if spec is None:
            return None
        pattern = tuple(
            replace(block, attention=cast(config.Attention, attention(block.attention, spec)), cross=attention(block.cross, spec),
                    feed_forward=feed_forward(block.feed_forward))
            for block in spec.pattern
        )  # fmt: skip
        source = spec.input
        if isinstance(source, config.Tokens):
            source = replace(source, vocab_size=-(-source.vocab_size // tensor))
        return replace(spec, pattern=pattern, input=source)

    return replace(model, encoder=stack(model.encoder), decoder=stack(model.decoder))


def _stages(model: config.Transformer, pipeline: int) -> Iterator[tuple[config.Transformer, int]]:
    """The first and the last stage as models of their own, each with how many micro-batches it holds at once."""
    if pipeline == 1:
        yield model, 1
        return
    layers = replace(model.last, depth=-(-model.last.depth // pipeline))
    last = replace(model, encoder=layers) if model.decoder is None else replace(model, decoder=layers)
    yield replace(last, head=None, sentence_head=None), pipeline
    if isinstance(model.head, config.LanguageModel):
        last = replace(last, head=replace(model.head, tied=True))  # it has one table, of the output
    yield last, 1


def share(model: config.Model, setting: Setting, layout: Layout, fleet: Fleet) -> Shared:
    """What a layout holds, sends and waits for; `setting` is of one device's micro-batch, `accumulate` of one replica's step.

    Raises ValueError for a layout that does not divide the model.
    """
    check(model, layout)
    held = _memory(model, setting, layout)
    sent, lines = _communication(model, setting, layout, parameters(model).total)
    bubble = (layout.pipeline - 1) / (setting.accumulate + layout.pipeline - 1)
    each = flops.training(model, setting.sequence, setting.target, setting.scored, setting.recompute)
    width = model.text.width if isinstance(model, config.DualEncoder) else model.last.width
    utilisation, _ = time.default_utilisation(fleet, setting.precision, width)
    work = each * setting.batch * setting.accumulate * layout.data / (layout.devices * fleet.card.at(setting.precision) * utilisation)
    inside = fleet.card.link or NETWORK
    outside = inside if layout.devices <= NODE else min(inside, NETWORK)
    # Gradients go while the backward pass runs, which is two thirds of the work; what tensor parallelism sends is waited for.
    waited = max(0.0, sent["data"] / outside - 2 / 3 * work) + sent["tensor"] / inside + sent["pipeline"] / outside
    lines.append(Line(name="bubble", formula="(p - 1) / (m + p - 1)", numbers={"p": layout.pipeline, "m": setting.accumulate}, value=bubble,
                      source=f"{_MEGATRON}, section 2.2"))  # fmt: skip
    seconds = work / (1 - bubble) + waited
    lines.append(Line(name="a step", formula="work / (1 - bubble) + what is waited for", value=seconds, unit="s", source="planner.parallel",
                      numbers={"work": work, "bubble": bubble, "waited": waited, "link": inside, "network": outside}))  # fmt: skip
    return Shared(layout=layout, setting=setting, memory=held, communication=sent, bubble=bubble, step_seconds=seconds, lines=tuple(lines))


def _memory(model: config.Model, setting: Setting, layout: Layout) -> dict[str, int]:
    """Bytes by part on the fullest device."""
    if isinstance(model, config.DualEncoder):
        return _split(model, setting, layout, 1)
    stages = _stages(shard(model, layout.tensor), layout.pipeline)
    return max((_split(part, setting, layout, flight) for part, flight in stages), key=lambda parts: sum(parts.values()))


def _split(model: config.Model, setting: Setting, layout: Layout, flight: int) -> dict[str, int]:
    """What one stage's shard holds, with what replicas split; `flight` micro-batches are on their way at once."""
    alone = memory.training(model, replace(setting, accumulate=min(2, setting.accumulate)))
    # What is split moves the peak, so each part counts with the most that it has at any moment.
    parts = dict(alone.parts if layout.zero == 0 and flight == 1 else alone.largest)
    weights = parts["weights"]
    parts["activations"] *= min(flight, setting.accumulate)
    layer = _largest_layer(model)
    if layout.zero >= 1:
        parts["optimizer"] = -(-parts["optimizer"] // layout.data)
    if layout.zero >= 2:
        parts["gradients"] = -(-weights // layout.data) + 2 * 4 * layer  # a layer's whole, and the buffer they are scattered from
    if layout.zero == 3:
        parts["weights"] = -(-weights // layout.data)
        parts["gathered"] = 2 * layer * _WIDTHS[setting.precision]  # the layer at work, and the next
        parts["casts"] = 0
    if layout.data > 1 and layout.zero < 2:
        parts["buckets"] = min(25 * 2**20 * 2, weights)  # of torch's DistributedDataParallel
    return parts


def _largest_layer(model: config.Model) -> int:
    """Parameters of the largest layer, or of a table, which is gathered whole."""
    sizes: dict[str, int] = {}
    for name, shape in parameters(model).shapes.items():
        found = re.match(r"(.*\.layers\.\d+)\.", name)
        key = found[1] if found else name
        sizes[key] = sizes.get(key, 0) + math.prod(shape)
    return max(sizes.values())


def _communication(model: config.Model, setting: Setting, layout: Layout, count: int) -> tuple[dict[str, float], list[Line]]:
    d, t, p, m = layout.data, layout.tensor, layout.pipeline, setting.accumulate
    width, wide = _WIDTHS[setting.precision], 4
    own = count / (t * p)
    if layout.zero == 3:
        data = (d - 1) / d * own * (2 * m * width + wide)
        formula = "(d - 1) / d x P / (t p) x (2 m w + 4): weights gathered twice a micro-batch, gradients scattered"
    else:
        data = 2 * (d - 1) / d * own * wide
        formula = "2 (d - 1) / d x 4 P / (t p): a ring's sum of fp32 gradients"
    numbers: dict[str, float | int | str] = {"d": d, "t": t, "p": p, "m": m, "w": width, "P": count}
    sums, row = 0.0, 0.0
    stacks = [] if isinstance(model, config.DualEncoder) else [s for s in (model.encoder, model.decoder) if s is not None]
    for stack in stacks:
        length = setting.target_length if model.form == "encoder-decoder" and stack.pattern[0].cross is not None else setting.sequence
        length = stack.input.length if isinstance(stack.input, config.Patches) else length
        row = setting.batch * length * stack.width * width
        passes = 3 if setting.recompute == "full" else 2
        sums += stack.depth / p * (3 if stack.pattern[0].cross is not None else 2) * passes * row
    tensor = m * 2 * (t - 1) / t * sums
    pipeline = m * 2 * row if p > 1 else 0.0
    lines = [
        Line(name="sent by data parallelism", formula=formula, numbers=numbers, value=data, unit="B",
             source=f"{_ZERO}, section 7"),
        Line(name="sent by tensor parallelism", formula="m x 2 (t - 1) / t x (2 sums forward, 2 back, a layer) x b s h w", numbers=numbers,
             value=tensor, unit="B", source=f"{_MEGATRON}, section 3.2"),
        Line(name="sent by pipeline parallelism", formula="m x 2 b s h w", numbers=numbers, value=pipeline, unit="B",
             source=f"{_MEGATRON}, section 3.2"),
    ]  # fmt: skip
    return {"data": data, "tensor": tensor, "pipeline": pipeline}, lines


def layouts(model: config.Model, setting: Setting, fleet: Fleet, *, count: int = 5) -> list[Shared]:
    """The fastest layouts that fit, best first, each with another d, t and p.

    A step reads the `batch` x `accumulate` sequences of `setting` for each device, whatever the layout. Raises ValueError where none fits.
    """
    room = fleet.card.memory * (1 - RESERVE)
    found: dict[tuple[int, int, int], Shared] = {}
    for layout in _all(fleet.count):
        try:
            check(model, layout)
        except ValueError:
            continue
        shared, key = _largest(model, setting, layout, fleet, room), (layout.data, layout.tensor, layout.pipeline)
        if shared is not None and (key not in found or shared.step_seconds < found[key].step_seconds):
            found[key] = shared
    if not found:
        raise ValueError(
            f"parallel: no layout of {fleet.name} holds this training; more devices, --recompute full or --optimizer adamw8bit may"
        )
    return sorted(found.values(), key=lambda one: (one.step_seconds, one.total))[:count]


def _largest(model: config.Model, setting: Setting, layout: Layout, fleet: Fleet, room: float) -> Shared | None:
    """With the largest micro-batch that fits, at most the setting's."""
    replica = setting.batch * setting.accumulate * fleet.count // layout.data
    batch = setting.batch
    while batch >= 1:
        if replica % batch == 0:
            shared = share(model, replace(setting, batch=batch, accumulate=replica // batch), layout, fleet)
            if shared.total <= room:
                return shared
        batch //= 2
    return None


def _all(devices: int) -> Iterator[Layout]:
    for tensor in (t for t in (1, 2, 4, 8) if devices % t == 0):
        for pipeline in (p for p in range(1, min(64, devices // tensor) + 1) if devices // tensor % p == 0):
            data = devices // tensor // pipeline
            # Splitting gradients or weights among stages means gathering them for each micro-batch, so it is not combined.
            for zero in (0,) if data == 1 else (0, 1) if pipeline > 1 else (0, 1, 2, 3):
                yield Layout(data=data, tensor=tensor, pipeline=pipeline, zero=cast(Zero, zero))
