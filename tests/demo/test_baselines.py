"""The demo's baselines against what can be worked out by hand."""

from __future__ import annotations

import math
import random

import pytest

from triform.demo.baselines import MostFrequent, Trigram, Unigram, character_errors, linear_accuracy

VOCAB = 5


def documents(count: int = 30, seed: int = 0) -> list[list[int]]:
    """Random walks in which the next token mostly follows from the two before."""
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        ids = [draw.randrange(VOCAB), draw.randrange(VOCAB)]
        while len(ids) < 60:
            ids.append((ids[-1] + ids[-2]) % VOCAB if draw.random() < 0.9 else draw.randrange(VOCAB))
        found.append(ids)
    return found


def test_unigram_counts_with_one_more_each() -> None:
    found = Unigram([[0, 0, 1]], 3)
    assert found.bits([0]) == pytest.approx(-math.log2(3 / 6))
    assert found.bits([2, 1]) == pytest.approx(-math.log2(1 / 6) - math.log2(2 / 6))


def test_trigram_is_a_distribution_and_finds_the_rule() -> None:
    train, held = documents(), documents(3, seed=1)
    trigram, unigram = Trigram(train, VOCAB), Unigram(train, VOCAB)
    for before in ([], [1], [1, 2], [4, 4, 0]):
        chances = [2 ** -(trigram.bits([*before, t]) - trigram.bits(before)) for t in range(VOCAB)]
        assert sum(chances) == pytest.approx(1, abs=1e-9)
    bits = sum(map(trigram.bits, held)) / sum(map(len, held))
    rule = -0.92 * math.log2(0.92) - 4 * 0.02 * math.log2(0.02)  # the walk's own entropy
    assert rule < bits < rule + 0.25
    assert sum(map(unigram.bits, held)) / sum(map(len, held)) > 2  # the control: without the two before, the rule is not found


def test_most_frequent_character() -> None:
    found = MostFrequent([(("shi", "shi", "ma"), "是时马"), (("shi",), "是")])
    assert found.write(["shi", "ma", "，", "xu"]) == "是马，xu"


CASES = [("", "", 0), ("abc", "abc", 0), ("ac", "abc", 1), ("xbcd", "abc", 2), ("", "ab", 2)]


@pytest.mark.parametrize(("written", "wanted", "errors"), CASES)
def test_character_errors(written: str, wanted: str, errors: int) -> None:
    assert character_errors(written, wanted) == errors
    assert character_errors(wanted, written) == errors


def test_linear_models_learn_what_words_say() -> None:
    good, bad = ["很好", "喜欢", "干净", "满意"], ["很差", "失望", "太脏", "退货"]
    train = [(f"{a}，{b}", label) for words, label in ((good, "positive"), (bad, "negative")) for a in words for b in words]
    found = linear_accuracy(train, [("喜欢，满意", "positive"), ("失望，退货", "negative")])
    assert found == {"words": 1.0, "characters": 1.0}
    wrong = linear_accuracy(train, [("喜欢，满意", "negative"), ("失望，退货", "positive")])
    assert wrong == {"words": 0.0, "characters": 0.0}
