"""Calls of tools, found in text that comes in pieces."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triform.serve.requests import Tool, ToolCall
from triform.serve.tools import Dialect, ToolParser, call_of, schema

NAMES = ("weather", "clock")


def parsed(text: str, pieces: list[int], written: Dialect) -> tuple[str, list[tuple[str, Any]]]:
    """The plain text and the calls of a text that comes in pieces of these lengths."""
    parser = ToolParser(written, NAMES)
    found: list[str | ToolCall] = []
    at = 0
    for size in [*pieces, len(text)]:
        found += parser.push(text[at : at + size])
        at += size
    found += parser.finish()
    said = "".join(part for part in found if isinstance(part, str))
    return said, [(part.function.name, json.loads(part.function.arguments)) for part in found if isinstance(part, ToolCall)]


leaves = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=2), max_leaves=4)
calls = st.lists(st.tuples(st.sampled_from(NAMES), st.dictionaries(st.text(max_size=4), values, max_size=2)), max_size=3)
lengths = st.lists(st.integers(0, 7), max_size=20)


@given(calls, st.text(max_size=20).filter(lambda text: "<" not in text), lengths)
def test_calls_within_text(made: list[tuple[str, Any]], lead: str, pieces: list[int]) -> None:
    written = [json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False) for name, arguments in made]
    text = lead + "".join(f"<tool_call>\n{call}\n</tool_call>\n" for call in written)
    said, found = parsed(text, pieces, "hermes")
    assert found == made
    assert said.startswith(lead)
    assert said.strip() == lead.strip()


@given(st.text(alphabet="<>/_ltoca{}:,\" ", max_size=60), lengths, st.sampled_from(["hermes", "llama", "mistral"]))
def test_what_is_no_call_is_text_to_the_letter(text: str, pieces: list[int], written: Dialect) -> None:
    assert parsed(text, pieces, written) == (text, [])


@given(calls.filter(len), lengths)
def test_calls_alone(made: list[tuple[str, Any]], pieces: list[int]) -> None:
    llama = "; ".join(json.dumps({"name": name, "parameters": arguments}) for name, arguments in made)
    assert parsed(llama, pieces, "llama") == ("", made)
    mistral = json.dumps([{"name": name, "arguments": arguments} for name, arguments in made])
    assert parsed(mistral, pieces, "mistral") == ("", made)


@pytest.mark.parametrize(
    "data", [None, [], "weather", {}, {"name": "other", "arguments": {}}, {"name": ["weather"]}, {"name": "weather", "arguments": [1]}]
)
def test_what_calls_no_tool(data: Any) -> None:
    assert call_of(data, NAMES) is None


def test_a_schema_takes_its_definitions_along() -> None:
    parameters = {"type": "object", "properties": {"at": {"$ref": "#/$defs/place"}}, "$defs": {"place": {"enum": ["a"]}}}
    tools = [Tool.model_validate({"type": "function", "function": {"name": name, "parameters": parameters}}) for name in NAMES]
    found = schema(tools, "hermes")
    assert found["$defs"].keys() == {"weather.place", "clock.place"}
    assert found["anyOf"][1]["properties"]["arguments"]["properties"]["at"] == {"$ref": "#/$defs/clock.place"}
    assert schema(tools[:1], "mistral")["items"]["properties"]["name"] == {"const": "weather"}
