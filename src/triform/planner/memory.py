"""What training and inference hold in memory, by part, from the configuration alone.

A step is gone through on a tape of sizes (see `tape`), so that the peak is that of what Triform's own modules, autograd and
optimizers hold at any one moment, and not a sum of maxima. Bytes are those of live tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal

from triform import config

from . import adapters, published, states
from .activations import weights
from .explain import Line
from .parameters import parameters
from .passes import LOGITS, Pass, length_of
from .serving import Inference
from .setting import Device, Setting
from .tape import Ledger, Tape

Dtype = Literal["fp32", "bf16", "fp16", "int8", "int4"]
WIDTHS = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 2}  # of what autocast makes; fp8 is for the moment of a product
BITS = {"fp32": 32, "bf16": 16, "fp16": 16, "int8": 8, "int4": 4}
CONTEXT = 600 * 2**20  # of a CUDA process: its context, the kernels it has loaded and cuBLAS' workspace, roughly
_SCALED = 32  # numbers that share a 16-bit scale in int8 and int4
_GRADIENTS = "4 P at the end of the backward pass, 2 for matrices whose gradients stay in 16 bits"
_COUNTED = "counted by going through the step (planner.tape)"
_STATES = {
    "adamw": "8 P", "adamw8bit": "2 P and 8 for 256 numbers", "adafactor": "4 (rows + columns) of each matrix",
    "muon": "4 P of the layers' matrices, 8 P of the rest", "sgd": "4 P",
}  # fmt: skip
TRAINING = ("weights", "gradients", "optimizer", "average", "casts", "activations", LOGITS, "inputs", "temporary", "overhead")
INFERENCE = ("weights", "scales", "cache", "cross_cache", "workspace", LOGITS, "inputs", "overhead")


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one device.

    parts: at the peak, which is at `moment`; they add up to `total`. largest: the most that each part has at any time.
    layers: the activations that are kept at the peak, by layer. lines: how the parts come about. published: what the
    literature's rules of thumb give.
    """

    parts: dict[str, int]
    largest: dict[str, int]
    layers: dict[str, int]
    moment: str
    lines: tuple[Line, ...]
    published: tuple[Line, ...]

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        return sum(self.parts.values())


def training(model: config.Model, setting: Setting) -> Memory:
    """The peak of a training step after the first, with the optimizer's states there.

    Weights, gradients and states are fp32 in every precision, but for the gradients of the layers' matrices that the CPU leaves in
    16 bits (see train.step); `casts` are the weights in the precision of the products, as
    autocast makes and autograd keeps them. `temporary` is what lives only for the moment, gradients of activations included.
    """
    ledger, count = Ledger(), parameters(model)
    tape, adapter = Tape(ledger, WIDTHS[setting.precision], offload=setting.offload), setting.adapter
    shapes = adapters.trained(model, adapter)
    every = dict(count.shapes) | shapes
    found = weights(tape, every, 4, trained=shapes.keys(), packed=adapters.in_4_bits(model, adapter))
    numbers = sum(map(prod, shapes.values()))
    state = sum(states.kept(name, shape, setting.optimizer) for name, shape in shapes.items()) + states.fixed(setting.optimizer)
    resident = [tape.hold(state, "optimizer"), tape.hold(setting.accumulate * _inputs(model, setting), "inputs"), *_buffers(model, tape, 4)]
    if setting.average:
        resident.append(tape.hold(4 * numbers, "average"))
    for _ in range(min(setting.accumulate, 2)):  # the second finds gradients there, and any other is like it
        tape.backward(Pass(model, setting, tape, found).loss())
    ledger.moment = "optimizer's step"
    if setting.optimizer == "muon":  # the rest's steps come first, and their gradients are dropped
        for name, weight in found.items():
            weight.grad = weight.grad if states.is_muons(name, weight.shape) else None
    resident.append(tape.hold(states.working(shapes, setting.optimizer, setting.device)))
    return _memory(
        ledger, TRAINING, setting.device, _training_lines(ledger, (count.total, numbers), setting),
        [*published.states(numbers, setting.optimizer), *published.activations(model, setting)],
    )  # fmt: skip


def _inputs(model: config.Model, setting: Setting) -> int:
    """Bytes of one micro-batch: ids and labels in 64 bits, pixels in fp32, masks or documents' numbers."""
    names = ("encoder", "decoder", "text", "image")
    stacks = {name: stack for name in names if (stack := getattr(model, name, None)) is not None}
    extra, total, read = {"full": 0, "padded": 1, "packed": 8}[setting.rows], 0, 0
    for name, stack in stacks.items():
        if isinstance(stack.input, config.Patches):
            total += 4 * stack.input.channels * stack.input.image**2
        else:
            read = setting.target_length if name == "decoder" and "encoder" in stacks else setting.sequence
            total += read * (8 + extra)
    labels = read if isinstance(getattr(model, "head", None), config.LanguageModel) else 1
    return setting.batch * (total + 8 * labels)


