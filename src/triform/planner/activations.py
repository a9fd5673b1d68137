"""A pass as sizes: what each module of `triform.nn` makes, saves for its backward pass and lets go.

Each function here has the shape of the forward of the module it stands for, so that its names live as long as they do there.

Sizes: B batch, T queries, S keys, D width, H heads, N tokens, E experts, K chosen experts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import NamedTuple, Protocol

from triform import config

from .backward import addcmul_back, index_add_back, inner_back, linear_back
from .setting import AttentionKernel, Device
from .tape import Back, Parameter, Storage, Tape, Tensor, same_each, widest_each

MOST_KEYS = 4096  # up to which the CPU trains attention by a kernel of its own (see nn.fused)
_INNER = ("relu", "gelu", "gelu_tanh", "silu")  # activations of nn.fused.inner
_GROUPS = 8  # experts are gone through one by one, or where there are more in so many groups, to answer at once


class Piece(NamedTuple):
    """Tokens of a pass over the slots of a cache: so many of each of neighbouring rows, which hold `past` others."""

    tokens: int
    past: int = 0
    rows: int = 1


class View(NamedTuple):
    """What attention may see: a mask (a byte wide: boolean, else scores to add), cosine and sine, or plainly causal."""

    mask: Tensor | None = None
    rotation: tuple[Storage, Storage] | None = None
    causal: bool = False
    parts: tuple[tuple[Piece, View], ...] = ()  # instead, of a pass over several requests


class Shape(NamedTuple):
    """B batch, H heads, T queries, S keys, W width of a head."""

    batch: int
    heads: int
    queries: int
    keys: int
    width: int

    @property
    def scores(self) -> int:
        return self.batch * self.heads * self.queries * self.keys


class Store(Protocol):
    """Keys and values kept between passes (see generate.slots); `pieces` say whose the tokens of a pass are."""

    pieces: tuple[Piece, ...]

    def found(self, name: str) -> tuple[Tensor, Tensor] | None:
        """Those of a cross-attention."""

    def append(self, name: str, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keep new ones; returns all that the queries may look at."""


