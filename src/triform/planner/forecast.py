"""What a model is and what training it takes, before the first step, in one object that explains itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from triform import config, hub

from . import calibration, cost, describe, flops, memory, quantities, scaling, shapes, time
from .explain import Line
from .hardware import Fleet
from .hardware import hardware as hardware_named
from .parallel import Shared, layouts, read_layout, share
from .parameters import Part
from .parameters import parameters as count_parameters
from .setting import Setting
from .time import Speed

_LONGEST = 2**20  # tokens of a context and sequences of a batch that are looked for
RESERVE = 0.08  # of a card's memory: the driver's own, and what fragmentation takes
_KAPLAN = "Kaplan et al. 2020, https://arxiv.org/abs/2001.08361"


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """total: shared weights once. active: what one token passes. embedding: the tables. parts: the total, by part."""

    total: int
    active: int
    embedding: int
    without_embedding: int
    parts: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Flops:
    """FLOPs of the whole training.

    rule_of_thumb: 6 P D. exact: of all matrix products, forward, backward and made again. parts: how
    the one becomes the other; they add up to `exact`. forward, step: of one token forward, and forward and back.
    """

    rule_of_thumb: float
    exact: float
    forward: float
    step: float
    parts: dict[str, float]
    lines: tuple[Line, ...]


@dataclass(frozen=True, kw_only=True)
class Memories:
    """Bytes on one device in training and in inference (one sequence of the same length), and what the device has.

    longest_context: tokens of one sequence in inference; None for images. largest_batch: sequences of the plan's length.
    """

    training: memory.Memory
    inference: memory.Memory
    capacity: int
    longest_context: int | None
    largest_batch: int

    @property
    def fits(self) -> bool:
        """Whether training does, with a reserve of 8 %."""
        return self.training.total <= self.capacity * (1 - RESERVE)


@dataclass(frozen=True, kw_only=True)
class Data:
    """How much text the plan reads for its size; None where the laws of language models do not apply."""

    loss: scaling.Band
    distance: scaling.Distance
    repetition: scaling.Repetition | None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The answers of `triform plan`.

    tokens: positions that training reads in all, both sides of a pair counted. generation: how fast one sequence of the plan's
    length goes on; None for a model that generates nothing. layouts: where a layout was asked for, the one that memory and time
    are of, and others that fit.
    """

    name: str
    model: config.Model
    setting: Setting
    hardware: Fleet
    tokens: int
    steps: int
    parameters: Parameters
    flops: Flops
    memory: Memories
    time: time.Time
    generation: Speed | None
    data: Data | None
    cost: cost.Cost
    layouts: tuple[Shared, ...]
    notes: tuple[str, ...]

    def lines(self) -> Iterator[Line]:
        """Every figure with its formula, the numbers put in, and its source."""
        yield from self.flops.lines
        for found in (self.memory.training, self.memory.inference):
            yield from (*found.lines, *found.published)
        if self.layouts:
            yield from self.layouts[0].lines
        yield from self.time.lines
        yield from self.generation.lines if self.generation is not None else ()
        if self.data is not None:
            yield from self.data.loss.lines
            yield from self.data.distance.optimum.lines
            if self.data.repetition is not None:
                yield self.data.repetition.line
        yield from self.cost.lines

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        data = self.data
        return {
            "name": self.name,
            "form": self.model.form,
            "setting": vars(self.setting) | {"adapter": config.to_dict(self.setting.adapter, defaults=True, hint=config.Adapter)},
            "hardware": {"name": self.hardware.name, "count": self.hardware.count, "memory": self.hardware.card.memory},
            "tokens": self.tokens,
            "steps": self.steps,
            "parameters": vars(self.parameters),
            "flops": {k: v for k, v in vars(self.flops).items() if k != "lines"},
            "memory": {
                "training": _memory(self.memory.training),
                "inference": _memory(self.memory.inference),
                "capacity": self.memory.capacity,
                "fits": self.memory.fits,
                "longest_context": self.memory.longest_context,
                "largest_batch": self.memory.largest_batch,
            },
            "time": {k: v for k, v in vars(self.time).items() if k != "lines"},
            "generation": None if self.generation is None else {k: v for k, v in vars(self.generation).items() if k != "lines"},
            "data": None if data is None else _data(data),
            "cost": {k: v for k, v in vars(self.cost).items() if k not in ("lines", "region")} | {"region": self.cost.region.name},
            "layouts": [layout.to_dict() for layout in self.layouts],
            "notes": list(self.notes),
        }


