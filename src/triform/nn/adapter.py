"""Adapters: small matrices trained beside a model's frozen ones.

An adapter hangs on a linear layer as a forward hook, whatever the layer is: torch's own, in 4 bits, or packed for the CPU. The
layer stays what and where it was, so the names of weights, their files and everything that reads them know nothing of it.
Several adapters may hang on one model; which one a pass uses is said by `use_adapter` and `without_adapter`, or for each
token by `use_adapters`.

Shapes: N rows, K inputs and M outputs of a layer, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triform import config
from triform.kernels import PackedLinear, unpack

from .dropout import Dropout
from .feedforward import Experts
from .heads import LanguageModel
from .init import initialize
from .model import build
from .nf4 import NF4Linear, quantize_layers, unpack_layers

DEFAULT = "default"


class Selection:
    """Which adapters the layers of one model use; one object, that the model and all of them look at.

    numbers: of the adapters, by name, of `made` in all. active: the number of the one that whole passes use. parts: or else those of
    rows of x, flattened to (N, K), each from here to there. whole: the parts of the model that are trained beside one.
    """

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self.made = 0
        self.active: int | None = None
        self.parts: tuple[tuple[int, slice], ...] | None = None
        self.whole: tuple[str, ...] = ()


class LowRank(nn.Module):
    """One adapter of one layer: `lora_a` (R, K), `lora_b` (M, R) and, for DoRA, `magnitude` (M,)."""

    def __init__(self, spec: config.Adapter, layer: nn.Module) -> None:
        super().__init__()
        sized: Any = layer
        like = next(iter([*layer.parameters(recurse=False), *layer.buffers(recurse=False)]))
        dtype = torch.promote_types(like.dtype, torch.float32) if like.is_floating_point() else torch.float32
        empty = partial(torch.empty, device=like.device, dtype=dtype)
        self.spec, self.scaling = spec, spec.scaling
        self.lora_a = nn.Parameter(empty(spec.rank, sized.in_features))
        self.lora_b = nn.Parameter(empty(sized.out_features, spec.rank))
        self.magnitude = nn.Parameter(empty(sized.out_features)) if spec.kind == "dora" else None
        self.dropout = Dropout(spec.dropout)
        self.gain: Tensor | None = None  # of DoRA, where nothing is trained

    @torch.no_grad()
    def start(self, layer: nn.Module, generator: torch.Generator | None = None) -> None:
        """The values of an adapter that changes nothing yet: A uniform as a linear layer's weight, B zero."""
        bound = 1 / math.sqrt(self.lora_a.shape[1])
        self.lora_a.copy_(torch.empty(self.lora_a.shape).uniform_(-bound, bound, generator=generator))
        self.lora_b.zero_()
        if self.magnitude is not None:
            self.magnitude.copy_(matrix_of(layer).to(self.magnitude.dtype).norm(dim=1))

    def freeze(self, layer: nn.Module) -> None:
        """Make ready for passes alone: DoRA's lengths are then worked out once."""
        self.requires_grad_(False)
        self.gain = None if self.magnitude is None else (self.magnitude / self._lengths(layer)).detach()

    @torch.no_grad()
    def _lengths(self, layer: nn.Module) -> Tensor:
        """Of the rows of W + s B A, (M,); no gradient goes through them (Liu et al. 2024, section 4.3)."""
        with torch.autocast(self.lora_a.device.type, enabled=False):
            return _lengths(torch.addmm(matrix_of(layer).to(self.lora_b.dtype), self.lora_b, self.lora_a, alpha=self.scaling))

    def forward(self, layer: nn.Module, x: Tensor, out: Tensor) -> Tensor:
        """What the adapted layer gives for x (..., K), where the layer itself gives `out` (..., M)."""
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(self.lora_a.dtype)
        update = F.linear(F.linear(self.dropout(x), self.lora_a) * self.scaling, self.lora_b)
        if self.magnitude is None:
            return out + update.to(out.dtype)
        bias: Any = layer.bias
        gain = self.magnitude / self._lengths(layer) if self.gain is None else self.gain
        product = out if bias is None else out - bias
        scaled = gain * (product + update)
        made: Tensor = scaled if bias is None else scaled + bias
        return made.to(out.dtype)

    @torch.no_grad()
    def merged(self, layer: nn.Module) -> Tensor:
        """The matrix (M, K) that does what the layer and the adapter do, in fp32 or better."""
        return merged(matrix_of(layer), self.lora_a, self.lora_b, self.scaling, self.magnitude)