@dataclass
class Modules:
    """The modules of a model on a tape. `weights` are by their full names; `training` as torch's modules have it."""

    tape: Tape
    weights: Mapping[str, Parameter]
    device: Device
    kernel: AttentionKernel = "sdpa"
    training: bool = True
    fp8: bool = False
    runs_again: bool = False  # in the backward pass
    narrow: bool = False  # gradients of layers' weights stay as wide as the products
    adapter_dropout: float = 0.0

    @property
    def fused(self) -> bool:
        """Whether the parts of nn.fused and nn.products are at work."""
        return self.device == "cpu" and self.training

    def linear(self, x: Tensor, name: str) -> Tensor:
        if self.fp8 and ".layers." in name:
            return self._linear_in_fp8(x, name)
        out = self._product(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))
        return self._adapted(x, out, name) if self.has_adapter(name) else out

    def has_adapter(self, name: str) -> bool:
        """Whether an adapter is on a layer."""
        return f"{name}.adapter.0.lora_a" in self.weights

    def _adapted(self, x: Tensor, out: Tensor, name: str) -> Tensor:
        """As nn.adapter.LowRank; the lengths of DoRA's rows are worked out from the whole matrix."""
        down, up, magnitude = (self.weights.get(f"{name}.adapter.0.{part}") for part in ("lora_a", "lora_b", "magnitude"))
        assert down is not None
        assert up is not None
        update = self._product(self.scaled(self._product(self.dropout(x, self.adapter_dropout), down)), up)
        if magnitude is None:
            return self.add(out, update)
        tape, bias, wide = self.tape, self.weights.get(f"{name}.bias"), self.tape.wide
        lengths = tape.hold(wide * down.shape[1] * up.shape[0])
        gain = tape.op(up.shape[0], wide, (magnitude.tensor,), extra=wide * up.shape[0])
        del lengths
        both = self.add(out if bias is None else self.add(out, bias.tensor), update)
        scaled = tape.op(both.count, wide, (both, gain), (both, gain), back=widest_each)
        del both
        return tape.cast(scaled if bias is None else self.add(scaled, bias.tensor), out.width)

    def _product(self, x: Tensor, weight: Parameter, bias: Parameter | None = None) -> Tensor:
        tape = self.tape
        packed = _is_packed(weight.tensor)
        if self.fused or packed:
            read = x if x.width == tape.compute else tape.new(x.count, tape.compute)
            saves = () if packed else (read,)
            back = partial(linear_back, before=1, narrow=self.narrow, packed=packed)
            layer = (weight.tensor, None if bias is None else bias.tensor)
            return self._narrowed(read, weight.shape, layer, (x,), saves, back)
        matrix = tape.cast(weight.tensor, tape.compute)
        x = tape.cast(x, tape.compute)
        inputs = [x, matrix] if bias is None else [x, matrix, tape.cast(bias.tensor, tape.compute)]
        return tape.product(x.count // weight.shape[1] * weight.shape[0], tape.compute, inputs, (x, matrix))

    def _linear_in_fp8(self, x: Tensor, name: str) -> Tensor:
        """As torchao's: the weight itself is saved and cast anew; both operands, and their scaled copies, live for a moment."""
        tape, weight, bias = self.tape, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias")
        x = tape.cast(x, tape.compute)
        narrow = tape.hold(x.count + weight.tensor.count)
        y = tape.product(x.count // weight.shape[1] * weight.shape[0], tape.compute, (x, weight.tensor), (x, weight.tensor))
        del narrow
        return y if bias is None else self.add(y, tape.cast(bias.tensor, tape.compute))

    def _narrowed(
        self, read: Tensor, shape: tuple[int, ...], layer: tuple[Tensor, Tensor | None], inputs: tuple[Tensor, ...],
        saves: tuple[Tensor, ...], back: Back,
    ) -> Tensor:  # fmt: skip
        """What a layer of this weight, of a `shape`, and bias makes of `read`; the weight is narrowed, or unpacked, for the moment only."""
        tape, (weight, bias) = self.tape, layer
        made = tape.compute < weight.width or _is_packed(weight)
        matrix = tape.new(weight.count, tape.compute, "casts") if made else None
        inputs = (*inputs, weight) if bias is None else (*inputs, weight, bias)
        out = tape.product(read.count // shape[1] * shape[0], tape.compute, inputs, saves, back=back)
        del matrix
        return out

    def norm(self, x: Tensor, name: str, spec: config.Norm | None, narrow: bool = False) -> Tensor:
        if spec is None:
            return x
        tape, weight = self.tape, self.weights[f"{name}.weight"].tensor
        rows = x.count // weight.count
        if self.fused:
            given, bias = tape.compute if narrow else x.width, self.weights.get(f"{name}.bias")
            inputs = (x, weight) if bias is None else (x, weight, bias.tensor)
            return tape.op(x.count, given, inputs, (x,), extra=(8 if isinstance(spec, config.LayerNorm) else 4) * rows)
        if isinstance(spec, config.LayerNorm):
            bias = self.weights.get(f"{name}.bias")
            x = x if self.device == "cpu" else tape.cast(x, tape.wide)
            return tape.op(x.count, x.width, (x, weight) if bias is None else (x, weight, bias.tensor), (x,), extra=8 * rows)
        wide = tape.cast(x, tape.wide)
        scale = tape.op(weight.count, tape.wide, (tape.cast(weight, tape.wide),)) if spec.unit_offset else tape.cast(weight, tape.wide)
        if self.device == "cuda":  # one kernel
            return tape.cast(tape.op(x.count, tape.wide, (wide, scale), (wide, scale), extra=4 * rows), x.width)
        mean = tape.op(rows, tape.wide, (tape.op(x.count, tape.wide, (wide,), (wide,), work=(0, 2 * tape.wide * x.count)),))
        inverse = tape.op(rows, tape.wide, (mean,), keeps_result=True)
        normed = tape.op(x.count, tape.wide, (wide, inverse), (wide, inverse), back=widest_each)
        return tape.cast(tape.op(x.count, tape.wide, (normed, scale), (normed, scale), back=widest_each), x.width)

    def dropout(self, x: Tensor, p: float) -> Tensor:
        tape = self.tape
        if not self.training or p == 0:
            return x
        if self.device == "cuda":
            return tape.op(x.count, x.width, (x,), extra=x.count)
        numbers = tape.hold(2 * x.count)
        kept = tape.hold(x.count)
        widened = x.count * x.width
        out = tape.op(x.count, x.width, (tape.op(x.count, x.width, (x,), (kept,), work=(widened, widened)),))
        del numbers
        return out

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        return self.tape.op(max(x.count, y.count), max(x.width, y.width), (x, y), back=same_each, work=(self.widened(x, y), 0))

    def widened(self, x: Tensor, y: Tensor) -> int:
        """Bytes of the copy that the CPU makes of the narrower of two operands."""
        narrow = x if x.width < y.width else y
        return narrow.count * max(x.width, y.width) if self.device == "cpu" and x.width != y.width else 0

    def scaled(self, x: Tensor, scale: float = 0.0) -> Tensor:
        """x times a number; nothing happens with 1."""
        return x if scale == 1.0 else self.tape.op(x.count, x.width, (x,))

    def activation(self, x: Tensor, name: config.Activation) -> Tensor:
        tape = self.tape
        if name == "quick_gelu":
            gate = tape.op(x.count, x.width, (self.scaled(x),), keeps_result=True)
            return tape.op(x.count, x.width, (x, gate), (x, gate))
        if name in ("relu", "tanh"):
            return tape.op(x.count, x.width, (x,), keeps_result=True)
        return tape.op(x.count, x.width, (x,), (x,))

    # Attention

    def attention(
        self, x: Tensor, name: str, spec: config.Attention, shape: Shape, view: View, memory: Tensor | None = None,
        store: Store | None = None,
    ) -> Tensor:  # fmt: skip
        query = self.norm(self.linear(x, f"{name}.query"), f"{name}.query_norm", spec.qk_norm)
        if view.rotation is not None:
            query = self.rotate(query, view.rotation)
        kept = None if store is None else store.found(name)
        if kept is None:
            key, value = self.keys_and_values(x if memory is None else memory, name, spec)
            if view.rotation is not None:
                key = self.rotate(key, view.rotation)
            if store is not None:
                key, value = store.append(name, key, value)
        else:
            key, value = kept
        y = self.attend_parts(query, key, value, spec, view) if view.parts else self.attend(query, key, value, spec, shape, view)
        if view.parts:
            return self.linear(self.copied(y), f"{name}.out")
        if spec.qk_norm is not None and self.device == "cpu" and not self.training:
            y = self.copied(y)  # heads before tokens, as the norms leave the queries
        return self.linear(self.tape.cast(y, value.width), f"{name}.out")

    def keys_and_values(self, source: Tensor, name: str, spec: config.Attention) -> tuple[Tensor, Tensor]:
        return self.norm(self.linear(source, f"{name}.key"), f"{name}.key_norm", spec.qk_norm), self.linear(source, f"{name}.value")

    def rotate(self, x: Tensor, turn: tuple[Storage, Storage]) -> Tensor:
        tape = self.tape
        if self.fused:
            return tape.op(x.count, x.width, (x,), turn)
        wide = tape.cast(x, tape.wide)
        first = tape.op(x.count, tape.wide, (wide,), turn[:1])
        turned = tape.op(x.count, tape.wide, (first, tape.op(x.count, tape.wide, (wide,))), turn[1:], back=addcmul_back)
        del first
        return tape.cast(turned, x.width)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, spec: config.Attention, shape: Shape, view: View) -> Tensor:
        tape, mask, dropout = self.tape, view.mask, spec.dropout if self.training else 0.0
        boolean, on_cpu, width = mask is None or mask.width == 1, self.device == "cpu", tape.compute
        query, key, value = tape.cast(query, width), tape.cast(key, width), tape.cast(value, width)
        if self.fused and dropout == 0 and shape.keys <= MOST_KEYS:
            return self.native(query, key, value, mask)
        if mask is not None and boolean:
            mask = tape.new(mask.count, width)
        if self.kernel == "eager" or (on_cpu and (dropout > 0 or (mask is not None and mask.node is not None))):
            return self.eager(query, key, value, shape, view._replace(mask=mask), dropout)
        inputs = (query, key, value) if mask is None else (query, key, value, mask)
        return tape.product(query.count, width, inputs, inputs, extra=4 * shape.batch * shape.heads * shape.queries)

    def attend_parts(self, query: Tensor, key: Tensor, value: Tensor, spec: config.Attention, view: View) -> Tensor:
        """Each request's tokens for themselves, and the results joined."""
        total, made = sum(piece.tokens * piece.rows for piece, _ in view.parts), []
        for piece, part in view.parts:
            rows = Tensor(query.storage, query.count // total * piece.tokens * piece.rows, query.width)
            shape = Shape(piece.rows, spec.heads, piece.tokens, piece.past + piece.tokens, query.count // (total * spec.heads))
            made.append(self.attend(rows, key, value, spec, shape, part))
        return self.tape.op(query.count, query.width, made)

    def native(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """nn.fused.attention: neither scores nor probabilities are kept."""
        inputs = (query, key, value) if mask is None or mask.width == 1 else (query, key, value, mask)
        return self.tape.op(query.count, query.width, inputs, (query, key, value) if mask is None else (query, key, value, mask))

    def eager(self, query: Tensor, key: Tensor, value: Tensor, shape: Shape, view: View, dropout: float) -> Tensor:
        """Scores and probabilities in full, in fp32, as torch's own unfused attention makes them."""
        tape, origin, mask = self.tape, query.width, view.mask
        query, key, value = tape.cast(query, tape.wide), tape.cast(key, tape.wide), tape.cast(value, tape.wide)
        repeated = shape.batch * shape.heads * shape.keys * shape.width
        causal = tape.hold(5 * shape.queries * shape.keys) if view.causal else None
        if key.count < repeated:
            key, value = tape.op(repeated, tape.wide, (key,)), tape.op(repeated, tape.wide, (value,))
        query, key = self.copied(self.scaled(query)), self.copied(self.scaled(key))
        attended = tape.op(shape.scores, tape.wide, (query, key), (query, key))
        if mask is not None:
            attended = tape.over(attended, mask, self.widened(attended, mask))
        attended = tape.op(shape.scores, tape.wide, (attended,), keeps_result=True)
        if dropout:
            attended = tape.op(shape.scores, tape.wide, (attended,), extra=shape.scores * (tape.wide if self.device == "cpu" else 1))
        again = None if origin == tape.wide else tape.hold(shape.scores * origin)  # a second result that is thrown away
        value = self.copied(value)
        out = tape.cast(tape.op(query.count, tape.wide, (attended, value), (attended, value)), origin)
        del attended, again, causal
        return self.copied(out)

    def copied(self, x: Tensor) -> Tensor:
        return self.tape.op(x.count, x.width, (x,), back=same_each)

    # Feed-forward

    def feed_forward(self, x: Tensor, name: str, spec: config.FeedForward) -> Tensor:
        down = self.weights[f"{name}.down.weight"]
        plain = not (self.has_adapter(f"{name}.down") or _is_packed(down.tensor))
        if plain and self.fused and not spec.dropout and not self.runs_again and spec.activation in _INNER:
            left = self.linear(x, f"{name}.gate" if spec.gated else f"{name}.up")
            inputs = (left, self.linear(x, f"{name}.up")) if spec.gated else (left,)
            h = self.tape.new(left.count, left.width)
            bias = self.weights.get(f"{name}.down.bias")
            layer = (down.tensor, None if bias is None else bias.tensor)
            return self._narrowed(h, down.shape, layer, inputs, inputs, partial(inner_back, before=len(inputs), narrow=self.narrow))
        left = self.linear(x, f"{name}.gate" if spec.gated else f"{name}.up")
        right = self.linear(x, f"{name}.up") if spec.gated else None
        if self.fused and spec.activation in _INNER:
            inputs = (left,) if right is None else (left, right)
            h = self.tape.op(left.count, left.width, inputs, inputs, work=(0, left.count * left.width))
        else:
            h = self.activation(left, spec.activation)
            if right is not None:
                h = self.tape.op(h.count, h.width, (h, right), (h, right))
        return self.linear(self.dropout(h, spec.dropout), f"{name}.down")

    def experts(self, x: Tensor, name: str, spec: config.Experts) -> tuple[Tensor, tuple[Tensor | Storage, ...]]:
        """Every expert is taken to get an equal share of the tokens."""
        tape, router = self.tape, self.weights[f"{name}.router.weight"].tensor
        tokens = x.count * spec.count // router.count
        slots = tokens * spec.top_k
        wide = tape.cast(x, tape.wide)
        logits = tape.op(tokens * spec.count, tape.wide, (wide, router), (wide, router))
        scores = tape.op(logits.count, tape.wide, (logits,), keeps_result=True)
        chosen = tape.hold(8 * slots)
        weights = tape.op(slots, tape.wide, (scores,), (chosen,))
        if spec.renormalize:
            total = tape.op(tokens, tape.wide, (weights,))
            weights = tape.op(slots, tape.wide, (weights, total), (weights, total), back=widest_each)
            del total
        kept = tape.hold(slots)
        if spec.capacity is not None and self.training:
            places = tape.hold(24 * tokens * spec.count)
            del places
        if spec.shared is None:
            y = tape.new(x.count, tape.wide)
        else:
            y = tape.cast(self.feed_forward(x, f"{name}.shared", spec.shared), tape.wide)
        y = self._dispatched(x, y, weights, name, spec)
        return tape.cast(y, x.width), (logits, scores, chosen, kept)

    def _dispatched(self, x: Tensor, y: Tensor, weights: Tensor, name: str, spec: config.Experts) -> Tensor:
        tape, slots = self.tape, weights.count
        width = self.weights[f"{name}.down"].shape[1]
        order, places = tape.hold(8 * slots), tape.hold(8 * slots)  # which slot and which token
        groups = min(spec.count, _GROUPS)
        names = ("up", "up_bias", "gate", "gate_bias", "down", "down_bias")
        tables = {key: self._unbound(self.weights[f"{name}.{key}"], groups) for key in names if f"{name}.{key}" in self.weights}
        rows = tape.op(slots * width, x.width, (x,), (places,))
        parts = []
        for group, part in enumerate(tape.split(rows, groups)):
            parts.append(self._expert({key: table[group] for key, table in tables.items()}, part, width, spec))
        del rows, part
        joined = tape.cast(tape.op(slots * width, parts[0].width, parts, back=same_each), tape.wide)
        weighted = tape.op(joined.count, tape.wide, (joined, weights), (joined, weights), back=widest_each)
        del joined
        out = tape.op(x.count, tape.wide, (y, weighted), (places, weighted), back=index_add_back)
        del order
        return out

    def _unbound(self, table: Parameter, groups: int) -> list[Tensor]:
        return self.tape.split(table.tensor, groups)

    def _expert(self, matrices: Mapping[str, Tensor], x: Tensor, width: int, spec: config.Experts) -> Tensor:
        tape, hidden = self.tape, spec.expert.hidden

        def linear(x: Tensor, name: str, inputs: int, outputs: int) -> Tensor:
            matrix, bias = matrices[name], matrices.get(f"{name}_bias")
            if self.fused and tape.compute < matrix.width:
                read = x if x.width == tape.compute else tape.new(x.count, tape.compute)
                back = partial(linear_back, before=1, narrow=False)
                return self._narrowed(read, (outputs, inputs), (matrix, bias), (x,), (read,), back)
            matrix, x = tape.cast(matrix, tape.compute), tape.cast(x, tape.compute)
            rest = [] if bias is None else [tape.cast(bias, tape.compute)]
            return tape.product(x.count // inputs * outputs, tape.compute, (x, matrix, *rest), (x, matrix))

        h = linear(x, "up", width, hidden)
        if "gate" in matrices:
            left = self.activation(linear(x, "gate", width, hidden), spec.expert.activation)
            h = tape.op(h.count, h.width, (left, h), (left, h))
            del left
        else:
            h = self.activation(h, spec.expert.activation)
        return linear(self.dropout(h, spec.expert.dropout), "down", hidden, width)


def _is_packed(weight: Tensor) -> bool:
    """Whether a weight is kept in fewer bits than it computes with."""
    return weight.storage.size < weight.count * weight.width


def weights(
    tape: Tape, shapes: Mapping[str, tuple[int, ...]], width: int, *, trained: Collection[str] | None = None,
    packed: Mapping[str, int] | None = None,
) -> dict[str, Parameter]:  # fmt: skip
    """Parameters of these shapes, `width` bytes a number, on the tape's ledger.

    trained: those that get gradients; None: all. packed: bytes of those that are kept in fewer bits.
    """
    found = {}
    for name, shape in shapes.items():
        count = prod(shape)
        found[name] = Parameter(tape.hold((packed or {}).get(name, count * width), "weights"), shape, count, width)
        if trained is not None and name not in trained:
            found[name].tensor.node = None
    return found


__all__ = ["MOST_KEYS", "Back", "Modules", "Piece", "Shape", "Store", "View", "weights"]
