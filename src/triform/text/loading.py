"""Tokenizers of public folders: which file is read, and what the files beside it say of special tokens, frame and chat templates."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tokenizers

from . import formats, ranks, spmodel
from .formats import Added, checked_vocab, frame, library

ROLES = ("pad", "unk", "cls", "sep", "mask", "bos", "eos")
LARGEST = 2**29  # bytes of a tokenizer's file
MOST_ADDED = 2**17
_SENTINELS_OF_T5 = 100
_OTHER_NUMBERS = ("XLMRoberta", "Camembert", "MBart", "Nllb", "Barthez", "XGLM", "Pegasus", "DebertaV2", "XLNet", "Albert", "BigBird")


@dataclass(frozen=True)
class Loaded:
    """A tokenizer as its files describe it."""

    backend: tokenizers.Tokenizer
    roles: dict[str, str] = field(default_factory=dict)
    chat_templates: dict[str, str] = field(default_factory=dict)
    length: int | None = None


@dataclass(frozen=True)
class _Family:
    """The special tokens that a family has unless its files say otherwise, and the roles that stand around a text."""

    roles: Mapping[str, str]
    before: Sequence[str] = ()
    after: Sequence[str] = ()
    between: Sequence[str] | None = None


_ROBERTA = {"bos": "<s>", "eos": "</s>", "cls": "<s>", "sep": "</s>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask>"}
_BERT = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
_ENDOFTEXT = "<|endoftext|>"
_CLIP = {"bos": "<|startoftext|>", "eos": _ENDOFTEXT, "unk": _ENDOFTEXT, "pad": _ENDOFTEXT}
_FAMILIES = {
    "bert": _Family(_BERT, ("cls",), ("sep",), ("sep",)),
    "gpt2": _Family({"bos": _ENDOFTEXT, "eos": _ENDOFTEXT, "unk": _ENDOFTEXT}),
    "roberta": _Family(_ROBERTA, ("cls",), ("sep",), ("sep", "sep")),
    "clip": _Family(_CLIP, ("bos",), ("eos",), ("eos", "eos")),
    "qwen2": _Family({"eos": _ENDOFTEXT, "pad": _ENDOFTEXT}),
    "t5": _Family({"eos": "</s>", "unk": "<unk>", "pad": "<pad>"}, (), ("eos",)),
    "marian": _Family({"eos": "</s>", "unk": "<unk>", "pad": "<pad>"}, (), ("eos",)),
    "llama": _Family({"bos": "<s>", "eos": "</s>", "unk": "<unk>"}, ("bos",)),
    "gemma": _Family({"bos": "<bos>", "eos": "<eos>", "unk": "<unk>", "pad": "<pad>"}, ("bos",)),
    "tiktoken": _Family({}),
}
# by tokenizer_class (less "Tokenizer" and "Fast") and by model_type, both in lower case
_ALIASES = {
    "distilbert": "bert", "electra": "bert", "mobilebert": "bert", "bart": "roberta", "longformer": "roberta", "blenderbot": "roberta",
    "qwen3": "qwen2", "qwen2_moe": "qwen2", "qwen3_moe": "qwen2", "mt5": "t5", "umt5": "t5", "longt5": "t5", "switch_transformers": "t5",
    "mistral": "llama", "mixtral": "llama", "codellama": "llama", "gemma2": "gemma", "gemma3": "gemma", "gemma3_text": "gemma",
}  # fmt: skip


def load(path: Path, encoding: str | None = None) -> Loaded:
    """Read the tokenizer at `path`: a file, or a folder of which the first of tokenizer.json, a SentencePiece model, vocab.json
    with merges.txt, vocab.txt and tiktoken's ranks is read. Raises ValueError, naming the file, for anything that is no tokenizer."""
    file, read = _find(path)
    try:
        settings = _Settings.of(file.parent)
        if file.stat().st_size > LARGEST:
            raise ValueError(f"it has {file.stat().st_size} bytes; the largest read has {LARGEST}")
        return read(file, settings, encoding)
    except ValueError as error:
        message = str(error)
        raise ValueError(message if message.startswith(str(file.parent)) else f"{file}: {message}") from None


def holds_tokenizer(folder: Path) -> bool:
    """Whether a folder has a tokenizer's file."""
    return next(_candidates(folder), None) is not None


