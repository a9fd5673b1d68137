"""How weights start: an explicit step, by role."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from triform import config

from .attention import Attention
from .embed import PatchInput, TokenInput
from .feedforward import Experts, FeedForward
from .heads import LanguageModel
from .norm import RMSNorm
from .position import BucketedBias, InputPosition
from .stack import Stack


class _Start:
    """Fills tensors in place from one generator, on the CPU so that every device starts alike."""

    def __init__(self, seed: int | None) -> None:
        self.generator = None if seed is None else torch.Generator().manual_seed(seed)

    def normal(self, tensor: Tensor, std: float) -> None:
        with torch.no_grad():
            tensor.copy_(torch.empty(tensor.shape, dtype=torch.float).normal_(0, std, generator=self.generator))

    def uniform(self, tensor: Tensor, bound: float) -> None:
        with torch.no_grad():
            tensor.copy_(torch.empty(tensor.shape, dtype=torch.float).uniform_(-bound, bound, generator=self.generator))


def initialize(model: nn.Module, init: config.Init, seed: int | None = None) -> None:
    """Give every parameter and buffer of a model its starting value, in place.

    The scheme is `config.Init`'s; `seed` None draws from torch's global generator.
    """
    start = _Start(seed)
    for module in model.modules():
        _plain(module, start, init)
    for stack in (m for m in model.modules() if isinstance(m, Stack)):
        writes = sum(2 + (stack.spec.block(i).cross is not None) for i in range(stack.spec.depth))
        for module in stack.modules():
            _by_role(module, start, init, stack.spec.width, writes)
    for head in (m for m in model.modules() if isinstance(m, LanguageModel) and m.weight is not None):
        assert head.weight is not None
        start.normal(head.weight, {"t5": 1.0, "normal": init.std, "xavier": head.weight.shape[1] ** -0.5}[init.scheme])


def _plain(module: nn.Module, start: _Start, init: config.Init) -> None:
    """Norms to one, biases to zero, matrices by the scheme where no role says otherwise."""
    if isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
    elif isinstance(module, RMSNorm):
        nn.init.constant_(module.weight, 0.0 if module.spec.unit_offset else 1.0)
    elif isinstance(module, nn.Linear):
        _matrix(module.weight, start, init)
    elif isinstance(module, nn.Conv2d):
        _matrix(module.weight.flatten(1), start, init)
    for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
        if name.endswith("bias"):
            nn.init.zeros_(tensor)
        elif name == "temperature":
            nn.init.constant_(tensor, math.log(1 / 0.07))  # CLIP's, Radford et al. 2021, section 2.5


def _matrix(weight: Tensor, start: _Start, init: config.Init) -> None:
    fan_out, fan_in = weight.shape[-2:]
    if init.scheme == "xavier":
        start.uniform(weight, math.sqrt(6 / (fan_in + fan_out)))
    else:
        start.normal(weight, fan_in**-0.5 if init.scheme == "t5" else init.std)


def _by_role(module: nn.Module, start: _Start, init: config.Init, width: int, writes: int) -> None:
    table_std = {"t5": 1.0, "normal": init.std, "xavier": width**-0.5}[init.scheme]
    if isinstance(module, TokenInput):
        start.normal(module.token.weight, table_std)
        if module.segment is not None:
            start.normal(module.segment.weight, table_std)
    elif isinstance(module, InputPosition) and isinstance(module.spec, config.Learned):
        start.normal(module.weight, table_std)
    elif isinstance(module, PatchInput):
        start.normal(module.first, table_std)
        start.normal(module.position, table_std)
    elif isinstance(module, BucketedBias):
        start.normal(module.weight, width**-0.5 if init.scheme == "t5" else init.std)
    elif isinstance(module, Experts):
        for matrix in (module.up, module.gate, module.down):
            if matrix is not None:
                _matrix(matrix, start, init)
    if init.scheme == "t5" and isinstance(module, Attention):
        start.normal(module.query.weight, (width * module.head_width) ** -0.5)
    if init.scheme == "normal" and init.scale_residuals:
        residual = _residual(module)
        if residual is not None:
            start.normal(residual, init.std / math.sqrt(writes))


def _residual(module: nn.Module) -> Tensor | None:
    """The matrix of a sublayer that writes to the residual stream."""
    if isinstance(module, Attention):
        return module.out.weight
    if isinstance(module, FeedForward):
        return module.down.weight
    return module.down if isinstance(module, Experts) else None
