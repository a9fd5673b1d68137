"""Tokenizers built from plain data: the vocabularies, merges and scores that public files and GGUF hold.

Each builder returns a `tokenizers.Tokenizer` and raises ValueError, in one line, for data that is no vocabulary.
Ids are those given: an added token is in the vocabulary under its id, or follows it without a gap.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # types of pieces, numbered as SentencePiece and GGUF do
HIGHEST_ID = 2**24
LONGEST_TOKEN = 2**14  # bytes; the longest of public vocabularies are runs of a few hundred spaces
_SPACE = "▁"

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# How byte-level tokenizers cut a text before they merge, by the encoding's name. Several patterns cut one after the other.
PATTERNS: dict[str, tuple[str, ...]] = {
    "gpt2": (GPT2,),
    "cl100k": (f"{_CONTRACTIONS}|{_WORDS}|\\p{{N}}{{1,3}}|{_REST}",),
    "o200k": (
        f"[^\\r\\n\\p{{L}}\\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|[^\\r\\n\\p{{L}}\\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    "qwen2": (f"{_CONTRACTIONS}|{_WORDS}|\\p{{N}}|{_REST}",),
    "smollm": (r"\p{N}", GPT2),
    "deepseek-v3": (
        r"\p{N}{1,3}",
        "[一-龥\u3040-ゟ゠-ヿ]+",
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
        r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
}
_CLIP = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"

Piece = tuple[str, float, int]  # text, score, type


@dataclass(frozen=True)
class Added:
    """A token that is found in the text before the model sees it. `special` ones are left out of decoded text."""

    text: str
    id: int
    special: bool = True
    normalized: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


@dataclass(frozen=True)
class Normalization:
    """What SentencePiece does to a text first.

    charsmap: its compiled table of replacements, None for none.
    charsmap is applied by the `tokenizers` library, which drops a combining mark after a character that the table replaces.
    dummy_prefix: "text" puts a space before the text, "segment" also after each added token (as LLaMA 2 and llama.cpp do), "" never.
    """

    charsmap: bytes | None = None
    dummy_prefix: str = "segment"
    remove_extra_whitespaces: bool = True


@contextmanager
def library(what: str) -> Iterator[None]:
    """Turns any failure of the `tokenizers` library, its panics too, into a ValueError of one line that begins with `what`."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a panic of Rust code is no Exception
        raise ValueError(f"{what} ({' '.join(str(error).split())[:200]})") from None


def byte_level_bpe(
    vocab: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    *,
    pattern: str | Sequence[str] | None = None,
    added: Iterable[Added] = (),
    add_prefix_space: bool = False,
    nfc: bool = False,
    ignore_merges: bool = False,
) -> tokenizers.Tokenizer:
    """Byte-level BPE, as GPT-2, RoBERTa, BART, Qwen2 and Llama 3 have it.

    vocab, merges: spelled with GPT-2's printable characters for bytes ("Ġ" for a space).
    pattern: a name of `PATTERNS`, or what cuts the text (one regular expression or several); GPT-2's by default.
    ignore_merges: a whole word of the vocabulary is one token, whatever the merges say (tiktoken's way).
    """
    vocab, added = _with_gaps(checked_vocab(vocab), added)
    patterns = PATTERNS.get(pattern, (pattern,)) if isinstance(pattern, str) else tuple(pattern or (GPT2,))
    backend = _bpe(vocab, merges, ignore_merges=ignore_merges)
    if nfc:
        backend.normalizer = normalizers.NFC()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=patterns == (GPT2,))
    cuts: list[Any] = []
    with library("not a regular expression that the `tokenizers` library reads"):
        cuts = [pre_tokenizers.Split(Regex(each), "isolated") for each in patterns if each != GPT2 or len(patterns) > 1]
    if add_prefix_space and cuts:
        raise ValueError("a prefix space goes with GPT-2's pattern only")
    backend.pre_tokenizer = pre_tokenizers.Sequence([*cuts, byte_level]) if cuts else byte_level
    backend.decoder = decoders.ByteLevel()
    return add_tokens(backend, added)


def clip_bpe(vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], *, unk: str, added: Iterable[Added] = ()) -> tokenizers.Tokenizer:
    """CLIP's BPE: lower-cased words whose last unit ends in "</w>". Decoding gives words with spaces between."""
    vocab, added = _with_gaps(checked_vocab(vocab), added)
    backend = _bpe(vocab, merges, unk_token=unk, continuing_subword_prefix="", end_of_word_suffix="</w>")
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(_CLIP), "removed", invert=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    spaces = [decoders.Fuse(), decoders.Replace("</w>", " "), decoders.Replace(Regex(r" \z"), "")]
    backend.decoder = decoders.Sequence([decoders.ByteLevel(), *spaces])
    return add_tokens(backend, added)


