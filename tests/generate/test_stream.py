from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triform.generate import TextStream

from .conftest import tokenizer_of

KINDS = ["byte-bpe", "bpe", "wordpiece", "unigram", "characters"]
TEXTS = st.lists(st.sampled_from([*"话说天下大势酒店😀👍🏽 ab1，。é\n龘", "The quick ", "brown "]), max_size=20).map("".join)


def pieces_of(stream: TextStream, ids: list[int]) -> list[str]:
    return [*(stream.push(i) for i in ids), stream.finish()]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(text=TEXTS, cut=st.integers(0, 10))
def test_pieces_joined_are_the_text_decoded_in_context(kind: str, text: str, cut: int) -> None:
    tokenizer = tokenizer_of(kind)
    ids = tokenizer.encode(text)
    whole = tokenizer.decode(ids)
    while "\ufffd" in tokenizer.decode(ids[:cut]):  # a context holds whole characters
        cut -= 1
    stream = TextStream(tokenizer, ids[:cut])
    pieces = pieces_of(stream, ids[cut:])
    assert "".join(pieces) == stream.text == whole[len(tokenizer.decode(ids[:cut])) :]
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(numbers=st.lists(st.integers(0, 10**6), max_size=40))
def test_pieces_joined_are_the_text_of_any_tokens(kind: str, numbers: list[int]) -> None:
    tokenizer = tokenizer_of(kind)
    stream = TextStream(tokenizer)
    assert "".join(pieces_of(stream, [n % tokenizer.vocab_size for n in numbers])) == stream.text


def test_a_character_of_several_tokens_comes_whole() -> None:
    tokenizer = tokenizer_of("byte-bpe")
    ids = tokenizer.encode("龘😎")
    assert len(ids) > 4  # the text that the tokenizer was trained on has neither
    assert [piece for piece in pieces_of(TextStream(tokenizer), ids) if piece] == ["龘", "😎"]
    naive = [tokenizer.decode([i]) for i in ids]
    assert "\ufffd" in "".join(naive)


def test_an_unfinished_character_is_left_out() -> None:
    tokenizer = tokenizer_of("byte-bpe")
    ids = tokenizer.encode("天龘")
    stream = TextStream(tokenizer)
    assert "".join(pieces_of(stream, ids[:-1])) == stream.text == "天"


def test_special_tokens_add_nothing() -> None:
    tokenizer = tokenizer_of("byte-bpe")
    assert tokenizer.eos is not None
    stream = TextStream(tokenizer)
    assert "".join(pieces_of(stream, [tokenizer.eos, *tokenizer.encode("天下"), tokenizer.eos])) == "天下"


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(text=TEXTS, stops=st.lists(st.text("话说天下大势 ab1，。", min_size=1, max_size=4), min_size=1, max_size=3))
def test_a_stop_string_cuts_the_text(kind: str, text: str, stops: list[str]) -> None:
    tokenizer = tokenizer_of(kind)
    ids = tokenizer.encode(text)
    whole = tokenizer.decode(ids)
    at = min((whole.find(s) for s in stops if s in whole), default=None)
    stream = TextStream(tokenizer, (), stops)
    pieces = []
    for i in ids:
        pieces.append(stream.push(i))
        if stream.stopped:
            break
    pieces.append(stream.finish())
    assert "".join(pieces) == stream.text
    assert stream.stopped == (at is not None)
    # The end found first ends the text: a longer stop string may begin before a shorter one that is complete earlier.
    assert stream.text == whole if at is None else whole.startswith(stream.text) and not any(s in stream.text for s in stops)


def test_a_stop_string_over_several_tokens_is_held_back_until_it_is_known() -> None:
    tokenizer = tokenizer_of("characters")
    stream = TextStream(tokenizer, (), ["天下大"])
    assert [stream.push(i) for i in tokenizer.encode("说天下分天下大势")] == ["说", "", "", "天下分", "", "", "", ""]
    assert stream.text == "说天下分"
    assert stream.stopped


def test_text_that_looked_like_a_stop_string_comes_at_the_end() -> None:
    tokenizer = tokenizer_of("characters")
    assert pieces_of(TextStream(tokenizer, (), ["天下大"]), tokenizer.encode("天下")) == ["", "", "天下"]


def test_words_keep_their_spaces_after_a_context() -> None:
    tokenizer = tokenizer_of("wordpiece")
    first, second = tokenizer.encode("The quick"), tokenizer.encode("brown fox")
    assert "".join(pieces_of(TextStream(tokenizer, first), second)) == " brown fox"
    assert "".join(pieces_of(TextStream(tokenizer), second)) == "brown fox"
