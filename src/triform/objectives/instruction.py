"""Instruction tuning: conversations of which the assistant's part is learned (Ouyang et al. 2022).

Shapes: B batch, T tokens of a row, U of an encoder-decoder's answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from triform import config
from triform.config.spec import at_least, spec
from triform.data.conversations import Conversation, conversation
from triform.data.packing import pack
from triform.data.shards import Shards
from triform.nn import IGNORE
from triform.text.framing import decoder_start
from triform.text.turns import encode_dialogue, encode_exchange

from .base import Batch, Objective, Sample, Samples, need, need_language_model, packed, stack_rows, whole_rows
from .pairs import pair_batch

_PROBE = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})


@spec
class Instruction:
    """Conversations in any of the shapes of `triform.data.conversations`, detected row by row, cut to `length` tokens.

    target_length: for an encoder-decoder, whose encoder reads what stands before an answer and whose decoder learns the answer, of so
    many tokens at most; each answer of a conversation is a sample. Without it the model is decoder-only and learns all that the
    assistant says, the tokens that end its turns among them. packing: rows of `length` tokens hold several conversations, which
    never see each other; otherwise each has a row.
    """

    length: int = 512
    target_length: int | None = None
    packing: bool = True

    def __post_init__(self) -> None:
        at_least(self, 2, "length", "target_length")

    def longest(self) -> dict[str, tuple[str, int]]:
        """For each stack the field that decides on its longest row, and that row's tokens."""
        if self.target_length is None:
            return {"decoder": ("length", self.length)}
        return {"encoder": ("length", self.length), "decoder": ("target_length", self.target_length)}

    def texts(self, row: Mapping[str, Any]) -> list[str]:
        """What is said in a row. Raises ValueError for a row that is no conversation."""
        said = [message.get("content") for message in conversation(row).messages]
        return [text for text in said if isinstance(text, str)]


