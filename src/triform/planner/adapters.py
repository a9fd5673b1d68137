"""What an adapter adds to a model: weights that are trained while the model's own stay as they are."""

from __future__ import annotations

from math import prod

from triform import config

from .parameters import parameters

NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)  # of a number, its block's scale and its group's (see nn.nf4)
_NOT_LINEAR = (".input.", ".router.", ".biases.")

Shapes = dict[str, tuple[int, ...]]


def layers(model: config.Model, adapter: config.Adapter) -> dict[str, tuple[int, int]]:
    """The linear layers that an adapter is on, each with its outputs and inputs."""
    return {name: (shape[0], shape[1]) for name, shape in _linear(model).items() if adapter.takes(name)}


def _linear(model: config.Model) -> Shapes:
    shapes = parameters(model).shapes
    found = {name.removesuffix(".weight"): shape for name, shape in shapes.items() if name.endswith(".weight") and len(shape) == 2}
    return {name: shape for name, shape in found.items() if name != "head" and not any(part in f"{name}." for part in _NOT_LINEAR)}


def added(model: config.Model, adapter: config.Adapter) -> Shapes:
    """The adapter's own weights."""
    out: Shapes = {}
    for name, (outputs, inputs) in layers(model, adapter).items():
        out |= {f"{name}.adapter.0.lora_a": (adapter.rank, inputs), f"{name}.adapter.0.lora_b": (outputs, adapter.rank)}
        if adapter.kind == "dora":
            out[f"{name}.adapter.0.magnitude"] = (outputs,)
    return out


def whole(model: config.Model, adapter: config.Adapter) -> Shapes:
    """The model's own weights that are trained beside it."""
    parts = adapter.whole
    if parts is None:
        parts = tuple(n for n in ("head", "sentence_head") if not isinstance(getattr(model, n, None), config.LanguageModel | None))
    return {name: shape for name, shape in parameters(model).shapes.items() if name.startswith(tuple(f"{part}." for part in parts))}


def trained(model: config.Model, adapter: config.Adapter | None) -> Shapes:
    """All weights that are trained, by name and shape."""
    return dict(parameters(model).shapes) if adapter is None else added(model, adapter) | whole(model, adapter)


def in_4_bits(model: config.Model, adapter: config.Adapter | None) -> dict[str, int]:
    """Bytes of the weights that are kept in 4 bits."""
    if adapter is None or adapter.quantize is None:
        return {}
    return {f"{name}.weight": round(prod(shape) * NF4_BITS / 8) for name, shape in _linear(model).items() if ".layers." in name}


def forward(model: config.Model, adapter: config.Adapter, length: int, target_length: int | None = None) -> tuple[int, int]:
    """FLOPs of the adapter's products in a forward pass over one sequence, and of what is done once a pass for DoRA's lengths."""
    encodes = getattr(model, "encoder", None) is not None
    target = length if target_length is None else target_length
    each = once = 0
    for name, (outputs, inputs) in layers(model, adapter).items():
        of_memory = ".cross.body." in name and name.endswith((".key", ".value"))
        stack = getattr(model, name.partition(".")[0], None)
        tokens = length if of_memory or not (encodes and name.startswith("decoder.")) else target
        if isinstance(stack, config.Stack) and isinstance(stack.input, config.Patches):
            tokens = stack.input.length
        each += 2 * adapter.rank * (inputs + outputs) * (tokens if ".layers." in name else 1)
        once += 2 * adapter.rank * inputs * outputs if adapter.kind == "dora" else 0
    return each, once