Reader = Callable[[Path, "_Settings", "str | None"], Loaded]


def _candidates(folder: Path) -> Iterator[tuple[Path, Reader]]:
    for name, read in _READERS:
        yield from ((file, read) for file in sorted(folder.glob(name)) if _fits(file))


def _fits(file: Path) -> bool:
    return file.is_file() and (file.name != "vocab.json" or (file.parent / "merges.txt").is_file())


def _find(path: Path) -> tuple[Path, Reader]:
    if path.is_dir():
        found = next(_candidates(path), None)
    elif path.is_file():
        found = next(((path, read) for name, read in _READERS if path.match(name) and _fits(path)), None)
        found = found or ((path, _tokenizer_json) if path.suffix == ".json" else None)
    else:
        found = None
    if found is None:
        raise ValueError(
            f"{path}: no tokenizer here; expected tokenizer.json, a SentencePiece model (tokenizer.model, spiece.model), "
            "vocab.json with merges.txt, vocab.txt, or tiktoken's ranks (*.tiktoken)"
        )
    return found


@dataclass(frozen=True)
class _Settings:
    """What stands beside a vocabulary: tokenizer_config.json, special_tokens_map.json, added_tokens.json and chat templates."""

    folder: Path
    config: dict[str, Any]
    added: list[Added]
    roles: dict[str, str | None]
    more: list[str]
    family: str | None

    @classmethod
    def of(cls, folder: Path) -> _Settings:
        config = {**read_json(folder / "special_tokens_map.json"), **read_json(folder / "tokenizer_config.json")}
        added: dict[str, Added] = {}
        for text, i in read_json(folder / "added_tokens.json").items():
            added[text] = Added(text, _id(i, text), special=False)
        decoder = config.get("added_tokens_decoder")
        for i, token in (decoder if isinstance(decoder, dict) else {}).items():
            content = _content(token)
            if content is None or not str(i).isdecimal() or len(str(i)) > 18:
                raise ValueError(f"{folder / 'tokenizer_config.json'}: added_tokens_decoder gives {str(i)[:40]!r} no token")
            names = ("special", "normalized", "lstrip", "rstrip", "single_word")
            flags = {name: bool(token[name]) for name in names if isinstance(token, dict) and name in token}
            added[content] = Added(content, int(i), **flags)
        if len(added) > MOST_ADDED:
            raise ValueError(f"{folder}: {len(added)} added tokens; at most {MOST_ADDED} are read")
        roles: dict[str, str | None] = {}
        for role in ROLES:
            if f"{role}_token" in config:
                roles[role] = _content(config[f"{role}_token"])
        extra: list[Any] = []
        for name in ("additional_special_tokens", "extra_special_tokens"):
            value = config.get(name) or []
            extra += list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
        more = [text for text in map(_content, extra) if text]
        return cls(folder, config, list(added.values()), roles, more, _family(folder, config))

    def special(self, vocab: Mapping[str, int], family: _Family) -> tuple[dict[str, str], list[Added]]:
        """The roles, and the added tokens with their ids: those listed, those with a role, and those named besides."""
        known = {token.text: token for token in self.added}
        wanted = {role: text for role, text in {**family.roles, **self.roles}.items() if text}
        roles = {role: text for role, text in wanted.items() if role in self.roles or text in vocab or text in known}
        following = max([len(vocab) - 1, *vocab.values(), *(token.id for token in self.added)]) + 1
        for text in dict.fromkeys([*roles.values(), *self.more]):
            i = known[text].id if text in known else vocab.get(text, following)
            following += i == following
            old = known.get(text, Added(text, i, lstrip=text == roles.get("mask") and family.roles == _ROBERTA))
            known[text] = Added(text, i, True, old.normalized, old.lstrip, old.rstrip, old.single_word)
        return roles, list(known.values())

    def finished(self, backend: tokenizers.Tokenizer, roles: dict[str, str], family: _Family | None = None) -> Loaded:
        """The tokenizer framed as the family or the settings say, with its chat templates."""
        flags = {role: self.config.get(f"add_{role}_token") for role in ("bos", "eos")}
        said = any(isinstance(flag, bool) for flag in flags.values()) and "cls" not in roles
        if family is not None or said:
            before = [role for role in (family.before if family else ()) if role in roles]
            after = [role for role in (family.after if family else ()) if role in roles]
            if said:
                before = ["bos"] if (flags["bos"] if flags["bos"] is not None else "bos" in before) and "bos" in roles else []
                after = ["eos"] if (flags["eos"] if flags["eos"] is not None else "eos" in after) and "eos" in roles else []
            between = [*after, *before] if said or family is None or family.between is None else family.between
            frame(backend, *([roles[role] for role in side if role in roles] for side in (before, after, between)))
        length = self.config.get("model_max_length")
        known = isinstance(length, (int, float)) and 0 < length < 2**31
        return Loaded(backend, roles, _chat_templates(self.folder, self.config), int(length) if known else None)  # type: ignore[arg-type]


