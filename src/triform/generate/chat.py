"""A conversation with a model: its history, what the model reads of it, and the answer as it comes.

A model with a chat template reads the conversation as the template writes it. Of the others, an encoder-decoder answers each
message by itself, and a decoder-only model goes on with the text so far.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from triform.config.files import replacing
from triform.text import Tokenizer
from triform.text.framing import opening, source

from .content_filter import ContentFilter
from .engine import Engine
from .forms import Module
from .requests import FinishReason, Request
from .sampling import Sampling

Message = dict[str, str]
_LARGEST = 16 * 2**20  # bytes of a saved conversation


@dataclass(frozen=True)
class Reply:
    """An answer: its text, why it ended ("cancelled" where it was stopped), how many tokens it has and the seconds that it took.

    forgotten: messages at the beginning that no longer fit and were not read. refused: why a filter let the message or the answer not
    pass, None where it did; the text is empty then, and neither is kept.
    """

    text: str
    finish_reason: FinishReason
    tokens: int
    seconds: float
    forgotten: int = 0
    refused: str | None = None


@dataclass
class Chat:
    """A conversation. Close it, or use it in a `with` statement.

    messages: what was said, with the roles user and assistant; `system` is what the model is told before. guard: judges each message
    before the model reads it, and each answer, which then comes as a whole, before anybody does.
    """

    model: Module
    tokenizer: Tokenizer
    sampling: Sampling = field(default_factory=Sampling)
    system: str | None = None
    messages: list[Message] = field(default_factory=list)
    guard: ContentFilter | None = None

    def __post_init__(self) -> None:
        self._engine = Engine(self.model, self.tokenizer, slots=1)
        self._asked = 0  # so that an answer tried again draws other numbers
        if self.system is not None:
            self.tell(self.system)

    def close(self) -> None:
        """Stop the engine."""
        self._engine.close(drain=False)

    def __enter__(self) -> Chat:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def tell(self, system: str | None) -> None:
        """Set what the model is told before the conversation. Raises ValueError for a model that has no place for it."""
        if system and self.tokenizer.chat_template is None:
            raise ValueError("system: expected a model with a chat template, as only it has a place for it")
        self.system = system or None

    def ask(self, text: str, on_text: Callable[[str], None] | None = None) -> Reply:
        """Say something and hear the answer. An interrupt (KeyboardInterrupt) ends the answer, which is kept as far as it came.

        Raises ValueError for what the model cannot read; nothing is added to the history then.
        """
        if self.guard is not None and (found := self.guard(text)).flagged:
            return Reply("", "stop", 0, 0.0, refused=f"the message is judged {found.reason}")
        self.messages.append({"role": "user", "content": text})
        try:
            if self.guard is None:
                return self._answer(on_text)
            reply = self._answer(None)
        except BaseException:
            self.messages.pop()
            raise
        return self._judged(reply, self.guard, on_text)

    def _judged(self, reply: Reply, guard: ContentFilter, on_text: Callable[[str], None] | None) -> Reply:
        """An answer once a filter has let it pass; else what was asked and answered is taken back."""
        if (found := guard(reply.text)).flagged:
            self.undo()
            return replace(reply, text="", refused=f"the answer is judged {found.reason}")
        if on_text is not None:
            on_text(reply.text)
        return reply

    def retry(self, on_text: Callable[[str], None] | None = None) -> Reply:
        """Another answer to what was said last. Raises ValueError where nothing was."""
        before = list(self.messages)
        try:
            reply = self.ask(self.undo(), on_text)
        except BaseException:
            self.messages = before
            raise
        if reply.refused is not None:
            self.messages = before
        return reply

    def undo(self) -> str:
        """Take back what was said last and its answer; gives what was said. Raises ValueError where nothing was."""
        said = [number for number, message in enumerate(self.messages) if message["role"] == "user"]
        if not said:
            raise ValueError("nothing has been said yet")
        last = self.messages[said[-1]]["content"]
        del self.messages[said[-1] :]
        return last

    def reset(self) -> None:
        """Forget all that was said."""
        self.messages.clear()

    def save(self, file: Path) -> None:
        """Write the conversation as JSON."""
        data = {"system": self.system, "messages": self.messages}
        with replacing(file) as temporary:
            temporary.write_text(json.dumps(data, ensure_ascii=False, indent=2) + "\n", "utf-8")

    def load(self, file: Path) -> None:
        """Go on with a conversation that was saved. Raises ValueError for another file."""
        try:
            if file.stat().st_size > _LARGEST:
                raise ValueError("too large")
            data = json.loads(file.read_text("utf-8"))
            messages = [{"role": str(m["role"]), "content": m["content"]} for m in data["messages"]]
            system = data.get("system")
            good = all(isinstance(m["content"], str) and m["role"] in ("user", "assistant") for m in messages)
            if not good or not isinstance(system, str | None):
                raise ValueError("no conversation")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise ValueError(f"{file}: expected a conversation that /save wrote, in JSON") from None
        self.tell(system)
        self.messages = messages

    def set(self, setting: str) -> None:
        """Change a field of the sampling, told as `temperature=0.7`. Raises ValueError for one that there is not."""
        name, equals, written = (part.strip() for part in setting.partition("="))
        if not equals or name not in settings(self.sampling):
            raise ValueError(f"expected one of {', '.join(settings(self.sampling))}, such as temperature=0.7, got {setting!r}")
        try:
            value = json.loads(written)
        except ValueError:
            value = None if written.lower() == "none" else written
        if name == "stop":
            value = () if value is None else (str(value),)
        self.sampling = replace(self.sampling, **{name: value})

    def _answer(self, on_text: Callable[[str], None] | None) -> Reply:
        ids, forgotten = self._ids()
        sampling = self.sampling
        if isinstance(sampling.seed, int):
            sampling = replace(sampling, seed=sampling.seed + self._asked)
        self._asked += 1
        start = time.monotonic()
        ticket = None
        try:
            ticket = self._engine.submit(Request(ids=ids, sampling=sampling))
            for event in ticket:
                if event.text and on_text is not None:
                    on_text(event.text)
        except KeyboardInterrupt:
            if ticket is None:
                raise
            ticket.cancel()
        run = ticket.result()
        self.messages.append({"role": "assistant", "content": run.text})
        return Reply(run.text, run.finish_reason, len(run.ids), time.monotonic() - start, forgotten)

    def _ids(self) -> tuple[list[int], int]:
        """What the model reads, and how many messages at the beginning were left out, as there is no room for them."""
        slots = self._engine.batch.slots
        encodes = self.model.config.form == "encoder-decoder"
        most = slots.source_capacity if encodes else slots.capacity - min(self.sampling.max_new_tokens, slots.capacity // 2)
        if self.tokenizer.chat_template is None:
            return self._plain(encodes, most)
        told = [] if self.system is None else [{"role": "system", "content": self.system}]
        for first in self._turns():
            ids = self.tokenizer.encode_chat([*told, *self.messages[first:]])
            if len(ids) <= most:
                return ids, first
        raise ValueError(f"the message has {len(ids):,} tokens and there is room for {most:,}; shorten it")

    def _turns(self) -> Iterator[int]:
        """The numbers of the messages that a conversation may begin with."""
        return (number for number, message in enumerate(self.messages) if message["role"] == "user")

    def _plain(self, encodes: bool, most: int) -> tuple[list[int], int]:
        if encodes:
            ids = source(self.tokenizer, self.tokenizer.encode(self.messages[-1]["content"], plain=True))
            return ids, 0
        before = opening(self.tokenizer)
        ids = self.tokenizer.encode("".join(message["content"] for message in self.messages), plain=True)
        return [*before, *ids[-(most - len(before)) :]], 0


def settings(sampling: Sampling) -> dict[str, Any]:
    """The fields of a sampling that a conversation may change, with their values."""
    fixed = ("search", "constraint", "logit_bias", "bad_words", "top_log_probs")
    return {f.name: getattr(sampling, f.name) for f in fields(sampling) if f.name not in fixed}
