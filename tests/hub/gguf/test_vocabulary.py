"""Tokenizers out as GGUF metadata and in again. That llama.cpp cuts alike is tested in test_llama_cpp.py."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import tokenizers
from gguf_tools import SPECS, build, llama_file
from hypothesis import given, settings
from hypothesis import strategies as st

from triform.hub.gguf import GGUFFile, write
from triform.hub.gguf.tokens import tokenizer_metadata
from triform.hub.gguf.vocabulary import PRES
from triform.text import Tokenizer, train_tokenizer
from triform.text.formats import CONTROL, NORMAL, UNKNOWN, UNUSED, Added, Normalization, byte_level_bpe, sentencepiece_bpe, unigram

TEXTS = ["天下大势，分久必合，合久必分。", "The cat sat on the mat; it's 2024!", "第1回 宴桃园豪杰三结义", "def f(x):\n\treturn x  # 返回"]
ODD = ["", "  two  spaces\n\n\ttab", "don't I'LL 'shortmess'", "½ ٣٤ 12345", "𠮷野家 ｱｲｳ か゚ é", "<|im_end|> [EOS]", "ab龘龘c"]
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


SIZES = {"byte-bpe": 300, "bpe": 340, "unigram": 59, "wordpiece": 76}


def trained(kind: str, **more) -> Tokenizer:
    tokenizer = train_tokenizer(TEXTS * 6, kind=kind, **{"vocab_size": SIZES.get(kind), "min_frequency": 1} | more)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def written(tokenizer: Tokenizer, folder: Path, extra: int = 3) -> tuple[GGUFFile, list[str]]:
    """A file with the tokenizer, its model's table `extra` rows longer than need be; and the writer's remarks."""
    spec = SPECS["llama"]
    tokens = replace(spec.last.input, vocab_size=tokenizer.vocab_size + extra)
    remarks = write(build(replace(spec, decoder=replace(spec.last, input=tokens))), tokenizer, folder / "m.gguf", "fp32")
    return GGUFFile(folder / "m.gguf"), remarks


def again(tokenizer: Tokenizer, folder: Path) -> Tokenizer:
    found = written(tokenizer, folder)[0].tokenizer()
    assert found is not None
    return found


KINDS = {
    "byte-bpe": ({}, "gpt2", []),
    "characters": ({"byte_fallback": True}, "llama", []),
    "characters alone": ({"byte_fallback": False}, "t5", ["run of unknown characters"]),
    "bpe": ({}, "llama", ["white space"]),
    "unigram": ({"byte_fallback": False}, "t5", ["white space"]),
}


@pytest.mark.parametrize("case", KINDS)
def test_what_is_trained_here_goes_out_and_comes_back(tmp_path, case):
    more, model, remarks = KINDS[case]
    tokenizer = trained(case.split()[0], **more)
    file, said = written(tokenizer, tmp_path)
    back = file.tokenizer()
    assert file.metadata["tokenizer.ggml.model"] == model
    assert len(said) == len(remarks)
    assert all(part in sentence for part, sentence in zip(remarks, said, strict=True))
    assert back.vocab_size == tokenizer.vocab_size
    assert back.roles == tokenizer.roles
    assert (back.ends, back.chat_template, back.length) == (tokenizer.ends, TEMPLATE, 2048)
    for text in TEXTS[:3] + (ODD if model == "gpt2" else []):
        assert back.encode(text) == tokenizer.encode(text)
        assert back.decode(back.encode(text)) == tokenizer.decode(tokenizer.encode(text))
        assert back.encode(text, special=True) == [tokenizer.bos, *tokenizer.encode(text)]  # the frame of a text to go on with


@pytest.mark.parametrize("name", PRES)
def test_byte_level_tokenizers_keep_how_they_cut(tmp_path, name):
    vocabulary = {token: i for i, token in enumerate([*tokenizers.pre_tokenizers.ByteLevel.alphabet(), "Ġt", "he", "Ġthe", "<end>"])}
    backend = byte_level_bpe(
        vocabulary, [("Ġ", "t"), ("h", "e"), ("Ġt", "he")], pattern=PRES[name].patterns, ignore_merges=PRES[name].whole_words,
        added=[Added("<end>", len(vocabulary) - 1)],
    )  # fmt: skip
    tokenizer = Tokenizer(backend, {"eos": "<end>"})
    file, remarks = written(tokenizer, tmp_path, extra=0)
    assert (file.metadata["tokenizer.ggml.pre"], remarks) == (name, [])
    back = file.tokenizer()
    assert json.loads(back.backend.to_str())["pre_tokenizer"] == json.loads(backend.to_str())["pre_tokenizer"]
    assert [back.encode(text) for text in TEXTS + ODD] == [tokenizer.encode(text) for text in TEXTS + ODD]


PIECES = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]


def test_sentencepiece_models_keep_their_order_of_merges(tmp_path):
    pieces = [*PIECES, *((f"<0x{byte:02X}>", 0.0, 6) for byte in range(256))]
    pieces += [(text, -float(i), NORMAL) for i, text in enumerate(["▁t", "he", "▁the", "▁", "t", "h", "e", "中", "国", "中国"])]
    assert "runs of them" in written(Tokenizer(sentencepiece_bpe(pieces), {"unk": "<unk>"}), tmp_path)[1][0]
    backend = sentencepiece_bpe(pieces, Normalization(remove_extra_whitespaces=False))
    tokenizer = Tokenizer(backend, {"unk": "<unk>", "bos": "<s>", "eos": "</s>"})
    file, remarks = written(tokenizer, tmp_path)
    assert (file.metadata["tokenizer.ggml.model"], file.metadata["tokenizer.ggml.add_space_prefix"], remarks) == ("llama", True, [])
    for text in ("the 中国 é", "  hello the", *ODD):
        assert file.tokenizer().encode(text) == tokenizer.encode(text)


def test_unigram_models_keep_their_scores(tmp_path):
    pieces = [*PIECES, ("▁the", -2.0, NORMAL), ("▁", -3.0, NORMAL), ("中国", -4.0, NORMAL), *((c, -6.0, NORMAL) for c in "the中国")]
    tokenizer = Tokenizer(unigram(pieces), {"unk": "<unk>", "bos": "<s>", "eos": "</s>"})
    file, remarks = written(tokenizer, tmp_path)
    assert (file.metadata["tokenizer.ggml.model"], file.metadata["tokenizer.ggml.remove_extra_whitespaces"], remarks) == ("t5", True, [])
    for text in ("the 中国 thee", "  the   the  "):
        assert file.tokenizer().encode(text) == tokenizer.encode(text)


def _with(tokenizer: Tokenizer, **parts) -> Tokenizer:
    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(json.loads(tokenizer.backend.to_str()) | parts)), tokenizer.roles)


def _cut(pattern: str) -> dict:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [split, level]}


REFUSED = {
    "words": (lambda: trained("wordpiece", special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"]), "no WordPiece tokenizer"),
    "unigram in bytes": (lambda: trained("unigram", byte_fallback=True, vocab_size=315), "without byte_fallback"),
    "a pattern of its own": (lambda: _with(trained("byte-bpe"), pre_tokenizer=_cut(r"\w+")), r"cuts texts by '\\w+'"),
    "lower case": (lambda: _with(trained("byte-bpe"), normalizer={"type": "Lowercase"}), "changes texts before it cuts them"),
    "lower case in pieces": (lambda: _with(trained("characters"), normalizer={"type": "Lowercase"}), "changes texts by Lowercase"),
    "no unknown token": (lambda: trained("characters", byte_fallback=True, special_tokens=["[EOS]"]), None),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_llama_cpp_would_cut_otherwise_is_refused(case):
    tokenizer, said = REFUSED[case][0](), REFUSED[case][1]
    if said is None:  # the control: bytes need no unknown token
        assert tokenizer_metadata(tokenizer, tokenizer.vocab_size)[1] == []
        return
    with pytest.raises(ValueError, match=r"\A") as error:
        tokenizer_metadata(tokenizer, tokenizer.vocab_size)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_table_with_too_few_rows_is_refused():
    tokenizer = trained("byte-bpe")
    with pytest.raises(ValueError, match="300 tokens, and the model's table 299 rows"):
        tokenizer_metadata(tokenizer, 299)


def test_two_spaces_that_llama_cpp_takes_for_one_are_refused():
    tokenizer = train_tokenizer(["a b ▁"] * 3, kind="characters", min_frequency=1)
    with pytest.raises(ValueError, match="with a space and with ▁"):
        tokenizer_metadata(tokenizer, tokenizer.vocab_size)


def test_the_composed_form_is_remarked_on():
    tokenizer = _with(trained("byte-bpe"), normalizer={"type": "NFC"})
    assert "NFC" in tokenizer_metadata(tokenizer, tokenizer.vocab_size)[1][0]


GPT2 = {
    "tokenizer__ggml__model": "gpt2", "tokenizer__ggml__pre": "gpt-2", "tokenizer__ggml__tokens": ["a", "b", "ab", "<|im_end|>"],
    "tokenizer__ggml__merges": ["a b"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model": "rwkv"}, "tokenizer.ggml.model: expected one of llama, t5, gpt2"),
        ({"model": 7}, "tokenizer.ggml.model: expected text"),
        ({"pre": "jais"}, "tokenizer.ggml.pre: expected one of gpt-2, llama-bpe"),
        ({"tokens": "ab"}, "tokenizer.ggml.tokens: expected a list of texts"),
        ({"tokens": []}, "0 tokens do not fit the 4 rows"),
        ({"tokens": ["a"] * 4}, "the token 'a' is there twice"),
        ({"tokens": list("abcde")}, "5 tokens do not fit the 4 rows"),
        ({"merges": None}, "tokenizer.ggml.merges: expected a list of texts"),
        ({"merges": ["a z"]}, "which the vocabulary lacks"),
        ({"token_type": "x"}, "a number for each of the 4 tokens"),
        ({"eos_token_id": 4}, "tokenizer.ggml.eos_token_id: expected an id below 4"),
        ({"add_bos_token": True}, "tokenizer.ggml.add_bos_token: expected no, as the file names no bos token"),
        ({"model": "llama"}, "piece"),
    ],
)
def test_a_damaged_tokenizer_is_refused_by_name(tmp_path, changed, said):
    (tmp_path / "m.gguf").write_bytes(llama_file(**GPT2 | {f"tokenizer__ggml__{key}": value for key, value in changed.items()}))
    if changed == {"model": "llama"}:  # the control: the same tokens are a vocabulary of the other kind too
        assert GGUFFile(tmp_path / "m.gguf").tokenizer().vocab_size == 4
        return
    with pytest.raises(ValueError, match=r"m\.gguf: ") as error:
        GGUFFile(tmp_path / "m.gguf").tokenizer()
    assert said in str(error.value)


def test_what_ends_an_answer_and_rows_that_fill_up(tmp_path):
    changed = {"tokens": ["a", "b", "ab", "[PAD3]"], "eos_token_id": 0, "eot_token_id": 1}
    (tmp_path / "m.gguf").write_bytes(llama_file(**GPT2 | {f"tokenizer__ggml__{key}": value for key, value in changed.items()}))
    assert GGUFFile(tmp_path / "m.gguf").tokenizer().ends == [0, 1]
    assert GGUFFile(tmp_path / "m.gguf").tokenizer().vocab_size == 4  # of a normal type, so it is a token
    back = again(trained("byte-bpe"), tmp_path)
    assert (UNUSED, back.vocab_size) == (5, 300)


@cache
def both() -> tuple[Tokenizer, Tokenizer]:
    """A byte-level tokenizer, and what came back of it."""
    with TemporaryDirectory() as folder:
        return trained("byte-bpe"), again(trained("byte-bpe"), Path(folder))


@given(st.text(st.characters(codec="utf-8"), max_size=40))
@settings(max_examples=100, deadline=None)
def test_any_text_is_cut_as_before(text):
    tokenizer, back = both()
    assert back.encode(text, plain=True) == tokenizer.encode(text, plain=True)