def wordpiece(
    vocab: Mapping[str, int],
    *,
    unk: str = "[UNK]",
    lower: bool = True,
    strip_accents: bool | None = None,
    chinese_characters: bool = True,
    added: Iterable[Added] = (),
) -> tokenizers.Tokenizer:
    """BERT's WordPiece. strip_accents: None strips them where the text is lower-cased. chinese_characters: each is a word of its own."""
    vocab, added = _with_gaps(checked_vocab(vocab), added)
    if unk not in vocab:
        raise ValueError(f"the unknown token {unk!r} is not in the vocabulary")
    with library("not a WordPiece vocabulary"):
        backend = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token=unk, max_input_chars_per_word=100))
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=chinese_characters, strip_accents=strip_accents, lowercase=lower
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece("##", cleanup=True)
    return add_tokens(backend, added)


def sentencepiece_bpe(
    pieces: Sequence[Piece], normalization: Normalization | None = None, *, byte_fallback: bool | None = None, added: Iterable[Added] = ()
) -> tokenizers.Tokenizer:
    """SentencePiece's BPE, whose merges follow from the scores: any two pieces that make a third, the best third first.

    pieces: (text, score, type) in the order of their ids. Control, unknown and user-defined pieces become added tokens.
    byte_fallback: what the vocabulary lacks is spelled in bytes; by default if all 256 byte pieces are there.
    With a dummy prefix the text after a user-defined piece gets one too, as in transformers; SentencePiece gives it none.
    """
    normalization = normalization or Normalization()
    vocab, mine, fallback, unk = _pieces(pieces, byte_fallback)
    if normalization == Normalization(None, "", False):  # else the library would put the prefix before these tokens too
        mine = [replace(token, normalized=True) if _SPACE in token.text and not token.special else token for token in mine]
    vocab, added = _with_gaps(vocab, _merged(mine, added))
    settings: dict[str, Any] = {"unk_token": unk, "fuse_unk": True, "byte_fallback": fallback}
    backend = _bpe(vocab, merges_of(pieces), **settings)
    _sentencepiece_text(backend, normalization, split=False)
    return add_tokens(backend, added)


def unigram(
    pieces: Sequence[Piece], normalization: Normalization | None = None, *, byte_fallback: bool | None = None, added: Iterable[Added] = ()
) -> tokenizers.Tokenizer:
    """SentencePiece's unigram model: the segmentation of a text whose scores (log probabilities) have the highest sum.

    pieces: (text, score, type) in the order of their ids; one of them is the unknown piece. Control pieces become added
    tokens; user-defined ones are found by the model, as SentencePiece does.
    """
    normalization = normalization or Normalization()
    _, mine, fallback, unk = _pieces(pieces, byte_fallback)
    if unk is None:
        raise ValueError("a unigram model needs an unknown piece, and this one has none")
    found = [token for token in mine if token.special]
    scores = [score for _, score, kind in pieces if kind == NORMAL] or [0.0]
    best, lowest = max(scores), min(scores)
    vocab = []
    for text, score, kind in pieces:  # a user-defined piece is better than any way to spell it
        vocab.append((text, score if kind == NORMAL else len(text) * best - 0.1 if kind == USER_DEFINED else lowest))
    unk_id = next(i for i, piece in enumerate(pieces) if piece[2] == UNKNOWN)
    added = _merged(found, added)
    for token in sorted(added, key=lambda token: token.id):
        if token.id == len(vocab):
            vocab.append((token.text, lowest))
    with library("not a unigram vocabulary"):
        backend = tokenizers.Tokenizer(models.Unigram(vocab, unk_id, fallback))
    # words one by one are quicker, and the same where no piece reaches over a space
    split = not any(_SPACE in text[1:] for text, _, kind in pieces if kind in (NORMAL, USER_DEFINED))
    hidden = [text for text, _, kind in pieces if kind not in (NORMAL, USER_DEFINED)] + [text for text, _ in vocab[len(pieces) :]]
    _sentencepiece_text(backend, normalization, split=split, hidden=hidden)
    return add_tokens(backend, added)


def merges_of(pieces: Sequence[Piece]) -> list[tuple[str, str]]:
    """The merges of a SentencePiece BPE model: every way to make a normal piece of two, the piece with the highest score first."""
    normal = {text: score for text, score, kind in pieces if kind == NORMAL}
    known = normal.keys() | {text for text, _, kind in pieces if kind == USER_DEFINED}
    merges: list[tuple[str, str]] = []
    for text in sorted(normal, key=lambda text: -normal[text]):
        ways = ((text[:at], text[at:]) for at in range(len(text) - 1, 0, -1))
        merges += [way for way in ways if way[0] in known and way[1] in known]
    return merges


