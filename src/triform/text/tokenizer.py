"""Tokenizers: the Hugging Face `tokenizers` library behind a small interface that the rest of Triform uses.

What each kind of tokenizer is made of is in `triform.text.training`.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from triform.config.files import replacing

from . import chat, loading
from .formats import library
from .loading import ROLES, read_json
from .training import SAMPLE_BYTES, sample, train_backend, without_surrogates

KINDS = ("byte-bpe", "bpe", "wordpiece", "unigram", "characters")
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[BOS]", "[EOS]")
_ROLE_OF = {role: role for role in ROLES} | {"s": "bos", "/s": "eos", "endoftext": "eos", "begin_of_text": "bos", "end_of_text": "eos"}
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|endofturn|>")
_SENTINEL = re.compile(r"<extra_id_(\d+)>")


def roles_of(tokens: Iterable[str]) -> dict[str, str]:
    """The roles that special tokens play, told from their names: "[PAD]" and "<pad>" pad, "</s>" ends, and so on.

    Returns role: token; the first token that fits a role gets it.
    """
    roles: dict[str, str] = {}
    for token in tokens:
        role = _ROLE_OF.get(token.strip("[]<>|").lower())
        if role:
            roles.setdefault(role, token)
    return roles


class Tokenizer:
    """Text to token ids and back.

    `backend` is the `tokenizers.Tokenizer` that does the work; `roles` names the special
    tokens by what they are for; `training` says, for a tokenizer trained here, what text it saw.

    chat_templates: templates (Jinja) that write a conversation, by name; "default" is `chat_template`.
    ends: ids that end a generation: eos, and what ends a turn by the chat templates.
    start: ids that an encoder-decoder's decoder begins with, [] where that is not said.
    length: the most tokens that the model takes, or None.

    A lone surrogate in the text is read as U+FFFD. The name of a special token inside a text
    ("[MASK]") is read as that token, unless `plain` is true: text from outside is encoded plain.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, roles: Mapping[str, str] | None = None, training: Mapping[str, Any] | None = None
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self.roles: dict[str, str] = dict(roles if roles is not None else roles_of(self._special_tokens))
        self.training: dict[str, Any] = dict(training or {})
        self.chat_templates: dict[str, str] = {}
        self.start: list[int] = []
        self.length: int | None = None
        for role, token in self.roles.items():
            if role not in ROLES:
                raise ValueError(f"{role!r} is no role of a special token; the roles are {', '.join(ROLES)}")
            if backend.token_to_id(token) is None:
                raise ValueError(f"the {role} token {token!r} is not in the tokenizer's vocabulary")
        self.ends: list[int] = [] if self.eos is None else [self.eos]

    def __repr__(self) -> str:
        return f"Tokenizer({type(self.backend.model).__name__}, vocab_size={self.vocab_size})"

    def __len__(self) -> int:
        return self.vocab_size

    @property
    def _special_tokens(self) -> list[str]:
        added = self.backend.get_added_tokens_decoder()
        return [added[i].content for i in sorted(added) if added[i].special]

    @cached_property
    def _plain_backend(self) -> tokenizers.Tokenizer:
        copy = tokenizers.Tokenizer.from_str(self.backend.to_str())
        copy.encode_special_tokens = True
        return copy

    def encodings(
        self, texts: Sequence[str], special: bool = False, *, plain: bool = False, offsets: bool = True
    ) -> list[tokenizers.Encoding]:
        """The library's own results (ids, tokens, offsets) for each text; without offsets it takes two thirds of the time."""
        backend = self._plain_backend if plain else self.backend
        encode = backend.encode_batch if offsets else backend.encode_batch_fast
        with library("the tokenizer cannot encode this text"):
            try:
                return encode(texts, add_special_tokens=special)
            except (UnicodeEncodeError, TypeError):
                return encode([without_surrogates(text) for text in texts], add_special_tokens=special)

    def encode(self, text: str, special: bool = False, *, plain: bool = False) -> list[int]:
        """The token ids of a text; with `special`, framed as the tokenizer's template says ([CLS] … [SEP], [BOS] … [EOS])."""
        return self.encodings([text], special, plain=plain, offsets=False)[0].ids

    def encode_batch(self, texts: Iterable[str], special: bool = False, *, plain: bool = False) -> list[list[int]]:
        """The token ids of each text, in parallel over the machine's cores."""
        return [encoding.ids for encoding in self.encodings(list(texts), special, plain=plain, offsets=False)]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of token ids (a list, an array or a tensor). Bytes that are not whole characters become U+FFFD."""
        numbers = [int(i) for i in ids]
        with library("the tokenizer cannot decode these ids"):
            return self.backend.decode(numbers, skip_special_tokens=skip_special)

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """The names in the vocabulary of token ids. In byte-level tokenizers these are not readable text; `decode` is."""
        names = []
        for i in ids:
            name = self.backend.id_to_token(int(i))
            if name is None:
                raise ValueError(f"no token has the id {int(i)}; the vocabulary holds 0 to {self.vocab_size - 1}")
            names.append(name)
        return names

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """For each token of `encode(text)`, the span of characters (start, end) that it stands for.

        Tokens that are the bytes of one character all carry the whole character's span.
        """
        return self.encodings([text])[0].offsets

    @cached_property
    def vocab_size(self) -> int:
        """The number of rows an embedding needs: the highest id and one more."""
        return max(self.backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def id(self, token: str) -> int | None:
        """The id of a token given by its name in the vocabulary, or None."""
        return self.backend.token_to_id(token)

    def _role(self, role: str) -> int | None:
        return self.backend.token_to_id(self.roles[role]) if role in self.roles else None

    @property
    def pad(self) -> int | None:
        """The id that fills up short rows."""
        return self._role("pad")

    @property
    def bos(self) -> int | None:
        """The id that begins a sequence."""
        return self._role("bos")

    @property
    def eos(self) -> int | None:
        """The id that ends a sequence."""
        return self._role("eos")

    @property
    def unk(self) -> int | None:
        """The id of what the vocabulary cannot express."""
        return self._role("unk")

    @property
    def mask(self) -> int | None:
        """The id that hides a token from a masked language model."""
        return self._role("mask")

    @property
    def cls(self) -> int | None:
        """The id whose position stands for the whole sequence."""
        return self._role("cls")

    @property
    def sep(self) -> int | None:
        """The id that parts two sequences."""
        return self._role("sep")

    @cached_property
    def sentinels(self) -> list[int]:
        """The ids of T5's sentinels, <extra_id_0> first."""
        added = self.backend.get_added_tokens_decoder()
        numbers = {i: _SENTINEL.fullmatch(token.content) for i, token in added.items()}
        return sorted((i for i, match in numbers.items() if match), key=lambda i: int(numbers[i][1]))  # type: ignore[index]

    @cached_property
    def special_ids(self) -> set[int]:
        """The ids of all special tokens."""
        return {i for i, token in self.backend.get_added_tokens_decoder().items() if token.special}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) of the serialised tokenizer: equal tokenizers have equal fingerprints."""
        return hashlib.sha256(self.backend.to_str().encode()).hexdigest()

    @property
    def chat_template(self) -> str | None:
        """The template (Jinja) that writes a conversation as the model was taught to read it; None for a model that does not chat."""
        return self.chat_templates.get("default")

    @chat_template.setter
    def chat_template(self, template: str | None) -> None:
        self.chat_templates.pop("default", None)
        if template is not None:
            self.chat_templates["default"] = template
            self._end_at_turns()

    def _end_at_turns(self) -> None:
        """A generation ends with a turn too, by the tokens that the chat templates end it with."""
        written = "".join(self.chat_templates.values())
        ends = [self.id(token) for token in _TURN_ENDS if token in written]
        self.ends += [end for end in ends if end is not None and end not in self.ends]

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """A conversation as text, as the chat template writes it. With `generation_prompt` it ends where the assistant begins.

        messages: [{"role": "user", "content": "…"}, …]; a content may be a list of {"type": "text", "text": "…"}.
        variables: more that the template reads. Raises ValueError, in one line, for messages that are none and for a template that fails.
        """
        return chat.render(self, messages, generation_prompt=generation_prompt, tools=tools, variables=variables).text

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> list[int]:
        """A conversation as token ids. The template's special tokens are tokens; those that a message spells out are plain text, so
        that nobody ends a turn by writing <|im_end|> (see `triform.text.chat`)."""
        rendered = chat.render(self, messages, generation_prompt=generation_prompt, tools=tools, variables=variables)
        return chat.encode(self, rendered).ids

    def save(self, folder: str | Path) -> Path:
        """Write tokenizer.json and tokenizer_config.json, which transformers' `AutoTokenizer.from_pretrained(folder)` opens too.

        The chat template goes to chat_template.jinja, as transformers writes it, and more of them to additional_chat_templates;
        what the tokenizer was trained on goes to training.json. Each file is replaced whole.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        settings |= {f"{role}_token": self.roles[role] for role in ROLES if role in self.roles}
        named = set(self.roles.values())
        more = [token for token in self._special_tokens if token not in named]
        if more:
            settings["additional_special_tokens"] = more
        if self.length is not None:
            settings["model_max_length"] = self.length
        _write(folder / "tokenizer.json", self.backend.to_str(pretty=True))
        _write(folder / "tokenizer_config.json", json.dumps(settings, ensure_ascii=False, indent=2))
        for old in (folder / "chat_template.jinja", *(folder / "additional_chat_templates").glob("*.jinja")):
            old.unlink(missing_ok=True)
        for name, template in self.chat_templates.items():
            if not re.fullmatch(r"[\w-]{1,64}", name):
                raise ValueError(f"a chat template cannot be saved under the name {name[:80]!r}; use letters, digits, - and _")
            file = folder / ("chat_template.jinja" if name == "default" else f"additional_chat_templates/{name}.jinja")
            file.parent.mkdir(exist_ok=True)
            _write(file, template, "")
        if self.training:
            _write(folder / "training.json", json.dumps(self.training, ensure_ascii=False, indent=2))
        return folder

    @classmethod
    def load(cls, path: str | Path, *, encoding: str | None = None) -> Tokenizer:
        """Read a tokenizer's file, or the one in a folder: tokenizer.json, else a SentencePiece model, vocab.json with merges.txt,
        vocab.txt, or tiktoken's ranks, with what the files beside it say of special tokens, frame and chat templates.

        encoding: for tiktoken's ranks, the encoding whose pattern and special tokens they go with ("cl100k_base", "llama3", …);
        by default told from the file. Raises ValueError, naming the file, when there is no tokenizer or it is damaged.
        """
        loaded = loading.load(Path(path), encoding)
        folder = Path(path) if Path(path).is_dir() else Path(path).parent
        tokenizer = cls(loaded.backend, loaded.roles or None, read_json(folder / "training.json"))
        tokenizer.chat_templates, tokenizer.length = dict(loaded.chat_templates), loaded.length
        tokenizer._end_at_turns()
        return tokenizer


