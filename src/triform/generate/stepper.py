"""A decoder's pass in one native call: tokens of any slots through all layers.

Shapes: N tokens of a pass, R slots, H key-value heads, C capacity of a slot in tokens, W width of a head, V vocabulary.
"""

from __future__ import annotations

import ctypes
from ctypes import byref
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

import triform.kernels.native as structures
from triform import config
from triform.kernels import PackedEmbedding, PackedLinear, library
from triform.kernels.native import Native
from triform.nn import Transformer
from triform.nn.attention import Attention
from triform.nn.feedforward import FeedForward
from triform.nn.norm import RMSNorm
from triform.nn.position import InputPosition, rotation, sinusoids
from triform.nn.stack import Block, Stack

from .slots import Slots

_WIDEST_HEAD = 1024
_CACHES = {torch.float32: structures.F32, torch.bfloat16: structures.BF16}


class Stepper:
    """A prepared model's decoder as a native program. Make one with `Stepper.of`.

    The program refers to the model's weights where they are; it is good as long as the model stays as it was.
    """

    @classmethod
    def of(cls, model: Transformer) -> Stepper | None:
        """The program of a model that `prepare` has prepared; None where the native kernels have no form for it, or are not there.

        No form: experts, heads wider than 1,024, and linear layers that are not packed (with adapters, or not prepared).
        """
        native = library()
        return cls(model, native) if native is not None and covered(model) else None

    def __init__(self, model: Transformer, native: Native) -> None:
        self.model, self.native = model, native
        self._kept: list[Any] = []  # what the program points to
        self._length = 0  # places that the tables of positions have
        self._program: structures.Program | None = None
        self._pointers: WeakKeyDictionary[Slots, tuple[Any, ...]] = WeakKeyDictionary()
        self.grow(1)

    def step(self, tokens: Tensor, slots: Tensor, cache: Slots, wanted: Tensor | None = None) -> Tensor:
        """Read tokens (N,), each the next of its slot (N,); several of one slot follow each other in their order.

        Writes keys and values to the cache's buffers and leaves `lengths` alone. wanted: the rows whose scores are given, all when
        left out. Returns scores (N or len(wanted), V) in fp32. Raises ValueError for tokens, slots and places that are not there.
        """
        count = len(tokens)
        places = _places(slots, cache)
        self.grow(cache.capacity)
        wanted = torch.arange(count, dtype=torch.int32) if wanted is None else wanted.to(torch.int32).contiguous()
        tokens, slots = tokens.to(torch.int64).contiguous(), slots.to(torch.int64).contiguous()
        assert self._program is not None
        scores = torch.empty(len(wanted), self._program.head.rows)
        keys, values, cross_keys, cross_values = self._buffers(cache)
        batch = structures.Batch(
            tokens=tokens.data_ptr(), slots=slots.data_ptr(), places=places.data_ptr(), memory_lengths=cache.memory_lengths.data_ptr(),
            keys=keys, values=values, cross_keys=cross_keys, cross_values=cross_values, wanted=wanted.data_ptr(), scores=scores.data_ptr(),
            capacity=cache.capacity, source_capacity=cache.source_capacity if cache.crosses else 0, rows=count, wanted_rows=len(wanted),
            slot_count=cache.slots, cache_kind=_CACHES[cache.layers[0].key.dtype], threads=torch.get_num_threads(),
        )  # fmt: skip
        size = self.native.workspace(byref(self._program), byref(batch))
        room = torch.empty(max(size, 1), dtype=torch.uint8)
        batch.workspace, batch.workspace_bytes = room.data_ptr(), size
        self.native.done(self.native.step(byref(self._program), byref(batch)))
        return scores

    def grow(self, length: int) -> None:
        """Have tables of positions for at least so many places."""
        if length <= self._length:
            return
        self._length = length
        self._kept.clear()
        program = self._build()
        self.native.done(self.native.check(byref(program)))
        self._program = program

    def _buffers(self, cache: Slots) -> tuple[Any, ...]:
        found = self._pointers.get(cache)
        if found is None:
            if cache.layers[0].key.dtype not in _CACHES:
                raise ValueError(f"the native kernels keep keys and values in fp32 or bf16, not {cache.layers[0].key.dtype}")
            groups = [[layer.key for layer in cache.layers], [layer.value for layer in cache.layers],
                      [layer.key for layer in cache.crosses], [layer.value for layer in cache.crosses]]  # fmt: skip
            assert all(buffer.is_contiguous() for group in groups for buffer in group)
            found = tuple((ctypes.c_void_p * max(1, len(group)))(*(buffer.data_ptr() for buffer in group)) for group in groups)
            self._pointers[cache] = found
        return found

    # Modules to structures

    def _build(self) -> structures.Program:
        stack, head = self.model.decoder, self.model.head
        assert stack is not None
        assert isinstance(stack.spec.input, config.Tokens)
        spec, tokens, top = stack.spec, _any(stack.input), _any(head)
        table = self._position_table(tokens.position, spec.width)
        program = structures.Program(
            layers=(structures.Layer * spec.depth)(*(self._layer(stack, block) for block in stack.layers.values())),
            table=tokens.token.packed.matrix(), positions=self._pointer(table), places=0 if table is None else len(table),
            segment=self._pointer(None if tokens.segment is None else tokens.segment.weight[0]),
            input_norm=self._norm(tokens.norm), norm=self._norm(stack.norm), head_norm=self._norm(top.norm),
            head=self._matrix(top.table), embed_scale=stack.spec.input.scale, head_scale=top.spec.scale, depth=spec.depth, width=spec.width,
        )  # fmt: skip
        if top.dense is not None:
            program.dense, program.activation = self._matrix(top.dense), structures.ACTIVATIONS[top.spec.transform]
        return program

    def _layer(self, stack: Stack, block: Any) -> structures.Layer:
        sublayers: list[Any] = [block.attention, block.cross, block.feed_forward]
        body: Any = block.feed_forward.body
        return structures.Layer(
            self=self._attention(stack, block.attention.body, block.view),
            cross=structures.Attention() if block.cross is None else self._attention(stack, block.cross.body, None),
            gate=structures.Matrix() if body.gate is None else self._matrix(body.gate),
            up=self._matrix(body.up),
            down=self._matrix(body.down),
            norms=(structures.Norm * 3)(*(self._norm(s and s.norm) for s in sublayers)),
            norms_out=(structures.Norm * 3)(*(self._norm(s and s.norm_out) for s in sublayers)),
            placement=structures.PLACEMENTS[block.spec.placement], activation=structures.ACTIVATIONS[body.spec.activation],
        )  # fmt: skip

    def _attention(self, stack: Stack, body: Any, view: int | None) -> structures.Attention:
        spec: config.Attention = body.spec
        found = structures.Attention(
            query=self._matrix(body.query), out=self._matrix(body.out), query_norm=self._norm(body.query_norm),
            key_norm=self._norm(body.key_norm), heads=spec.heads, kv_heads=spec.kv_heads or spec.heads, head_width=body.head_width,
            window=spec.window or 0, scale=body.head_width**-0.5 if spec.scale is None else spec.scale,
        )  # fmt: skip
        if view is None:
            return found
        found.key, found.value = self._matrix(body.key), self._matrix(body.value)
        if isinstance(spec.position, config.Rotary):
            half = body.head_width // 2
            cosine, sine = rotation(spec.position, torch.arange(self._length)[None], body.head_width)
            found.cosines, found.sines = self._pointer(cosine[0, 0, :, half:]), self._pointer(sine[0, 0, :, half:])
            found.turns = self._length
        bias = stack.bias_of(view)
        if bias is not None:
            reach = min(self._length, spec.position.max_distance + 1) if isinstance(spec.position, config.Bucketed) else self._length
            found.bias, found.distances = self._pointer(bias(-torch.arange(reach)[None, None])[0, :, 0]), reach
        return found

    def _position_table(self, position: InputPosition | None, width: int) -> Tensor | None:
        if position is None:
            return None
        if isinstance(position.spec, config.Learned):
            return position.weight[position.spec.offset :].float().contiguous()
        return sinusoids(torch.arange(self._length), width, position.spec.base, position.spec.interleaved)

    def _matrix(self, linear: PackedLinear) -> structures.Matrix:
        return linear.packed.matrix(linear.bias)

    def _norm(self, norm: nn.Module | None) -> structures.Norm:
        if isinstance(norm, RMSNorm):
            weight = norm.weight.float() + 1 if norm.spec.unit_offset else norm.weight
            return structures.Norm(weight=self._pointer(weight), eps=norm.spec.eps, kind=structures.RMS_NORM)
        if isinstance(norm, nn.LayerNorm):
            return structures.Norm(
                weight=self._pointer(norm.weight), bias=self._pointer(norm.bias), eps=norm.eps, kind=structures.LAYER_NORM
            )
        return structures.Norm()

    def _pointer(self, tensor: Tensor | None) -> int | None:
        """The address of the numbers in fp32, which are kept alive; None for none."""
        if tensor is None:
            return None
        self._kept.append(tensor.detach().float().contiguous())
        address: int = self._kept[-1].data_ptr()
        return address


