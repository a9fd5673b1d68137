"""Inference as sizes: the first pass over the prompt, and a step that reads one token, with what a cache keeps between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from triform import config

from .passes import LOGITS, Pass, length_of
from .setting import Setting
from .tape import Parameter, Storage, Tape, Tensor


@dataclass
class Cache:
    """Keys and values between passes, as nn.cache keeps them: room for all tokens taken at once, windows that slide."""

    tape: Tape
    stack: config.Stack
    batch: int
    capacity: int
    past: int = 0
    new: int = 0
    kept: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def found(self, name: str) -> tuple[Tensor, Tensor] | None:
        """Those of a cross-attention after the first pass."""
        return self.kept.get(name) if ".cross." in name else None

    def append(self, name: str, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keep new ones; returns all that the queries may look at."""
        if ".cross." in name:
            self.kept[name] = self._moved(key, "cross_cache"), self._moved(value, "cross_cache")
            return key, value
        attention = self.stack.block(int(name.split(".")[2])).attention
        if attention.window is None:
            if name not in self.kept:
                self.kept[name] = self._room(key), self._room(value)
            held = self.kept[name]
            return self._view(held[0], self.past + self.new), self._view(held[1], self.past + self.new)
        return self._windowed(name, key, value, attention.window)

    def _windowed(self, name: str, key: Tensor, value: Tensor, window: int) -> tuple[Tensor, Tensor]:
        tape, per_token, there = self.tape, key.count // self.new, min(self.past, window - 1)
        if there:
            count = per_token * (there + self.new)
            key, value = tape.new(count, key.width), tape.new(count, value.width)
        kept = key, value
        first = there + self.new - (window - 1)
        if first > window:
            count = per_token * (window - 1)
            kept = tape.new(count, key.width), tape.new(count, value.width)
        self.kept[name] = self._moved(kept[0], "cache"), self._moved(kept[1], "cache")
        return key, value

    def _room(self, like: Tensor) -> Tensor:
        return self.tape.new(like.count // self.new * self.capacity, like.width, "cache")

    def _view(self, held: Tensor, tokens: int) -> Tensor:
        return Tensor(held.storage, held.count // self.capacity * tokens, held.width)

    @staticmethod
    def _moved(x: Tensor, part: str) -> Tensor:
        x.storage.move(part)
        return Tensor(x.storage, x.count, x.width)


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
        """The first pass and, where tokens are generated, the last step."""
        model, tape = self.model, self.tape
        if isinstance(model, config.DualEncoder) or model.decoder is None or not isinstance(model.head, config.LanguageModel):
            self._whole()
            return
        cache = Cache(tape, model.decoder, self.setting.batch, self.capacity)
        tape.ledger.moment = "prompt"
        scores = self._read(cache, self.prompt, self._memory())
        tape.ledger.moment = "last token"
        self._sampled(scores)
        cache.past = self.capacity - 1
        if cache.past >= self.prompt:
            scores = self._read(cache, 1, None, scores)
            self._sampled(scores)

    def _pass(self) -> Pass:
        return Pass(self.model, self.setting, self.tape, self.weights, training=False)

    def _whole(self) -> None:
        """One pass of a model that generates nothing, with all that its head gives."""
        self.tape.ledger.moment = "pass"
        self._pass().output()

    def _memory(self) -> Tensor | None:
        model = self.model
        assert isinstance(model, config.Transformer)
        if model.encoder is None:
            return None
        return self._pass().stack(model.encoder, "encoder", length_of(model.encoder, self.setting.sequence))

    def _read(self, cache: Cache, tokens: int, memory: Tensor | None, held: Tensor | None = None) -> Tensor:
        model, tape = self.model, self.tape
        assert isinstance(model, config.Transformer)
        assert model.decoder is not None
        cache.new = tokens
        one = self._pass()
        source = 0 if model.encoder is None else length_of(model.encoder, self.setting.sequence)
        hidden = one.stack(model.decoder, "decoder", tokens, memory, source, cache)
        last = one.vocabulary(Tensor(hidden.storage, hidden.count // tokens, hidden.width))
        del memory, held, hidden
        last.storage.move(LOGITS)
        tape.ledger.moment = "scores"
        return last

    def _sampled(self, scores: Tensor) -> None:
        """Scores in fp32 and the exponentials of their sum."""
        wide = self.tape.cast(scores, self.tape.wide)
        work: Storage = self.tape.hold(wide.count * wide.width, LOGITS)
        del work, wide
