"""Conversations as token ids to train on, and what a model reads before it answers: with a chat template, and without one.

Without a template a prompt is a text and the answer goes on with it, as `triform generate` reads them; then only one message can be
answered, and there is no place for a system's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import chat
from .chat import EncodedChat
from .framing import opening, source

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]] | None


def encode_dialogue(tokenizer: Tokenizer, messages: Messages, *, tools: Tools = None, after: int = 0) -> EncodedChat:
    """A conversation for a decoder-only model: its ids, and for each whether the assistant wrote it.

    What the assistant wrote is what `chat.encode_turns` says, and the token that ends its turn, even where a template's {% generation %}
    blocks leave that out: a model that never learns it never stops. after: only the assistant's messages after so many count, the
    answers to a prompt of that many messages. Raises ValueError for what the template cannot write.
    """
    if tokenizer.chat_template is None:
        end = [] if tokenizer.eos is None else [tokenizer.eos]
        asked, answer = encode_prompt(tokenizer, messages[:-1]), _plain(tokenizer, messages[-1:], "assistant") + end
        return EncodedChat(asked + answer, [False] * len(asked) + [True] * len(answer))
    encoded = chat.encode_turns(tokenizer, messages, tools=tools, after=after)
    assert encoded.assistant is not None
    own, stops = encoded.assistant, set(tokenizer.ends)
    for at in range(1, len(own)):
        if own[at - 1] and not own[at] and encoded.ids[at] in stops and encoded.ids[at - 1] not in stops:
            own[at] = not _ended(encoded.ids, own, at, stops)
    return encoded


def _ended(ids: list[int], own: list[bool], at: int, stops: set[int]) -> bool:
    """Whether the assistant's tokens before a place hold one that ends its turn."""
    while at and own[at - 1]:
        at -= 1
        if ids[at] in stops:
            return True
    return False


def encode_exchange(tokenizer: Tokenizer, prompt: Messages, answer: str, *, tools: Tools = None) -> tuple[list[int], list[int]]:
    """A prompt and its answer for an encoder-decoder: what the encoder reads, and the answer's ids without what ends them."""
    return encode_prompt(tokenizer, prompt, tools=tools, encodes=True), tokenizer.encode(answer, plain=True)


def encode_prompt(tokenizer: Tokenizer, prompt: Messages, *, tools: Tools = None, encodes: bool = False) -> list[int]:
    """What a model reads before it answers. encodes: the encoder of an encoder-decoder reads it."""
    if tokenizer.chat_template is not None:
        return tokenizer.encode_chat(prompt, tools=tools)
    ids = _plain(tokenizer, prompt, "user")
    return source(tokenizer, ids) if encodes else [*opening(tokenizer), *ids]


def _plain(tokenizer: Tokenizer, messages: Messages, role: str) -> list[int]:
    """The ids of the one message that there is. Raises ValueError for anything else."""
    found = [message["role"] for message in messages]
    if found != [role]:
        raise ValueError(
            f"without a chat template a row is one prompt of the user and its answer, got {', '.join(found) or 'nothing'} as the "
            f"{'prompt' if role == 'user' else 'answer'}; set tokenizer.chat_template in the recipe"
        )
    content = messages[0].get("content")
    if not isinstance(content, str):
        raise ValueError("without a chat template a message is a text; set tokenizer.chat_template in the recipe")
    return tokenizer.encode(content, plain=True)
