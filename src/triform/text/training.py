"""Training of tokenizers, with Chinese in mind.

Before pieces are learned, text is cut (`WORDS`) so that a piece never joins Han characters with another
script, digits with anything, or punctuation with words; within a run of Han characters pieces are free,
so that Chinese words become tokens. Spaces stay in the pieces as they are, which makes the round trip exact.
"""

from __future__ import annotations

import heapq
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from .formats import PATTERNS

SAMPLE_BYTES = 64 * 2**20
WORDS = r"\p{Han}+| ?[\p{L}\p{M}&&[^\p{Han}]]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}\p{Han}]+|\s+(?!\S)|\s+"
_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
_EAST_ASIAN = r"[\p{Han}\p{Hiragana}\p{Katakana}\u3000-\u303F\uFF00-\uFFEF“”‘’…—]"
_SURROGATE = re.compile("[\ud800-\udfff]")
_PIECE = 4096  # characters of a text that stay together in the sample
_LONGEST = 16  # characters in the longest piece that is learned


def without_surrogates(text: str) -> str:
    """The text with each lone surrogate (half a character, which UTF-8 cannot hold) replaced by U+FFFD; positions stay as they are."""
    return _SURROGATE.sub("\ufffd", text)


def sample(texts: Iterable[str], limit: int) -> tuple[list[str], dict[str, int]]:
    """A uniform sample of a stream of texts, of at most `limit` bytes of UTF-8; memory holds the sample and one text.

    Texts are taken apart into pieces of 4,096 characters. Each piece draws a random number (the same in every
    run); those with the lowest are kept, in the order of the stream. Returns the pieces, and how many
    texts and bytes were read and how many bytes kept.
    """
    draw = random.Random(0)
    kept: list[tuple[float, int, int, str]] = []
    count = read = held = order = 0
    cut = 2.0
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"expected texts to train a tokenizer on, not {type(text).__name__}")
        count += 1
        for start in range(0, len(text), _PIECE):
            piece = without_surrogates(text[start : start + _PIECE])
            size, number = len(piece.encode()), draw.random()
            read, order = read + size, order + 1
            if number >= cut:
                continue
            heapq.heappush(kept, (-number, order, size, piece))
            held += size
            while held > limit:
                lowest = heapq.heappop(kept)
                cut, held = -lowest[0], held - lowest[2]
    kept.sort(key=lambda entry: entry[1])
    return [entry[3] for entry in kept], {"texts": count, "bytes_read": read, "bytes_sampled": held}


def _alphabet(counts: Counter[str], least: int, room: int | None, fixed: str) -> list[str]:
    """The characters seen at least `least` times, the most frequent first. Refuses more than there is room for."""
    alphabet = [c for c, n in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if n >= least]
    if room is not None and len(alphabet) > room:
        size = len(alphabet) + int(fixed.split()[0])
        hint = f" or min_frequency={counts[alphabet[room]] + 1}" if room > 0 else ""
        raise ValueError(
            f"the vocabulary is too small: {fixed} and {len(alphabet):,} characters seen at least {least} times need {size:,}; "
            f"use vocab_size={size} or more{hint}"
        )
    return alphabet


def _fit(backend: tokenizers.Tokenizer, texts: Sequence[str], trainer: Any) -> None:
    try:
        backend.train_from_iterator(texts, trainer)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in the library is no Exception
        raise ValueError(f"the text is too small to train this kind of tokenizer on ({error})") from error


def _rebuilt(backend: tokenizers.Tokenizer, special: Sequence[str], change: Callable[[dict[str, Any]], None]) -> tokenizers.Tokenizer:
    """The tokenizer with its serialised model changed, and only `special` left as special tokens."""
    data = json.loads(backend.to_str())
    change(data["model"])
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] in set(special)]
    return tokenizers.Tokenizer.from_str(json.dumps(data))


def _cut_at_words() -> Any:
    return pre_tokenizers.Split(Regex(WORDS), "isolated")


def _settings(size: int, special: Sequence[str], least: int) -> dict[str, Any]:
    return {"vocab_size": size, "special_tokens": list(special), "min_frequency": least, "show_progress": sys.stderr.isatty()}


