import random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from triform.data.cleaning import Clean, Deduplicate, Filter, Overlap, WeightedSource
from triform.data.filters import by_characters, by_lines, by_ngrams
from triform.data.ngrams import ngram_hashes, rolling, unit_hashes, units

HAN = "".join(map(chr, range(0x4E00, 0x4E00 + 3000)))


def han(n, seed=0):
    return "".join(random.Random(seed).choices(HAN, k=n))


def ngrams(text, **rules):
    found = units(text)
    return by_ngrams(found, unit_hashes(found), Filter(**rules))


@pytest.mark.parametrize(
    ("text", "rules", "reason"),
    [
        (" \n\t", {}, "empty"),
        ("九个字不够长的文字", {}, "too short"),
        ("九 个 字 不 够 长 的 文 字", {"min_length": 9}, None),
        ("文" * 11, {"max_length": 10}, "too long"),
        ("文" * 10, {"max_length": 10}, None),
        ("却说曹操引兵十万至此", {"script": "han"}, None),
        ("却说曹操 reads English all day", {"script": "han"}, "script"),
        ("却说曹操 reads English all day", {"script": "latin"}, None),
        ("却说曹操 reads English all day", {"script": "latin", "script_share": 0.95}, "script"),
        ("1234567890，。！", {"script": "han"}, "script"),
        ("却说曹操引兵十万至此★★", {}, "symbols"),
        ("却说曹操引兵十万至此★★", {"symbols": None}, None),
        ("却说曹操，引兵——十万！至此。", {}, None),
        ("👩‍🚀" * 5, {}, "symbols"),
    ],
)
def test_length_script_and_symbols(text, rules, reason):
    assert by_characters(text, Filter(**rules)) == reason


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["甲"] * 4 + ["乙乙乙乙乙乙乙乙乙乙乙乙乙乙乙乙乙乙", "丙", "丁", "戊"], "duplicate lines"),
        (["甲甲甲甲甲甲甲甲甲甲"] * 2 + ["乙", "丙", "丁", "戊", "己", "庚"], "duplicate lines"),  # few lines, many characters
        (["甲", "", "", "", "乙", "丙"], None),
        (["甲", "甲", "乙乙乙", "丙丙丙", "丁丁丁"], None),
    ],
)
def test_repeated_lines(lines, reason):
    assert by_lines("\n".join(lines), Filter()) == reason
    assert by_lines("\n".join(lines), Filter(duplicate_lines=None, duplicate_line_characters=None)) is None


@pytest.mark.parametrize(
    ("text", "rules", "reason"),
    [
        (han(500), {}, None),
        (han(400) + "天地" * 60, {}, "repeated n-grams"),
        (han(400) + "天地" * 60, {"top_ngrams": (), "duplicate_ngrams": ()}, None),
        (han(400) + han(40, 1) * 3, {}, "repeated n-grams"),
        (han(400) + han(40, 1) * 3, {"duplicate_ngrams": ()}, None),
        (han(400) + han(20, 1) * 2, {}, None),
        ("天地" * 24, {}, None),  # too few units to judge by
        (" ".join(f"word{i} said the" for i in range(60)), {}, "repeated n-grams"),
        (" ".join(f"word{i} tells{i} that{i}" for i in range(60)), {}, None),
    ],
)
def test_repeated_ngrams(text, rules, reason):
    assert ngrams(text, **rules) == reason


def covered(found, n):
    """The share of characters in n-grams that come more than once, counted plainly."""
    grams = [tuple(found[i : i + n]) for i in range(len(found) - n + 1)]
    inside = {j for i, gram in enumerate(grams) if grams.count(gram) > 1 for j in range(i, i + n)}
    return sum(len(found[j]) for j in inside) / sum(map(len, found))


BEGINNING = ["天"] * 4 + ["word", "word", "other", "地", *["天"] * 3, "word", *["天"] * 5, "other", *["天"] * 3, "word"]
FORTY_SEVEN_OF_SEVENTY = BEGINNING + ["天"] * 28  # a share that rounds


@settings(max_examples=60, deadline=None)
@example(FORTY_SEVEN_OF_SEVENTY, 5)
@given(st.lists(st.sampled_from(["天", "地", "玄", "黄", "宇", "word", "other"]), min_size=50, max_size=90), st.integers(5, 7))
def test_duplicate_ngrams_are_counted_as_the_rule_says(found, n):
    text, share = " ".join(found), covered(found, n)
    limits = (1.0,) * (n - 5)
    assert (ngrams(text, top_ngrams=(), duplicate_ngrams=(*limits, share)) is None) is True
    if share > 0.01:
        assert ngrams(text, top_ngrams=(), duplicate_ngrams=(*limits, share - 0.01)) == "repeated n-grams"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from("天地玄黄"), min_size=1, max_size=30), st.integers(1, 9))
def test_equal_ngrams_have_equal_hashes_and_others_do_not(found, n):
    hashes = unit_hashes(found)
    grams = ["".join(found[i : i + n]) for i in range(len(found) - n + 1)] or ["".join(found)]
    made = ngram_hashes(hashes, n)
    assert len(made) == len(grams)
    assert len(set(made.tolist())) == len(set(grams))
    assert [length for length, _ in rolling(hashes, n)] == list(range(1, min(n, len(found)) + 1))


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_any_text_is_judged(text):
    assert by_characters(text, Filter(script="han")) is None or by_characters(text, Filter(script="han"))
    by_lines(text, Filter())
    found = units(text)
    assert all(unit and not any(c.isspace() for c in unit) for unit in found)
    assert unit_hashes(found).dtype == np.uint64


def test_units_are_words_and_single_han_characters():
    assert units("曹操Said: Hello_World 2023年，カナ") == ["曹", "操", "said", "hello", "world", "2023", "年", "カ", "ナ"]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Filter(symbols=1.5), "symbols: expected a share"),
        (lambda: Filter(top_ngrams=(0.2, -1.0)), r"top_ngrams\[1\]"),
        (lambda: Filter(min_length=-1), "min_length"),
        (lambda: Deduplicate(near=0.1), "near: expected"),
        (lambda: Deduplicate(permutations=4), "permutations"),
        (lambda: Overlap(sources=()), "at least one evaluation set"),
        (lambda: Overlap(sources=("a",), ngram=1), "ngram"),
        (lambda: Clean(columns=()), "columns"),
        (lambda: WeightedSource(source="a", weight=0.0), "weight"),
    ],
)
def test_settings_out_of_range_are_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()