def merged(weight: Tensor, a: Tensor, b: Tensor, scaling: float, magnitude: Tensor | None = None) -> Tensor:
    """W + s B A of W (M, K), A (R, K) and B (M, R), for DoRA with rows of these lengths (M,), in fp32 or better."""
    whole = torch.addmm(weight.to(torch.promote_types(weight.dtype, b.dtype)), b, a, alpha=scaling)
    if magnitude is None:
        return whole
    return whole * (magnitude / _lengths(whole))[:, None]


def _lengths(matrix: Tensor) -> Tensor:
    """Of its rows, none of them zero."""
    found: Tensor = torch.linalg.vector_norm(matrix, dim=1)
    return found.clamp_min_(torch.finfo(matrix.dtype).tiny)


class Adapters(nn.ModuleDict):
    """The adapters of one layer by their numbers, as its forward hook."""

    def __init__(self, selection: Selection) -> None:
        super().__init__()
        self.selection = selection

    def forward(self, layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        """`out` (..., M), what the layer gives, as the adapters in use have it."""
        chosen = self.selection
        if chosen.parts is None:
            key = str(chosen.active)
            return self[key](layer, args[0], out) if key in self else out
        x, made = args[0].reshape(-1, args[0].shape[-1]), out.reshape(-1, out.shape[-1])
        pieces, at = [], 0
        for number, part in chosen.parts:
            if str(number) in self:
                pieces += [made[at : part.start], self[str(number)](layer, x[part], made[part])]
                at = part.stop
        return torch.cat([*pieces, made[at:]]).view_as(out) if pieces else out


def matrix_of(layer: nn.Module) -> Tensor:
    """The matrix (M, K) of a linear layer of any kind."""
    if isinstance(layer, NF4Linear):
        return layer.dequantized()
    if isinstance(layer, PackedLinear):
        return unpack(layer.packed)
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return weight


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that can have an adapter, by name."""
    routers = {id(module.router) for module in model.modules() if isinstance(module, Experts)}
    kinds = (nn.Linear, NF4Linear, PackedLinear)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds) and id(module) not in routers}


def adapted_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that have one, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(getattr(module, "adapter", None), Adapters)}


def adapter_names(model: nn.Module) -> list[str]:
    """The adapters of a model, in the order in which they were added."""
    selection = _selection(model)
    return [] if selection is None else list(selection.numbers)


def adapter_number(model: nn.Module, name: str) -> int:
    """A number that no other adapter of the model has or had. Raises ValueError for one that is not there."""
    return _known(model, name)[1]


def in_use(model: nn.Module) -> bool:
    """Whether whole passes of the model use an adapter."""
    selection = _selection(model)
    return selection is not None and selection.active is not None


def part_of(layer: nn.Module, number: int) -> LowRank | None:
    """The part of an adapter that hangs on a layer."""
    parts: Any = dict(layer.adapter.items())  # type: ignore[operator, union-attr]
    found: LowRank | None = parts.get(str(number))
    return found


def _selection(model: nn.Module) -> Selection | None:
    found: Selection | None = model.__dict__.get("adapter_selection")
    return found


def _known(model: nn.Module, name: str) -> tuple[Selection, int]:
    selection = _selection(model)
    if selection is None or name not in selection.numbers:
        there = "it has none" if selection is None else f"it has {', '.join(selection.numbers)}"
        raise ValueError(f"the model has no adapter {name!r}; {there}")
    return selection, selection.numbers[name]


def targeted(model: nn.Module, spec: config.Adapter) -> dict[str, nn.Module]:
    """The linear layers that an adapter's targets name.

    Raises ValueError for a target that names none, and for experts and their routers.
    """
    layers = linear_layers(model)
    if spec.targets == "all" and not any(map(spec.takes, layers)):
        raise ValueError("targets: the blocks of this model have no linear layer that could have an adapter")
    for target in () if spec.targets == "all" else spec.targets:
        if not any(map(replace(spec, targets=(target,)).takes, layers)):
            parts = ", ".join(sorted({name.rpartition(".")[2] for name in layers}))
            why = _of_experts(model, target) or f"names no linear layer of this model; expected all, or names such as {parts}"
            raise ValueError(f"targets: {target!r} {why}")
    return {name: layer for name, layer in layers.items() if spec.takes(name)}


def _of_experts(model: nn.Module, target: str) -> str | None:
    """What to say of a target that only experts have."""
    names = {f"{name}.{part}" for name, module in model.named_modules() if isinstance(module, Experts)
             for part in ("router", *(n for n, _ in module.named_parameters(recurse=False)))}  # fmt: skip
    if any(map(config.Adapter(targets=(target,)).takes, names)):
        return "is of experts, whose matrices are one tensor and whose choices are the router's; name layers of attention, or all"
    return None


def add_adapter(
    model: nn.Module, spec: config.Adapter, *, name: str = DEFAULT, seed: int | None = None
) -> tuple[str, ...]:
    """Hang a new adapter on a model, in place, which changes nothing yet, and let passes use it; returns the layers' names.

    All weights but the adapter's and those of `spec.whole` are frozen. seed None draws from torch's global generator.
    Raises ValueError for targets that are not there and for a name that is taken.
    """
    found, whole = targeted(model, spec), whole_parts(model, spec)
    if spec.quantize is not None and not adapter_names(model):
        quantize_layers(model)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    for layer, part in attach(model, dict.fromkeys(found, spec), name=name).items():
        part.start(model.get_submodule(layer), generator)
    for module in whole.values():
        module.requires_grad_(True)
    selection = _selection(model)
    assert selection is not None
    selection.whole = tuple(whole)
    return tuple(found)


def build_quantized(spec: config.Model, *, device: str | torch.device = "cpu", seed: int | None = None) -> Any:
    """A model whose blocks keep their matrices in 4 bits, which `hub.Checkpoint.begin` fills one at a time; heads have starting weights."""
    model = build(spec, device="meta")
    quantize_layers(model)
    model.to_empty(device=device)
    for head in (getattr(model, "head", None), getattr(model, "sentence_head", None)):
        if head is not None:
            initialize(head, model.config.init, seed)
    return model


def attach(model: nn.Module, specs: Mapping[str, config.Adapter], *, name: str = DEFAULT, trainable: bool = True) -> dict[str, LowRank]:
    """Hang the parts of an adapter, whose values are yet to be given, on layers by name, freeze all else, and let passes use it.

    Raises ValueError for a name that is taken.
    """
    selection = _selection(model) or Selection()
    if name in selection.numbers:
        raise ValueError(f"the model has an adapter {name!r} already; remove it, or give this one another name")
    model.requires_grad_(False)
    model.__dict__["adapter_selection"] = selection  # no module, and shared by all layers
    number = selection.numbers[name] = selection.active = selection.made
    selection.made += 1
    parts: dict[str, LowRank] = {}
    for where, spec in specs.items():
        layer = model.get_submodule(where)
        part = parts[where] = LowRank(spec, layer).train(layer.training).requires_grad_(trainable)
        adapters = getattr(layer, "adapter", None)
        if not isinstance(adapters, Adapters):
            adapters = Adapters(selection)
            layer.add_module("adapter", adapters)
            layer.register_forward_hook(adapters)
        adapters[str(number)] = part
    return parts


def adapter_parts(model: nn.Module, name: str = DEFAULT) -> dict[str, LowRank]:
    """The parts of an adapter by the names of their layers. Raises ValueError for one that is not there."""
    number = _known(model, name)[1]
    found = {where: part_of(layer, number) for where, layer in adapted_layers(model).items()}
    return {where: part for where, part in found.items() if part is not None}


def whole_parts(model: nn.Module, spec: config.Adapter) -> dict[str, nn.Module]:
    """The parts of a model that are trained whole beside an adapter, by name. Raises ValueError for one that is not there."""
    if spec.whole is None:
        heads = {name: getattr(model, name, None) for name in ("head", "sentence_head")}
        return {
            name: head for name, head in heads.items()
            if head is not None and not isinstance(head, LanguageModel) and next(head.parameters(), None) is not None
        }  # fmt: skip
    parts = dict(model.named_modules())
    for name in spec.whole:
        if name not in parts or not name:
            raise ValueError(f"whole: expected parts of the model such as head or decoder.norm, got {name!r}")
    return {name: parts[name] for name in spec.whole}


@contextmanager
def _selected(model: nn.Module, active: int | None, parts: tuple[tuple[int, slice], ...] | None) -> Iterator[None]:
    selection = _selection(model) or Selection()
    before = selection.active, selection.parts
    selection.active, selection.parts = active, parts
    try:
        yield
    finally:
        selection.active, selection.parts = before


@contextmanager
def without_adapter(model: nn.Module) -> Iterator[None]:
    """Passes in this context are those of the frozen model; it is no second copy.

    A backward pass of them must be in the context too. A model that has no adapter is as it is. Raises ValueError where parts of
    it are trained whole, as what they were is gone.
    """
    selection = _selection(model)
    if selection is not None and selection.whole:
        raise ValueError(f"the model without its adapter is gone, as {selection.whole[0]} is trained whole; set train.adapter.whole to []")
    with _selected(model, None, None):
        yield


@contextmanager
def use_adapter(model: nn.Module, name: str) -> Iterator[None]:
    """Passes in this context use the adapter of this name. Raises ValueError for one that is not there."""
    _, number = _known(model, name)
    with _selected(model, number, None):
        yield


@contextmanager
def use_adapters(model: nn.Module, names: Sequence[tuple[str | None, int]]) -> Iterator[None]:
    """Passes in this context use for each token its own adapter.

    names: (name, or None for what whole passes use; how many tokens), one after the other for the tokens (B T) of x (B, T, K)
    flattened. Raises ValueError for an adapter that is not there.
    """
    selection, parts, at = _selection(model), list[tuple[int, slice]](), 0
    for name, count in names:
        number = _known(model, name)[1] if name is not None else None if selection is None else selection.active
        if number is not None and parts and parts[-1][0] == number and parts[-1][1].stop == at:
            parts[-1] = (number, slice(parts[-1][1].start, at + count))
        elif number is not None:
            parts.append((number, slice(at, at + count)))
        at += count
    with _selected(model, None, tuple(parts)):
        yield


def switch_off(model: nn.Module) -> None:
    """Let whole passes be those of the frozen model from now on, until `use_adapter` says otherwise."""
    selection = _selection(model)
    if selection is not None:
        selection.active = None


def remove_adapter(model: nn.Module, name: str = DEFAULT) -> None:
    """Take an adapter off, in place. Raises ValueError for one that is not there."""
    selection, number = _known(model, name)
    for layer in adapted_layers(model).values():
        adapters: Any = layer.adapter
        if str(number) in adapters:
            del adapters[str(number)]
        if not adapters:
            for key, hook in list(layer._forward_hooks.items()):
                if hook is adapters:
                    del layer._forward_hooks[key]
            del layer.adapter
    del selection.numbers[name]
    selection.whole = ()
    if selection.active == number:
        selection.active = None


def merge_adapter(model: nn.Module, name: str = DEFAULT) -> None:
    """Make an adapter part of the weights, in place, and take it off; layers in 4 bits become fp32.

    With no adapter left, all weights can be trained again. Raises ValueError for one that is not there, and for packed weights.
    """
    parts = adapter_parts(model, name)
    for where in parts:
        if isinstance(model.get_submodule(where), PackedLinear):
            raise ValueError(f"{where}: packed weights take no adapter into them; merge before the model is prepared")
    unpack_layers(model)
    with torch.no_grad():
        for where, part in parts.items():
            layer: Any = model.get_submodule(where)
            layer.weight.copy_(part.merged(layer))
    remove_adapter(model, name)
    if not adapted_layers(model):
        model.requires_grad_(True)


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """What an adapted model trains, by name: the adapter's matrices and what is trained whole."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