def _byte_bpe(texts: Sequence[str], size: int, special: Sequence[str], least: int) -> tokenizers.Tokenizer:
    need = len(special) + 256
    if size < need:
        raise ValueError(f"the vocabulary is too small: {len(special)} special tokens and 256 bytes need vocab_size={need} or more")
    backend = tokenizers.Tokenizer(models.BPE())
    # first as llama.cpp can, then finer: as no merge crosses a finer cut, llama.cpp gets the same tokens without it
    cuts = [*(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in PATTERNS["deepseek-v3"]), _cut_at_words()]
    backend.pre_tokenizer = pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    longest = _LONGEST * 3  # a Chinese character is three bytes
    _fit(backend, texts, trainers.BpeTrainer(**_settings(size, special, least), initial_alphabet=alphabet, max_token_length=longest))
    return backend


def _byte_fallback_decoder() -> Any:
    return decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])


def _bpe(
    texts: Sequence[str], size: int, special: Sequence[str], least: int, unk: str | None, fallback: bool
) -> tokenizers.Tokenizer:
    fixed = [*special, *(_BYTES if fallback else ())]
    alphabet = _alphabet(_counts(texts), least, size - len(fixed), _fixed_names(special, fallback))
    backend = tokenizers.Tokenizer(models.BPE(unk_token=unk))
    backend.pre_tokenizer = _cut_at_words()
    backend.decoder = _byte_fallback_decoder()
    limits: dict[str, Any] = {"initial_alphabet": alphabet, "limit_alphabet": len(alphabet), "max_token_length": _LONGEST}
    _fit(backend, texts, trainers.BpeTrainer(**_settings(size, fixed, least), **limits))
    return _rebuilt(backend, special, lambda model: model.update(byte_fallback=fallback))


def _unigram(
    texts: Sequence[str], size: int, special: Sequence[str], least: int, unk: str | None, fallback: bool
) -> tokenizers.Tokenizer:
    counts = _counts(texts)
    alphabet = _alphabet(counts, least, size - len(special) - 256 * fallback, _fixed_names(special, fallback))
    rare = {ord(c): "\n" for c in set(counts) - set(alphabet)}  # the trainer keeps every character that it sees
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.pre_tokenizer = _cut_at_words()
    backend.decoder = _byte_fallback_decoder()
    settings = _settings(size - 256 * fallback, special, least)
    del settings["min_frequency"]
    trainer = trainers.UnigramTrainer(**settings, unk_token=unk, max_piece_length=_LONGEST)
    _fit(backend, [text.translate(rare) for text in texts] if rare else texts, trainer)

    def with_bytes(model: dict[str, Any]) -> None:
        head, tail = model["vocab"][: len(special)], model["vocab"][len(special) :]
        # the trainer overshoots where the characters alone take up the size asked for
        tail = heapq.nlargest(size - len(special) - 256 * fallback, tail, key=lambda piece: (len(piece[0]) == 1, piece[1]))
        lowest = min((score for _, score in tail), default=0.0) - 10.0  # never better than a learned piece
        model["vocab"] = [*head, *([byte, lowest] for byte in _BYTES if fallback), *tail]
        model["byte_fallback"] = fallback

    return _rebuilt(backend, special, with_bytes)


def _wordpiece(texts: Sequence[str], size: int, special: Sequence[str], least: int, unk: str | None) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token=unk))
    backend.normalizer = normalizers.BertNormalizer(clean_text=True, handle_chinese_chars=True, strip_accents=False, lowercase=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Digits(individual_digits=True)])
    apart = f"(?<={_EAST_ASIAN}) | (?={_EAST_ASIAN})"
    backend.decoder = decoders.Sequence([decoders.WordPiece("##", cleanup=True), decoders.Fuse(), decoders.Replace(Regex(apart), "")])
    counts: Counter[str] = Counter()
    inner: set[str] = set()
    for text in texts:
        for word, _ in backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text)):
            counts.update(word)
            inner.update(word[1:])
    counts.update({"##" + c: counts[c] for c in inner})
    alphabet = _alphabet(counts, least, size - len(special), _fixed_names(special, False))
    letters = [c for c in alphabet if len(c) == 1]
    # named here because the trainer would number them in an order that differs from run to run
    fixed = [*special, *(c for c in alphabet if len(c) > 1)]
    limits: dict[str, Any] = {"initial_alphabet": letters, "limit_alphabet": len(letters), "continuing_subword_prefix": "##"}
    _fit(backend, texts, trainers.WordPieceTrainer(**_settings(size, fixed, least), **limits))
    return _rebuilt(backend, special, lambda model: None)