def _family(folder: Path, config: dict[str, Any]) -> str | None:
    name = config.get("tokenizer_class")
    names = [name.removesuffix("Fast").removesuffix("Tokenizer").lower()] if isinstance(name, str) else []
    model_type = read_json(folder / "config.json").get("model_type")
    names += [model_type.lower()] if isinstance(model_type, str) else []
    if isinstance(name, str) and name.startswith(_OTHER_NUMBERS):
        return name
    return next((_ALIASES.get(name, name) for name in names if _ALIASES.get(name, name) in _FAMILIES), None)


def _content(token: Any) -> str | None:
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def _id(value: Any, token: str) -> int:
    if type(value) is not int:
        raise ValueError(f"the added token {token[:40]!r} has the id {str(value)[:40]}; expected a whole number")
    return value


def _tokenizer_json(file: Path, settings: _Settings, encoding: str | None) -> Loaded:
    what = "not a tokenizer that the `tokenizers` library reads"
    text = file.read_bytes()
    data = _json(text, what)
    model = data.get("model") if isinstance(data, dict) else None
    added = data.get("added_tokens") if isinstance(data, dict) else None
    if not isinstance(model, dict) or not isinstance(added or [], list):
        raise ValueError(f"{what} (it has no model)")
    if len(added or []) > MOST_ADDED:
        raise ValueError(f"{what} ({len(added or [])} added tokens; at most {MOST_ADDED} are read)")
    if isinstance(model.get("vocab"), dict) and model["vocab"]:
        checked_vocab(model["vocab"])
    _check_charsmaps(data.get("normalizer"))
    with library(what):
        backend = tokenizers.Tokenizer.from_buffer(text)
    roles = {role: token for role, token in settings.roles.items() if token and backend.token_to_id(token) is not None}
    return settings.finished(backend, roles)


def _check_charsmaps(part: Any) -> None:
    if isinstance(part, dict):
        charsmap = part.get("precompiled_charsmap")
        if isinstance(charsmap, str) and charsmap:
            spmodel.check_charsmap(ranks.unbase64(charsmap.encode()))
        inners = part.get("normalizers")
        for inner in inners if isinstance(inners, list) else []:
            _check_charsmaps(inner)


def _vocab_merges(file: Path, settings: _Settings, encoding: str | None) -> Loaded:
    vocab = checked_vocab(_json(file.read_bytes(), "not a vocabulary"))
    merges = _merges(file.parent / "merges.txt")
    name = settings.family or _guess(vocab, settings)
    if name not in ("clip", "roberta", "gpt2", "qwen2"):
        name = _guess(vocab, settings)
    family = _FAMILIES[name]
    roles, added = settings.special(vocab, family)
    if name == "clip":
        backend = formats.clip_bpe(vocab, merges, unk=roles.get("unk", _ENDOFTEXT), added=added)
    else:
        qwen = name == "qwen2"
        prefix = bool(settings.config.get("add_prefix_space")) and not qwen
        backend = formats.byte_level_bpe(vocab, merges, pattern="qwen2" if qwen else None, added=added, add_prefix_space=prefix, nfc=qwen)
    return settings.finished(backend, roles, family)


def _guess(vocab: Mapping[str, int], settings: _Settings) -> str:
    if any(token.endswith("</w>") for token in vocab):
        return "clip"
    if {"<s>", "</s>", "<mask>"} <= vocab.keys():
        return "roberta"
    return "qwen2" if any(token.text == "<|im_start|>" for token in settings.added) else "gpt2"