class InstructionObjective(Objective):
    """In: conversations, and which of their tokens the assistant wrote; for an encoder-decoder prompts and answers.

    Out: inputs (B, T), labels (B, T) one token ahead, IGNORE where somebody else wrote the next token, and the conversations'
    numbers (B, T) where a row holds several; for an encoder-decoder what `pair_batch` gives.
    """

    spec: Instruction
    chats = True

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Sequence[int]]]:
        """Columns "text" and "assistant" (1 where the assistant wrote a token), or "source" and "target"; what was cut before the
        assistant says anything is left out. Raises ValueError for a row that is no conversation, or that the template cannot write."""
        found = [conversation(row) for row in rows]
        if self.spec.target_length is not None:
            return [columns for each in found for columns in self._exchanges(each, self.spec.target_length)]
        return [columns for each in found for columns in self._dialogue(each)]

    def _dialogue(self, found: Conversation) -> Iterator[dict[str, Sequence[int]]]:
        encoded = encode_dialogue(self.tokenizer, found.messages, tools=found.tools)
        size = self.spec.length
        ids, own = encoded.ids[:size], encoded.assistant
        assert own is not None
        if any(own[1:size]):
            yield {"text": ids, "assistant": [int(one) for one in own[:size]]}

    def _exchanges(self, found: Conversation, most: int) -> Iterator[dict[str, Sequence[int]]]:
        chats = self.tokenizer.chat_template is not None
        for number, message in enumerate(found.messages):
            if message["role"] != "assistant":
                continue
            # without a template a model answers each message by itself, as `triform chat` has it do
            before = found.messages[:number] if chats else found.messages[max(0, number - 1) : number]
            if not isinstance(message.get("content"), str):
                raise ValueError(f"message {number + 1} (assistant) is no text; an encoder-decoder learns to write texts")
            asked, answer = encode_exchange(self.tokenizer, before, message["content"], tools=found.tools)
            # of a conversation the last turns are kept, of a plain text its beginning and what ends it
            cut = asked[-self.spec.length :] if chats else [*asked[: self.spec.length - 1], asked[-1]]
            yield {"source": asked if len(asked) <= self.spec.length else cut, "target": answer[: most - 1]}

    def sizes(self) -> dict[str, int]:
        names = ("text", "source", "target")
        return {**dict.fromkeys(names, self.tokenizer.vocab_size), "assistant": 2}

    def samples(self, shards: Shards) -> Samples:
        if self.spec.target_length is not None:
            return whole_rows(shards, "source", "target")
        lengths = np.asarray(np.diff(shards.column("text").offsets))
        bins = pack(lengths, self.spec.length) if self.spec.packing else None

        def get(index: int) -> Sample:
            return _joined([shards[int(number)] for number in ([index] if bins is None else bins[index])])

        return Samples(lengths if bins is None else bins.sums(lengths), get)

    def collate(self, samples: Sequence[Sample], seeds: Sequence[tuple[int, ...]]) -> Batch:
        if self.spec.target_length is not None:
            return pair_batch(self.tokenizer, [s["source"] for s in samples], [s["target"] for s in samples])
        inputs, mask = stack_rows([s["text"] for s in samples], self.tokenizer.pad or 0)
        labels, _ = stack_rows([s["labels"] for s in samples], IGNORE)
        return Batch(inputs, labels, mask, layout=packed([s["document"] for s in samples]))

    def example(self, sample: Sample) -> list[tuple[str, bool]] | None:
        """The first conversation of a sample as runs of text, and whether each is learned."""
        if self.spec.target_length is not None:
            end = [] if self.tokenizer.eos is None else [self.tokenizer.eos]
            parts = ((sample["source"], False), ([*sample["target"], *end], True))
            return [(self.tokenizer.decode(ids, skip_special=False), own) for ids, own in parts]
        first = sample["document"] == 0
        ids, own = sample["text"][first], np.concatenate(([False], sample["labels"][first][:-1] != IGNORE))
        bounds = [0, *(np.flatnonzero(np.diff(own)) + 1).tolist(), len(ids)]
        return [(self.tokenizer.decode(ids[start:stop], skip_special=False), bool(own[start])) for start, stop in pairwise(bounds)]

    def check(self, model: config.Model) -> None:
        encodes = self.spec.target_length is not None
        form = "encoder-decoder" if encodes else "decoder-only"
        found = need_language_model(model, f"Instruction {'with' if encodes else 'without'} target_length", form)
        need(self.tokenizer.eos is not None or bool(self.tokenizer.ends), "Instruction", "a tokenizer with an eos token", "one without")
        if encodes:
            need(self.tokenizer.eos is not None, "Instruction", "a tokenizer with an eos token, by which an answer ends", "one without")
            decoder_start(self.tokenizer)
            return
        masks = {block.attention.mask for block in found.last.pattern}
        need("bidirectional" not in masks, "Instruction", "attention whose mask is causal or prefix", "bidirectional")
        encoded = encode_dialogue(self.tokenizer, _PROBE)
        learned = {one for one, own in zip(encoded.ids, encoded.assistant or (), strict=True) if own}
        if not learned & set(self.tokenizer.ends):
            raise ValueError(
                "objective Instruction: expected a chat template that ends the assistant's turn with a token at which generation stops "
                f"({', '.join(self.tokenizer.tokens(self.tokenizer.ends))}), got one that does not; set tokenizer.chat_template"
            )


def _joined(parts: Sequence[Mapping[str, np.ndarray]]) -> Sample:
    """Conversations end to end, with their numbers: text, labels and document (tokens,)."""
    ids = np.concatenate([part["text"] for part in parts]).astype(np.int64)
    own = np.concatenate([part["assistant"] for part in parts]) == 1
    numbers = np.repeat(np.arange(len(parts)), [len(part["text"]) for part in parts])
    labels = np.full(len(ids), IGNORE, dtype=np.int64)
    follows = own[1:] & (np.diff(numbers) == 0)
    labels[:-1][follows] = ids[1:][follows]
    return {"text": ids, "labels": labels, "document": numbers}