def _buffers(model: config.Model, tape: Tape, width: int) -> list[object]:
    head = getattr(model, "head", None)
    if isinstance(head, config.LanguageModel) and head.bias == "fixed":
        assert isinstance(model, config.Transformer)
        assert isinstance(model.last.input, config.Tokens)
        return [tape.hold(width * model.last.input.vocab_size, "weights")]
    return []


def _memory(ledger: Ledger, names: tuple[str, ...], device: Device, lines: list[Line], from_others: list[Line]) -> Memory:
    assert sum(ledger.at_peak.get(name, 0) for name in names) == ledger.peak, "a part that is not listed"
    overhead = {"overhead": CONTEXT if device == "cuda" else 0}
    if device == "cuda":
        lines.append(Line(name="overhead", formula="a CUDA process before any tensor, roughly", value=CONTEXT, unit="B", source="estimate"))
    return Memory(
        parts={name: ledger.at_peak.get(name, 0) for name in names} | overhead,
        largest={name: ledger.largest.get(name, 0) for name in names} | overhead,
        layers={name: size for name, size in ledger.layers_at_peak.items() if size},
        moment=ledger.peak_moment, lines=tuple(lines), published=tuple(from_others),
    )  # fmt: skip


def _training_lines(ledger: Ledger, counts: tuple[int, int], setting: Setting) -> list[Line]:
    """`counts`: the model's parameters, and those that are trained."""
    numbers: dict[str, float | int | str] = {"P": counts[0]}
    if setting.adapter is not None:
        numbers |= {"T": counts[1]}
    formulas = {"weights": "4 P", "gradients": _GRADIENTS, "optimizer": _STATES[setting.optimizer]}
    if setting.adapter is not None:
        held = "4.127 / 8 of what is in 4 bits, 4 of the rest of P, 4 T" if setting.adapter.quantize else "4 P + 4 T"
        formulas = {name: formula.replace("P", "T") for name, formula in formulas.items()} | {"weights": held}
    lines = [
        Line(name=name, formula=formula, numbers=numbers, value=ledger.largest.get(name, 0), unit="B", source="train.optimizer")
        for name, formula in formulas.items()
    ]
    shape: dict[str, float | int | str] = {"batch": setting.batch, "sequence": setting.sequence, "recompute": setting.recompute}
    for name, formula in (
        ("casts", "weights of products in 16 bits, from autocast's context to their gradient"),
        ("activations", "what autograd saves in each layer, summed"),
        (LOGITS, "a chunk of logits and the gradients by states and table"),
    ):
        lines.append(Line(name=name, formula=formula, numbers=shape, value=ledger.largest.get(name, 0), unit="B", source=_COUNTED))
    return lines


def inference(
    model: config.Model, *, batch: int = 1, context: int = 2048, target: int | None = None, dtype: Dtype = "bf16",
    device: Device = "cuda", prompt: int | None = None, padded: bool = False,
) -> Memory:  # fmt: skip
    """The peak of inference with weights in `dtype`.

    A model that generates reads its prompts, up to `serving.CHUNK` tokens at once, and then a token of each sequence at a time, as
    `triform.generate` does, over a cache that has room for all tokens from the beginning, in layers with a window too.
    context: tokens that a decoder's cache holds, or those that the encoder reads, of an encoder-decoder too, whose cache
    holds `target` (None: `context`). prompt: tokens of a prompt that a decoder reads; None: all of `context`. padded: the batch's
    prompts differ in length. In int8 and int4 matrices have a 16-bit scale for every 32 numbers, and all else is bf16.
    """
    if dtype not in BITS:
        raise ValueError(f"dtype: expected one of {', '.join(BITS)}, got {dtype!r}")
    setting = Setting(batch=batch, sequence=context, target=target, device=device, rows="padded" if padded else "full")
    capacity = setting.target_length if model.form == "encoder-decoder" else context
    first = 1 if model.form == "encoder-decoder" else prompt or capacity
    if not 1 <= first <= capacity:
        raise ValueError(f"prompt: expected from 1 to the {capacity:,} tokens of the context, got {prompt}")
    ledger, width = Ledger(), WIDTHS.get(dtype, 2)
    tape = Tape(ledger, width, recording=False)
    tape.working = "workspace"
    shapes = parameters(model).shapes
    found = weights(tape, shapes, width)
    resident = [*_buffers(model, tape, width), tape.hold(_inputs(model, setting), "inputs")]
    Inference(model, setting, tape, found, first, capacity).run()
    del resident
    stored = {name: _quantized(shape, dtype) for name, shape in shapes.items()} if BITS[dtype] < 16 else {}
    lines = [
        Line(name="weights", formula=f"P x {BITS[dtype]} / 8", numbers={"P": sum(prod(s) for s in shapes.values())},
             value=sum(w for w, _ in stored.values()) if stored else ledger.parts["weights"], unit="B", source=_COUNTED),
        *_cache_lines(model, batch, context, capacity, width),
    ]  # fmt: skip
    memory = _memory(ledger, INFERENCE, device, lines, [])
    if stored:
        kept, scales = (sum(sizes) for sizes in zip(*stored.values(), strict=True))
        memory = replace(memory, parts=memory.parts | {"weights": kept, "scales": scales})
    return replace(memory, published=tuple(published.inference(memory.parts["weights"] + memory.parts["scales"])))