def _memory(found: memory.Memory) -> dict[str, Any]:
    more = {"largest": found.largest, "moment": found.moment}
    return {"total": found.total, "parts": found.parts, **more, "published": {line.name: line.value for line in found.published}}


def _data(data: Data) -> dict[str, Any]:
    best = data.distance.optimum
    return {
        "loss": [data.loss.low, data.loss.high],
        "tokens_per_parameter": data.distance.tokens_a_parameter,
        "advice": data.distance.advice,
        "optimal": {"parameters": best.parameters, "tokens": best.tokens},
        "epochs": data.repetition.epochs if data.repetition else None,
        "effective_tokens": data.repetition.tokens if data.repetition else None,
    }


def plan(
    model: str | Path | config.Model, *, tokens: int | str | None = None, hardware: str | Fleet = "A100-80G",
    corpus: int | str | None = None, price: float | None = None, region: str | float = "world", utilisation: float | None = None,
    parallel: str | None = None, **setting: Any,
) -> Plan:  # fmt: skip
    """What a model is and what training it takes; needs no torch, and answers within a second.

    model: a preset's name, a configuration or its file, a checkpoint's folder, .gguf file or name, or a size such as "120M".
    tokens: that training reads, such as "1.2B"; None: 20 for each parameter (Hoffmann et al. 2022).
    hardware: such as "8xA100-80G", or "this" for the machine that asks, which is measured once.
    parallel: how several cards share the work, such as "dp=4,tp=2,zero=1" (see `parallel.Layout`), or "auto" for the fastest
        layout that fits; None: each holds a copy and they share the batch out.
    corpus: unique tokens that there are, where text is read more than once. price: USD an hour of one card.
    region: a grid's name, or grams of CO2 a kilowatt-hour. utilisation: a measured share of the peak, in place of the default.
    setting: the fields of `Setting`, such as batch=8, sequence=1024, precision="bf16".

    Raises ValueError for what cannot be, with what would be valid.
    """
    fleet = hardware_of(hardware)
    how = Setting(**({"device": "cpu" if fleet.card.kind == "cpu" else "cuda"} | setting))
    name, spec, size = find(model)
    how = _fitted(spec, how)
    if how.offload and how.device == "cpu":
        raise ValueError(f"offload: {fleet.name} is a processor, whose memory is where offloading moves activations to; leave it out")
    counted = count_parameters(spec)
    active = counted.active if size is None else size
    total = quantities.count(tokens, "tokens") if tokens is not None else round(scaling.TOKENS_A_PARAMETER * active)
    sequences = total / positions(spec, how)
    shared = _layouts(spec, how, fleet, parallel)
    if shared:
        how = shared[0].setting
    replicas = shared[0].layout.data if shared else fleet.count
    steps = max(1, round(sequences / (how.batch * how.accumulate * replicas)))
    work = _flops(spec, how, active, total, sequences)
    spent = _time(work, how, fleet, spec_width(spec), _measured(spec, how, hardware) if utilisation is None else (utilisation, "given"))
    if shared:
        spent = replace(spent, expected_seconds=steps * shared[0].step_seconds)
    return Plan(
        name=name,
        model=spec,
        setting=how,
        hardware=fleet,
        tokens=total,
        steps=steps,
        parameters=_parameters(counted.tree, active if size is not None else counted.total, active, counted.embedding),
        flops=work,
        memory=_memories(spec, how, fleet, shared),
        time=spent,
        generation=time.answers(spec, fleet, prompt=how.sequence, context=how.target_length, dtype=stored_dtype(how)),
        data=_text(spec, active, total, corpus),
        cost=cost.estimate(spent.expected_seconds, fleet, price=price, region=region, utilisation=spent.utilisation),
        layouts=tuple(shared),
        notes=tuple(_notes(spec, fleet, size, tokens, parallel)),
    )


