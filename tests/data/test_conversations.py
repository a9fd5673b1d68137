"""Rows of every common shape as conversations, and what is said of those that are none."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triform.data.conversations import conversation, judged, preference, prompt
from triform.data.sources import open_source

USER, ANSWER = {"role": "user", "content": "你好"}, {"role": "assistant", "content": "您好！"}
SYSTEM = {"role": "system", "content": "简短。"}
MORE = [{"role": "user", "content": "再见"}, {"role": "assistant", "content": "再会。"}]
CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": {}}}]}
TOLD = {"role": "tool", "content": ""}
SHAPES = {
    "messages": ({"messages": [USER, ANSWER]}, [USER, ANSWER]),
    "empty keys": ({"messages": [USER | {"tool_calls": None}, ANSWER], "instruction": None}, [USER, ANSWER]),
    "in JSON": ({"messages": json.dumps([USER, ANSWER])}, [USER, ANSWER]),
    "with a call": ({"messages": [USER, CALL, TOLD, ANSWER]}, [USER, CALL, TOLD, ANSWER]),
    "sharegpt": ({"conversations": [{"from": "human", "value": "你好"}, {"from": "gpt", "value": "您好！"}]}, [USER, ANSWER]),
    "sharegpt, told": ({"system": "简短。", "conversations": [{"from": "human", "value": "你好"}, {"from": "gpt", "value": "您好！"}]},
                       [SYSTEM, USER, ANSWER]),
    "sharegpt with roles": ({"conversations": [USER, {"from": "assistant", "value": "您好！"}]}, [USER, ANSWER]),
    "alpaca": ({"instruction": "你好", "input": "", "output": "您好！"}, [USER, ANSWER]),
    "alpaca, input": ({"instruction": "翻译：", "input": "hi", "output": "嗨"},
                      [{"role": "user", "content": "翻译：\nhi"}, {"role": "assistant", "content": "嗨"}]),
    "alpaca, history": ({"instruction": "再见", "output": "再会。", "history": [["你好", "您好！"]], "system": "简短。"},
                        [SYSTEM, USER, ANSWER, *MORE]),
    "prompt": ({"prompt": "你好", "response": "您好！", "language": "chinese"}, [USER, ANSWER]),
    "completion": ({"prompt": [SYSTEM, USER], "completion": [ANSWER]}, [SYSTEM, USER, ANSWER]),
    "question": ({"question": "你好", "answer": "您好！"}, [USER, ANSWER]),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name: str) -> None:
    row, expected = SHAPES[name]
    assert conversation(row).messages == tuple(expected)


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_every_kind_of_file_holds_them(kind: str, tmp_path: Path) -> None:
    """As a library writes them: in Parquet all structures of a list have the same keys, in a table lists are JSON."""
    rows = [{"messages": [USER, ANSWER]}, {"messages": [SYSTEM, USER | {"name": "张飞"}, ANSWER]}]
    file = tmp_path / f"talks.{kind}"
    if kind == "parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    elif kind == "csv":
        with file.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([["messages"], *([json.dumps(row["messages"])] for row in rows)])
    else:
        lines = [json.dumps(row) for row in rows]
        file.write_text("\n".join(lines) if kind == "jsonl" else f"[{','.join(lines)}]", "utf-8")
    assert [list(conversation(row).messages) for row in open_source(file, text=None)] == [row["messages"] for row in rows]


def test_tools_come_along_and_a_prompt_is_what_stands_before_the_answer() -> None:
    tools = [{"type": "function", "function": {"name": "weather"}}]
    assert conversation({"messages": [USER, ANSWER], "tools": json.dumps(tools)}).tools == tuple(tools)
    assert prompt({"messages": [SYSTEM, USER, ANSWER, *MORE]}).messages == (SYSTEM, USER, ANSWER, MORE[0])
    assert prompt({"instruction": "你好", "output": "您好！"}).messages == (USER,)
    assert prompt({"prompt": "27+58=", "answer": "85"}).messages == ({"role": "user", "content": "27+58="},)


OTHER = {"role": "assistant", "content": "嗯。"}
PREFERENCES = {
    "texts": {"prompt": "你好", "chosen": "您好！", "rejected": "嗯。"},
    "messages": {"prompt": [USER], "chosen": [ANSWER], "rejected": [OTHER]},
    "a message": {"conversations": [{"from": "human", "value": "你好"}], "chosen": {"from": "gpt", "value": "您好！"}, "rejected": OTHER},
    "alpaca": {"instruction": "你好", "input": "", "chosen": "您好！", "rejected": "嗯。"},
    "whole": {"prompt": "你好", "chosen": [USER, ANSWER], "rejected": [USER, OTHER]},
    "without a prompt": {"chosen": [USER, ANSWER], "rejected": [USER, OTHER]},
}


@pytest.mark.parametrize("name", PREFERENCES)
def test_preferences(name: str) -> None:
    found = preference(PREFERENCES[name])
    assert (found.prompt, found.chosen, found.rejected) == ((USER,), (ANSWER,), (OTHER,))


@pytest.mark.parametrize(("label", "told"), [(True, True), (0, False), ("true", True), ("False", False)])
def test_judged_answers(label: object, told: bool) -> None:
    for row in ({"prompt": "你好", "completion": "您好！"}, {"messages": [USER, ANSWER]}):
        found = judged({**row, "label": label})
        assert (found.prompt, found.completion, found.label) == ((USER,), (ANSWER,), told)


BAD = [
    (conversation, {"text": "a"}, "expected a conversation in 'messages'.*found the fields text"),
    (conversation, {"messages": []}, "expected a list with something in it in 'messages'"),
    (conversation, {"messages": "hello"}, "expected a list in 'messages', or one in JSON"),
    (conversation, {"messages": ["hello"]}, "message 1 of 'messages': expected a role and a content"),
    (conversation, {"messages": [USER, {"content": "x"}]}, "message 2 of 'messages' has no role"),
    (conversation, {"messages": [USER, {"role": "wizard", "content": "x"}]}, "message 2 of 'messages' has the unknown role 'wizard'"),
    (conversation, {"messages": [USER, {"role": "assistant", "content": " "}]}, r"message 2 of 'messages' \(assistant\) is empty"),
    (conversation, {"messages": [USER, {"role": "assistant"}]}, r"message 2 of 'messages' \(assistant\): expected text"),
    (conversation, {"messages": [USER]}, "the assistant says nothing"),
    (conversation, {"conversations": [{"from": "human", "value": 3}]}, "expected text as its content, got int '3'"),
    (conversation, {"instruction": "a", "input": "b"}, "expected an answer in 'output'"),
    (conversation, {"instruction": "a", "output": ""}, "'output' is empty"),
    (conversation, {"instruction": "", "input": "b", "output": "c"}, "'instruction' is empty"),
    (conversation, {"instruction": "a", "input": 3, "output": "c"}, "expected text in 'input'"),
    (conversation, {"instruction": "a", "output": "c", "history": [["x"]]}, "expected pairs of a question and its answer in 'history'"),
    (conversation, {"prompt": 3, "response": "c"}, "expected text in 'prompt', got int '3'"),
    (conversation, {"messages": [USER, ANSWER], "tools": ["x"]}, "expected a list of mappings in 'tools'"),
    (preference, {"prompt": "a", "chosen": "b"}, "expected an answer in 'rejected'"),
    (preference, {"prompt": "a", "chosen": "b", "rejected": "b"}, "are the same"),
    (preference, {"prompt": "a", "chosen": [USER], "rejected": "b"}, "expected messages of the assistant alone in 'chosen', found user"),
    (preference, {"chosen": "b", "rejected": "c"}, "expected a prompt before the answer"),
    (preference, {"prompt": [ANSWER], "chosen": "b", "rejected": "c"}, "expected a prompt before the answer"),
    (judged, {"prompt": "a", "completion": "b", "label": "perhaps"}, "expected true or false in 'label', got str 'perhaps'"),
    (judged, {"prompt": "a", "completion": "b"}, "expected true or false in 'label', found none"),
]


@pytest.mark.parametrize(("read", "row", "message"), BAD)
def test_what_is_wrong_is_one_line(read, row, message) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read(row)
    assert "\n" not in str(caught.value)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["user", "gpt", "你好\n"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "from", "tool_calls"]), inner),
    max_leaves=8,
)
_names = st.sampled_from(["messages", "conversations", "instruction", "input", "output", "prompt", "response", "chosen", "rejected"])


@given(row=st.dictionaries(_names, _json, max_size=4))
def test_any_row_is_read_or_refused_in_one_line(row) -> None:
    for read in (conversation, prompt, preference, judged):
        message = ""
        try:
            read(row)
        except ValueError as error:
            message = str(error)
        assert "\n" not in message
