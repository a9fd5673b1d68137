"""Conversations as text and as token ids, by a tokenizer's chat template.

A special token that a message spells out is text, not a token: nobody ends a turn by writing <|im_end|>. To that end every control
token in the messages gets a noncharacter of Unicode (U+FDD0) after its first character before the template runs. So broken up it is
not found as a token; a normalizer then takes the mark out, and the letters are encoded like any others, in their context. Control
tokens are the special ones and, but for the assistant's messages, the other added tokens that the template itself writes
(<tool_call>). transformers reads them all as tokens, unless it is asked for `sanitize_control_tokens`; on texts without them the
ids are the same. The noncharacters U+FDD0 to U+FDD2 in a message become U+FFFD.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import tokenizers

from .formats import library
from .training import without_surrogates

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

_MARK, _BEGINS, _ENDS = "\ufdd0", "\ufdd1", "\ufdd2"
_MARKS = re.compile("[\ufdd0-\ufdd2]")
_ROLE = re.compile(r"[A-Za-z][\w-]{0,31}")
MOST_MESSAGES = 10_000


@dataclass(frozen=True)
class Rendered:
    """A conversation as text.

    text: what the template wrote. marked: the same with a mark in each control token that a message spelled out.
    assistant: the spans (start, end) of `marked` that the assistant wrote, by the template's {% generation %} blocks; None without any.
    """

    text: str
    marked: str
    assistant: list[tuple[int, int]] | None = None


@dataclass(frozen=True)
class EncodedChat:
    """Token ids of a conversation, and for each whether the assistant wrote it (None where the template does not say)."""

    ids: list[int]
    assistant: list[bool] | None = None


def render(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    *,
    generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
    variables: Mapping[str, Any] | None = None,
) -> Rendered:
    """Write a conversation as the tokenizer's chat template does ("tool_use" where there are tools and a template of that name).

    Raises ValueError, in one line, where there is no template, for messages that are none, and for a template that fails.
    """
    from . import template

    templates = tokenizer.chat_templates
    source = templates.get("tool_use" if tools and "tool_use" in templates else "default")
    if source is None:
        raise ValueError("this tokenizer has no chat template; set chat_template to one (Jinja), or use a model made for chat")
    checked = [_message(number, message) for number, message in enumerate(_messages(messages))]
    if not _reads_parts(source):
        checked = [message | _joined(message) for message in checked]
    special, others = _control(tokenizer, source)
    everything, assistants = _pattern(special | others), _pattern(special)
    given = {
        **{f"{role}_token": token for role, token in tokenizer.roles.items()},
        **_marked(_plain(dict(variables or {}), "variables"), everything),
        "messages": [_marked(message, assistants if message["role"] == "assistant" else everything) for message in checked],
        "tools": None if tools is None else _marked(_plain(list(tools), "tools"), everything),
        "add_generation_prompt": generation_prompt,
    }
    given.setdefault("documents", None)
    given["add_generation_prompt"] = generation_prompt
    written = template.render(source, given)
    marked, spans = _spans(written)
    return Rendered(marked.replace(_MARK, ""), marked, spans if "generation" in source and spans else None)


def encode(tokenizer: Tokenizer, rendered: Rendered) -> EncodedChat:
    """Token ids of a conversation. No frame is put around them: a template writes its own bos."""
    source = "\0".join(tokenizer.chat_templates.values())
    special, others = _control(tokenizer, source)
    backend = _reader(tokenizer, special | others)
    with library("the conversation cannot be encoded"):
        encoding = backend.encode(without_surrogates(rendered.marked), add_special_tokens=False)
    if rendered.assistant is None:
        return EncodedChat(encoding.ids)
    inside = [any(start <= at < end for start, end in rendered.assistant) for at, _ in encoding.offsets]
    return EncodedChat(encoding.ids, inside)


def encode_turns(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    after: int = 0,
    **variables: Any,
) -> EncodedChat:
    """A whole conversation, to train on, with the assistant's tokens told apart.

    They are what the template's {% generation %} blocks hold. Without such blocks they are what each assistant's message adds to
    the conversation before it with its generation prompt: the message and the token that ends its turn. after: only its messages after the
    first so many count. Raises ValueError where a template writes what stands before a message differently once others follow.
    """
    rendered = render(tokenizer, messages, generation_prompt=False, tools=tools, variables=variables)
    wrote = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    if rendered.assistant is not None:
        spans = rendered.assistant
        if after and len(spans) != len(wrote):
            raise ValueError(f"the chat template writes {len(spans)} {{% generation %}} blocks for {len(wrote)} messages of the assistant")
        spans = spans[len([number for number in wrote if number < after]) :]
    else:
        stops = _pattern_of(tokenizer.tokens(tokenizer.ends))
        spans = []
        for number in wrote:
            if number < after:
                continue
            before = render(tokenizer, messages[:number], generation_prompt=True, tools=tools, variables=variables).marked
            whole = render(tokenizer, messages[: number + 1], generation_prompt=False, tools=tools, variables=variables).marked
            spans.append((len(before), _end(rendered.marked, before, whole, stops)))
    return encode(tokenizer, Rendered(rendered.text, rendered.marked, spans))


def _pattern_of(tokens: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, tokens)) if tokens else "(?!)")


def _end(marked: str, before: str, whole: str, stops: re.Pattern[str]) -> int:
    """Where an assistant's turn ends in a conversation: after the token that ends it, which no message can spell out.

    before: the conversation up to the turn, whole: with it, where the template does not drop the thoughts of a turn once others
    follow. What it writes after that token, a line break, is nothing that the assistant says.
    """
    if marked.startswith(before):
        found = stops.search(marked, len(before))
        same = marked.startswith(whole) and whole.startswith(before)
        if found is not None and (found.end() <= len(whole) or not same):
            return found.end()
        if same:
            return len(whole)
    raise ValueError(
        "the chat template does not say which text is the assistant's: it writes a turn differently once others follow; "
        "put {% generation %} and {% endgeneration %} around what the assistant writes"
    )


def _messages(messages: Any) -> Sequence[Any]:
    if not isinstance(messages, (list, tuple)) or not messages:
        raise ValueError('expected a list of messages such as [{"role": "user", "content": "Hello"}]')
    if len(messages) > MOST_MESSAGES:
        raise ValueError(f"a conversation of {len(messages):,} messages; at most {MOST_MESSAGES:,} are written")
    return messages


def _message(number: int, message: Any) -> dict[str, Any]:
    name = f"message {number}"
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or not _ROLE.fullmatch(message["role"]):
        raise ValueError(f'{name} has no role; expected for example {{"role": "user", "content": "Hello"}}')
    content = message.get("content")
    if isinstance(content, (list, tuple)):
        for part in content:
            if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise ValueError(f'{name} has a part that is no text; expected {{"type": "text", "text": "…"}}')
    elif not isinstance(content, str) and not (content is None and len(message) > (2 if "content" in message else 1)):
        raise ValueError(f"{name} has no content; expected a text or a list of text parts")
    plain: dict[str, Any] = _plain(dict(message), name)
    return plain


def _joined(message: Mapping[str, Any]) -> dict[str, str]:
    content = message.get("content")
    return {"content": "".join(part["text"] for part in content)} if isinstance(content, list) else {}


def _plain(value: Any, name: str) -> Any:
    """The value as JSON has it, so that a template meets no object of ours."""
    try:
        return json.loads(json.dumps(value, default=dict))
    except (TypeError, ValueError, RecursionError):
        raise ValueError(f"{name}: expected plain data (texts, numbers, lists and mappings)") from None


@lru_cache(maxsize=32)
def _reads_parts(source: str) -> bool:
    """Whether a template goes through the parts of a message's content; others expect a text."""
    from jinja2 import nodes

    from . import template

    def names(node: nodes.Node) -> set[str]:
        kinds = {(nodes.Getattr, "attr"), (nodes.Name, "name")}
        found = {getattr(part, name) for kind, name in kinds for part in [node, *node.find_all(kind)] if isinstance(part, kind)}
        keys = [part.arg for part in [node, *node.find_all(nodes.Getitem)] if isinstance(part, nodes.Getitem)]
        return found | {key.value for key in keys if isinstance(key, nodes.Const)}

    return any("content" in names(loop.iter) for loop in template.parsed(source).find_all(nodes.For))


