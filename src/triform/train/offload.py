"""What a forward pass keeps for the backward pass, waiting in the processor's memory instead of the GPU's.

Each tensor that autograd saves is copied to pinned memory, and back when the backward pass comes to it. That frees the
activations' part of the GPU's memory for the time of two copies over the bus, most of which a large enough batch hides.
With `recompute: full` only the blocks' inputs are kept, and wait there.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

LEAST = 1 << 16  # bytes, below which a tensor stays: the copy would cost more than it frees


def check_offload(device: str) -> None:
    """Refuse a run that has no other memory to use."""
    if device == "cpu":
        raise ValueError(
            "train.offload: moves activations from a GPU to the processor's memory, and this run is on the processor, where there is "
            "nothing to move them to; leave it out, and set train.recompute=full to keep fewer"
        )


def offloading(wanted: bool, parameters: Iterable[nn.Parameter]) -> AbstractContextManager[Any]:
    """Passes that begin in this context keep what autograd saves in the processor's memory, but for the parameters themselves."""
    if not wanted:
        return nullcontext()
    resident = {parameter.untyped_storage().data_ptr() for parameter in parameters}

    def pack(x: Tensor) -> Any:
        small = x.numel() * x.element_size() < LEAST
        if small or type(x) not in (Tensor, nn.Parameter) or x.untyped_storage().data_ptr() in resident:
            return x
        return x.device, away(x)

    def unpack(packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        device, x = packed
        return back(x, device)

    return saved_tensors_hooks(pack, unpack)


def away(x: Tensor) -> Any:
    """A copy in the processor's memory, pinned so that the GPU need not wait for it."""
    copy = torch.empty_like(x, device="cpu", pin_memory=x.is_cuda)
    return copy.copy_(x, non_blocking=x.is_cuda)


def back(x: Any, device: torch.device) -> Tensor:
    """The copy on the device again."""
    found: Tensor = x.to(device, non_blocking=True)
    return found
