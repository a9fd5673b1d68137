"""What a forward pass keeps for the backward pass, and what is worked out again there.

`none` keeps what autograd wants. `full` keeps each block's input and runs the block again
in the backward pass (Chen et al. 2016): a third more work. `selective` keeps, besides
the block's input, what its matrix products with weights gave and what torch's fused attention
kernel gave, and works out again all that lies between them: norms, rotations, activation
functions, dropout, casts, and the scores, probabilities and context of attention where none of
its kernels serves (what Korthikanti et al. 2022, section 5, recompute). That costs no product with
weights, so little time.

The gradients are equal to the last bit in all three.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

Recompute = Literal["none", "selective", "full"]



Context = Callable[[], AbstractContextManager[None]]


class _Choice(threading.local):
    how: Recompute = "none"
    inside = False
    again: Context | None = None


_choice = _Choice()
_aten = torch.ops.aten
_PRODUCTS = {_aten.mm.default, _aten.addmm.default, _aten._scaled_mm.default}
if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
    _PRODUCTS.add(torch.ops.mkldnn._linear_pointwise.default)
# Each with the place of its dropout among the arguments: with dropout it draws random numbers, so it must run again
# for the draws that follow it to be the same.
_ATTENTION = {
    _aten._scaled_dot_product_flash_attention_for_cpu.default: 3,
    _aten._scaled_dot_product_flash_attention.default: 3,
    _aten._scaled_dot_product_efficient_attention.default: 5,
    _aten._scaled_dot_product_cudnn_attention.default: 5,
}
Given = TypeVar("Given")


@contextmanager
def recomputing(how: Recompute, again: Context | None = None) -> Iterator[None]:
    """Passes of any model that begin in this context keep only so much for their backward pass, which may come after it.

    again: makes a context for what is worked out again, where the forward pass ran in one that autograd does not
    restore by itself, as it does autocast.
    """
    before = _choice.how, _choice.again
    _choice.how, _choice.again = how, again
    try:
        yield
    finally:
        _choice.how, _choice.again = before


def chosen() -> Recompute:
    """What `recomputing` says here; `none` where no gradients are wanted."""
    return _choice.how if torch.is_grad_enabled() else "none"


def inside() -> bool:
    """Whether what runs here is a block that is, or is to be, worked out again."""
    return _choice.inside


def _marked(block: Callable[..., Given], *args: Any) -> Given:
    before, _choice.inside = _choice.inside, True
    try:
        return block(*args)
    finally:
        _choice.inside = before


def call(how: Recompute, block: Callable[..., Given], *args: Any) -> Given:
    """block(*args), of which autograd keeps as much as `how` says. The block must change nothing outside itself."""
    if how == "none":
        return block(*args)
    more: dict[str, Any] = {"context_fn": partial(create_selective_checkpoint_contexts, _policy)} if how == "selective" else {}
    if _choice.again is not None:
        more = {"context_fn": partial(_contexts, more.get("context_fn"), _choice.again)}
    body = block if torch.compiler.is_compiling() else partial(_marked, block)
    result: Given = checkpoint(body, *args, use_reentrant=False, **more)
    return result


@contextmanager
def _both(outer: AbstractContextManager[Any], inner: AbstractContextManager[Any]) -> Iterator[None]:
    with outer, inner:
        yield


def _contexts(selective: Any, again: Context) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    first, second = (nullcontext(), nullcontext()) if selective is None else selective()
    return first, _both(again(), second)


def _policy(_: Any, operator: Any, *args: Any, **__: Any) -> CheckpointPolicy:
    place = _ATTENTION.get(operator)
    fused = place is not None and (len(args) <= place or args[place] == 0)
    return CheckpointPolicy.MUST_SAVE if fused or operator in _PRODUCTS else CheckpointPolicy.PREFER_RECOMPUTE
