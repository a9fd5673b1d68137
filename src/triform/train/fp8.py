"""Linear layers whose products are taken in 8 bits, by torchao (Micikevicius et al. 2022).

Weights, gradients and the optimizer's states stay fp32 and keep their names, so a checkpoint is like any other; what is
not a product of a layer's matrix is done in bf16. Every product scales its operands anew to the range of the numbers
in it (e4m3 forward, e5m2 for gradients).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

CAPABILITY = (8, 9)  # the first GPUs that multiply in 8 bits: Ada and Hopper
_MULTIPLE = 16  # of a matrix's sides, as the kernels want


def check_fp8(device: str) -> None:
    """Refuse what cannot multiply in 8 bits."""
    capability = torch.cuda.get_device_capability() if device == "cuda" else None
    if capability is None or capability < CAPABILITY:
        here = "this run is on the processor" if capability is None else f"this one has {capability[0]}.{capability[1]}"
        raise ValueError(f"train.precision: fp8 needs an NVIDIA GPU of compute capability 8.9 or more, and {here}; choose bf16")
    _torchao()


def _torchao() -> Any:
    try:
        import torchao.float8
    except ImportError:
        raise ValueError('train.precision: fp8 needs torchao; pip install "triform[fp8]"') from None
    return torchao.float8


def to_fp8(model: nn.Module, *, emulate: bool = False) -> int:
    """Exchange the linear layers of a model's stacks for ones that multiply in 8 bits, in place; returns how many.

    emulate: round to 8 bits and multiply in the wider type, as any device can. Raises ValueError where no layer's sides are
    multiples of 16.
    """
    float8 = _torchao()
    wanted = {name for name, module in model.named_modules() if _fits(name, module)}
    if not wanted:
        raise ValueError(f"train.precision: fp8 needs layers whose sides are multiples of {_MULTIPLE}, and there are none; choose bf16")
    how = float8.Float8LinearConfig(pad_inner_dim=True, emulate=emulate)
    float8.convert_to_float8_training(model, module_filter_fn=lambda module, name: name in wanted, config=how)
    return len(wanted)


def _fits(name: str, module: nn.Module) -> bool:
    if type(module) is not nn.Linear or ".layers." not in name or name.endswith(".router"):
        return False
    return module.in_features % _MULTIPLE == 0 and module.out_features % _MULTIPLE == 0
