"""What autograd holds, without torch: tensors that are only sizes, and a tape of operations to go back along.

A symbolic tensor lives exactly as long as torch's would: Python's reference counts stand for torch's, so code that has the
shape of a module's forward, local names included, holds and frees what that forward holds and frees.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

STAYS = 1 << 16  # bytes, from which a saved tensor is worth moving to another memory (see train.offload)


@dataclass
class Ledger:
    """Bytes alive, by part, now and at the peak, and the most that each part has had.

    `layers` is the part "activations" by layer. `moment` is what is going on; `peak_moment` what was at the peak.
    """

    now: int = 0
    peak: int = 0
    parts: dict[str, int] = field(default_factory=dict)
    layers: dict[str, int] = field(default_factory=dict)
    largest: dict[str, int] = field(default_factory=dict)
    at_peak: dict[str, int] = field(default_factory=dict)
    layers_at_peak: dict[str, int] = field(default_factory=dict)
    moment: str = ""
    peak_moment: str = ""

    def add(self, part: str, size: int) -> None:
        self.share(part, size)
        self.now += size
        if self.now > self.peak:
            self.peak, self.peak_moment = self.now, self.moment
            self.at_peak, self.layers_at_peak = self.parts.copy(), self.layers.copy()

    def share(self, part: str, size: int) -> None:
        """Count bytes under a part without changing how many there are."""
        found = self.parts[part] = self.parts.get(part, 0) + size
        if found > self.largest.get(part, 0):
            self.largest[part] = found


class Storage:
    """Bytes of one allocation, on the ledger until nothing refers to it. `layer` is that of the module which kept it."""

    __slots__ = ("layer", "ledger", "part", "size")

    def __init__(self, ledger: Ledger, part: str, size: int) -> None:
        self.ledger, self.part, self.size = ledger, part, size
        self.layer = ""
        ledger.add(part, size)

    def move(self, part: str, layer: str = "") -> None:
        """Count it under another part, and under a layer, from now on."""
        self.ledger.share(self.part, -self.size)
        self.ledger.share(part, self.size)
        self.part, self.layer = part, layer
        if layer:
            self.ledger.layers[layer] = self.ledger.layers.get(layer, 0) + self.size

    def __del__(self) -> None:
        self.ledger.now -= self.size
        self.ledger.parts[self.part] -= self.size
        if self.layer:
            self.ledger.layers[self.layer] -= self.size


class Tensor:
    """`count` elements of `width` bytes. `node` made it, if a gradient is wanted."""

    __slots__ = ("count", "node", "storage", "width")

    def __init__(self, storage: Storage, count: int, width: int, node: Node | Parameter | None = None) -> None:
        self.storage, self.count, self.width, self.node = storage, count, width, node


class Parameter:
    """A weight as a place where gradients end. `uses` are the operations of a pass whose gradients are still to come."""

    __slots__ = ("grad", "shape", "sum", "tensor", "uses")

    def __init__(self, storage: Storage, shape: tuple[int, ...], count: int, width: int) -> None:
        self.shape, self.uses = shape, 0
        self.tensor = Tensor(storage, count, width, self)
        self.sum: Tensor | None = None
        self.grad: Tensor | None = None


Back = Callable[["Tape", Tensor, "Node"], Sequence[Tensor | None]]


class Away(NamedTuple):
    """Bytes that wait elsewhere."""

    size: int


class Node:
    """An operation to go back through: what it saved, and where its gradients go."""

    __slots__ = ("back", "grad", "inputs", "layer", "saved", "scratch")

    def __init__(self, inputs: Sequence[Tensor], saved: Sequence[Storage | Away], back: Back, scratch: int, layer: str) -> None:
        self.inputs = [(i.node, i.count, i.width) for i in inputs]
        self.saved: Sequence[Storage | Away] | None = saved
        self.back, self.scratch, self.layer = back, scratch, layer
        self.grad: Tensor | None = None


def new_each(tape: Tape, grad: Tensor, node: Node) -> list[Tensor | None]:
    """A new gradient for each input that wants one, all made at once."""
    return [None if to is None else tape.new(count, width) for to, count, width in node.inputs]


def same_each(tape: Tape, grad: Tensor, node: Node) -> list[Tensor | None]:
    """The gradient itself for each input, cast or summed where the input is of another size (views, sums)."""
    out: list[Tensor | None] = []
    for to, count, width in node.inputs:
        fits = (count, width) == (grad.count, grad.width)
        out.append(None if to is None else grad if fits else tape.new(count, width))
    return out


def widest_each(tape: Tape, grad: Tensor, node: Node) -> list[Tensor | None]:
    """New gradients of the result's size, before those of broadcast inputs are summed."""
    return [None if to is None else tape.new(max(count, grad.count), width) for to, count, width in node.inputs]


