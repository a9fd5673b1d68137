import json
import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from triform.text import KINDS, SPECIAL_TOKENS, Tokenizer, train_tokenizer
from triform.text.training import sample

CORPUS = [
    "话说天下大势，分久必合，合久必分。周末七国分争，并入于秦。及秦灭之后，楚、汉分争，又并入于汉。",
    "汉朝自高祖斩白蛇而起义，一统天下，后来光武中兴，传至献帝，遂分为三国。推其致乱之由，殆始于桓、灵二帝。",
    "却说曹操引兵十万，来攻徐州。刘备大惊，急请关羽、张飞商议。却说曹操引兵十万，刘备大惊。",
    "The cat sat on the mat, and the dog sat on the log; the cat saw the dog in 1994 and 2024.",
    "天下英雄，惟使君与操耳。天下大势，天下英雄。The end of the tale, told in the year 1522.",
] * 3
EXACT = ("byte-bpe", "bpe", "unigram")
SIZES = {"byte-bpe": 330, "bpe": 440, "unigram": 385, "wordpiece": 150, "characters": None}
LONGEST = 200


def make(kind, **options):
    return train_tokenizer(CORPUS, kind=kind, **{"vocab_size": SIZES[kind]} | options)


@pytest.fixture(scope="module")
def trained():
    return {kind: make(kind) for kind in KINDS} | {"characters+bytes": make("characters", byte_fallback=True)}


TEXTS = st.text(st.characters(codec="utf-8"), max_size=LONGEST) | st.text("却说曹操。，“”1234 thecat\n\t\u3000", max_size=LONGEST)


@settings(max_examples=60, deadline=None)
@given(text=TEXTS)
@example("👨‍👩‍👧‍👦 👍🏽 1️⃣ 🇨🇳")
@example("\x00\x01\x1b[0m\x7f\u200b\ufeff")
@example("a\r\n\tb \u3000 c  ")
@example("<0x41> ▁x ##y Ġz é é ﬁ")
@example("龘𠀀𪚥")
def test_the_round_trip_is_exact(trained, text):
    for kind in (*EXACT, "characters+bytes"):
        ids = trained[kind].encode(text, plain=True)
        assert trained[kind].decode(ids) == text, kind
        assert all(0 <= i < trained[kind].vocab_size for i in ids)


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=4), special=st.booleans(), plain=st.booleans())
@example(["[CLS]却说[SEP]", "<0x41> the"], True, False)
def test_ids_are_the_same_with_offsets_and_without(trained, texts, special, plain):
    for tokenizer in trained.values():
        whole = [encoding.ids for encoding in tokenizer.encodings(texts, special, plain=plain)]
        assert tokenizer.encode_batch(texts, special, plain=plain) == whole
        assert tokenizer.encode(texts[0], special, plain=plain) == whole[0]