def _layouts(model: config.Model, setting: Setting, fleet: Fleet, wanted: str | None) -> list[Shared]:
    if wanted is None:
        return []
    if wanted == "auto":
        return layouts(model, setting, fleet)
    return [share(model, setting, read_layout(wanted, fleet.count), fleet)]


def _time(work: Flops, setting: Setting, fleet: Fleet, width: int, measured: tuple[float, str] | None) -> time.Time:
    """The rule of thumb at the peak, as papers have it, and the exact count at what is reached."""
    ideal = time.estimate(work.rule_of_thumb, fleet, setting.precision, width=width)
    expected = time.estimate(work.exact, fleet, setting.precision, width=width, measured=measured)
    return replace(expected, ideal_seconds=ideal.ideal_seconds, lines=(ideal.lines[0], *expected.lines[1:]))


def _measured(model: config.Model, setting: Setting, hardware: str | Fleet) -> tuple[float, str] | None:
    """What `--calibrate` found on this machine for the same model and setting."""
    found = calibration.recall(model, setting) if hardware == "this" else None
    return None if found is None else (found.utilisation, found.reason)


def hardware_of(name: str | Fleet) -> Fleet:
    """A fleet, by name or as it is."""
    return name if isinstance(name, Fleet) else hardware_named(name)


def find(model: str | Path | config.Model) -> tuple[str, config.Model, int | None]:
    """A model's name, its configuration, and the size where nothing else was said. Raises ValueError for what is none."""
    if isinstance(model, config.Transformer | config.DualEncoder):
        return model.form, model, None
    text = str(model)
    if quantities.is_count(text) and not Path(text).exists():
        size = quantities.count(text, "size")
        return text, shapes.shaped("decoder-only", size), size
    return text, hub.find_spec(text)[0], None


def spec_width(model: config.Model) -> int:
    """The width of a model's last stack."""
    return model.text.width if isinstance(model, config.DualEncoder) else model.last.width


def _stacks(model: config.Model) -> list[config.Stack]:
    if isinstance(model, config.DualEncoder):
        return [model.text, model.image]
    return [stack for stack in (model.encoder, model.decoder) if stack is not None]


def _fitted(model: config.Model, setting: Setting) -> Setting:
    """The setting with the lengths that the model can have. Raises ValueError for more tokens than positions were learned."""
    stacks = _stacks(model)
    lengths = [setting.sequence, setting.target_length] if model.form == "encoder-decoder" else [setting.sequence] * len(stacks)
    for stack, length in zip(stacks, lengths, strict=True):
        learned = getattr(stack.input, "position", None)
        if isinstance(learned, config.Learned) and length > learned.length:
            raise ValueError(f"sequence: the model has {learned.length:,} learned positions, got {length:,}; lower --sequence")
    if setting.target is not None and model.form != "encoder-decoder":
        raise ValueError(f"target: only an encoder-decoder has a target, and this model is {model.form}; leave it out")
    return setting


def positions(model: config.Model, setting: Setting) -> int:
    """Tokens and patches of one sequence, on both sides of a pair."""
    if model.form == "encoder-decoder":
        return setting.sequence + setting.target_length
    return sum(stack.input.length if isinstance(stack.input, config.Patches) else setting.sequence for stack in _stacks(model))


