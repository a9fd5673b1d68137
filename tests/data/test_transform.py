"""Rows made of rows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triform.data.conversations import conversation, preference
from triform.data.transform import Transformed, pinyin, register_transform


def texts(rows: list[str], *names: str) -> list[dict[str, object]]:
    return [dict(row) for row in Transformed([{"text": text} for text in rows], names)]


def test_spaces_become_one_space_or_one_line_break() -> None:
    assert texts(["第一回\u3000桃园\t结义 \n\n  \n\t滚滚长江 "], "spaces") == [{"text": "第一回 桃园 结义\n滚滚长江"}]


def test_sentences_and_pinyin() -> None:
    rows = texts(["玄德曰：“善。”\n操笑。"], "spaces", "pinyin")
    assert rows == [
        {"source": "xuan de yue ：", "target": "玄德曰："},
        {"source": "“ shan 。 ”", "target": "“善。”"},
        {"source": "cao xiao 。", "target": "操笑。"},
    ]


@given(st.text(alphabet="玄德曰操笑，。！？；：“” \n\taB9𠀀😀", max_size=200))
def test_sentences_lose_nothing_but_white_space_and_pinyin_has_a_syllable_a_character(text: str) -> None:
    assert "".join("".join(str(row["text"]).split()) for row in texts([text], "sentences")) == "".join(text.split())
    for row in texts([text], "pinyin"):
        assert len(str(row["source"]).split(" ")) == len(str(row["target"]))


def test_rows_can_be_read_again_and_names_are_checked() -> None:
    rows = Transformed([{"text": "a  b"}], ["spaces"])
    assert list(rows) == list(rows) == [{"text": "a b"}]
    register_transform("twice", lambda row: [row, row])
    assert len(texts(["x"], "twice", "twice")) == 4
    with pytest.raises(ValueError, match=r"no transform is named 'pinjin'; there are .*pinyin"):
        texts(["x"], "pinjin")
    assert pinyin("长江ab") == ("chang", "jiang", "a", "b")


def test_idioms_are_asked_for_with_a_wrong_answer_beside_the_right_one() -> None:
    rows = list(Transformed([{"word": "一心一意", "pinyin": "yī xīn yī yì"}], ["idiom-questions"]))
    assert [conversation(row).messages[1]["content"] for row in rows] == ["yī xīn yī yì"]
    found = preference(rows[0])
    assert (found.prompt[0]["content"], found.rejected[0]["content"]) == ("成语“一心一意”怎么读？", "xīn yī yì yī")
