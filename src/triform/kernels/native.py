"""The native library's functions and structures, as `source/api.h` has them."""

from __future__ import annotations

import ctypes
import sys
from ctypes import POINTER, Structure, c_char_p, c_double, c_float, c_int32, c_int64, c_void_p
from functools import cache
from typing import Any

from .build import library_path

NONE, F32, BF16, Q8, Q4 = range(5)
NO_NORM, LAYER_NORM, RMS_NORM = range(3)
PLACEMENTS = {"pre": 0, "post": 1, "sandwich": 2}
ACTIVATIONS = {"identity": 0, "relu": 1, "gelu": 2, "gelu_tanh": 3, "quick_gelu": 4, "silu": 5, "tanh": 6}


class Matrix(Structure):
    """A linear layer's packed weights and bias."""

    _fields_ = [
        ("data", c_void_p), ("bias", c_void_p), ("bytes", c_int64),
        ("kind", c_int32), ("rows", c_int32), ("columns", c_int32), ("reserved", c_int32),
    ]  # fmt: skip


class Norm(Structure):
    """A norm over a width."""

    _fields_ = [("weight", c_void_p), ("bias", c_void_p), ("eps", c_float), ("kind", c_int32)]


class Attention(Structure):
    """Self- or cross-attention of a layer; without heads: none."""

    _fields_ = [
        ("query", Matrix), ("key", Matrix), ("value", Matrix), ("out", Matrix), ("query_norm", Norm), ("key_norm", Norm),
        ("cosines", c_void_p), ("sines", c_void_p), ("bias", c_void_p), ("turns", c_int64), ("distances", c_int64),
        ("heads", c_int32), ("kv_heads", c_int32), ("head_width", c_int32), ("window", c_int32), ("scale", c_float), ("reserved", c_int32),
    ]  # fmt: skip


class Layer(Structure):
    """A block of the decoder."""

    _fields_ = [
        ("self", Attention), ("cross", Attention), ("gate", Matrix), ("up", Matrix), ("down", Matrix),
        ("norms", Norm * 3), ("norms_out", Norm * 3), ("placement", c_int32), ("activation", c_int32),
    ]  # fmt: skip


class Program(Structure):
    """A decoder and its head."""

    _fields_ = [
        ("layers", POINTER(Layer)), ("table", Matrix), ("positions", c_void_p), ("segment", c_void_p), ("places", c_int64),
        ("input_norm", Norm), ("norm", Norm), ("dense", Matrix), ("head", Matrix), ("head_norm", Norm),
        ("embed_scale", c_float), ("head_scale", c_float), ("depth", c_int32), ("width", c_int32), ("activation", c_int32),
        ("reserved", c_int32),
    ]  # fmt: skip


class Batch(Structure):
    """The tokens of one pass, and the cache that they read and write."""

    _fields_ = [
        ("tokens", c_void_p), ("slots", c_void_p), ("places", c_void_p), ("memory_lengths", c_void_p),
        ("keys", POINTER(c_void_p)), ("values", POINTER(c_void_p)), ("cross_keys", POINTER(c_void_p)), ("cross_values", POINTER(c_void_p)),
        ("wanted", c_void_p), ("scores", c_void_p), ("workspace", c_void_p), ("workspace_bytes", c_int64), ("capacity", c_int64),
        ("source_capacity", c_int64), ("rows", c_int32), ("wanted_rows", c_int32), ("slot_count", c_int32), ("cache_kind", c_int32),
        ("threads", c_int32), ("reserved", c_int32),
    ]  # fmt: skip


class NormRows(Structure):
    """Norms of rows, and their gradients where there is `gradient`."""

    _fields_ = [
        ("x", c_void_p), ("gradient", c_void_p), ("out", c_void_p), ("by_x", c_void_p), ("weight", c_void_p), ("bias", c_void_p),
        ("mean", c_void_p), ("inverse", c_void_p), ("by_weight", c_void_p), ("by_bias", c_void_p),
        ("rows", c_int32), ("width", c_int32), ("x_kind", c_int32), ("out_kind", c_int32), ("kind", c_int32),
        ("eps", c_float), ("offset", c_float), ("reserved", c_int32),
    ]  # fmt: skip


class Turn(Structure):
    """The rotation of heads."""

    _fields_ = [
        ("x", c_void_p), ("out", c_void_p), ("cosine", c_void_p), ("sine", c_void_p),
        ("x_strides", c_int64 * 3), ("out_strides", c_int64 * 3), ("turn_strides", c_int64 * 2),
        ("batch", c_int32), ("heads", c_int32), ("tokens", c_int32), ("width", c_int32), ("kind", c_int32), ("back", c_int32),
    ]  # fmt: skip