@settings(max_examples=30, deadline=None)
@given(text=st.text(st.characters(categories=["Cs", "Lo", "Po"]), max_size=40))
@example("\ud800")
@example("刘\udfff备\ud83d")
def test_lone_surrogates_become_replacement_characters(trained, text):
    expected = "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text)
    for kind in EXACT:
        assert trained[kind].decode(trained[kind].encode(text, plain=True)) == expected
    assert trained["bpe"].encode_batch([text, "好"])[1] == trained["bpe"].encode("好")


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("unit", ["却说曹操引兵十万，", "天下", "the cat ", "😀", "a"])
def test_a_line_of_a_megabyte(trained, kind, unit):
    line = unit * (2**20 // len(unit.encode()))
    assert trained[kind].decode(trained[kind].encode(line)) == line


def test_characters_are_single_and_unknown_ones_lose(trained):
    tokenizer = trained["characters"]
    ids = tokenizer.encode("天下龘势")
    assert len(ids) == 4
    assert ids[2] == tokenizer.unk
    assert tokenizer.decode(ids) == "天下势"
    assert tokenizer.vocab_size < trained["characters+bytes"].vocab_size


@pytest.mark.parametrize("kind", ["bpe", "unigram", "byte-bpe"])
def test_chinese_words_become_tokens_but_join_nothing_else(kind, trained):
    tokenizer = trained[kind]
    pieces = [tokenizer.decode([i]) for i in range(tokenizer.vocab_size) if i not in tokenizer.special_ids]
    assert "天下" in pieces
    for piece in pieces:
        kinds = {"han" if "\u4e00" <= c <= "\u9fff" else "digit" if c.isdigit() else "mark" if c in "，。、“”" else "other" for c in piece}
        assert len(kinds - {"other"}) <= 1, piece
        assert not (kinds >= {"digit", "other"}), piece


def test_wordpiece_isolates_han_characters_as_bert_does(trained):
    tokenizer = trained["wordpiece"]
    assert tokenizer.tokens(tokenizer.encode("天下the cat", special=True))[:4] == ["[CLS]", "天", "下", "the"]
    assert tokenizer.decode(tokenizer.encode("天下大势，the cat sat.")) == "天下大势，the cat sat."


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_come_first_and_are_known_by_role(kind, trained):
    tokenizer = trained[kind]
    roles = (tokenizer.pad, tokenizer.unk, tokenizer.cls, tokenizer.sep, tokenizer.mask, tokenizer.bos, tokenizer.eos)
    assert roles == tuple(range(7))
    assert tokenizer.tokens(roles) == list(SPECIAL_TOKENS)
    assert tokenizer.special_ids == set(range(7))
    framed = tokenizer.encode("天下", special=True)
    assert framed[1:-1] == tokenizer.encode("天下")
    assert (framed[0], framed[-1]) == ((2, 3) if kind == "wordpiece" else (5, 6))
    assert tokenizer.decode(framed) == "天下"
    assert tokenizer.encode("[MASK]") == [tokenizer.mask]
    assert tokenizer.mask not in tokenizer.encode("[MASK]", plain=True)


def test_sentinels_in_order():
    tokenizer = make("unigram", vocab_size=390, special_tokens=["<pad>", "</s>", "<unk>"], sentinels=12)
    assert tokenizer.tokens(tokenizer.sentinels) == [f"<extra_id_{i}>" for i in range(12)]
    assert (tokenizer.pad, tokenizer.eos, tokenizer.unk, tokenizer.bos) == (0, 1, 2, None)
    assert tokenizer.encode("天", special=True)[-1] == tokenizer.eos


def test_offsets_cover_the_text(trained):
    text = "却说曹操引兵十万，the 龘cat"
    for kind in EXACT:
        spans = trained[kind].offsets(text)
        assert len(spans) == len(trained[kind].encode(text))
        assert {i for start, end in spans for i in range(start, end)} == set(range(len(text)))


@pytest.mark.parametrize("kind", KINDS)
def test_saved_tokenizers_open_here_and_in_transformers(kind, trained, tmp_path):
    import transformers
    tokenizer = trained[kind]
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert (again.fingerprint, again.roles, again.training) == (tokenizer.fingerprint, tokenizer.roles, tokenizer.training)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    text = "却说曹操引兵十万，the cat."
    assert theirs(text)["input_ids"] == tokenizer.encode(text, special=True)
    assert (theirs.pad_token_id, theirs.mask_token_id, theirs.eos_token_id) == (tokenizer.pad, tokenizer.mask, tokenizer.eos)
    assert theirs.decode(theirs(text)["input_ids"], skip_special_tokens=True) == tokenizer.decode(tokenizer.encode(text))


def test_sentinels_are_special_in_transformers(tmp_path):
    import transformers
    tokenizer = make("unigram", vocab_size=388, sentinels=3)
    theirs = transformers.AutoTokenizer.from_pretrained(tokenizer.save(tmp_path))
    assert set(tokenizer.sentinels) <= set(theirs.all_special_ids)
    theirs.save_pretrained(tmp_path / "again")
    assert Tokenizer.load(tmp_path / "again").sentinels == tokenizer.sentinels


def test_loading_drops_truncation_and_padding_and_reads_foreign_roles(tmp_path, trained):
    backend = Backend.from_str(trained["bpe"].backend.to_str())
    backend.enable_truncation(3)
    backend.enable_padding(length=9)
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "[SEP]"}, "pad_token": None}))
    tokenizer = Tokenizer.load(tmp_path)
    assert len(tokenizer.encode("天")) == 1
    assert len(tokenizer.encode("却说曹操引兵十万，the cat" * 3)) > 9
    assert (tokenizer.eos, tokenizer.pad) == (trained["bpe"].sep, None)