def _flops(model: config.Model, setting: Setting, active: int, tokens: int, sequences: float) -> Flops:
    shape = (model, setting.sequence, setting.target)
    once, step = flops.forward(*shape, setting.scored), flops.training(*shape, setting.scored, setting.recompute, setting.adapter)
    pairs, again = 3 * flops.pairs(*shape) * sequences, flops.recomputed(*shape, setting.recompute) * sequences
    rule, exact, per_token = 6.0 * active * tokens, step * sequences, sequences / tokens
    parts = {
        "6 P D": rule,
        "attention: tokens with tokens": pairs,
        "made again in the backward pass": again,
        "parameters that a token does not multiply": exact - rule - pairs - again,
    }
    numbers: dict[str, float | int | str] = {"P": active, "D": tokens}
    lines = (
        Line(name="rule of thumb", formula="C = 6 P D", numbers=numbers, value=rule, unit="FLOP", source=_KAPLAN),
        Line(
            name="exact",
            formula="C = sequences x (3 x products of a forward pass + those made again)",
            numbers={"sequences": sequences, "forward pass": once, "made again": again / sequences},
            value=exact,
            unit="FLOP",
            source="counted from the configuration, a multiply-add as two; all pairs of attention (Chowdhery et al. 2022, appendix B)",
        ),
        *(Line(name=f"  {name}", formula="part of the exact count", value=value, unit="FLOP") for name, value in parts.items()),
    )
    return Flops(rule_of_thumb=rule, exact=exact, forward=once * per_token, step=step * per_token, parts=parts, lines=lines)


def _parameters(tree: Part, total: int, active: int, embedding: int) -> Parameters:
    parts: dict[str, int] = {}
    for child in tree.children:
        for part in child.children or (child,):
            name = child.name if part is child else f"{child.name}.{part.name}"
            parts[name] = parts.get(name, 0) + part.count
    return Parameters(
        total=total, active=active, embedding=embedding, without_embedding=total - embedding, parts={k: v for k, v in parts.items() if v}
    )


def _memories(model: config.Model, setting: Setting, fleet: Fleet, shared: list[Shared]) -> Memories:
    capacity, target = fleet.card.memory, setting.target if model.form == "encoder-decoder" else None
    room = round(capacity * (1 - RESERVE))
    text = any(isinstance(stack.input, config.Tokens) for stack in _stacks(model))
    shape: dict[str, Any] = {"target": target, "dtype": stored_dtype(setting), "device": setting.device}
    training = memory.training(model, setting)
    if shared:
        training = replace(training, parts=shared[0].memory, largest=shared[0].memory)
    return Memories(
        training=training,
        inference=memory.inference(model, context=setting.sequence, **shape),
        capacity=capacity,
        longest_context=memory.longest_context(model, room, limit=_LONGEST, **shape) if text else None,
        largest_batch=memory.largest_batch(model, room, context=setting.sequence, limit=_LONGEST, **shape),
    )


def stored_dtype(setting: Setting) -> memory.Dtype:
    """The type of the weights in inference."""
    return "bf16" if setting.precision == "fp8" else setting.precision


def _text(model: config.Model, active: int, tokens: int, corpus: int | str | None) -> Data | None:
    if isinstance(model, config.DualEncoder) or not isinstance(model.last.input, config.Tokens):
        if corpus is not None:
            raise ValueError(f"corpus: the laws of text do not apply to a {model.form} model of images; leave it out")
        return None
    again = None if corpus is None else scaling.repetition(active, quantities.count(corpus, "corpus"), tokens)
    return Data(loss=scaling.loss(active, again.tokens if again else tokens), distance=scaling.distance(active, tokens), repetition=again)


def _notes(model: config.Model, fleet: Fleet, size: int | None, tokens: int | str | None, parallel: str | None) -> Iterator[str]:
    if size is not None:
        last, stood = _stacks(model)[-1], count_parameters(model).total
        yield (
            f"only a size was given: memory and exact FLOPs are of a shape of {describe.short(stood)} parameters that stands for it "
            f"(width {last.width:,}, {last.depth} layers)"
        )
    if tokens is None:
        yield "no --tokens: 20 for each parameter are assumed (Hoffmann et al. 2022)"
    if model.form == "encoder-decoder":
        yield "tokens count both sides; a token passes only its own side's parameters, so 6 P D is about twice the work"
    if fleet.count > 1 and parallel is None:
        yield f"{fleet.count} cards hold a copy each and share the batch out; --parallel plans other layouts"
