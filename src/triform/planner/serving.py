"""Inference as sizes: what an encoder reads, passes over prompts, and a step that reads one token of all, over the slots of a cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from triform import config

from .activations import Piece
from .passes import LOGITS, Pass, length_of
from .setting import Rows, Setting
from .tape import Parameter, Tape, Tensor

CHUNK = 1024  # tokens of prompts, or of what an encoder reads, in a pass (see generate.batch)


@dataclass
class Slots:
    """Keys and values between passes, as generate.slots keeps them: room for all tokens of all requests, taken at once."""

    pieces: tuple[Piece, ...]
    kept: Mapping[str, tuple[Tensor, Tensor]]

    @classmethod
    def of(cls, stack: config.Stack, tape: Tape, rows: int, capacity: int, source: int) -> Slots:
        """So many rows, each with room for `capacity` tokens and for `source` that an encoder reads."""

        def room(attention: config.Attention, tokens: int, part: str) -> tuple[Tensor, Tensor]:
            count = rows * tokens * (attention.kv_heads or attention.heads) * stack.head_width(attention)
            return tape.new(count, tape.compute, part), tape.new(count, tape.compute, part)

        kept = {}
        for index in range(stack.depth):
            block, name = stack.block(index), f"decoder.layers.{index}"
            kept[f"{name}.attention.body"] = room(block.attention, capacity, "cache")
            if block.cross is not None:
                kept[f"{name}.cross.body"] = room(block.cross, source, "cross_cache")
        return cls((), kept)

    def found(self, name: str) -> tuple[Tensor, Tensor] | None:
        """Those of a cross-attention."""
        return self.kept[name] if ".cross." in name else None

    def append(self, name: str, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write new ones; returns the buffers."""
        return self.kept[name]


def prompt_passes(rows: int, length: int, chunk: int = CHUNK) -> list[tuple[Piece, ...]]:
    """The passes over prompts of one length that may hold most, as generate.scheduler plans them.

    In the first as many prompts are begun as a chunk has tokens for. One that does not fit goes on from where it was cut, beside
    whole ones, and later ones are cut after the quarter of a chunk that is read beside running requests; one that is longer than
    a chunk is last read with nearly all of its keys there.
    """
    whole, rest = divmod(chunk, length)
    if rows <= whole:
        return [(Piece(length),) * rows]
    first = (Piece(length),) * whole + (Piece(rest),) * (rest > 0)
    if whole == 0:
        tokens = chunk if rows > 1 or length % chunk == 0 else length % chunk
        passes = [first, (Piece(tokens, length - tokens),)]
        if rows == 1 and length >= 2 * chunk:
            passes.append((Piece(chunk, length - tokens - chunk),))
        return passes

    def goes_on(cut: int, waiting: int) -> tuple[Piece, ...]:
        return (Piece(length - cut, cut), *(Piece(length),) * min((chunk - (length - cut)) // length, waiting - 1))

    passes, waiting = [first], rows - whole
    passes += [goes_on(rest, waiting)] if rest else []
    waiting -= len(passes[-1])
    return [*passes, goes_on(chunk // 4, waiting)] if waiting > 0 and length > chunk // 4 else passes


@dataclass
class Inference:
    """What a model's passes without gradients hold. `setting` has the batch, the lengths of encoder and decoder, and rows."""

    model: config.Model
    setting: Setting
    tape: Tape
    weights: Mapping[str, Parameter]
    prompt: int
    capacity: int

    def run(self) -> None:
        """The passes over sources and prompts and, where tokens are generated, the last step."""
        model, batch = self.model, self.setting.batch
        if isinstance(model, config.DualEncoder) or model.decoder is None or not isinstance(model.head, config.LanguageModel):
            self.tape.ledger.moment = "pass"
            self._pass(self.setting).output()
            return
        stack = model.decoder
        source = 0 if model.encoder is None else length_of(model.encoder, self.setting.sequence)
        slots = Slots.of(stack, self.tape, batch, self.capacity, source)
        in_one_piece = any(block.attention.mask == "prefix" for block in stack.pattern)
        if source:
            self._encode(source, stack)
        else:
            for pieces in prompt_passes(batch, self.prompt, max(CHUNK, self.prompt) if in_one_piece else CHUNK):
                self._read(slots, pieces, source, "full")
        if self.capacity > self.prompt or source:
            at_once = batch * (source or self.prompt) <= CHUNK and self.setting.rows == "full"
            self._read(slots, (Piece(1, self.capacity - 1, batch),), source, "full" if at_once else "padded")

    def _pass(self, setting: Setting) -> Pass:
        return Pass(self.model, setting, self.tape, self.weights, training=False)

    def _encode(self, source: int, decoder: config.Stack) -> None:
        """Read as many sources as a chunk holds; every layer's keys and values of them are made, and copied to the slots."""
        model = self.model
        assert isinstance(model, config.Transformer)
        assert model.encoder is not None
        one = self._pass(replace(self.setting, batch=max(1, min(self.setting.batch, CHUNK // source))))
        memory, made = one.stack(model.encoder, "encoder", source), None
        for index in range(decoder.depth):
            cross = decoder.block(index).cross
            assert cross is not None
            made = one.modules.keys_and_values(memory, f"decoder.layers.{index}.cross.body", cross)
        del made

    def _read(self, slots: Slots, pieces: tuple[Piece, ...], source: int, rows: Rows) -> None:
        """A pass over tokens, and the scores of what follows the last of each piece."""
        model, tape = self.model, self.tape
        assert isinstance(model, config.Transformer)
        assert model.decoder is not None
        slots.pieces = pieces
        batch, tokens = (pieces[0].rows, pieces[0].tokens) if len(pieces) == 1 else (1, sum(piece.tokens for piece in pieces))
        one = self._pass(replace(self.setting, batch=batch, rows=rows))
        numbers = tape.hold(32 * batch * tokens)  # ids, slots, and positions twice
        hidden = one.stack(model.decoder, "decoder", tokens, None, source, slots)
        ends = hidden.count // (batch * tokens) * sum(piece.rows for piece in pieces)
        last = Tensor(hidden.storage, ends, hidden.width) if len(pieces) == 1 else tape.op(ends, hidden.width, (hidden,))
        scores = one.vocabulary(last)
        del hidden, last, numbers
        scores.storage.move(LOGITS)
        tape.ledger.moment = "scores"
        wide = tape.cast(scores, tape.wide)
        tape.hold(wide.count * wide.width, LOGITS)  # exponentials, of the logarithm of their sum