def _characters(
    texts: Sequence[str], size: int | None, special: Sequence[str], least: int, unk: str | None, fallback: bool
) -> tokenizers.Tokenizer:
    fixed = [*special, *(_BYTES if fallback else ())]
    alphabet = _alphabet(_counts(texts), least, None, _fixed_names(special, fallback))
    if size is not None:
        if size <= len(fixed):
            raise ValueError(f"the vocabulary is too small: {_fixed_names(special, fallback)} leave no room in {size} for characters")
        if size > len(fixed) + len(alphabet):
            raise _too_large(size, len(fixed) + len(alphabet))
        alphabet = alphabet[: size - len(fixed)]
    vocabulary = {token: i for i, token in enumerate([*fixed, *alphabet])}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, [], unk_token=unk, byte_fallback=fallback))
    backend.decoder = _byte_fallback_decoder()
    backend.add_special_tokens(list(special))
    return backend


def _counts(texts: Sequence[str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    return counts


def _fixed_names(special: Sequence[str], fallback: bool) -> str:
    return f"{len(special) + 256 * fallback} fixed tokens ({len(special)} special{', 256 bytes' if fallback else ''})"


def _too_large(size: int, possible: int) -> ValueError:
    return ValueError(f"a vocabulary of {size:,} is larger than this text allows; use vocab_size={possible} or less, or give more text")


def _template(kind: str, roles: dict[str, str], backend: tokenizers.Tokenizer) -> Any:
    """What `special=True` adds: [CLS] A [SEP] for wordpiece, [BOS] A [EOS] (those of them that there are) for the others."""
    pair = ("cls", "sep") if kind == "wordpiece" or not {"bos", "eos"} & set(roles) else ("bos", "eos")
    first, last = (roles.get(role) for role in pair)
    if not first and not last:
        return None
    single = [*([first] if first else []), "$A", *([last] if last else [])]
    double = [*single, "$B:1", *([f"{last}:1"] if last else [])]
    ids = [(token, backend.token_to_id(token)) for token in (first, last) if token]
    return processors.TemplateProcessing(single=single, pair=double, special_tokens=ids)


def train_backend(
    texts: Sequence[str],
    kind: str,
    vocab_size: int | None,
    special: Sequence[str],
    roles: dict[str, str],
    min_frequency: int,
    byte_fallback: bool,
) -> tokenizers.Tokenizer:
    """Train one kind of tokenizer on texts held in memory; `triform.text.train_tokenizer` explains the arguments."""
    unk = roles.get("unk")
    if unk is None and (kind in ("wordpiece", "unigram") or (kind != "byte-bpe" and not byte_fallback)):
        raise ValueError(f'a {kind} tokenizer needs an unknown token; add "[UNK]" to special_tokens')
    if kind == "characters":
        backend = _characters(texts, vocab_size, special, min_frequency, unk, byte_fallback)
    else:
        if vocab_size is None:
            raise ValueError(f"a {kind} tokenizer needs a vocab_size, for example 8000")
        if kind == "byte-bpe":
            backend = _byte_bpe(texts, vocab_size, special, min_frequency)
        elif kind == "wordpiece":
            backend = _wordpiece(texts, vocab_size, special, min_frequency, unk)
        else:
            train = _bpe if kind == "bpe" else _unigram
            backend = train(texts, vocab_size, special, min_frequency, unk, byte_fallback)
        possible = backend.get_vocab_size()
        if possible < vocab_size:
            raise _too_large(vocab_size, possible)
    template = _template(kind, roles, backend)
    if template is not None:
        backend.post_processor = template
    return backend