def _any(module: object) -> Any:
    """A module whose parts `covered` has seen to."""
    return module


def covered(model: Transformer) -> bool:
    """Whether a model's decoder and head can run as a native program."""
    stack = model.decoder
    if stack is None or not isinstance(getattr(stack.input, "token", None), PackedEmbedding):
        return False
    head: Any = model.head
    linears = [getattr(head, "table", None)]
    if getattr(head, "dense", None) is not None:
        linears.append(head.dense)
    for block in stack.layers.values():
        if not isinstance(block, Block) or not isinstance(block.feed_forward.body, FeedForward):
            return False
        bodies: list[Any] = [block.attention.body] + ([] if block.cross is None else [block.cross.body])
        if any(not isinstance(body, Attention) or body.head_width > _WIDEST_HEAD for body in bodies):
            return False
        linears += [getattr(body, name) for body in bodies for name in ("query", "key", "value", "out")]
        forward: Any = block.feed_forward.body
        linears += [forward.up, forward.down] + ([] if forward.gate is None else [forward.gate])
    return all(type(linear) is PackedLinear for linear in linears)


def _places(slots: Tensor, cache: Slots) -> Tensor:
    """Where each token goes in its slot, (N,)."""
    lengths, ahead = cache.lengths.tolist(), dict[int, int]()
    places = []
    for slot in slots.tolist():
        if not 0 <= slot < len(lengths):
            raise ValueError(f"slots: expected numbers below {len(lengths)}, got {slot}")
        places.append(lengths[slot] + ahead.get(slot, 0))
        ahead[slot] = ahead.get(slot, 0) + 1
    return torch.tensor(places, dtype=torch.int64)