@pytest.mark.parametrize("text", ["", "{", '{"version": "1.0"}'])
def test_a_broken_tokenizer_is_one_clear_error(tmp_path, text):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ValueError, match=r"tokenizer\.json: not a tokenizer"):
        Tokenizer.load(tmp_path)
    with pytest.raises(ValueError, match="no tokenizer here"):
        Tokenizer.load(tmp_path / "absent")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "unigram"])
def test_training_again_gives_the_same_tokenizer(kind, trained):
    assert make(kind).fingerprint == trained[kind].fingerprint
    assert make(kind, sentinels=1).fingerprint != trained[kind].fingerprint or SIZES[kind] is None


@pytest.mark.parametrize("kind", ["byte-bpe", "bpe", "unigram", "characters"])
def test_a_vocabulary_larger_than_the_text_names_the_size_that_is_possible(kind):
    with pytest.raises(ValueError, match="larger than this text allows; use vocab_size=") as error:
        make(kind, vocab_size=30000)
    possible = int(str(error.value).split("vocab_size=")[1].split()[0])
    assert make(kind, vocab_size=possible).vocab_size == possible


@pytest.mark.parametrize("kind", ["byte-bpe", "bpe", "unigram", "wordpiece"])
def test_a_vocabulary_too_small_names_the_size_that_is_needed(kind):
    with pytest.raises(ValueError, match=r"vocabulary is too small.*vocab_size=") as error:
        make(kind, vocab_size=50)
    needed = int(str(error.value).split("vocab_size=")[1].split()[0])
    assert make(kind, vocab_size=needed).vocab_size == needed
    with pytest.raises(ValueError, match="too small"):
        make(kind, vocab_size=needed - 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "words"}, "no kind of tokenizer"),
        ({"kind": "bpe", "vocab_size": None}, "needs a vocab_size"),
        ({"kind": "unigram", "vocab_size": 400, "special_tokens": ["<pad>"]}, "needs an unknown token"),
        ({"kind": "wordpiece", "vocab_size": 400, "byte_fallback": True}, "no byte fallback"),
        ({"kind": "bpe", "vocab_size": 400, "min_frequency": 0}, "min_frequency is 0"),
        ({"kind": "bpe", "vocab_size": 400, "sample_bytes": 10}, "sample_bytes is 10"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        train_tokenizer(CORPUS, **options)


@pytest.mark.parametrize("texts", [[], [""], [" \n\t"]])
@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_corpus_is_refused(kind, texts):
    with pytest.raises(ValueError, match="corpus is empty"):
        train_tokenizer(texts, kind=kind, vocab_size=300)


def test_the_sample_is_bounded_uniform_and_the_same_each_time():
    texts = [f"{i:04d}" * 1000 for i in range(400)]
    pieces, told = sample(iter(texts), 200_000)
    assert sum(map(len, pieces)) == told["bytes_sampled"] <= 200_000
    assert told["bytes_sampled"] > 180_000
    assert (told["texts"], told["bytes_read"]) == (400, 1_600_000)
    places = [int(piece[:4]) for piece in pieces]
    assert places == sorted(places)
    assert 130 < sum(places) / len(places) < 270  # the mean of a uniform draw of 50 lies within 4 standard errors of 200
    assert sample(iter(texts), 200_000)[0] == pieces
    assert sample(iter(texts), 10**9)[0] == texts


def test_training_says_how_much_text_was_sampled():
    words = "".join(map(chr, range(0x4E00, 0x4E40)))
    draw = random.Random(1)
    texts = ("".join(draw.choices(words, k=2000)) for _ in range(100))
    tokenizer = train_tokenizer(texts, kind="bpe", vocab_size=400, sample_bytes=2**16)
    assert tokenizer.training["bytes_read"] == 600_000
    assert tokenizer.training["bytes_sampled"] <= 2**16