def _write(file: Path, text: str, end: str = "\n") -> None:
    with replacing(file) as temporary:
        temporary.write_text(text + end, "utf-8", newline="")


def train_tokenizer(
    texts: Iterable[str],
    *,
    kind: str = "bpe",
    vocab_size: int | None = None,
    special_tokens: Sequence[str] | Mapping[str, str] = SPECIAL_TOKENS,
    sentinels: int = 0,
    min_frequency: int = 2,
    sample_bytes: int = SAMPLE_BYTES,
    byte_fallback: bool | None = None,
) -> Tokenizer:
    """Train a tokenizer on a stream of texts.

    kind: "byte-bpe" (byte-level BPE), "bpe" (BPE on characters), "unigram", "wordpiece" (as BERT: Han characters
    apart, spaces not kept) or "characters".
    vocab_size: tokens in all, special ones included; "characters" takes every character when it is None.
    special_tokens: names, whose roles are told by `roles_of`, or a mapping of role to name. They get the first ids.
    sentinels: how many of T5's <extra_id_0>, <extra_id_1>, … to add after them.
    min_frequency: pieces and characters seen less often are not kept.
    sample_bytes: memory is bounded by training on a uniform sample of this much text (64 MiB); `.training` of the
    result says how much was read and how much was sampled.
    byte_fallback: what the vocabulary lacks is spelled in bytes (the default of bpe and unigram), or else is unknown.

    The same texts give the same tokenizer, but for unigram: its trainer's result varies a little from run to run.

    Raises ValueError when there is no text, or the vocabulary is smaller than the special tokens and the characters
    need, or larger than the text allows; the message says which size is possible.
    """
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is no kind of tokenizer; expected one of {', '.join(KINDS)}")
    for name, value, least in (("sentinels", sentinels, 0), ("min_frequency", min_frequency, 1), ("sample_bytes", sample_bytes, 2**16)):
        if value < least:
            raise ValueError(f"{name} is {value}, but must be {least} or more")
    if byte_fallback and kind == "wordpiece":
        raise ValueError("wordpiece has no byte fallback; choose bpe, unigram or characters")
    if byte_fallback is None:
        byte_fallback = kind in ("bpe", "unigram")
    names = list(special_tokens.values() if isinstance(special_tokens, Mapping) else special_tokens)
    roles = dict(special_tokens) if isinstance(special_tokens, Mapping) else roles_of(names)
    special = list(dict.fromkeys([*names, *(f"<extra_id_{i}>" for i in range(sentinels))]))
    start = time.perf_counter()
    pieces, training = sample(texts, sample_bytes)
    if not any(piece.strip() for piece in pieces):
        raise ValueError("the corpus is empty; a tokenizer needs text to be trained on")
    backend = train_backend(pieces, kind, vocab_size, special, roles, min_frequency, byte_fallback)
    return Tokenizer(backend, roles, {"kind": kind, **training, "seconds": round(time.perf_counter() - start, 2)})