def merges_of_ranks(ranks: Mapping[bytes, int]) -> list[tuple[str, str]]:
    """tiktoken's ranks as merges, spelled as byte-level BPE spells bytes: a token is made of the two that its bytes are
    merged into when only tokens of lower rank may be used."""
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) > 1:
            parts = _merge(token, ranks, rank)
            if len(parts) == 2:
                merges.append((spelled(parts[0]), spelled(parts[1])))
    return merges


def _merge(token: bytes, ranks: Mapping[bytes, int], limit: int) -> list[bytes]:
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 1:
        rank, at = min((ranks.get(parts[i] + parts[i + 1], limit), i) for i in range(len(parts) - 1))
        if rank >= limit:
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def _byte_names() -> list[str]:
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256)]


_BYTE_NAMES = _byte_names()


def spelled(token: bytes) -> str:
    """Bytes as byte-level BPE spells them: each is a printable character ("Ġ" for a space)."""
    return "".join(_BYTE_NAMES[byte] for byte in token)


def frame(backend: tokenizers.Tokenizer, before: Sequence[str], after: Sequence[str], between: Sequence[str] | None = None) -> None:
    """Set what `special=True` puts around a text; `between` two texts: `after` unless said."""
    middle = list(after) if between is None else list(between)
    tokens = [*before, *after, *middle]
    ids = [(token, backend.token_to_id(token)) for token in dict.fromkeys(tokens)]
    missing = [token for token, i in ids if i is None]
    if missing:
        raise ValueError(f"the token {missing[0]!r} that frames a text is not in the vocabulary")
    if not tokens:
        backend.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B:1", special_tokens=[])
        return
    pair = [*before, "$A", *middle, "$B:1", *(f"{token}:1" for token in after)]
    with library("not a frame for texts"):
        backend.post_processor = processors.TemplateProcessing(single=[*before, "$A", *after], pair=pair, special_tokens=ids)


def add_tokens(backend: tokenizers.Tokenizer, added: Iterable[Added]) -> tokenizers.Tokenizer:
    """Add tokens to a tokenizer under the ids they name. Raises ValueError where an id cannot be had."""
    tokens = sorted(added, key=lambda token: token.id)
    with library("not special tokens"):
        backend.add_tokens([_library_token(token) for token in tokens])
    for token in tokens:
        if backend.token_to_id(token.text) != token.id:
            raise ValueError(f"the added token {token.text!r} cannot have the id {token.id}: it would be {backend.token_to_id(token.text)}")
    return backend


def checked_vocab(vocab: Mapping[str, int]) -> dict[str, int]:
    """The vocabulary, if it is one: text to id, each id once. Raises ValueError else."""
    if not isinstance(vocab, Mapping) or not vocab:
        raise ValueError("the vocabulary is empty, or not a mapping of tokens to ids")
    for token, i in vocab.items():
        if not isinstance(token, str) or type(i) is not int or not 0 <= i < HIGHEST_ID:
            raise ValueError(f"the vocabulary gives {str(token)[:40]!r} the id {str(i)[:40]}; expected a whole number below {HIGHEST_ID}")
        _checked_text(token)
    if len(set(vocab.values())) < len(vocab):
        seen: dict[int, str] = {}
        first, second, i = next((seen[i], token, i) for token, i in vocab.items() if seen.setdefault(i, token) != token)
        raise ValueError(f"the vocabulary gives the id {i} to {first[:40]!r} and {second[:40]!r}; an id belongs to one token")
    return dict(vocab)


def _checked_text(text: str) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise ValueError(f"the token {text[:40]!r} is not text that UTF-8 can hold") from None
    if size > LONGEST_TOKEN:
        raise ValueError(f"the token {text[:40]!r}… has {size} bytes; the longest allowed has {LONGEST_TOKEN}")


def _library_token(token: Added) -> AddedToken:
    _checked_text(token.text)
    if not token.text:
        raise ValueError("a special token's text is empty")
    flags = {"lstrip": token.lstrip, "rstrip": token.rstrip, "single_word": token.single_word}
    return AddedToken(token.text, special=token.special, normalized=token.normalized, **flags)


def _with_gaps(vocab: dict[str, int], added: Iterable[Added]) -> tuple[dict[str, int], list[Added]]:
    """The library numbers added tokens on from the vocabulary's size; those it would number otherwise go into the vocabulary."""
    tokens = sorted(added, key=lambda token: token.id)
    taken = {i: token for token, i in vocab.items()}
    following = len(vocab)
    new = [token for token in tokens if token.text not in vocab]
    simple = [token.id for token in new] == list(range(following, following + len(new)))
    for token in tokens:
        if taken.setdefault(token.id, token.text) != token.text or vocab.get(token.text, token.id) != token.id:
            raise ValueError(f"the added token {token.text!r} has the id {token.id}, which the vocabulary gives to {taken[token.id]!r}")
        if not 0 <= token.id < HIGHEST_ID:
            raise ValueError(f"the added token {token.text!r} has the id {token.id}; expected a whole number below {HIGHEST_ID}")
    return (vocab if simple else vocab | {token.text: token.id for token in new}), tokens