def _control(tokenizer: Tokenizer, source: str) -> tuple[frozenset[str], frozenset[str]]:
    """The special tokens, and the other added tokens that stand in the template."""
    added = tokenizer.backend.get_added_tokens_decoder().values()
    special = frozenset(token.content for token in added if token.special)
    return special, frozenset(token.content for token in added if token.content.strip() and token.content in source) - special


@lru_cache(maxsize=32)
def _pattern(tokens: frozenset[str]) -> re.Pattern[str]:
    longer = sorted((token for token in tokens if len(token) > 1), key=len, reverse=True)
    return re.compile(f"(?=({'|'.join(map(re.escape, longer))}))(.)", re.DOTALL) if longer else re.compile("(?!)")


def _marked(value: Any, pattern: re.Pattern[str]) -> Any:
    if isinstance(value, str):
        return pattern.sub(rf"\2{_MARK}", _MARKS.sub("\ufffd", value))
    if isinstance(value, dict):
        return {_marked(key, pattern): _marked(item, pattern) for key, item in value.items()}
    return [_marked(item, pattern) for item in value] if isinstance(value, list) else value


def _spans(written: str) -> tuple[str, list[tuple[int, int]]]:
    parts, spans, begins, at = [], [], [], 0
    for part in re.split(f"([{_BEGINS}{_ENDS}])", written):
        if part == _BEGINS:
            begins.append(at)
        elif part == _ENDS:
            if begins:
                spans.append((begins.pop(), at))
        else:
            parts.append(part)
            at += len(part)
    return "".join(parts), spans


_readers: WeakKeyDictionary[Tokenizer, tuple[frozenset[str], tokenizers.Tokenizer]] = WeakKeyDictionary()


def _reader(tokenizer: Tokenizer, control: frozenset[str]) -> tokenizers.Tokenizer:
    """The tokenizer with marks taken out of the text once its tokens have been found."""
    known = _readers.get(tokenizer)
    if known is not None and known[0] == control:
        return known[1]
    data = json.loads(tokenizer.backend.to_str())
    steps: list[Any] = [{"type": "Replace", "pattern": {"String": _MARK}, "content": ""}]
    if data.get("normalizer"):
        steps.append(data["normalizer"])
    data["normalizer"] = {"type": "Sequence", "normalizers": steps}
    for token in data["added_tokens"]:
        # else it would be looked for after the marks are gone
        token["normalized"] = token["normalized"] and token["content"] not in control
    reader = tokenizers.Tokenizer.from_str(json.dumps(data))
    _readers[tokenizer] = control, reader
    return reader
