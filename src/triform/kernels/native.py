"""The native library's functions and structures, as `source/api.h` has them."""

from __future__ import annotations

import ctypes
import sys
from ctypes import POINTER, Structure, c_char_p, c_float, c_int32, c_int64, c_void_p
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
        sizes = (c_int64 * 6)()
        self.sizes(sizes)
        if list(sizes) != [ctypes.sizeof(part) for part in (Matrix, Norm, Attention, Layer, Program, Batch)]:
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
        print(f"generation goes through torch alone: {error}", file=sys.stderr)
        return None