def _merged(tokens: Iterable[Added], more: Iterable[Added]) -> list[Added]:
    """Of tokens that are named twice the later word counts."""
    return list({token.text: token for token in [*tokens, *more]}.values())


def _bpe(vocab: dict[str, int], merges: Sequence[tuple[str, str]], **settings: Any) -> tokenizers.Tokenizer:
    for pair in merges:
        if len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise ValueError(f"the merge {str(pair)[:60]} is not two tokens")
        left, right = pair
        missing = next((part for part in (left, right, left + right) if part not in vocab), None)
        if missing is not None:
            raise ValueError(f"the merge of {left[:40]!r} and {right[:40]!r} needs the token {missing[:40]!r}, which the vocabulary lacks")
    with library("not a BPE vocabulary"):
        return tokenizers.Tokenizer(models.BPE(vocab, list(merges), **settings))


def _pieces(pieces: Sequence[Piece], byte_fallback: bool | None) -> tuple[dict[str, int], list[Added], bool, str | None]:
    """Pieces as a vocabulary, the added tokens among them, whether unknown characters are spelled in bytes, and the unknown piece."""
    if not pieces or len(pieces) > HIGHEST_ID:
        raise ValueError(f"a SentencePiece model has 1 to {HIGHEST_ID} pieces, and this one has {len(pieces)}")
    vocab: dict[str, int] = {}
    for i, (text, score, kind) in enumerate(pieces):
        if not text or kind not in range(NORMAL, BYTE + 1) or not -1e30 < score < 1e30:
            raise ValueError(f"piece {i} is {text[:40]!r}, score {score}, type {kind}; expected text, a finite score, a type of 1 to 6")
        if vocab.setdefault(text, i) != i:
            raise ValueError(f"the piece {text[:40]!r} is there twice, as {vocab[text]} and {i}")
        _checked_text(text)
    if sum(len(text) ** 2 for text in vocab) > 2**30:
        raise ValueError("the pieces are too long to be tokens")
    added = [Added(text, vocab[text], special=kind != USER_DEFINED) for text, _, kind in pieces if kind in (UNKNOWN, CONTROL, USER_DEFINED)]
    whole = all(f"<0x{byte:02X}>" in vocab for byte in range(256))
    if byte_fallback and not whole:
        raise ValueError("a model that spells in bytes needs the pieces <0x00> to <0xFF>, and some are missing")
    unknown = next((text for text, _, kind in pieces if kind == UNKNOWN), None)
    return vocab, added, whole if byte_fallback is None else byte_fallback, unknown


def _sentencepiece_text(backend: tokenizers.Tokenizer, normalization: Normalization, split: bool, hidden: Sequence[str] = ()) -> None:
    """Normalizer, pre-tokenizer and decoder of a SentencePiece model. The model does not find `hidden` pieces that a text spells out."""
    steps: list[Any] = []
    if normalization.charsmap:
        with library("the table of replacements (precompiled_charsmap) is damaged"):
            steps.append(normalizers.Precompiled(normalization.charsmap))
    if normalization.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(rf"\A +|[ {_SPACE}]+\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if normalization.dummy_prefix == "segment":
        steps.append(normalizers.Prepend(_SPACE))
    steps.append(normalizers.Replace(" ", _SPACE))
    backend.normalizer = normalizers.Sequence(steps)
    scheme = "first" if normalization.dummy_prefix == "text" else "never"
    cuts: list[Any] = []
    first = {text[0] for text in hidden if len(text) > 1}
    if first:  # cut after the first character
        rests = {c: "|".join(re.escape(text[1:]) for text in hidden if text[0] == c and len(text) > 1) for c in sorted(first)}
        with library("its control pieces cannot be told from text"):
            cuts.append(pre_tokenizers.Split(Regex("|".join(f"{re.escape(c)}(?={rest})" for c, rest in rests.items())), "isolated"))
    if split or scheme == "first":
        cuts.append(pre_tokenizers.Metaspace(_SPACE, scheme, split=split))
    if cuts:
        backend.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    decode: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if normalization.dummy_prefix or normalization.remove_extra_whitespaces:
        decode.append(decoders.Strip(" ", LONGEST_TOKEN if normalization.remove_extra_whitespaces else 1, 0))
    backend.decoder = decoders.Sequence(decode)
