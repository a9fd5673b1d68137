"""Rows of the common shapes of fine-tuning data as conversations.

| shape | fields |
|---|---|
| messages | `messages`: a list of `{"role", "content"}` |
| ShareGPT | `conversations`: a list of `{"from", "value"}`, with `system` and `tools` beside it where they are |
| Alpaca | `instruction`, `input` (may be empty), `output`, with `system` and `history` (pairs) where they are |
| prompt and response | `prompt` (or `question`, `query`) and `response` (or `completion`, `answer`, `output`), texts or messages |
| preferences | any of these prompts with `chosen` and `rejected`: texts, messages, or whole conversations that begin alike |
| judged answers | a prompt with `completion` (or `response`, …) and `label`, true or false |

Lists may be written as JSON in a text, as they are in a table (CSV). Every function raises ValueError, in one line, that says what
is wrong with a row; `triform.data.rows` says where it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]
Messages = tuple[Message, ...]

_LISTS = ("messages", "conversations", "conversation")
_PROMPTS = ("prompt", "question", "query")
_ANSWERS = ("response", "completion", "answer", "output")
_ROLES = {
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model", "function_call"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function", "function_response", "ipython"), "tool"),
    "system": "system",
    "developer": "developer",
}
_MAY_BE_EMPTY = ("system", "tool")
_TRUTH = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True)
class Conversation:
    """messages: `{"role", "content"}` and what else a template reads; tools: what the assistant may call, or None."""

    messages: Messages
    tools: tuple[Mapping[str, Any], ...] | None = None


@dataclass(frozen=True)
class Preference:
    """A prompt with an answer that is preferred and one that is not; each answer is messages of the assistant, and of tools."""

    prompt: Messages
    chosen: Messages
    rejected: Messages
    tools: tuple[Mapping[str, Any], ...] | None = None


@dataclass(frozen=True)
class Judged:
    """A prompt with an answer, and whether it is a good one (Ethayarajh et al. 2024)."""

    prompt: Messages
    completion: Messages
    label: bool
    tools: tuple[Mapping[str, Any], ...] | None = None


def conversation(row: Mapping[str, Any]) -> Conversation:
    """A row as a conversation in which the assistant says something."""
    name = _first(row, _LISTS)
    if name is not None:
        found = [*_system(row), *_messages(row[name], name)]
    else:
        found = [*_prompt(row), *_answer(row)]
    messages = tuple(found)
    if all(message["role"] != "assistant" for message in messages):
        raise ValueError("the assistant says nothing in it; expected a message whose role is assistant")
    return Conversation(messages, _tools(row))


def prompt(row: Mapping[str, Any]) -> Conversation:
    """What is asked in a row, to be answered by a model; an answer after it (`output`, `response`, a last message) is left out."""
    name = _first(row, _LISTS)
    messages = [*_system(row), *_messages(row[name], name)] if name is not None else _prompt(row)
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    return Conversation(_asked(messages), _tools(row))


def preference(row: Mapping[str, Any]) -> Preference:
    """A row as two answers to one prompt. Without a prompt, `chosen` and `rejected` are whole conversations that begin alike."""
    chosen, rejected = (_ending(row, name) for name in ("chosen", "rejected"))
    if _first(row, (*_LISTS, *_PROMPTS, "instruction")) is None:
        alike = _alike(chosen, rejected)
        asked, chosen, rejected = chosen[:alike], chosen[alike:], rejected[alike:]
    else:
        asked = list(prompt(row).messages)
        chosen, rejected = (_after(asked, ending) for ending in (chosen, rejected))
    if chosen == rejected:
        raise ValueError("'chosen' and 'rejected' are the same; expected two different answers")
    endings = {name: _answered(ending, name) for name, ending in (("chosen", chosen), ("rejected", rejected))}
    return Preference(_asked(asked), endings["chosen"], endings["rejected"], _tools(row))


def judged(row: Mapping[str, Any]) -> Judged:
    """A row as an answer and its label, which is true or false (or 1 or 0)."""
    label = row.get("label")
    told = _TRUTH.get(str(label).strip().lower())
    if told is None:
        raise ValueError(f"expected true or false in 'label', {_got(label)}")
    name = _first(row, _LISTS)
    if name is None:
        asked = _prompt(row)
        return Judged(_asked(asked), _answered(_after(asked, _answer(row)), "completion"), told, _tools(row))
    messages = [*_system(row), *_messages(row[name], name)]
    start = len(messages)
    while start and messages[start - 1]["role"] == "assistant":
        start -= 1
    return Judged(_asked(messages[:start]), _answered(messages[start:], name), told, _tools(row))


def _first(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The first of the fields that is there."""
    return next((name for name in names if row.get(name) is not None), None)


def _got(value: Any) -> str:
    return "found none" if value is None else f"got {type(value).__name__} {str(value)[:40]!r}"


def _there(row: Mapping[str, Any]) -> str:
    return ", ".join(map(str, list(row)[:12])) or "nothing"


