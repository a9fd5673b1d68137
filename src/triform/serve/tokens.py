"""Single tokens as text and as bytes, for log-probabilities."""

from __future__ import annotations

import codecs
import json
import re
from dataclasses import dataclass
from functools import lru_cache

from triform.text import Tokenizer

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def _alphabet() -> dict[str, int]:
    """The character that byte-level tokenizers write for each byte: itself where it is visible, else one from U+0100 on (GPT-2)."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + place): byte for place, byte in enumerate(hidden)}


_BYTES = _alphabet()


@dataclass(frozen=True)
class Read:
    """A prompt as a model reads it. offsets: at which character of the text each token begins, where that was asked for."""

    text: str
    ids: list[int]
    offsets: tuple[int, ...] = ()


def finite(log_prob: float) -> float:
    """A log-probability that JSON can write: for what is impossible OpenAI's -9999."""
    return max(log_prob, -9999.0)


class TokenTexts:
    """What each token of a tokenizer adds to a text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        decoder = json.dumps(json.loads(tokenizer.backend.to_str()).get("decoder"))
        self._byte_level = '"ByteLevel"' in decoder
        self._added = {i: token.content for i, token in tokenizer.backend.get_added_tokens_decoder().items()}
        self.of = lru_cache(maxsize=65_536)(self._of)

    def _of(self, token: int) -> tuple[str, bytes]:
        """A token's text, with U+FFFD for bytes that are no whole character, and its bytes."""
        if token in self._added:
            return self._added[token], self._added[token].encode()
        try:
            name = self._tokenizer.tokens([token])[0]
        except ValueError:  # an id that the model has and the tokenizer has not
            return "", b""
        if self._byte_level and all(character in _BYTES for character in name):
            raw = bytes(_BYTES[character] for character in name)
        elif byte := _BYTE.fullmatch(name):
            raw = bytes([int(byte[1], 16)])
        else:
            raw = _plain(name, self._tokenizer.decode([token])).encode()
        return raw.decode("utf-8", "replace"), raw

    def named(self, token: int) -> str:
        """A token's text, or its bytes spelled out where they are no whole character ("bytes:\\xe5"), as OpenAI's older endpoint does."""
        text, raw = self.of(token)
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw) if "\ufffd" in text else text


class Offsets:
    """At which character each token of a text begins, told token after token; `start` characters stand before the first."""

    def __init__(self, texts: TokenTexts, start: int = 0) -> None:
        self._texts, self._length = texts, start
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")

    def __call__(self, token: int) -> int:
        """Where the next token begins; one that begins inside a character begins with that."""
        began = self._length
        self._length += len(self._bytes.decode(self._texts.of(token)[1]))
        return began


def _plain(name: str, text: str) -> str:
    """A token's text inside a sentence: with the space that the first token of a text loses, without WordPiece's mark."""
    if name.startswith("▁") and not text.startswith(" "):
        return f" {text}"
    return text.removeprefix("##") if name.startswith("##") else text
