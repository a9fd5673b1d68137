"""Small tokenizers in the layouts of public ones, trained here: vocab.txt, vocab.json with merges.txt, SentencePiece models, ranks."""

import base64
import io
import json
from functools import lru_cache

import sentencepiece
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

from triform.text import formats, train_tokenizer

from .test_tokenizer import CORPUS

TEXTS = [
    "话说天下大势，分久必合，合久必分。", "The cat sat on the mat, don't you think? WE'LL see.", "天下英雄 the cat 龘😀👨‍👩‍👧‍👦 mixed 混合",
    "  two  spaces   and\ttabs\n\nnewlines \r\n end  ", "é e\u0301 ﬁ À Ａ\u3000１２３ ½", "\x00\x07\x1b[0m\u200b\ufeff", "", " ", "\n",
    "1234567 3.14 1,000", "a" * 60, "кошка سلام ไทย", "<0x41> ##ing Ġz </w>", "HelloWorld ÀÉaB \u0301a /path//\n\n!!!\n x'ſ",
]  # fmt: skip
LETTERS = "天下英雄the catsND'\u3000\t\n  é\u0301１😀龘.,-_1239À"
_VOCAB = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<|endoftext|>"]


def sentencepiece_model(kind="unigram", **settings):
    """A model's bytes."""
    buffer = io.BytesIO()
    size = 150 if kind == "unigram" else 450
    settings = {"model_type": kind, "vocab_size": size, "hard_vocab_limit": False, "minloglevel": 2, **settings}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(CORPUS), model_writer=buffer, num_threads=1, **settings)
    return buffer.getvalue()


PLAIN = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "byte_fallback": True}
T5 = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
GEMMA = {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "bos_piece": "<bos>", "eos_piece": "<eos>", "add_dummy_prefix": False}
GEMMA |= {**PLAIN, "user_defined_symbols": ["<start_of_turn>", "<end_of_turn>", "\n\n", "▁▁", "▁▁▁"]}


@lru_cache
def byte_level():
    """(vocabulary, merges) of a byte-level BPE."""
    trained = train_tokenizer([*CORPUS, "don't we'll the HELLO World"] * 2, kind="byte-bpe", vocab_size=420, special_tokens=_VOCAB)
    model = json.loads(trained.backend.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


@lru_cache
def ranks():
    """tiktoken's ranks: bytes to rank."""
    table = {bytes([byte]): byte for byte in range(256)}
    back = {name: byte for byte, name in enumerate(map(formats.spelled, (bytes([byte]) for byte in range(256))))}
    for left, right in byte_level()[1]:
        table.setdefault(bytes(back[c] for c in left + right), len(table))
    table[b"'T"] = len(table)
    return table


def ranks_file(table):
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in table.items())


@lru_cache
def _clip():
    backend = tokenizers.Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    backend.normalizer = normalizers.Lowercase()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), byte_level])
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = [*(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    settings = {"initial_alphabet": letters, "end_of_word_suffix": "</w>", "show_progress": False}
    backend.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=700, special_tokens=special, **settings))
    model = json.loads(backend.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


@lru_cache
def _vocab_txt():
    vocab = train_tokenizer(CORPUS, kind="wordpiece", vocab_size=150).backend.get_vocab()
    return "\n".join(sorted(vocab, key=lambda token: vocab[token])) + "\n"


def _marian():
    special = {"bos_id": -1, "eos_id": 0, "unk_id": 1}
    models_ = [sentencepiece_model(vocab_size=size, **special) for size in (140, 128)]
    read = [sentencepiece.SentencePieceProcessor(model_proto=model) for model in models_]
    pieces = [model.id_to_piece(i) for model in read for i in range(2, model.get_piece_size())]
    names = dict.fromkeys(["</s>", "<unk>", *reversed(pieces), ">>fra<<", "<pad>"])
    return {"source.spm": models_[0], "target.spm": models_[1], "vocab.json": json.dumps({name: i for i, name in enumerate(names)})}


def _vocab_merges(vocab, merges):
    return {"vocab.json": json.dumps(vocab), "merges.txt": "\n".join(["#version: 0.2", *map(" ".join, merges)]) + "\n"}


def _named(name, files, **settings):
    return files | {"tokenizer_config.json": json.dumps({"tokenizer_class": name, **settings})}


FOLDERS = {
    "bert": lambda: _named("BertTokenizer", {"vocab.txt": _vocab_txt()}),
    "bert-cased": lambda: _named("BertTokenizer", {"vocab.txt": _vocab_txt()}, do_lower_case=False),
    "bert-accents": lambda: _named("BertTokenizer", {"vocab.txt": _vocab_txt()}, strip_accents=False, tokenize_chinese_chars=False),
    "gpt2": lambda: _named("GPT2Tokenizer", _vocab_merges(*byte_level())),
    "roberta": lambda: _named("RobertaTokenizer", _vocab_merges(*byte_level())),
    "bart": lambda: _named("BartTokenizer", _vocab_merges(*byte_level())),
    "qwen2": lambda: _named("Qwen2Tokenizer", _vocab_merges(*byte_level()), additional_special_tokens=["<|im_start|>", "<|im_end|>"]),
    "clip": lambda: _named("CLIPTokenizer", _vocab_merges(*_clip())),
    "llama": lambda: _named("LlamaTokenizer", {"tokenizer.model": sentencepiece_model("bpe", **PLAIN)}, add_bos_token=True, legacy=False),
    "gemma": lambda: _named("GemmaTokenizer", {"tokenizer.model": sentencepiece_model("bpe", **GEMMA)}, add_bos_token=True),
    "t5": lambda: _named("T5Tokenizer", {"spiece.model": sentencepiece_model(**T5)}),
    "marian": lambda: _named("MarianTokenizer", _marian()),
}


@lru_cache
def files(name):
    return FOLDERS[name]()


def write(folder, contents):
    """Write {name: text or bytes} into a new folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder
