"""A tokenizer as the metadata of a GGUF file."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from triform.text.formats import BYTE, CONTROL, GPT2, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from triform.text.framing import opening
from triform.text.training import WORDS

from .vocabulary import PRES, ROLE_KEYS

if TYPE_CHECKING:
    from triform.text import Tokenizer

_SPACE = "▁"
_BYTES = {f"<0x{byte:02X}>" for byte in range(256)}
_SENTENCEPIECE = ("Precompiled", "Prepend", "Replace", "Strip")  # what SentencePiece, and llama.cpp after it, can do to a text
_HELP = "so llama.cpp would cut texts otherwise than the model learned them"


def tokenizer_metadata(tokenizer: Tokenizer, rows: int) -> tuple[dict[str, Any], list[str]]:
    """What llama.cpp needs to encode and decode as a tokenizer does, filled up to the `rows` of the model's token table.

    With it come remarks: sentences that say which texts llama.cpp cuts otherwise; none where it cuts all alike.
    Raises ValueError for a tokenizer that llama.cpp has no counterpart of.
    """
    if tokenizer.vocab_size > rows:
        raise ValueError(f"the tokenizer has {tokenizer.vocab_size} tokens, and the model's table {rows} rows; they do not belong together")
    vocabulary = _Vocabulary(tokenizer, rows)
    said = vocabulary.describe()
    before = opening(tokenizer)
    if before and before != [tokenizer.bos]:
        raise ValueError(f"the tokenizer begins texts with {tokenizer.tokens(before)}, and llama.cpp can only with a bos token")
    said |= {"add_bos_token": bool(before), "add_eos_token": False}
    said |= {key: i for role, key in ROLE_KEYS.items() if (i := getattr(tokenizer, role)) is not None}
    others = [i for i in tokenizer.ends if i != tokenizer.eos]
    if others:
        said["eot_token_id"] = others[0]
    metadata = {f"tokenizer.ggml.{key}": value for key, value in said.items()}
    if tokenizer.chat_template:
        metadata["tokenizer.chat_template"] = tokenizer.chat_template
    return metadata, vocabulary.remarks


def _steps(part: Mapping[str, Any] | None, inside: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or a pre-tokenizer, sequences in sequences laid out flat."""
    if part is None:
        return []
    return [step for each in part[inside] for step in _steps(each, inside)] if part["type"] == "Sequence" else [dict(part)]


class _Vocabulary:
    """The tokens of a tokenizer, by id, with the type that llama.cpp gives each."""

    def __init__(self, tokenizer: Tokenizer, rows: int) -> None:
        backend = json.loads(tokenizer.backend.to_str())
        self.remarks: list[str] = []
        self.model = backend["model"]
        self.steps = _steps(backend["pre_tokenizer"], "pretokenizers")
        self.normalizers = _steps(backend["normalizer"], "normalizers")
        self.added = {token["id"]: token for token in backend["added_tokens"]}
        self.byte_level = bool(self.steps) and self.steps[-1]["type"] == "ByteLevel"
        self.unk = tokenizer.unk
        by_id = {i: text for text, i in tokenizer.backend.get_vocab(with_added_tokens=True).items()}
        self.tokens = [by_id.get(i, f"[PAD{i}]") for i in range(rows)]
        self.types = [self._type(i, text) if i in by_id else UNUSED for i, text in enumerate(self.tokens)]

    def _type(self, i: int, text: str) -> int:
        if i == self.unk and not self.byte_level:
            return UNKNOWN
        if i in self.added:
            return CONTROL if self.added[i]["special"] else USER_DEFINED
        return BYTE if text in _BYTES and self.model.get("byte_fallback") else NORMAL

    def describe(self) -> dict[str, Any]:
        match self.model["type"]:
            case "BPE" if self.byte_level:
                return self._byte_level()
            case "BPE":
                return self._bpe()
            case "Unigram":
                return self._unigram()
            case kind:
                raise ValueError(f"llama.cpp has no {kind} tokenizer for language models; train one of kind byte-bpe, bpe or characters")

    def _byte_level(self) -> dict[str, Any]:
        patterns, last = [_pattern(step) for step in self.steps[:-1]], self.steps[-1]
        patterns += [GPT2] * bool(last["use_regex"])
        if len(patterns) > 1 and patterns[-1] == WORDS:
            patterns.pop()  # no merge of a tokenizer trained here crosses this finer cut
        if last["add_prefix_space"] or any(step["type"] != "NFC" for step in self.normalizers):
            raise ValueError(f"the tokenizer changes texts before it cuts them (a prefix space, a normalizer), {_HELP}")
        if self.normalizers:
            self.remarks.append("llama.cpp does not bring texts into the composed form (NFC) first.")
        whole, spelled = bool(self.model["ignore_merges"]), _spelled(patterns)
        pre = next((name for name, known in PRES.items() if _spelled(known.patterns) == spelled and known.whole_words == whole), None)
        if pre is None:
            shown = " | ".join(pattern if len(pattern) < 60 else pattern[:57] + "..." for pattern in patterns)
            raise ValueError(f"llama.cpp knows no tokenizer that cuts texts by {shown!r}, {_HELP}; those it knows are {', '.join(PRES)}")
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in self.model["merges"]]
        return {"model": "gpt2", "pre": pre, "tokens": self.tokens, "token_type": self.types, "merges": merges}

    def _spaced(self) -> tuple[list[str], bool]:
        """The tokens with spaces written as SentencePiece does, and whether one is put before a text."""
        kinds = [step["type"] for step in self.normalizers]
        if set(kinds) - set(_SENTENCEPIECE):
            raise ValueError(f"the tokenizer changes texts by {', '.join(kinds)} before it cuts them, {_HELP}")
        metaspace = [step for step in self.steps if step["type"] == "Metaspace"]
        if metaspace or "Replace" in kinds:
            return self.tokens, "Prepend" in kinds or any(step["prepend_scheme"] != "never" for step in metaspace)
        plain = (NORMAL, USER_DEFINED)
        spaced = [text.replace(" ", _SPACE) if kind in plain else text for text, kind in zip(self.tokens, self.types, strict=True)]
        if len(set(spaced)) < len(spaced):
            raise ValueError("the tokenizer has tokens with a space and with ▁ (U+2581) in its place, which are one to llama.cpp")
        if any(step["type"] == "Split" for step in self.steps):
            self.remarks.append("llama.cpp cuts runs of white space, and rarely other text, into other tokens than the tokenizer does.")
        return spaced, False

    def _bpe(self) -> dict[str, Any]:
        tokens, prefix = self._spaced()
        if not self.model["byte_fallback"]:
            if self.model["merges"]:
                raise ValueError("llama.cpp's BPE spells unknown characters in bytes, and this tokenizer has none; set byte_fallback")
            return self._ugm(tokens, [0.0] * len(tokens), prefix)
        if self._joins_spaces():
            self.remarks.append("llama.cpp keeps spaces at both ends and runs of them, which the tokenizer takes away.")
        scores = [0.0] * len(tokens)
        for rank, merge in enumerate(self.model["merges"], start=1):
            left, right = merge if not isinstance(merge, str) else merge.split(" ", 1)
            whole = self.model["vocab"][left + right]
            scores[whole] = scores[whole] or -float(rank)
        said = {"model": "llama", "pre": "default", "tokens": tokens, "scores": scores, "token_type": self.types}
        return said | {"add_space_prefix": prefix}

    def _unigram(self) -> dict[str, Any]:
        if self.model["byte_fallback"]:
            raise ValueError("llama.cpp's unigram tokenizer does not spell unknown characters in bytes; train one without byte_fallback")
        tokens, prefix = self._spaced()
        scores = [float(score) for _, score in self.model["vocab"]]
        said = self._ugm(tokens, scores + [0.0] * (len(tokens) - len(scores)), prefix)
        for step in self.normalizers:
            if step["type"] == "Precompiled":
                said["precompiled_charsmap"] = base64.b64decode(step["precompiled_charsmap"])
        return said

    def _ugm(self, tokens: Sequence[str], scores: Sequence[float], prefix: bool) -> dict[str, Any]:
        """SentencePiece's unigram model, which with single characters alone is also a tokenizer of characters."""
        if self.unk is None:
            raise ValueError("llama.cpp needs an unknown token for a tokenizer that does not spell in bytes, and this one has none")
        if self.model["type"] == "BPE":
            self.remarks.append("llama.cpp makes one unknown token of a run of unknown characters, and the tokenizer one of each.")
        said = {"model": "t5", "pre": "default", "tokens": list(tokens), "scores": list(scores), "token_type": self.types}
        return said | {"add_space_prefix": prefix, "remove_extra_whitespaces": self._joins_spaces()}

    def _joins_spaces(self) -> bool:
        """Whether runs of spaces are made one, and those at both ends none."""
        replaced = any(step["type"] == "Replace" and step["content"] == " " for step in self.normalizers)
        return replaced or any(step["type"] == "WhitespaceSplit" for step in self.steps)


def _spelled(patterns: Sequence[str]) -> list[str]:
    """Patterns with line breaks written in one of the two ways that there are."""
    return [pattern.replace("\r", r"\r").replace("\n", r"\n") for pattern in patterns]


def _pattern(step: Mapping[str, Any]) -> str:
    """The regular expression whose matches a step of a pre-tokenizer cuts out."""
    match step:
        case {"type": "Split", "behavior": "Isolated", "invert": False, "pattern": {"Regex": str(pattern)}}:
            return pattern
        case {"type": "Digits", "individual_digits": True}:
            return r"\p{N}"
        case {"type": "ByteLevel", "use_regex": True, "add_prefix_space": False}:
            return GPT2
    raise ValueError(f"llama.cpp has no counterpart of the tokenizer's step {step['type']}, {_HELP}")