class Gate(Structure):
    """An activation times what is gated, and the gradients where there is `gradient`."""

    _fields_ = [
        ("left", c_void_p), ("right", c_void_p), ("gradient", c_void_p), ("out", c_void_p), ("by_left", c_void_p), ("by_right", c_void_p),
        ("count", c_int64), ("activation", c_int32), ("kind", c_int32),
    ]  # fmt: skip


class LossRows(Structure):
    """Cross-entropy of rows of scores, which their gradient takes the place of."""

    _fields_ = [
        ("scores", c_void_p), ("bias", c_void_p), ("labels", c_void_p), ("loss", c_void_p),
        ("rows", c_int32), ("width", c_int32), ("kind", c_int32), ("z_loss", c_float), ("smoothing", c_float), ("reserved", c_int32),
    ]  # fmt: skip


class AdamW(Structure):
    """A step of the optimizer over one tensor."""

    _fields_ = [
        ("gradient", c_void_p), ("values", c_void_p), ("mean", c_void_p), ("square", c_void_p), ("count", c_int64),
        ("rate", c_float), ("decay", c_float), ("beta1", c_float), ("beta2", c_float), ("eps", c_float),
        ("correction1", c_float), ("correction2", c_float), ("scale", c_float), ("kind", c_int32), ("reserved", c_int32),
    ]  # fmt: skip


class Attending(Structure):
    """Attention over whole sequences, and its gradients where there is `gradient`."""

    _fields_ = [
        ("query", c_void_p), ("key", c_void_p), ("value", c_void_p), ("mask", c_void_p), ("gradient", c_void_p), ("out", c_void_p),
        ("by_query", c_void_p), ("by_key", c_void_p), ("by_value", c_void_p), ("by_mask", c_void_p), ("room", c_void_p),
        ("room_bytes", c_int64), ("query_strides", c_int64 * 3), ("key_strides", c_int64 * 3), ("value_strides", c_int64 * 3),
        ("out_strides", c_int64 * 3), ("mask_strides", c_int64 * 3), ("batch", c_int32), ("heads", c_int32), ("groups", c_int32),
        ("queries", c_int32), ("keys", c_int32), ("width", c_int32), ("kind", c_int32), ("mask_kind", c_int32), ("causal", c_int32),
        ("scale", c_float),
    ]  # fmt: skip


_STRUCTURES = (Matrix, Norm, Attention, Layer, Program, Batch, NormRows, Turn, Gate, LossRows, AdamW, Attending)
_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "error": (c_char_p, []),
    "variant": (c_char_p, []),
    "use": (c_int32, [c_char_p]),
    "sizes": (None, [POINTER(c_int64)]),
    "panel_bytes": (c_int64, [c_int32, c_int32]),
    "check": (c_int32, [POINTER(Program)]),
    "workspace": (c_int64, [POINTER(Program), POINTER(Batch)]),
    "step": (c_int32, [POINTER(Program), POINTER(Batch)]),
    "product_workspace": (c_int64, [POINTER(Matrix), c_int64]),
    "product": (c_int32, [POINTER(Matrix), c_void_p, c_int64, c_void_p, c_void_p, c_int64, c_int32]),
    "rows": (c_int32, [POINTER(Matrix), c_void_p, c_int64, c_void_p, c_int32]),
    "read": (c_float, [c_void_p, c_int64, c_int32]),
    "norm": (c_int32, [POINTER(NormRows), c_int32]),
    "turn": (c_int32, [POINTER(Turn), c_int32]),
    "gate": (c_int32, [POINTER(Gate), c_int32]),
    "loss": (c_int32, [POINTER(LossRows), c_int32]),
    "attend_bytes": (c_int64, [POINTER(Attending)]),
    "attend": (c_int32, [POINTER(Attending), c_int32]),
    "adamw": (c_int32, [POINTER(AdamW), c_int32]),
    "squares": (c_double, [c_void_p, c_int32, c_int64, c_void_p, c_int32]),
}


class Native:
    """The loaded library. `Native.f(...)` calls its function `triform_f`; `done` turns a function's failure into a ValueError."""

    def __init__(self, path: str) -> None:
        import torch  # noqa: F401  its OpenMP has to be there first

        self.path = path
        handle = ctypes.CDLL(path)
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(handle, f"triform_{name}")
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)
        sizes = (c_int64 * len(_STRUCTURES))()
        self.sizes(sizes)
        if list(sizes) != [ctypes.sizeof(part) for part in _STRUCTURES]:
            raise ValueError(f"{path}: made from other source than this package's; delete it")

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)

    def done(self, failed: int) -> None:
        """Raise ValueError with the library's message if a call of it failed."""
        if failed:
            raise ValueError(self.error().decode(errors="replace"))


@cache
def library() -> Native | None:
    """The native library, compiled at first use; None, after a line on standard error, where that cannot be."""
    try:
        return Native(str(library_path()))
    except (ValueError, OSError) as error:
        print(f"generation and training go through torch alone: {error}", file=sys.stderr)
        return None