def _merges(file: Path) -> list[tuple[str, str]]:
    lines = _text(file.read_bytes()).split("\n")
    merges = []
    for number, line in enumerate(lines, 1):
        line = line.removesuffix("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        parts = line.split(" ")
        if len(parts) != 2 or not all(parts):
            raise ValueError(f"{file}: line {number} is {line[:60]!r}, not two tokens with a space between")
        merges.append((parts[0], parts[1]))
    return merges


def _vocab_txt(file: Path, settings: _Settings, encoding: str | None) -> Loaded:
    lines = _text(file.read_bytes()).replace("\r\n", "\n").removesuffix("\n").split("\n")
    vocab = checked_vocab({token: i for i, token in enumerate(lines)})  # of a token that is there twice the later line counts, as for BERT
    family = _FAMILIES["bert"]
    roles, added = settings.special(vocab, family)
    config = settings.config
    strip = config.get("strip_accents")
    backend = formats.wordpiece(
        vocab,
        unk=roles.get("unk", "[UNK]"),
        lower=bool(config.get("do_lower_case", True)),
        strip_accents=strip if isinstance(strip, bool) else None,
        chinese_characters=bool(config.get("tokenize_chinese_chars", True)),
        added=added,
    )
    return settings.finished(backend, roles, family)


def _sentencepiece(file: Path, settings: _Settings, encoding: str | None) -> Loaded:
    if ranks.looks_like(file):
        return _tiktoken(file, settings, encoding)
    if settings.family and settings.family.startswith(_OTHER_NUMBERS):
        raise ValueError(f"{settings.family} numbers its pieces in its own way; save its tokenizer.json with transformers, and load that")
    model = spmodel.parse(file.read_bytes())
    text, pieces = model.normalization, model.pieces
    marian = file.parent / "vocab.json" if file.suffix == ".spm" else None
    more: list[Added] = []
    if marian is not None and marian.is_file():
        pieces, more = _marian_pieces(pieces, checked_vocab(_json(marian.read_bytes(), "not a vocabulary")))
    elif settings.config.get("legacy") is False and text.dummy_prefix and not text.remove_extra_whitespaces:
        text = formats.Normalization(text.charsmap, "text", text.remove_extra_whitespaces)
    if settings.config.get("add_prefix_space") is False or settings.config.get("add_dummy_prefix_space") is False:
        text = formats.Normalization(text.charsmap, "", text.remove_extra_whitespaces)
    name = "marian" if more or file.suffix == ".spm" else settings.family
    if name not in ("t5", "marian", "llama", "gemma"):
        name = "t5" if model.kind == spmodel.UNIGRAM and model.pad == pieces[0][0] and model.eos == pieces[1][0] else "llama"
    unk = next((token for token, _, kind in pieces if kind == formats.UNKNOWN), None)
    named = {"bos": model.bos if _FAMILIES[name].before else None, "eos": model.eos, "pad": model.pad, "unk": unk}
    family = _FAMILIES[name]
    family = replace(family, roles={**family.roles, **{role: token for role, token in named.items() if token}})
    vocab = {token: i for i, (token, _, _) in enumerate(pieces)}
    roles, added = settings.special(vocab, family)
    if name == "t5":
        added += _sentinels(vocab, added, settings.config.get("extra_ids", _SENTINELS_OF_T5))
    if name == "gemma":
        added += [Added(turn, vocab[turn]) for turn in ("<start_of_turn>", "<end_of_turn>") if turn in vocab]
    build = formats.unigram if model.kind == spmodel.UNIGRAM else formats.sentencepiece_bpe
    backend = build(pieces, text, byte_fallback=model.byte_fallback, added=[*more, *added])
    return settings.finished(backend, roles, family)


def _sentinels(vocab: Mapping[str, int], added: Sequence[Added], count: Any) -> list[Added]:
    """T5's sentinels, which are not in its model: they follow it, the last first."""
    if type(count) is not int or not 0 <= count <= 10_000:
        raise ValueError(f"extra_ids of tokenizer_config.json is {str(count)[:40]}; expected a whole number up to 10000")
    present = {*vocab, *(token.text for token in added if token.id < len(vocab))}
    names = [f"<extra_id_{i}>" for i in range(count - 1, -1, -1)]
    if any(name in present or f"▁{name}" in present for name in names):
        return []
    return [Added(name, len(vocab) + i) for i, name in enumerate(names)]


def _marian_pieces(pieces: Sequence[formats.Piece], vocab: Mapping[str, int]) -> tuple[list[formats.Piece], list[Added]]:
    """Marian's source pieces under the ids of its vocab.json, which has the target's too; language codes (>>fra<<) are added tokens."""
    if len(vocab) != max(vocab.values()) + 1:
        raise ValueError("vocab.json leaves out ids")
    scores = {text: (score, kind) for text, score, kind in pieces}
    lowest = (0.0, formats.UNUSED)
    listed = sorted(vocab, key=lambda text: vocab[text])
    kinds = {"<unk>": formats.UNKNOWN, "</s>": formats.CONTROL, "<s>": formats.CONTROL, "<pad>": formats.CONTROL}
    result = [(text, *((0.0, kinds[text]) if text in kinds else scores.get(text, lowest))) for text in listed]
    codes = [Added(text, i, special=False) for text, i in vocab.items() if text.startswith(">>") and text.endswith("<<")]
    return result, codes


def _tiktoken(file: Path, settings: _Settings, encoding: str | None) -> Loaded:
    table = ranks.read(file.read_bytes())
    name = settings.config.get("tokenizer_class")
    known = ranks.detect(table, file.name, name if isinstance(name, str) else None, encoding)
    vocab = {formats.spelled(token): rank for token, rank in table.items()}
    listed = [token for token in settings.added if token.id >= len(table)]
    taken = {token.id for token in listed}
    names = {token.text for token in listed}
    listed += [Added(text, i) for text, i in known.special(len(table)).items() if i not in taken and text not in names]
    merges = formats.merges_of_ranks(table)
    backend = formats.byte_level_bpe(vocab, merges, pattern=known.pattern, added=listed, nfc=known.nfc, ignore_merges=True)
    roles = {role: text for role, text in {**known.roles, **settings.roles}.items() if text and backend.token_to_id(text) is not None}
    return settings.finished(backend, roles, _Family({}, ("bos",) if known.frame else ()))


def _chat_templates(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Chat templates by name; chat_template.jinja goes before chat_template.json, and that before the configuration's."""
    templates: dict[str, str] = {}
    for source in (config.get("chat_template"), read_json(folder / "chat_template.json").get("chat_template")):
        if isinstance(source, str):
            templates["default"] = source
        elif isinstance(source, list):
            pairs = [(entry.get("name"), entry.get("template")) for entry in source if isinstance(entry, dict)]
            templates |= {name: text for name, text in pairs if isinstance(name, str) and isinstance(text, str)}
    files = [folder / "chat_template.jinja", *sorted((folder / "additional_chat_templates").glob("*.jinja"))]
    for file in files:
        if file.is_file():
            if file.stat().st_size > 2**20:
                raise ValueError(f"{file}: a chat template of more than {2**20} bytes is not read")
            templates["default" if file == files[0] else file.stem] = _text(file.read_bytes())
    return templates


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file, {} where there is no file. Raises ValueError, naming the file, for anything else."""
    if not file.is_file():
        return {}
    if file.stat().st_size > LARGEST:
        raise ValueError(f"{file}: more than {LARGEST} bytes")
    try:
        data = _json(file.read_bytes(), "not valid JSON", unique=False)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    return data if isinstance(data, dict) else {}


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 (byte {error.start})") from None


def _json(data: bytes, what: str, unique: bool = True) -> Any:
    try:
        return json.loads(_text(data), object_pairs_hook=_unique if unique else None)
    except RecursionError:
        raise ValueError(f"{what} (nested too deep)") from None
    except ValueError as error:
        raise ValueError(f"{what} ({error})") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"{twice[:40]!r} is there twice")
    return data


_READERS: tuple[tuple[str, Reader], ...] = (
    ("tokenizer.json", _tokenizer_json),
    ("*.model", _sentencepiece),
    ("source.spm", _sentencepiece),
    ("*.spm", _sentencepiece),
    ("vocab.json", _vocab_merges),
    ("vocab.txt", _vocab_txt),
    ("*.tiktoken", _tiktoken),
)
