"""Models made ready to generate on the CPU: weights packed once, in a chosen precision.

Shapes: D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from triform.hub import Checkpoint
from triform.hub.gguf.blocks import Blocks
from triform.hub.gguf.reader import GGUFFile
from triform.kernels import Arena, Kind, Packed, PackedEmbedding, PackedLinear, library, pack, pack_blocks, packed_bytes, unpack
from triform.nn import Transformer
from triform.nn.adapter import adapted_layers, adapter_names, merge_adapter
from triform.nn.heads import LanguageModel
from triform.text import Tokenizer

from .stepper import Stepper

Precision = Literal["auto", "fp32", "bf16", "int8", "int4"]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

__all__ = ["PackedHead", "Precision", "Stepper", "blocks_of", "load_prepared", "packed_copy", "prepare"]


class Stored(Protocol):
    """A file that holds some weights of a model in GGUF's blocks."""

    def kind(self, name: str) -> Kind | None:
        """The kind of a weight's blocks, None where it has none."""

    def blocks(self, name: str) -> Tensor:
        """A weight's blocks, (rows, bytes), uint8."""


class PackedHead(LanguageModel):
    """A language model's head whose output matrix is packed; a tied one shares it with the token table."""

    def __init__(self, head: LanguageModel, table: PackedLinear) -> None:
        nn.Module.__init__(self)
        self.spec, self.dense, self.norm, self.weight, self.bias = head.spec, head.dense, head.norm, None, None
        self.table = table

    def matrix(self, table: Tensor | None) -> Tensor:
        """The output matrix (V, D) in fp32, unpacked for this call."""
        return unpack(self.table.packed)

    def forward(self, x: Tensor, table: Tensor | None) -> Tensor:
        scores: Tensor = self.table(self.features(x))
        return scores


def load_prepared(path_or_name: str | Path, precision: Precision = "auto") -> tuple[Any, Tokenizer | None]:
    """A model made ready by `prepare`, and its tokenizer (None where there is none), from a path or a name (see `hub.load`)."""
    found = Checkpoint.open(path_or_name)
    tokenizer = found.tokenizer()
    return prepare(found.build(dtype="bf16" if precision == "bf16" else "auto"), precision, _blocks(found)), tokenizer


def blocks_of(path_or_name: str | Path) -> Stored | None:
    """What `prepare` takes as `stored`: the blocks of a GGUF file, None for any other model."""
    return _blocks(Checkpoint.open(path_or_name))


def _blocks(found: Checkpoint) -> Stored | None:
    return Blocks(found.stored) if isinstance(found.stored, GGUFFile) else None


def prepare(model: Any, precision: Precision = "auto", stored: Stored | None = None) -> Any:
    """Exchange a model's linear layers and token table for packed ones, in place; gives the model, which now only evaluates.

    precision: of the weights. "auto": as they are (fp32, also for fp16, which processors multiply slowly; bf16; or as `stored` has
        them). "int8" and "int4" are GGUF's Q8_0 and Q4_0: blocks of 32 with one scale, inputs rounded to 8 bits in blocks of 32; with
        int4 the output matrix (the token table, where they are one) is int8, as in GGUF files.
    stored: the file that the model was read from, where that holds such blocks: they are taken as they are; with "auto" where they are
        most of the model.

    Experts, and models that are not on the CPU, stay as they are. Where the native kernels cannot be compiled, fp32 and bf16 are
    torch's own, and int8 and int4 compute the same through torch.
    Raises ValueError for an unknown precision.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"dtype: expected one of {', '.join(get_args(Precision))}, got {precision!r}")
    if adapted_layers(model):
        raise ValueError("the model has adapters, which packing its layers would lose; merge them first, or add them afterwards")
    parameter = next(model.parameters())
    if parameter.device.type != "cpu":
        if precision in ("int8", "int4"):
            raise ValueError(f"dtype: {precision} is for the CPU, and the model is on {parameter.device}; choose bf16, or move the model")
        return model if precision == "auto" else model.to(_DTYPES[precision])
    kind: Kind = ("bf16" if parameter.dtype == torch.bfloat16 else "fp32") if precision == "auto" else precision
    dtype = _DTYPES.get(kind, torch.float32)
    quantized = kind in ("int8", "int4") or (precision == "auto" and stored is not None)
    if parameter.dtype == torch.float64 or (library() is None and not quantized):
        return model if precision == "auto" and parameter.dtype != torch.float16 else model.to(dtype)
    with torch.no_grad():
        _Exchange(model, dtype, _Source(stored, kind, precision == "auto", _output(model))).run()
    return model.to(dtype).eval()


def packed_copy(model: Any, precision: Precision = "auto") -> Any:
    """A copy of a model that is being trained, made ready by `prepare`, with its adapters merged into it.

    It is as the model is now; what is not packed (norms, biases) it shares with it. Where there is nothing to pack for, on a GPU or
    without native kernels, the model itself.
    """
    if next(model.parameters()).device.type != "cpu" or library() is None:
        return model
    shared: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    copied = deepcopy(model, shared | {id(buffer): buffer for buffer in model.buffers()})
    for layer in adapted_layers(copied).values():
        if isinstance(layer, nn.Linear):  # else it would be merged into the model's own
            layer.weight = nn.Parameter(layer.weight.clone(), requires_grad=False)
    for name in adapter_names(copied):
        merge_adapter(copied, name)
    return prepare(copied, precision)


@dataclass(frozen=True)
class _Source:
    """Which weights are taken from a file's blocks."""

    stored: Stored | None
    kind: Kind
    any_kind: bool
    output: str  # the matrix of the head, on which quality depends most

    def for_most_of(self, sizes: Mapping[str, torch.Size]) -> _Source:
        """Blocks of any kind only where they are most of the model: else their rounded inputs would cost what the others keep."""
        if self.stored is None or not self.any_kind:
            return self
        held = sum(shape.numel() for name, shape in sizes.items() if self.stored.kind(name) is not None)
        return replace(self, any_kind=2 * held > sum(shape.numel() for shape in sizes.values()))

    def kind_of(self, name: str) -> Kind:
        """What a weight is to be packed as."""
        found = None if self.stored is None else self.stored.kind(name)
        if found is not None and self.any_kind:
            return found
        return "int8" if self.kind == "int4" and name == self.output else self.kind

    def packed(self, name: str, weight: Tensor, arena: Arena) -> Packed:
        """The weight (rows, columns), packed."""
        kind = self.kind_of(name)
        if self.stored is not None and kind in ("int8", "int4") and self.stored.kind(name) == kind:
            return pack_blocks(self.stored.blocks(name), weight.shape[1], kind, arena)
        return pack(weight, kind, arena)


