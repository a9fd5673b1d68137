"""What a server allows, and to whom."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

KEYS_VARIABLE = "TRIFORM_API_KEYS"
_KEY = re.compile(r"[!-~]{8,512}")  # what fits into a header


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a server allows, and to whom.

    keys: API keys, of which a request must bear one; without any, everybody may ask.
    origins: web origins ("https://example.org") whose pages may ask from a browser (CORS); "*" is every one.
    hosts: names that a request may give as its Host, against pages that rebind a name to this machine; empty: any.
    body_bytes: the longest body of a request, in bytes.
    prompt_tokens: the longest prompt, in tokens; a model's own limit holds too.
    new_tokens: the most tokens that an answer may ask for.
    texts: the most texts of one request to a model that judges.
    answers: the most answers of one request to a model that generates.
    concurrent: requests that may be under way at once; the next gets 429.
    deadline: seconds that a request may take, waiting included.
    drain: seconds that running answers get to finish when the server is stopped.
    log_prompts: whether prompts and answers are written to the log.

    Raises ValueError for a value out of range.
    """

    keys: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    body_bytes: int = 4 * 2**20
    prompt_tokens: int = 32_768
    new_tokens: int = 8_192
    texts: int = 2048
    answers: int = 128
    concurrent: int = 512
    deadline: float = 300.0
    drain: float = 30.0
    log_prompts: bool = False

    def __post_init__(self) -> None:
        for name in ("body_bytes", "prompt_tokens", "new_tokens", "texts", "answers", "concurrent"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name, least in (("deadline", 0.1), ("drain", 0.0)):
            if not least <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected a number of seconds of at least {least:g}, got {getattr(self, name)}")
        for origin in self.origins:
            if origin != "*" and not re.fullmatch(r"https?://[^/\s]+", origin):
                raise ValueError(f"origins: expected an origin such as https://example.org, or *, got {origin!r}")
        for key in self.keys:
            if not _KEY.fullmatch(key):
                raise ValueError("keys: expected keys of 8 to 512 visible ASCII characters; make one with `openssl rand -hex 24`")


def read_keys(file: Path | None) -> tuple[str, ...]:
    """API keys from a file, one a line (# begins a comment), and from the environment's TRIFORM_API_KEYS, parted by commas.

    Raises ValueError for a file that cannot be read or holds no key.
    """
    keys = [key.strip() for key in os.environ.get(KEYS_VARIABLE, "").split(",")]
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{file}: expected a file of API keys, one a line ({error})") from None
        found = [line.partition("#")[0].strip() for line in lines]
        if not any(found):
            raise ValueError(f"{file}: expected API keys, one a line, found none; every request would be refused")
        keys += found
    return tuple(dict.fromkeys(key for key in keys if key))