def _quantized(shape: tuple[int, ...], dtype: str) -> tuple[int, int]:
    """Bytes of a weight's numbers and of their scales."""
    count = prod(shape)
    if len(shape) < 2:
        return 2 * count, 0
    return count * BITS[dtype] // 8, 2 * -(-count // _SCALED)


def _cache_lines(model: config.Model, batch: int, context: int, capacity: int, width: int) -> list[Line]:
    """The keys and values that one token, and one token of the source, leave."""
    if isinstance(model, config.DualEncoder) or model.decoder is None:
        return []
    stack = model.decoder
    attentions = [(stack.block(layer).attention, stack.block(layer).cross) for layer in range(stack.depth)]
    own = sum((a.kv_heads or a.heads) * stack.head_width(a) for a, _ in attentions)
    numbers: dict[str, float | int | str] = {"b": batch, "s": capacity, "w": width, "k": own}
    out = [Line(name="cache", formula="2 b w s k, k: heads x width of all layers", numbers=numbers,
                value=2 * batch * width * capacity * own, unit="B", source=_COUNTED)]  # fmt: skip
    if model.encoder is not None:
        read, crosses = length_of(model.encoder, context), [cross for _, cross in attentions if cross is not None]
        across = sum((c.kv_heads or c.heads) * stack.head_width(c) for c in crosses)
        out.append(Line(name="cross_cache", formula="2 b w s k", numbers={"b": batch, "w": width, "s": read, "k": across},
                        value=2 * batch * width * read * across, unit="B", source=_COUNTED))  # fmt: skip
    return out


def longest_context(model: config.Model, room: int, *, batch: int = 1, limit: int = 2**24, **shape: Any) -> int:
    """The longest context, at most `limit` and the model's learned positions, whose inference fits `room` bytes; 0: none does.

    `shape`: what else `inference` takes.
    """
    stacks = [stack for name in ("encoder", "decoder", "text") if (stack := getattr(model, name, None)) is not None]
    limits = [stack.input.position.length for stack in stacks
              if isinstance(stack.input, config.Tokens) and isinstance(stack.input.position, config.Learned)]  # fmt: skip
    if all(isinstance(stack.input, config.Patches) for stack in stacks):
        limits = [stack.input.length for stack in stacks]  # an image has so many and no others
    return _most(lambda length: inference(model, batch=batch, context=length, **shape).total, room, min([limit, *limits]))


def largest_batch(model: config.Model, room: int, *, context: int = 2048, limit: int = 2**20, **shape: Any) -> int:
    """The largest batch, at most `limit`, whose inference fits `room` bytes; 0: not one sequence. `shape`: what else `inference` takes."""
    return _most(lambda batch: inference(model, batch=batch, context=context, **shape).total, room, limit)


def largest_training_batch(model: config.Model, setting: Setting, room: int, *, limit: int = 2**16) -> int:
    """The largest micro-batch, at most `limit`, whose training step fits `room` bytes; 0: not one sequence."""
    return _most(lambda batch: training(model, replace(setting, batch=batch)).total, room, limit)


def _most(size: Callable[[int], int], room: int, limit: int) -> int:
    """The largest number from 1 to `limit` whose size, which grows with it, fits `room`; 0: none.

    Sizes grow nearly in proportion, so it is looked for where a straight line says, and every other time in the middle.
    """
    low, high = 1, limit
    least, most = size(low), size(high)
    if least > room:
        return 0
    if most <= room:
        return limit
    straight = True
    while high - low > 1:
        middle = low + (room - least) * (high - low) // (most - least) if straight else (low + high) // 2
        middle, straight = min(max(middle, low + 1), high - 1), not straight
        found = size(middle)
        if found <= room:
            low, least = middle, found
        else:
            high, most = middle, found
    return low
