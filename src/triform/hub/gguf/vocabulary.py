"""The tokenizer that a GGUF file carries."""

from __future__ import annotations

import re
from array import array
from typing import TYPE_CHECKING, Any, NamedTuple

from triform.text.formats import (
    CONTROL,
    NORMAL,
    PATTERNS,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Added,
    Normalization,
    byte_level_bpe,
    frame,
    sentencepiece_bpe,
    unigram,
)

from ..fields import Fields
from .header import Header

if TYPE_CHECKING:
    import tokenizers

    from triform.text import Tokenizer


class Pre(NamedTuple):
    """How llama.cpp cuts a text before the merges of a byte-level BPE, under a name in `tokenizer.ggml.pre`.

    whole_words: a word of the vocabulary is one token, whatever the merges say. bos: a text begins with it unless said.
    """

    patterns: tuple[str, ...]
    whole_words: bool = False
    bos: bool = False


_TEKKEN_UPPER, _TEKKEN_LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_TEKKEN_UPPER}*{_TEKKEN_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_TEKKEN_UPPER}+{_TEKKEN_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PRES = {
    "gpt-2": Pre(PATTERNS["gpt2"]),
    "llama-bpe": Pre(PATTERNS["cl100k"], whole_words=True, bos=True),
    "smaug-bpe": Pre(PATTERNS["cl100k"]),
    "qwen2": Pre(PATTERNS["qwen2"]),
    "smollm": Pre(PATTERNS["smollm"]),
    "gpt-4o": Pre(PATTERNS["o200k"]),
    "tekken": Pre((_TEKKEN,), whole_words=True, bos=True),
    "deepseek-v3": Pre(PATTERNS["deepseek-v3"]),
}
_ALIASES = {
    "llama3": "llama-bpe", "llama-v3": "llama-bpe", "falcon3": "llama-bpe", "pixtral": "llama-bpe", "dbrx": "smaug-bpe",
    "deepseek-r1-qwen": "qwen2", "megrez": "qwen2", "starcoder": "smollm", "refact": "smollm", "command-r": "smollm",
    "codeshell": "smollm", "phi-2": "gpt-2", "gigachat": "gpt-2", "mellum": "gpt-2", "olmo": "gpt-2", "mpt": "gpt-2", "llama4": "gpt-4o",
}  # fmt: skip

ROLE_KEYS = {
    "bos": "bos_token_id", "eos": "eos_token_id", "unk": "unknown_token_id", "sep": "seperator_token_id", "pad": "padding_token_id",
    "cls": "cls_token_id", "mask": "mask_token_id",
}  # fmt: skip
_DEFAULT_ROLES: dict[str, dict[str, int]] = {"llama": {"bos": 1, "eos": 2, "unk": 0}, "t5": {"eos": 1, "unk": 2, "pad": 0}, "gpt2": {}}
_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
# llama.cpp, too, knows by these names what ends an answer
_ENDS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>", "<|end_of_text|>", "<EOT>")
FILLER = re.compile(r"\[PAD\d+\]")


def read_tokenizer(header: Header) -> Tokenizer | None:
    """The tokenizer in a GGUF file, None where it has none. Raises ValueError that names the file and what is wrong or not known."""
    before = "tokenizer.ggml."
    mine = {key.removeprefix(before): value for key, value in header.metadata.items() if key.startswith(before)}
    if mine.get("model", "none") in ("none", "no_vocab"):
        return None
    try:
        return _Reader(header, Fields(mine, before)).read()
    except ValueError as error:
        raise ValueError(f"{header.path}: {error}") from None


class _Reader:
    def __init__(self, header: Header, data: Fields) -> None:
        self.header, self.data = header, data
        self.kind = data.text("model")
        if self.kind not in _DEFAULT_ROLES:
            raise data.fail("model", f"one of {', '.join(_DEFAULT_ROLES)}, as no other kind of tokenizer is known")
        self.tokens = self._texts("tokens")
        rows = header.tensors["token_embd.weight"].shape[0] if "token_embd.weight" in header.tensors else len(self.tokens)
        if not 1 <= len(self.tokens) <= rows:
            raise ValueError(f"{len(self.tokens)} tokens do not fit the {rows} rows of token_embd.weight")
        self.types = self._numbers("token_type", NORMAL)
        while self.tokens and self.types[len(self.tokens) - 1] == UNUSED and FILLER.fullmatch(self.tokens[-1]):
            self.tokens.pop()  # rows that only fill up the table
        self.ids = {text: i for i, text in enumerate(self.tokens)}
        if len(self.ids) < len(self.tokens):
            twice = next(text for i, text in enumerate(self.tokens) if self.ids[text] != i)
            raise ValueError(f"the token {twice[:40]!r} is there twice")

    def _texts(self, name: str) -> list[str]:
        value = self.data.data.get(name)
        if not isinstance(value, list):
            raise self.data.fail(name, "a list of texts")
        return list(value)

    def _numbers(self, name: str, default: int) -> list[Any]:
        value = self.data.data.get(name)
        if value is None:
            return [default] * len(self.tokens)
        if not isinstance(value, array) or len(value) < len(self.tokens):
            raise ValueError(f"tokenizer.ggml.{name}: expected a number for each of the {len(self.tokens)} tokens")
        return value.tolist()

    def read(self) -> Tokenizer:
        from triform.text import Tokenizer

        backend, bos, eos = getattr(self, f"_{self.kind}")()
        roles, frames = self._roles(), []
        for role, usual in (("bos", bos), ("eos", eos)):
            wanted = self.data.flag(f"add_{role}_token", usual)
            if wanted and role not in roles:
                raise self.data.fail(f"add_{role}_token", f"no, as the file names no {role} token")
            frames.append([roles[role]] if wanted else [])
        frame(backend, *frames)
        tokenizer = Tokenizer(backend, roles)
        template = self.header.metadata.get("tokenizer.chat_template")
        if template is not None and not isinstance(template, str):
            raise ValueError("tokenizer.chat_template: expected a text")
        tokenizer.chat_template = template
        tokenizer.ends = self._ends(roles)
        length = self.header.metadata.get(f"{self.header.metadata.get('general.architecture')}.context_length")
        tokenizer.length = length if isinstance(length, int) and length > 0 else None
        return tokenizer

    def _roles(self) -> dict[str, str]:
        ids = {role: i for role, i in _DEFAULT_ROLES[self.kind].items() if i < len(self.tokens)}
        ids |= {role: self.data.whole(key) for role, key in ROLE_KEYS.items() if self.data.has(key)}
        for role, i in ids.items():
            if not 0 <= i < len(self.tokens):
                raise self.data.fail(ROLE_KEYS[role], f"an id below {len(self.tokens)}")
        return {role: self.tokens[i] for role, i in ids.items()}

    def _ends(self, roles: dict[str, str]) -> list[int]:
        ids = [self.data.whole(key) for key in _END_KEYS if self.data.has(key)] or [self.ids[roles["eos"]]] * ("eos" in roles)
        named = [self.ids[name] for name in _ENDS if name in self.ids and self.types[self.ids[name]] == CONTROL]
        return [i for i in dict.fromkeys([*ids, *named]) if 0 <= i < len(self.tokens)]

    def _added(self) -> list[Added]:
        kinds = (CONTROL, UNKNOWN, USER_DEFINED)
        return [Added(text, i, self.types[i] != USER_DEFINED) for i, text in enumerate(self.tokens) if self.types[i] in kinds]

    def _gpt2(self) -> tuple[tokenizers.Tokenizer, bool, bool]:
        name = self.data.text("pre", "default")
        pre = PRES.get(_ALIASES.get(name, name))
        if pre is None:
            known = ", ".join([*PRES, *_ALIASES])
            raise self.data.fail("pre", f"one of {known}, as how others cut a text is not known")
        merges = [(merge[:at], merge[at + 1 :]) for merge in self._texts("merges") if (at := merge.find(" ", 1)) > 0]
        backend = byte_level_bpe(self.ids, merges, pattern=pre.patterns, added=self._added(), ignore_merges=pre.whole_words)
        return backend, pre.bos, False

    def _pieces(self) -> list[tuple[str, float, int]]:
        return list(zip(self.tokens, map(float, self._numbers("scores", 0)), self.types, strict=False))

    def _normalization(self, prefix: bool, merged: bool) -> Normalization:
        charsmap = self.data.data.get("precompiled_charsmap")
        return Normalization(
            charsmap=charsmap.tobytes() if isinstance(charsmap, array) else None,
            dummy_prefix="segment" if self.data.flag("add_space_prefix", prefix) else "",
            remove_extra_whitespaces=merged,
        )

    def _llama(self) -> tuple[tokenizers.Tokenizer, bool, bool]:
        return sentencepiece_bpe(self._pieces(), self._normalization(True, False)), True, False

    def _t5(self) -> tuple[tokenizers.Tokenizer, bool, bool]:
        merged = self.data.flag("remove_extra_whitespaces", False)
        return unigram(self._pieces(), self._normalization(False, merged), byte_fallback=False), False, True
