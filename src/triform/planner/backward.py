"""Gradients as sizes: what the backward passes of products, activations, lookups and the loss make, and add in place.

Each takes a tape, the gradient that comes in and the operation's node, and gives a gradient, or None, for each of its inputs.
"""

from __future__ import annotations

from .tape import Node, Parameter, Storage, Tape, Tensor

ADDED = 1 << 20  # numbers that are added in another dtype at a time (see nn.products)


def linear_back(tape: Tape, grad: Tensor, node: Node, before: int, narrow: bool, packed: bool = False) -> list[Tensor | None]:
    """Gradients by x, weight and bias; the first two are made in the products' width and widened, but for the weight's where it is
    to stay narrow. `before`: inputs before the weight."""
    (to, count, width), (trained, size, wide), *bias = node.inputs[0], *node.inputs[before:]
    matrix = tape.new(size, tape.compute) if tape.compute < wide or packed else None
    by_x = None if to is None else tape.new(count, tape.compute)
    del matrix
    by_weight = None if trained is None else tape.new(size, tape.compute)
    by_weight = by_weight if by_weight is None or narrow or tape.compute == wide else tape.new(size, wide)
    by_bias = [None if to is None else tape.new(number, each) for to, number, each in bias]
    if by_x is not None and width != tape.compute:
        by_x = tape.new(count, width)
    return [by_x, by_weight, *by_bias]


def inner_back(tape: Tape, grad: Tensor, node: Node, before: int, narrow: bool) -> list[Tensor | None]:
    """The same behind an activation, which is made again, and its product with what is gated."""
    _, count, width = node.inputs[0]
    h, by_left = tape.new(count, width), tape.new(count, width)
    by_h, *rest = linear_back(tape, grad, node, before, narrow)
    del h
    return [by_left, by_h, *rest] if before == 2 else [by_left, *rest]


def addcmul_back(tape: Tape, grad: Tensor, node: Node) -> list[Tensor | None]:
    """To the term itself the gradient as it is, to the factor a new one."""
    return [grad, tape.new(grad.count, grad.width)]


def index_add_back(tape: Tape, grad: Tensor, node: Node) -> list[Tensor | None]:
    _, (_, count, width) = node.inputs
    return [grad, tape.new(count, width)]


def loss_back(tape: Tape, grad: Tensor, node: Node) -> list[Tensor | None]:
    """In the place of what was saved, or wider."""
    assert node.saved is not None
    out: list[Tensor | None] = []
    for (_, count, width), saved in zip(node.inputs, [*node.saved, None], strict=False):
        if isinstance(saved, Storage) and saved.size == count * width:
            out.append(Tensor(saved, count, width))
            continue
        out.append(tape.new(count, width))
    return out


def gathering_loss_back(tape: Tape, grad: Tensor, node: Node) -> list[Tensor | None]:
    """The same, but for the table's, which is added in place."""
    assert node.saved is not None
    (_, _, _), (table, count, width), *_ = node.inputs
    saved = node.saved[1]
    assert isinstance(saved, Storage)
    if isinstance(table, Parameter) and saved.size != count * width:
        if table.grad is None:
            tape.waiting[table] = saved
        else:
            tape.hold(width * min(count, ADDED))
    tape.gather(table, lambda: Tensor(saved, count, width))
    first = Node([], [], loss_back, 0, node.layer)
    first.inputs, first.saved = [node.inputs[0], *node.inputs[2:]], [node.saved[0]]
    by_hidden, *by_bias = loss_back(tape, grad, first)
    return [by_hidden, None, *by_bias]


def lookup_back(tape: Tape, grad: Tensor, node: Node) -> list[Tensor | None]:
    """A token table's gradient, which is added in place."""
    (table, count, width), *_ = node.inputs
    tape.gather(table, lambda: tape.new(count, width))
    return [None]
