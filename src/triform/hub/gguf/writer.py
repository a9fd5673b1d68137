"""Models written as GGUF files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from triform import config
from triform.config.files import replacing

from ..public import weights
from ..rules import Match, match
from .describe import Value, describe
from .names import family
from .spec import ROPE_FACTORS, llama3_factors
from .tokens import tokenizer_metadata

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFWriter

    from triform.text import Tokenizer

DType = Literal["fp32", "fp16", "bf16", "q8_0", "q4_0"]
_KINDS = {"fp32": "F32", "fp16": "F16", "bf16": "BF16", "q8_0": "Q8_0", "q4_0": "Q4_0"}
_FILE_TYPES = {"fp32": 0, "fp16": 1, "q4_0": 2, "q8_0": 7, "bf16": 32}
_ALWAYS_FP32 = ("ffn_gate_inp.weight", "position_embd.weight", ROPE_FACTORS)


def write(
    model: Any, tokenizer: Tokenizer | None, file: str | Path, dtype: DType = "bf16", *, name: str | None = None,
    done: Callable[[int, int], None] | None = None,
) -> list[str]:  # fmt: skip
    """Write a decoder-only language model and its tokenizer as a GGUF file, which llama.cpp and Ollama open.

    dtype: fp32, fp16, bf16, q8_0 (blocks of 32 in 8 bits) or q4_0 (in 4 bits), as llama.cpp quantizes. Vectors, tables of
        positions and routers stay fp32; rows that are no multiple of 32 become fp16 instead of a quantized type; with
        q4_0 the output matrix (the token table, where they are one) is q8_0.
    name: what the file calls the model; the file's own name by default.
    done: called after each tensor with how many are written and how many there are.

    One tensor is converted at a time. The file appears whole or not at all. Returns remarks, sentences that say which
    texts llama.cpp cuts into other tokens than the tokenizer does; none where it cuts all alike.

    Raises NoCounterpart (a ValueError) that names what no architecture of llama.cpp expresses, and ValueError for a
    tokenizer that llama.cpp would cut otherwise, or weights that fp16 cannot hold.
    """
    if dtype not in get_args(DType):
        raise ValueError(f"{dtype!r} is no type of a GGUF file; expected one of {', '.join(get_args(DType))}")
    file = Path(file)
    architecture, sizes = describe(model.config, None if tokenizer is None else tokenizer.length)
    metadata: dict[str, Any] = {
        "general.name": name or file.stem,
        "general.file_type": _FILE_TYPES[dtype],
        "general.quantization_version": 2,
        **sizes,
    }
    rows = int(sizes[f"{architecture}.vocab_size"])  # type: ignore[arg-type]
    vocabulary, remarks = tokenizer_metadata(tokenizer, rows) if tokenizer is not None else ({"tokenizer.ggml.model": "none"}, [])
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        _write(model, architecture, metadata | vocabulary, temporary, dtype, done or (lambda written, total: None))
    return remarks


def _write(
    model: Any, architecture: str, metadata: Mapping[str, Any], file: Path, dtype: DType, done: Callable[[int, int], None]
) -> None:
    from gguf import GGMLQuantizationType, GGUFWriter

    tensors = _Tensors(model, architecture)
    writer = GGUFWriter(file, architecture)
    try:
        for key, value in metadata.items():
            _add(writer, key, value)
        kinds = {}
        for name, shape in tensors.shapes.items():
            kinds[name] = GGMLQuantizationType[_kind(name, shape, dtype, tied="output.weight" not in tensors.shapes)]
            _add_info(writer, name, shape, kinds[name])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for written, (name, tensor) in enumerate(tensors, start=1):
            writer.write_tensor_data(_encoded(name, tensor, kinds[name]))
            done(written, len(kinds))
    finally:
        writer.close()


class _Tensors:
    """The weights of a model under llama.cpp's names and in its layouts, made one after the other."""

    def __init__(self, model: Any, architecture: str) -> None:
        self.ours = weights(model)
        self.extra = _factors(model.config)
        self.matches = match(family(architecture, model.config).table, {n: t.shape for n, t in self.ours.items()})
        abstract = {n: torch.empty(t.shape, device="meta") for n, t in self.ours.items()}
        self.shapes = {name: tuple(t.shape) for found in self.matches for name, t in self._theirs(found, abstract)}
        self.shapes |= {name: tuple(t.shape) for name, t in self.extra.items()}

    def _theirs(self, found: Match, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        yield from zip(found.theirs, found.layout.save([tensors[n] for n in found.ours]), strict=True)

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for found in self.matches:
            yield from self._theirs(found, self.ours)
        yield from self.extra.items()


def _factors(spec: config.Transformer) -> dict[str, Tensor]:
    attention = spec.last.block(0).attention
    rotary = attention.position
    if not isinstance(rotary, config.Rotary) or not isinstance(rotary.scaling, config.Llama3):
        return {}
    return {ROPE_FACTORS: torch.tensor(llama3_factors(rotary, rotary.scaling, spec.last.head_width(attention)))}


def _kind(name: str, shape: tuple[int, ...], dtype: DType, *, tied: bool) -> str:
    """The type that llama.cpp's own tools would give a tensor."""
    if len(shape) == 1 or name.endswith(_ALWAYS_FP32):
        return "F32"
    if not dtype.startswith("q"):
        return _KINDS[dtype]
    if shape[-1] % 32:
        return "F16"
    return "Q8_0" if name == ("token_embd.weight" if tied else "output.weight") else _KINDS[dtype]


def _add(writer: GGUFWriter, key: str, value: Value | list[Any] | bytes) -> None:
    match value:
        case str():
            writer.add_string(key, value)
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case _ if value:
            writer.add_array(key, value)


def _add_info(writer: GGUFWriter, name: str, shape: tuple[int, ...], kind: GGMLQuantizationType) -> None:
    import numpy as np
    from gguf.quants import quant_shape_to_byte_shape

    stored = quant_shape_to_byte_shape(shape, kind)
    writer.add_tensor_info(name, stored, np.dtype(np.uint8), int(np.prod(stored)), raw_dtype=kind)


def _encoded(name: str, tensor: Tensor, kind: GGMLQuantizationType) -> Any:
    """The bytes of a tensor in a type, as an array of them."""
    from gguf.quants import quantize

    tensor = tensor.detach().cpu()
    if kind.name in ("F32", "F16", "BF16"):
        target = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[kind.name]
        cast = tensor.to(target).contiguous()
        if kind.name == "F16" and not cast.isfinite().all() and tensor.isfinite().all():
            raise ValueError(f"{name} holds numbers that fp16 cannot; write the file as bf16 or q8_0")
        return cast.view(torch.uint8).numpy()
    return quantize(tensor.float().contiguous().numpy(), kind)
