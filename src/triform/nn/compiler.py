"""Whether torch.compile is used."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable

from triform.config.files import cache_folder


def choose_compile(wanted: bool | str, device: str = "cpu", say: Callable[[str], None] | None = None, name: str = "train.compile") -> bool:
    """Whether to compile: as wanted, if there is a compiler; for auto, on an accelerator.

    On a CPU the model's own parts (`triform.nn.fused`, the native kernels) are about as fast, and need no minute of warming up. Where
    there is no compiler and one was wanted, `say` is told in a line that begins with the setting's `name`; None: standard error.
    """
    if wanted is False or (wanted == "auto" and device == "cpu"):
        return False
    lacking = _lacking(device)
    if lacking is not None and wanted is True:
        (say or tell)(f"{name}: there is no {lacking} here; the run goes on without compiling")
    return lacking is None


def keep_compiled() -> None:
    """Let what is compiled stay in the cache folder for the next run."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))


def tell(text: str) -> None:
    """Say a line on standard error."""
    print(text, file=sys.stderr, flush=True)


def _lacking(device: str) -> str | None:
    """What torch would need to compile for a device and does not find."""
    if device != "cpu":
        return None if importlib.util.find_spec("triton") else "Triton"
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception as error:  # torch has a kind of its own for it, which moves between versions
        return "C++ compiler" if "compiler" in f"{type(error).__name__} {error}".lower() else None
    return None