def _list(value: Any, name: str) -> list[Any]:
    """A list, or one that a text holds in JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError(f"expected a list in {name!r}, or one in JSON, {_got(value)}") from None
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f"expected a list with something in it in {name!r}, {_got(value)}")
    return list(value)


def _messages(value: Any, name: str) -> list[Message]:
    return [_message(one, f"message {number} of {name!r}") for number, one in enumerate(_list(value, name), 1)]


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: expected a role and a content, {_got(value)}")
    fields = {key: part for key, part in value.items() if part is not None}  # of a table of structures some have all keys
    written = fields.pop("role", fields.pop("from", None))
    role = _ROLES.get(written.strip().lower()) if isinstance(written, str) else None
    if role is None:
        told = "has no role" if written is None else f"has the unknown role {str(written)[:40]!r}"
        raise ValueError(f"{where} {told}; expected system, user, assistant or tool (or ShareGPT's human, gpt)")
    content = fields.pop("content", fields.pop("value", None))
    if content is None and fields.get("tool_calls"):
        return {"role": role, **fields}
    if not isinstance(content, (str, list)):
        raise ValueError(f"{where} ({role}): expected text as its content, {_got(content)}")
    if role not in _MAY_BE_EMPTY and not fields.get("tool_calls") and not _text(content).strip():
        raise ValueError(f"{where} ({role}) is empty; expected text")
    return {"role": role, "content": content, **fields}


def _text(content: str | list[Any]) -> str:
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))


def _system(row: Mapping[str, Any]) -> list[Message]:
    told = row.get("system")
    return [{"role": "system", "content": told}] if isinstance(told, str) and told.strip() else []


def _tools(row: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...] | None:
    if not row.get("tools"):
        return None
    found = _list(row["tools"], "tools")
    if not all(isinstance(tool, Mapping) for tool in found):
        raise ValueError(f"expected a list of mappings in 'tools', {_got(row['tools'])}")
    return tuple(found)


def _prompt(row: Mapping[str, Any]) -> list[Message]:
    """The messages before the answer, of a row in Alpaca's shape or with a prompt."""
    if row.get("instruction") is not None:
        return [*_system(row), *_history(row), _said(_instruction(row), "instruction", "user")]
    name = _first(row, _PROMPTS)
    if name is None:
        raise ValueError(
            "expected a conversation in 'messages' or 'conversations', in 'instruction' and 'output', or in 'prompt' and 'response', "
            f"found the fields {_there(row)}"
        )
    value = row[name]
    if isinstance(value, (list, tuple)):
        return [*_system(row), *_messages(value, name)]
    return [*_system(row), *_history(row), _said(value, name, "user")]


def _instruction(row: Mapping[str, Any]) -> Any:
    more = row.get("input")
    if more is not None and not isinstance(more, str):
        raise ValueError(f"expected text in 'input', {_got(more)}")
    told = row["instruction"]
    return f"{told}\n{more}" if more and isinstance(told, str) and told.strip() else told


def _history(row: Mapping[str, Any]) -> list[Message]:
    """Earlier questions and answers, pairs of texts."""
    found = []
    for pair in _list(row["history"], "history") if row.get("history") else ():
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise ValueError(f"expected pairs of a question and its answer in 'history', {_got(pair)}")
        found += [_said(pair[0], "history", "user"), _said(pair[1], "history", "assistant")]
    return found


def _answer(row: Mapping[str, Any]) -> list[Message]:
    name = _first(row, _ANSWERS)
    if name is None:
        raise ValueError(f"expected an answer in 'output', 'response', 'completion' or 'answer', found the fields {_there(row)}")
    return _turns(row[name], name)


def _ending(row: Mapping[str, Any], name: str) -> list[Message]:
    if row.get(name) is None:
        raise ValueError(f"expected an answer in {name!r}, found the fields {_there(row)}")
    return _turns(row[name], name)


def _turns(value: Any, name: str) -> list[Message]:
    """An answer: a text, a message, or messages."""
    if isinstance(value, Mapping):
        return [_message(value, repr(name))]
    return _messages(value, name) if isinstance(value, (list, tuple)) else [_said(value, name, "assistant")]


def _said(value: Any, name: str, role: str) -> Message:
    if not isinstance(value, str):
        raise ValueError(f"expected text in {name!r}, {_got(value)}")
    if not value.strip():
        raise ValueError(f"{name!r} is empty; expected text")
    return {"role": role, "content": value}


def _alike(first: list[Message], second: list[Message]) -> int:
    """How many messages two conversations begin with alike."""
    count = 0
    while count < min(len(first), len(second)) and first[count] == second[count]:
        count += 1
    return count


def _after(asked: list[Message], ending: list[Message]) -> list[Message]:
    """An ending without the prompt, where it is a whole conversation."""
    return ending[len(asked) :] if len(ending) > len(asked) and ending[: len(asked)] == asked else ending


def _asked(messages: Sequence[Message]) -> Messages:
    if not messages:
        raise ValueError("expected a prompt before the answer, found none")
    if messages[-1]["role"] == "assistant":
        raise ValueError("the prompt ends with the assistant's message; expected the user's")
    return tuple(messages)


def _answered(messages: Sequence[Message], name: str) -> Messages:
    if not messages or any(message["role"] not in ("assistant", "tool") for message in messages) or messages[-1]["role"] != "assistant":
        raise ValueError(f"expected messages of the assistant alone in {name!r}, found {', '.join(m['role'] for m in messages) or 'none'}")
    return tuple(messages)
