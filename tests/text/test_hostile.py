"""Damaged and hostile files of tokenizers: each is one line that names the file, without a panic, and without memory taken first."""

import json
import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triform.text import Tokenizer, spmodel

from . import public


def varint(value):
    parts = []
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def field(number, content):
    return varint(number << 3 | 2) + varint(len(content)) + content


PIECE = field(1, field(1, b"a") + varint(2 << 3 | 5) + b"\0\0\0\0")
MODEL = public.sentencepiece_model()
VOCAB, MERGES = public.byte_level()
GPT2 = public.files("gpt2")


def vocab(**change):
    return {"merges.txt": "", "vocab.json": json.dumps({"a": 0, **change})}


def tokenizer_json(**change):
    model = {"type": "BPE", "vocab": {"a": 0}, "merges": [], "unk_token": None, "byte_fallback": False}
    model |= {"dropout": None, "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False}
    parts = dict.fromkeys(["truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"])
    return {"tokenizer.json": json.dumps({"version": "1.0", **parts, "added_tokens": [], "model": model} | change)}


CASES = {
    "an absurd length": ({"a.model": b"\x0a" + varint(2**60) + b"abc"}, "cut short"),
    "a number without end": ({"a.model": b"\x0a" + b"\xff" * 20}, "too long"),
    "a wire type of nobody": ({"a.model": b"\x0f"}, "wire type 7"),
    "no pieces": ({"a.model": field(2, b"")}, "no pieces"),
    "a piece that is no text": ({"a.model": field(1, field(1, b"\xff\xfe"))}, "not UTF-8"),
    "a piece without text": ({"a.model": field(1, b"")}, "piece 0"),
    "a piece of a strange type": ({"a.model": field(1, field(1, b"a") + b"\x18\x63")}, "type 99"),
    "a piece twice": ({"a.model": PIECE + PIECE}, "twice"),
    "a score that is a text": ({"a.model": field(1, field(1, b"a") + field(2, b"much"[:3]))}, "score"),
    "a score of NaN": ({"a.model": field(1, field(1, b"a") + b"\x15\0\0\xc0\x7f")}, "score nan"),
    "no unknown piece": ({"a.model": PIECE}, "unknown piece"),
    "a kind that is not read": ({"a.model": PIECE + field(2, b"\x18\x04")}, "character"),
    "a charsmap of nonsense": ({"a.model": PIECE + field(3, field(2, b"\xff" * 40))}, "precompiled_charsmap"),
    "a model cut short": ({"a.model": MODEL[:-50]}, "cut short|ends within|precompiled"),
    "an empty file": ({"a.model": b""}, "no pieces"),
    "a merge of unknown tokens": (GPT2 | {"merges.txt": "#version: 0.2\nqq zz\n"}, r"needs the token 'qq'"),
    "a merge of three": (GPT2 | {"merges.txt": "a b c\n"}, r"merges\.txt: line 1"),
    "an id below zero": (vocab(b=-1), "'b' the id -1"),
    "an id of 2^60": (vocab(b=2**60), "below 16777216"),
    "an id that is a text": (vocab(b="1"), "'b' the id 1"),
    "an id that is a fraction": (vocab(b=1.5), "1.5"),
    "an id of two tokens": (vocab(b=0), "the id 0 to 'a' and 'b'"),
    "a token twice": ({"merges.txt": "", "vocab.json": '{"a": 0, "a": 1}'}, "twice"),
    "a vocabulary that is a list": ({"merges.txt": "", "vocab.json": "[1]"}, "not a mapping"),
    "a vocabulary of brackets": ({"merges.txt": "", "vocab.json": "[" * 100_000}, "nested too deep"),
    "half a character": ({"merges.txt": "", "vocab.json": '{"\\ud800": 0}'}, "UTF-8"),
    "a token of a megabyte": (vocab(**{"x" * 2**20: 1}), "longest allowed"),
    "a vocabulary that is not UTF-8": ({"vocab.txt": b"\xff\xfe"}, "not UTF-8"),
    "an empty vocabulary": ({"vocab.txt": ""}, "unknown token"),
    "no unknown token": ({"vocab.txt": "a\nb\n"}, r"\[UNK\]|unknown token"),
    "an added token of id 2^60": (GPT2 | {"added_tokens.json": json.dumps({"<x>": 2**60})}, "below 16777216"),
    "an added token that takes another's id": (GPT2 | {"added_tokens.json": json.dumps({"<x>": 3})}, "which the vocabulary gives to"),
    "an added token without an id": (GPT2 | {"added_tokens.json": json.dumps({"<x>": None})}, "expected a whole number"),
    "an added token of no text": (GPT2 | {"tokenizer_config.json": json.dumps({"added_tokens_decoder": {"7": 1}})}, "no token"),
    "too many sentinels": (
        {"a.model": public.sentencepiece_model(**public.T5), "tokenizer_config.json": json.dumps({"extra_ids": 10**12})}, "extra_ids",
    ),
    "too many special tokens": (tokenizer_json(added_tokens=[{}] * 200_000), "200000 added tokens"),
    "settings that are no JSON": (tokenizer_json() | {"tokenizer_config.json": "{"}, r"tokenizer_config\.json: not valid JSON"),
    "a model that is a text": (tokenizer_json(model="BPE"), "no model"),
    "a model of no kind": (tokenizer_json(model={"type": "Magic"}), "not a tokenizer"),
    "ids of 2^60 in tokenizer.json": (tokenizer_json(model={"type": "BPE", "vocab": {"a": 2**60}, "merges": []}), "below 16777216"),
    "a pattern that is none": (
        tokenizer_json(pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}),
        "not a tokenizer",
    ),
    "a damaged charsmap in tokenizer.json": (
        tokenizer_json(normalizer={"type": "Precompiled", "precompiled_charsmap": "/////wAAAAA="}), "precompiled_charsmap",
    ),
    "ranks of nonsense": ({"a.tiktoken": b"!!! 1\n"}, "line 1 is not a token"),
    "a rank twice": ({"a.tiktoken": public.ranks_file(public.ranks()) + b"Zm9vYmFy 5\n"}, "same rank"),
    "a rank of 2^60": ({"a.tiktoken": b"IQ== %d\n" % 2**60}, "line 1"),
    "no rank for a byte": ({"a.tiktoken": b"IQ== 0\n"}, "no rank for the byte 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_each_is_one_line_that_names_the_file(name, tmp_path):
    contents, message = CASES[name]
    public.write(tmp_path, contents)
    tracemalloc.start()
    began = time.process_time()
    try:
        with pytest.raises(ValueError, match=message) as caught:
            Tokenizer.load(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    finally:
        tracemalloc.stop()
    assert time.process_time() - began < 5
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def test_the_cases_are_refused_for_their_fault_alone(tmp_path):
    for number, good in enumerate((GPT2, tokenizer_json(), public.files("t5"), public.files("bert"))):
        assert Tokenizer.load(public.write(tmp_path / str(number), good)).vocab_size > 0


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def assert_refused_or_read(folder, contents):
    """Loads, encodes and decodes, or raises ValueError."""
    for file in folder.iterdir():
        file.unlink()
    try:
        tokenizer = Tokenizer.load(public.write(folder, contents))
        message = tokenizer.decode(tokenizer.encode("天下 the cat １é ﬁ", special=True)).replace("\n", "")
    except ValueError as error:
        message = str(error)
    assert "\n" not in message


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_sentencepiece_models_with_bytes_changed(place, data):
    raw = bytearray(MODEL)
    for _ in range(data.draw(st.integers(1, 6))):
        # most of the model is its charsmap; the fields are at both ends
        at = data.draw(st.integers(0, len(raw) - 1) | st.integers(0, 2500) | st.integers(len(raw) - 60, len(raw) - 1))
        raw[at] = data.draw(st.integers(0, 255))
    assert_refused_or_read(place, {"a.model": bytes(raw[: data.draw(st.just(len(raw)) | st.integers(0, len(raw)))])})


@settings(max_examples=100, deadline=None)
@given(raw=st.binary(max_size=200))
def test_models_of_any_bytes(raw):
    try:
        spmodel.parse(raw)
    except ValueError:
        return
    assert spmodel.parse(raw).pieces


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3), max_leaves=5
)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("kind", ["bert", "t5", "gpt2"])
def test_tokenizer_json_with_parts_of_other_types(place, kind, data):
    contents = json.loads(_saved(kind))
    part, inner, depth = contents, contents, data.draw(st.integers(1, 4))
    while depth and isinstance(inner, (dict, list)) and inner:
        part, depth = inner, depth - 1
        key = data.draw(st.sampled_from(list(part) if isinstance(part, dict) else list(range(min(len(part), 20)))))
        inner = part[key]
    part[key] = data.draw(VALUES)
    assert_refused_or_read(place, {"tokenizer.json": json.dumps(contents)})


@settings(max_examples=40, deadline=None)
@given(config=st.dictionaries(st.sampled_from(
    ["added_tokens_decoder", "additional_special_tokens", "extra_special_tokens", "bos_token", "pad_token", "mask_token", "unk_token",
     "tokenizer_class", "do_lower_case", "chat_template", "model_max_length", "add_bos_token", "extra_ids", "strip_accents", "legacy"]
), VALUES | st.dictionaries(st.text(max_size=5), VALUES, max_size=3), max_size=5))  # fmt: skip
@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_settings_of_any_types(place, kind, config):
    assert_refused_or_read(place, public.files(kind) | {"tokenizer_config.json": json.dumps(config)})


_made = {}


def _saved(kind):
    if kind not in _made:
        import tempfile
        from pathlib import Path

        with tempfile.TemporaryDirectory() as folder:
            small = {"a.model": public.sentencepiece_model(**public.T5, **public.PLAIN, vocab_size=400)}
            files = small if kind == "t5" else public.files(kind)
            tokenizer = Tokenizer.load(public.write(Path(folder), files))
        _made[kind] = tokenizer.backend.to_str()
    return _made[kind]
