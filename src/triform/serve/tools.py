"""Tools: how a chat template writes calls of them, and how such calls are found in what a model writes."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from triform.text import Tokenizer

from .requests import CalledFunction, Tool, ToolCall

# Hermes and Qwen: <tool_call>{"name": …, "arguments": {…}}</tool_call> within text. Llama 3.1: {"name": …, "parameters": {…}} alone.
# Mistral: a list of {"name": …, "arguments": {…}} alone, behind a special token that adds no text.
Dialect = Literal["hermes", "llama", "mistral"]
_OPENS, CLOSING = "<tool_call>", "</tool_call>"
_LIST = "[TOOL_CALLS]"


def dialect(tokenizer: Tokenizer) -> Dialect | None:
    """How a tokenizer's chat template has tools called; None where it knows none, or in a way that is not known here."""
    from jinja2 import nodes

    from triform.text import template

    source = tokenizer.chat_templates.get("tool_use") or tokenizer.chat_template
    if source is None or all(found.name != "tools" for found in template.parsed(source).find_all(nodes.Name)):
        return None
    if _OPENS in source:
        return "hermes"
    if _LIST in source:
        return "mistral"
    return "llama" if '"parameters"' in source or "'parameters'" in source else None


def opening(written: Dialect) -> str:
    """What stands before the JSON of a call."""
    return {"hermes": f"{_OPENS}\n", "mistral": _LIST, "llama": ""}[written]


def schema(tools: Sequence[Tool], written: Dialect) -> dict[str, Any]:
    """The JSON schema of a call of one of the tools."""
    definitions: dict[str, Any] = {}
    calls = []
    for tool in tools:
        name, given = tool.function.name, tool.function.parameters or {"type": "object"}
        own = {key: value for key, value in given.items() if key not in ("$defs", "definitions")}
        for key in ("$defs", "definitions"):
            for inner, value in (given.get(key) or {}).items():
                definitions[f"{name}.{inner}"] = _moved(value, name)
        arguments = "parameters" if written == "llama" else "arguments"
        properties = {"name": {"const": name}, arguments: _moved(own, name)}
        calls.append({"type": "object", "properties": properties, "required": ["name", arguments], "additionalProperties": False})
    found: dict[str, Any] = calls[0] if len(calls) == 1 else {"anyOf": calls}
    if written == "mistral":
        found = {"type": "array", "items": found, "minItems": 1, "maxItems": 1}
    return found | ({"$defs": definitions} if definitions else {})


def _moved(value: Any, name: str) -> Any:
    """A part of a tool's schema, its references leading to where its definitions now stand."""
    if isinstance(value, dict):
        return {
            key: re.sub(r"^#/(?:\$defs|definitions)/", f"#/$defs/{name}.", inner) if key == "$ref" and isinstance(inner, str)
            else _moved(inner, name)
            for key, inner in value.items()
        }  # fmt: skip
    return [_moved(item, name) for item in value] if isinstance(value, list) else value


def call_of(data: Any, names: Sequence[str]) -> ToolCall | None:
    """The call that JSON stands for; None for anything else, and for tools that are not there."""
    if not isinstance(data, dict) or data.get("name") not in names:
        return None
    arguments = data.get("arguments", data.get("parameters", {}))
    if isinstance(arguments, str):
        text = arguments
    elif isinstance(arguments, dict):
        text = json.dumps(arguments, ensure_ascii=False)
    else:
        return None
    return ToolCall(id=f"call_{uuid.uuid4().hex[:24]}", function=CalledFunction(name=data["name"], arguments=text))


@dataclass
class ToolParser:
    """Takes an answer's text as it comes, and gives its plain text and the calls in it.

    Text that may yet be the beginning of a call is held back. What looks like a call and is none is text.
    once: calls after the first are left out.
    """

    written: Dialect
    names: Sequence[str]
    once: bool = False
    called: int = field(default=0, init=False)
    _held: str = field(default="", init=False)
    _plain: bool = field(default=False, init=False)  # Llama and Mistral: the answer does not begin as a call does

    def push(self, piece: str) -> Iterator[str | ToolCall]:
        """What one more piece makes certain."""
        self._held += piece
        yield from self._hermes() if self.written == "hermes" else self._alone()

    def finish(self) -> Iterator[str | ToolCall]:
        """What is left at the end."""
        rest, self._held = self._held, ""
        calls = self._calls(rest) if self.written != "hermes" and not self._plain else []
        self.called += len(calls)
        yield from calls[: 1 if self.once else None] or ([rest] if rest else [])

    def _hermes(self) -> Iterator[str | ToolCall]:
        while True:
            at = self._held.find(_OPENS)
            if at < 0:
                keep = _overlap(self._held, _OPENS)
                text, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
                if text := self._between(text):
                    yield text
                return
            if text := self._between(self._held[:at]):
                yield text
            self._held = self._held[at:]
            end = self._held.find(CLOSING)
            if end < 0:
                return
            inside, whole = self._held[len(_OPENS) : end], self._held[: end + len(CLOSING)]
            self._held = self._held[end + len(CLOSING) :]
            call = call_of(_json(inside), self.names)
            if call is None:
                yield whole
            elif not (self.once and self.called):
                self.called += 1
                yield call

    def _between(self, text: str) -> str:
        """Text beside calls; the blank lines that part calls are none."""
        return "" if self.called and not text.strip() else text

    def _alone(self) -> Iterator[str | ToolCall]:
        begun = self._held.lstrip()
        if begun and not begun.startswith("[" if self.written == "mistral" else "{"):
            self._plain = True
        if self._plain and self._held:
            text, self._held = self._held, ""
            yield text

    def _calls(self, text: str) -> list[str | ToolCall]:
        """All calls of an answer that is nothing else, parted by semicolons or white space."""
        found: list[str | ToolCall] = []
        decoder = json.JSONDecoder()
        rest = text.strip()
        while rest:
            try:
                data, end = decoder.raw_decode(rest)
            except (ValueError, RecursionError):
                return []
            calls = [call_of(one, self.names) for one in (data if isinstance(data, list) else [data])]
            if None in calls:
                return []
            found += [call for call in calls if call is not None]
            rest = rest[end:].lstrip("; \n\t")
        return found


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _overlap(text: str, mark: str) -> int:
    """How many characters at the end of a text may begin a mark."""
    return next((size for size in range(min(len(mark) - 1, len(text)), 0, -1) if mark.startswith(text[-size:])), 0)