class _Exchange:
    """One model's weights on their way into one piece of memory."""

    def __init__(self, model: nn.Module, dtype: torch.dtype, source: _Source) -> None:
        self.model, self.dtype = model, dtype
        self.linears = {name: module for name, module in model.named_modules() if type(module) is nn.Linear and _suits(name)}
        self.tables = {name: m for name, m in model.named_modules() if isinstance(m, nn.Embedding) and name.endswith("input.token")}
        self.head = model.head if isinstance(model, Transformer) and isinstance(model.head, LanguageModel) else None
        sizes: dict[str, Any] = {f"{name}.weight": module.weight.shape for name, module in (*self.linears.items(), *self.tables.items())}
        if self.head is not None and self.head.weight is not None:
            sizes["head.weight"] = self.head.weight.shape
        self.source = source.for_most_of(sizes)
        self.arena = Arena(sum(packed_bytes(shape[0], shape[1], self.source.kind_of(name)) for name, shape in sizes.items()))

    def run(self) -> None:
        """Exchange them all; each old weight is let go of before the next is packed."""
        for name in list(self.linears):
            linear = self.linears.pop(name)
            self._replace(name, PackedLinear(self._packed(f"{name}.weight", linear.weight), linear.bias))
        tables: dict[int, PackedEmbedding] = {}
        for name, table in self.tables.items():  # a shared one once, by its first name
            tables[id(table)] = PackedEmbedding(self._packed(f"{name}.weight", table.weight), self.dtype)
        for name, old in [(n, m) for n, m in self.model.named_modules(remove_duplicate=False) if id(m) in tables]:
            self._replace(name, tables[id(old)])
        if self.head is not None:
            assert isinstance(self.model, Transformer)
            own = self.head.weight
            packed = self.model.last.input.token.packed if own is None else self._packed("head.weight", own)  # type: ignore[union-attr]
            self.model.head = PackedHead(self.head, PackedLinear(packed, self.head.bias))  # type: ignore[arg-type]

    def _packed(self, name: str, weight: Tensor) -> Packed:
        return self.source.packed(name, weight, self.arena)

    def _replace(self, name: str, module: nn.Module) -> None:
        parent, _, last = name.rpartition(".")
        setattr(self.model.get_submodule(parent), last, module)


def _output(model: nn.Module) -> str:
    """The name of a language model's output matrix; of its token table, where that is one with it."""
    head = getattr(model, "head", None)
    if not isinstance(model, Transformer) or not isinstance(head, LanguageModel):
        return ""
    if head.weight is not None:
        return "head.weight"
    return f"{'encoder' if model.decoder is None or model.config.share_tokens else 'decoder'}.input.token.weight"


def _suits(name: str) -> bool:
    """Routers compute in fp32 and read their weight themselves; other heads than a language model's are small."""
    inside = name.startswith(("encoder.", "decoder.", "text.", "image.")) or name == "head.dense"
    return inside and not name.endswith(".router")
