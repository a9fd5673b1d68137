import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triform.data.cleaning import Normalize
from triform.data.normalize import Normalized, normalize

EVERYTHING = Normalize(unicode="NFKC", half_width=True)


@pytest.mark.parametrize(
    ("how", "text", "expected"),
    [
        (Normalize(), "cafe\u0301\r\n二\r三\ttab", "caf\u00e9\n二\n三\ttab"),
        (Normalize(unicode=None), "e\u0301", "e\u0301"),
        (Normalize(), "\ufeff曹\u200b操\x00\x1b\u202e\u00ad", "曹操"),
        (Normalize(control=False), "\ufeff曹\x00", "\ufeff曹\x00"),
        (Normalize(), "ＡＢ１２，！　", "ＡＢ１２，！　"),
        (Normalize(half_width=True), "Ａｚ１２，！　", "Az12，！ "),
        (Normalize(unicode="NFKC"), "Ａ，①", "A,1"),
        (Normalize(simplified=True), "漢字簡體，皇后與後來", "汉字简体，皇后与后来"),
        (Normalize(), "半\ud800", "半\ufffd"),
    ],
)
def test_texts_are_written_one_way(how, text, expected):
    assert normalize(text, how) == expected


@settings(max_examples=150, deadline=None)
@given(st.text(st.characters(codec=None)), st.sampled_from([Normalize(), EVERYTHING]))
def test_normalizing_twice_is_normalizing_once(text, how):
    once = normalize(text, how)
    assert normalize(once, how) == once
    assert unicodedata.is_normalized(how.unicode, once)
    assert not any(unicodedata.category(c) in ("Cc", "Cs") for c in once if c not in "\n\t")


def test_rows_keep_what_is_no_text():
    rows = Normalized([{"text": "Ａ", "n": 1, "title": "Ａ"}, {"text": None}], EVERYTHING, ("text",))
    assert list(rows) == list(rows) == [{"text": "A", "n": 1, "title": "Ａ"}, {"text": None}]


def test_a_missing_library_is_named(monkeypatch):
    import sys

    from triform.data.normalize import simplifier

    simplifier.cache_clear()
    monkeypatch.setitem(sys.modules, "opencc", None)
    with pytest.raises(ValueError, match=r'pip install "triform\[data\]"'):
        normalize("漢", Normalize(simplified=True))
