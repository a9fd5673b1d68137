import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from triform.text import train_tokenizer
from triform.text.segment import register_segmenter, segmenter, segmenters, word_ids

from .test_tokenizer import CORPUS, SIZES


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=80))
@example("南京市长江大桥，don't stop e-mail 3.14\r\n\t！")
@pytest.mark.parametrize("name", ["jieba", "characters", "whitespace"])
def test_words_add_up_to_the_text(name, text):
    assert "".join(segmenter(name)(text)) == text


def test_jieba_finds_chinese_words_and_keeps_english_ones_whole(capfd):
    words = segmenter()("我来到北京清华大学, don't worry")
    assert "清华大学" in words
    assert "don't" in words
    assert capfd.readouterr() == ("", "")


def test_segmenters_can_be_added_but_must_keep_the_text():
    register_segmenter("pairs", lambda text: [text[i : i + 2] for i in range(0, len(text), 2)])
    assert segmenter("pairs")("天下大势") == ["天下", "大势"]
    assert "pairs" in segmenters()
    register_segmenter("loses", lambda text: text.split())
    with pytest.raises(ValueError, match="'loses' changed the text"):
        segmenter("loses")("a b")
    with pytest.raises(ValueError, match="no segmenter is named 'nothing'"):
        segmenter("nothing")
    with pytest.raises(ValueError, match="a segmenter is a function"):
        register_segmenter("list", ["a"])


@pytest.mark.parametrize("kind", ["bpe", "characters", "wordpiece", "byte-bpe", "unigram"])
def test_tokens_know_their_words(kind):
    tokenizer = train_tokenizer(CORPUS, kind=kind, vocab_size=SIZES[kind])
    text = "天下英雄，the cat"
    words = ["天下", "英雄", "，", "the", " ", "cat"]
    word_of_character = [number for number, word in enumerate(words) for _ in word]
    numbers = word_ids(tokenizer, text, lambda _: words)
    assert len(numbers) == len(tokenizer.encode(text))
    for number, (start, end) in zip(numbers, tokenizer.offsets(text), strict=True):
        covered = [word_of_character[i] for i in range(start, end) if not text[i].isspace()]
        assert number == (covered[0] if covered else None)
    assert len({n for n in numbers if n is not None}) >= 4


@pytest.mark.parametrize("kind", ["bpe", "byte-bpe", "unigram"])
@settings(max_examples=25, deadline=None)
@given(text=st.text("天下英雄龘😀， catdog\n", max_size=40))
def test_words_from_ids_are_the_words_from_text(kind, text):
    tokenizer = _cached(kind)
    assert word_ids(tokenizer, tokenizer.encode(text)) == word_ids(tokenizer, text)


def test_special_tokens_lie_in_no_word():
    tokenizer = _cached("bpe")
    ids = [tokenizer.cls, *tokenizer.encode("天下"), tokenizer.mask, *tokenizer.encode("英雄"), tokenizer.sep]
    numbers = word_ids(tokenizer, ids)
    assert [n is None for n in numbers] == [i in tokenizer.special_ids for i in ids]
    assert len({n for n in numbers if n is not None}) == 2


_tokenizers = {}


def _cached(kind):
    if kind not in _tokenizers:
        _tokenizers[kind] = train_tokenizer(CORPUS, kind=kind, vocab_size=SIZES[kind])
    return _tokenizers[kind]