Keep = Literal["none", "full", "selective"]


class Tape:
    """The operations of a pass, forward and back, on a ledger.

    `compute` is the width in bytes that autocast gives matrix products, `wide` that of what is never narrowed. While not
    `recording`, nothing is kept for a backward pass; with `offload` what is saved leaves the ledger until the backward pass comes to
    it, but for weights and what is small (see train.offload). What autograd saves is counted under "activations" and `layer`, the rest
    under the part `working`.
    """

    def __init__(self, ledger: Ledger, compute: int, recording: bool = True, offload: bool = False) -> None:
        self.ledger, self.compute, self.recording, self.offload = ledger, compute, recording, offload
        self.wide = 4
        self.layer, self.working = "", "temporary"
        self.nodes: list[Node] = []
        self.casts: dict[Parameter, Tensor] = {}
        self.waiting: dict[Parameter, Storage] = {}  # narrow gradients of tables, which are widened after the backward pass
        self._stash: list[Storage] | None = None
        self._replay: list[Storage] | None = None

    # Forward

    def hold(self, size: int, part: str = "") -> Storage:
        """Bytes without a gradient, for as long as the result is kept."""
        return Storage(self.ledger, part or self.working, size)

    def new(self, count: int, width: int, part: str = "") -> Tensor:
        """A tensor that no operation made."""
        return Tensor(Storage(self.ledger, part or self.working, count * width), count, width)

    def op(
        self, count: int, width: int, inputs: Sequence[Tensor], saves: Sequence[Tensor | Storage] = (), *,
        back: Back = new_each, work: tuple[int, int] = (0, 0), keeps_result: bool = False, extra: int = 0,
    ) -> Tensor:  # fmt: skip
        """A new tensor from an operation on inputs.

        saves: what its backward pass needs; keeps_result: its own result too. extra: bytes of further results that are saved.
        work: bytes that the operation, and its backward pass, take and give back.
        """
        out = self.new(count, width)
        if work[0]:
            self.hold(work[0])
        saved = [self.hold(extra)] if extra else []
        return self._record(out, inputs, [*saves, *saved, *((out,) if keeps_result else ())], back, work[1])

    def view(self, x: Tensor, count: int | None = None) -> Tensor:
        """The same memory."""
        out = Tensor(x.storage, x.count if count is None else count, x.width)
        return self._record(out, (x,), (), same_each, 0)

    def over(self, x: Tensor, y: Tensor, work: int = 0) -> Tensor:
        """x += y, in the place of x."""
        self.hold(work)
        return self._record(Tensor(x.storage, x.count, x.width), (x, y), (), same_each, 0)

    def split(self, x: Tensor, parts: int) -> list[Tensor]:
        """Equal views of x, whose gradients wait for each other and are then joined in a new tensor."""
        if not self.recording or x.node is None:
            return [Tensor(x.storage, x.count // parts, x.width) for _ in range(parts)]
        count, width, waiting = x.count, x.width, list[Tensor]()

        def joined(tape: Tape, grad: Tensor, node: Node) -> list[Tensor | None]:
            out = tape.new(count, width)
            waiting.clear()
            return [out]

        def wait(tape: Tape, grad: Tensor, node: Node) -> list[Tensor | None]:
            waiting.append(grad)
            whole.grad = grad
            return []

        whole = Node((x,), (), joined, 0, self.layer)
        if isinstance(x.node, Parameter):
            x.node.uses += 1
        self.nodes.append(whole)
        views = [self._record(Tensor(x.storage, x.count // parts, x.width), (x,), (), wait, 0) for _ in range(parts)]
        if isinstance(x.node, Parameter):
            x.node.uses -= parts
        return views

    def product(
        self, count: int, width: int, inputs: Sequence[Tensor], saves: Sequence[Tensor | Storage], extra: int = 0, back: Back = new_each
    ) -> Tensor:
        """An operation whose results selective recomputing keeps: a product with a weight, or the fused attention."""
        if self._replay:
            out = Tensor(self._replay.pop(0), count, width)
            rest = [self._replay.pop(0)] if extra else []
        else:
            out = self.new(count, width)
            rest = [self.hold(extra)] if extra else []
            if self._stash is not None:
                self._stash += [out.storage, *rest]
        fused = [out.storage, *rest] if extra else []
        return self._record(out, inputs, [*saves, *fused], back, 0)

    def cast(self, x: Tensor, width: int) -> Tensor:
        """x in another width; a parameter's narrower cast is remembered as autocast does until `forget_casts`."""
        if x.width == width:
            return x
        if not isinstance(x.node, Parameter) or width > x.width:
            out = self.op(x.count, width, (x,))
            if x.storage.part == "weights" and width < x.width:
                out.storage.move("casts")
            return out
        if x.node not in self.casts:
            out = self.op(x.count, width, (x,))
            out.storage.move("casts")
            self.casts[x.node] = out
        return self.casts[x.node]

    def forget_casts(self) -> None:
        """The end of autocast's context."""
        self.casts.clear()

    def _record(self, out: Tensor, inputs: Sequence[Tensor], saves: Sequence[Tensor | Storage], back: Back, scratch: int) -> Tensor:
        if not self.recording or all(i.node is None for i in inputs):
            return out
        saved: list[Storage | Away] = [s.storage if isinstance(s, Tensor) else s for s in saves]
        for place, storage in enumerate(saved):
            assert isinstance(storage, Storage)
            if self.offload and storage.part != "weights" and storage.size >= STAYS:
                saved[place] = Away(storage.size)
            elif storage.part == self.working:
                storage.move("activations", self.layer)
        for i in inputs:
            if isinstance(i.node, Parameter):
                i.node.uses += 1
        out.node = Node(inputs, saved, back, scratch, self.layer)
        self.nodes.append(out.node)
        return out

    def recomputed(self, keep: Keep, block: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """block(x), of which only x (and for `selective` the products) is kept; the block runs again in the backward pass."""
        if keep == "none" or not self.recording:
            return block(x)
        stash: list[Storage] | None = [] if keep == "selective" else None
        layer, self._stash, self.recording = self.layer, stash, False
        count, width, origin = x.count, x.width, x.node
        out = block(x)
        self._stash, self.recording = None, True
        if stash is not None:
            for storage in stash:
                storage.move("activations", layer)

        def back(tape: Tape, grad: Tensor, node: Node) -> list[Tensor | None]:
            outer, tape.nodes, tape._replay, tape.layer = tape.nodes, [], stash, layer
            tape.ledger.moment = f"second forward of {layer}"
            (kept,) = node.saved or ()
            assert isinstance(kept, Storage)
            tape.offload, offload = False, tape.offload  # the block goes back at once
            again = block(Tensor(kept, count, width, origin))
            tape._replay, tape.offload = None, offload
            tape.forget_casts()
            if isinstance(again.node, Node):
                again.node.grad = grad
            del again, grad
            tape.drain()
            tape.nodes = outer
            return []

        out = self._record(out, (x,), (x.storage,), back, 0)
        if out.node is None:  # x wants no gradient, but weights of the block may
            out.node = Node((x,), [x.storage], back, 0, layer)
            self.nodes.append(out.node)
        return out

    # Backward

    def backward(self, loss: Tensor) -> None:
        """Gradients of everything that `loss` was made from, into the parameters; what was saved is freed on the way."""
        assert isinstance(loss.node, Node)
        loss.node.grad = self.new(loss.count, loss.width)
        del loss
        self.drain()
        self.ledger.moment = "tables' gradients"
        while self.waiting:
            to, _narrow = self.waiting.popitem()
            if to.grad is None:
                to.grad = self.new(to.tensor.count, to.tensor.width, "gradients")

    def drain(self) -> None:
        """Go back through the operations, the latest first."""
        while self.nodes:
            node = self.nodes.pop()
            if node.grad is None:
                node.saved = None
                continue
            self._through(node)

    def _through(self, node: Node) -> None:
        grad, node.grad = node.grad, None
        assert grad is not None
        self.ledger.moment = f"backward of {node.layer}"
        scratch = self.hold(node.scratch) if node.scratch else None
        node.saved = [self.hold(s.size, "activations") if isinstance(s, Away) else s for s in node.saved or ()]
        holder = [grad]
        del grad
        out = list(node.back(self, holder.pop(), node))
        del scratch
        node.saved = None
        for place, (to, count, width) in enumerate(node.inputs):
            if place < len(out) and (grad := out[place]) is not None:
                out[place] = None
                if grad.count != count or (grad.width != width and not isinstance(to, Parameter)):
                    grad = self.new(count, width)
                self.send(to, grad)
                grad = None

    def gather(self, to: Node | Parameter | None, make: Callable[[], Tensor]) -> None:
        """A gradient that is added in place as it comes up, or begins there."""
        if isinstance(to, Parameter):
            if to.grad is None and to not in self.waiting:
                to.grad = make()
                to.grad.storage.move("gradients")
            to.uses -= 1

    def send(self, to: Node | Parameter | None, grad: Tensor) -> None:
        """A gradient to where it belongs, added to what is there already in its place."""
        if isinstance(to, Node):
            to.grad = to.grad or grad
        elif to is not None:
            to.sum = to.sum or grad
            to.uses -= 1
            if to.uses == 0:
                if to.grad is None:
                    to.grad = to.sum
                    to.grad.storage.move("gradients")
                to.sum = None
