"""tiktoken's files of ranks: a token's bytes in base64 and its rank in each line. What cuts the text and which special tokens there
are is not in the file; it follows from the encoding's name."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

_LONGEST = 2**10  # bytes of a token
_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\s*")


@dataclass(frozen=True)
class Encoding:
    """A known encoding: its pattern (a name of `formats.PATTERNS`), how many ranks it has, its special tokens given that number."""

    pattern: str
    size: int
    special: Callable[[int], dict[str, int]]
    roles: Mapping[str, str] = field(default_factory=dict)
    nfc: bool = False
    frame: bool = False


_END = {"eos": "<|endoftext|>"}


def _fim(start: int, prompt: int | None) -> dict[str, int]:
    names = ("<|endoftext|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>")
    return {name: start + i for i, name in enumerate(names)} | ({} if prompt is None else {"<|endofprompt|>": prompt})


def _llama3(start: int) -> dict[str, int]:
    named = {
        0: "begin_of_text", 1: "end_of_text", 4: "finetune_right_pad_id", 6: "start_header_id", 7: "end_header_id",
        8: "eom_id", 9: "eot_id", 10: "python_tag",
    }  # fmt: skip
    reserved = iter(range(256))
    return {f"<|{named[i] if i in named else f'reserved_special_token_{next(reserved)}'}|>": start + i for i in range(256)}


def _qwen(start: int) -> dict[str, int]:
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205))]
    return {name: start + i for i, name in enumerate(names)}


ENCODINGS = {
    "gpt2": Encoding("gpt2", 50256, lambda size: {"<|endoftext|>": size}, _END),
    "r50k_base": Encoding("gpt2", 50256, lambda size: {"<|endoftext|>": size}, _END),
    "p50k_base": Encoding("gpt2", 50280, lambda size: {"<|endoftext|>": 50256}, _END),
    "cl100k_base": Encoding("cl100k", 100256, lambda size: _fim(size + 1, size + 20), _END),
    "o200k_base": Encoding("o200k", 199998, lambda size: {"<|endoftext|>": size + 1, "<|endofprompt|>": size + 20}, _END),
    "llama3": Encoding("cl100k", 128000, _llama3, {"bos": "<|begin_of_text|>", "eos": "<|end_of_text|>"}, frame=True),
    "qwen": Encoding("qwen2", 151643, _qwen, _END, nfc=True),
}


def looks_like(file: Path) -> bool:
    """Whether a file begins with a line of base64 and a number."""
    with file.open("rb") as stream:
        return _LINE.fullmatch(stream.readline(4096)) is not None


def read(data: bytes) -> dict[bytes, int]:
    """The ranks in a file: token to rank. Raises ValueError for a line that is not one, a rank given twice, or a byte without a rank."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        if len(line) > 2 * _LONGEST or not _LINE.fullmatch(line) or len(line.split()[1]) > 9:
            raise ValueError(f"line {number} is not a token in base64 and its rank: {line[:60]!r}")
        text, rank = line.split()
        token = unbase64(text)
        if not token or len(token) > _LONGEST or ranks.setdefault(token, int(rank)) != int(rank):
            raise ValueError(f"line {number} gives a second rank to its token, or names none")
    if len(set(ranks.values())) < len(ranks):
        raise ValueError("two tokens have the same rank")
    missing = next((byte for byte in range(256) if bytes([byte]) not in ranks), None)
    if missing is not None:
        raise ValueError(f"it has no rank for the byte {missing}; every byte needs one")
    if sum(len(token) ** 2 for token in ranks) > 2**28:
        raise ValueError("its tokens are too long")
    return ranks


def unbase64(text: bytes) -> bytes:
    """Bytes from base64. Raises ValueError for what is none."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"{text[:40]!r} is not base64") from None


def detect(ranks: Mapping[bytes, int], file: str, tokenizer_class: str | None, name: str | None) -> Encoding:
    """The encoding that ranks belong to: the one named, or that of the file's name, the tokenizer's class, or the number of ranks."""
    if name is not None and name not in ENCODINGS:
        raise ValueError(f"no encoding is named {name!r}; known are {', '.join(ENCODINGS)}")
    by_class = "qwen" if tokenizer_class == "QWenTokenizer" else None
    name = name or next((known for known in ENCODINGS if file == f"{known}.tiktoken"), None) or by_class
    name = name or next((known for known, encoding in ENCODINGS.items() if encoding.size == len(ranks)), None)
    if name is None:
        raise ValueError(
            f"these {len(ranks)} ranks of tiktoken are of no known encoding, so how they cut a text is not known; "
            f"say which with encoding=, one of {', '.join(ENCODINGS)}"
        )
    return ENCODINGS[name]
