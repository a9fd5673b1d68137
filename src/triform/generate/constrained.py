"""Outputs that have a form: JSON by a schema, a regular expression, or one of several texts.

llguidance says which bytes may follow those that are there (an Earley parser over lexemes whose automata are built as
they are needed, so that nothing is compiled for the whole vocabulary beforehand). What a token adds to a text is told by
the tokenizer's own decoder, so that a constraint holds for the text that is read, whatever the tokenizer's kind.

Shapes: V vocabulary.
"""

from __future__ import annotations

import json
import math
import re
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from triform.text import Tokenizer

_LONGEST = 2**17  # characters of a constraint
_DEEPEST = 64  # levels of a schema
_MOST_TEXTS = 4096
_COARSEST = 10_000  # the least common multiple: so many states has the library's automaton
_WHITESPACE = r"[ \n\t]{1,16}"  # between JSON's parts: without a bound a model may write nothing else
_COMPILED = 16  # constraints kept ready for each tokenizer


@dataclass(frozen=True)
class JsonSchema:
    """JSON that a schema describes (draft 2020-12): a mapping, or its JSON text; {} is any JSON.

    Properties come in the schema's order. Names that `additionalProperties` or `patternProperties` allow may come twice.
    Raises ValueError for what is no schema, or one too large; keywords that cannot be kept to are refused when it is first used.
    """

    schema: str | Mapping[str, Any]

    def __post_init__(self) -> None:
        try:
            text = self.schema if isinstance(self.schema, str) else json.dumps(self.schema, ensure_ascii=False)
            _sized("a JSON schema", text)
            found = json.loads(text)
            parts, deepest = _parts(found)
        except (RecursionError, TypeError):
            raise ValueError("a JSON schema: expected JSON's own types, nested only so deep that they can be written") from None
        except json.JSONDecodeError as error:
            raise ValueError(f"a JSON schema: expected JSON, got {text[:40]!r} ({error})") from None
        if not isinstance(found, dict | bool):
            raise ValueError(f'a JSON schema: expected an object such as {{"type": "object"}}, got {text[:40]!r}')
        if deepest > _DEEPEST:
            raise ValueError(f"a JSON schema: expected at most {_DEEPEST} levels, got {deepest}; put parts into $defs")
        steps = [part["multipleOf"] for part in parts if isinstance(part, dict) and isinstance(part.get("multipleOf"), int | float)]
        if math.lcm(*map(_whole, steps)) > _COARSEST:
            raise ValueError(f"a JSON schema: expected numbers for multipleOf of few digits, got {', '.join(map(str, steps))[:80]}")
        object.__setattr__(self, "schema", json.dumps(found, ensure_ascii=False))


@dataclass(frozen=True)
class Regex:
    """Text that a regular expression matches as a whole: Rust's syntax, which is Python's without look-around, references and anchors.

    `\\d` and `\\w` are Unicode's, and `.` is any character but a newline.
    """

    pattern: str

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, str):
            raise ValueError(f"a regular expression: expected text, got {type(self.pattern).__name__}")
        _sized("a regular expression", self.pattern)


@dataclass(frozen=True)
class OneOf:
    """One of several texts, each of at least a character."""

    texts: tuple[str, ...]

    def __post_init__(self) -> None:
        if isinstance(self.texts, str) or not all(isinstance(text, str) and text for text in self.texts):
            raise ValueError(f"one of several texts: expected texts of at least one character, got {str(self.texts)[:80]!r}")
        object.__setattr__(self, "texts", tuple(dict.fromkeys(self.texts)))
        if not 1 <= len(self.texts) <= _MOST_TEXTS:
            raise ValueError(f"one of several texts: expected 1 to {_MOST_TEXTS:,} texts, got {len(self.texts):,}")
        _sized("one of several texts", "".join(self.texts))


Constraint = JsonSchema | Regex | OneOf


def _sized(name: str, text: str) -> None:
    if len(text) > _LONGEST:
        raise ValueError(f"{name}: expected at most {_LONGEST:,} characters, got {len(text):,}; shorten it")


def _parts(value: Any) -> tuple[list[Any], int]:
    """A value and all that lists and mappings in it hold, and how deep these stand in one another."""
    found: list[Any] = []
    deepest, level = 0, [value]
    while level:
        found, deepest = found + level, deepest + 1
        inner = [list(part.values()) if isinstance(part, dict) else part for part in level if isinstance(part, dict | list)]
        level = [part for parts in inner for part in parts]
    return found, deepest


def _whole(step: float) -> int:
    """A number without its decimal point: 125 for 1.25."""
    number = Decimal(str(step)).normalize()
    if not number.is_finite() or number.adjusted() > 9:
        return _COARSEST + 1
    return abs(int(number.scaleb(max(0, -int(number.as_tuple().exponent)))))


class Matcher:
    """One output as far as it is written, and the tokens that may come next; a `sampler.Guide`.

    tokenizer: whose tokens they are. ends: ids that end an output; without any it ends where nothing can follow.
    context: the tokens before the output of a model that continues a text; () where the output begins a text of its own.

    With WordPiece, which writes a space before every word, an output after a context may begin with a space more.
    Raises ValueError for a constraint that cannot be kept to, or that costs too much.
    """

    def __init__(self, constraint: Constraint, tokenizer: Tokenizer, ends: Collection[int], context: Sequence[int] = ()) -> None:
        self._vocabulary = _vocabulary(tokenizer)
        self._library = self._vocabulary.compiled(constraint).deep_copy()
        self._ends = sorted(end for end in ends if end < tokenizer.vocab_size)
        self._last = next((i for i in reversed(context) if i not in tokenizer.special_ids), None)
        self._begun = False

    def copy(self) -> Matcher:
        """Another with the same state, for a row that goes another way."""
        new = Matcher.__new__(Matcher)
        new.__dict__ = self.__dict__ | {"_library": self._library.deep_copy()}
        return new

    @property
    def complete(self) -> bool:
        """Whether the output has its form and nothing can follow."""
        return bool(self._library.is_stopped()) and not self._library.is_error()

    def allowed(self) -> Tensor:
        """The tokens that may come next: (V,), True where one may. Raises ValueError where none may."""
        bits = self._bits()
        found = bits[self._vocabulary.entries(self._last)]
        if not self._begun and self._vocabulary.spaces_words:
            found |= bits[self._vocabulary.entries(None)]
        found[self._ends] = self._library.is_accepting()
        if not found.any():
            raise _inexpressible()
        return torch.from_numpy(found)

    def apply(self, scores: Tensor) -> None:
        """Put -inf into scores (V,), in place, where a token may not come next; a model may have more rows than the tokenizer."""
        allowed = self.allowed().to(scores.device)
        scores[: len(allowed)].masked_fill_(~allowed, -torch.inf)
        scores[len(allowed) :] = -torch.inf

    def accept(self, token: int) -> None:
        """Go on by a token that may come next; one that ends the output changes nothing. Raises ValueError for another."""
        if token in self._ends:
            return
        entry = int(self._vocabulary.entries(self._last)[token])
        if not self._begun and self._vocabulary.spaces_words and not self._bits()[entry]:
            entry = int(self._vocabulary.entries(None)[token])
        self._library.consume_token(entry)
        self._check()
        self._last, self._begun = token, True

    def _bits(self) -> np.ndarray:
        bits = np.unpackbits(np.frombuffer(self._library.compute_bitmask(), np.uint8), bitorder="little").astype(bool)
        self._check()
        bits[0] = False
        return bits

    def _check(self) -> None:
        if self._library.is_error():
            raise _refused(self._library.get_error())


class _Vocabulary:
    """A tokenizer's tokens by the bytes that they add to a text.

    What a token adds may depend on what stands before it: nothing, or a character that a space follows, or one that none does (Han,
    in our WordPiece). An entry is a token's bytes; the library knows entries, the first of which is nothing and never chosen.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        llguidance = _library()
        raw = _raw(tokenizer)
        first = _added(tokenizer, None) if raw is None else raw
        spaced, self._unspaced = (None, None) if raw is not None else _neighbours(tokenizer)
        self.spaces_words = raw is None and json.loads(tokenizer.backend.to_str())["model"]["type"] == "WordPiece"
        numbers: dict[bytes, int] = {b"": 0}
        tables = [first]
        if spaced is not None:
            tables.append(_added(tokenizer, spaced))
            if self._unspaced is not None:
                tables.append(_added(tokenizer, int(np.flatnonzero(self._unspaced)[0])))
        self._tables = [np.array([numbers.setdefault(part, len(numbers)) for part in table]) for table in tables]
        entries = [*numbers, b"<end>"]
        self._library = llguidance.LLTokenizer(_Wrapped(entries), len(entries), slices=[])
        self._ready: OrderedDict[Constraint, Any] = OrderedDict()

    def entries(self, last: int | None) -> np.ndarray:
        """The entry of each token, (V,), after a token."""
        if last is None or len(self._tables) == 1:
            return self._tables[0]
        return self._tables[2 if self._unspaced is not None and self._unspaced[last] else 1]

    def compiled(self, constraint: Constraint) -> Any:
        """The library's matcher at the beginning of an output."""
        if constraint in self._ready:
            self._ready.move_to_end(constraint)
            return self._ready[constraint]
        llguidance = _library()
        limits = llguidance.LLParserLimits(max_lexer_states=20_000, max_grammar_size=100_000, verbose_errors=False)
        matcher = llguidance.LLMatcher(self._library, _grammar(constraint), log_level=0, limits=limits)
        if matcher.is_error():
            raise _refused(matcher.get_error())
        self._ready[constraint] = matcher
        if len(self._ready) > _COMPILED:
            self._ready.popitem(last=False)
        return matcher


class _Wrapped:
    """Entries as the library reads a tokenizer. It asks for a text's tokens only to make several at once, which is not done here."""

    def __init__(self, entries: list[bytes]) -> None:
        self.tokens = entries
        self.eos_token_id = len(entries) - 1
        self.bos_token_id = None
        self.special_token_ids = [self.eos_token_id]
        self.is_tokenizer_wrapper = True

    def __call__(self, text: str | bytes) -> list[int]:
        return []


_vocabularies: WeakKeyDictionary[Tokenizer, _Vocabulary] = WeakKeyDictionary()


def _vocabulary(tokenizer: Tokenizer) -> _Vocabulary:
    if tokenizer not in _vocabularies:
        _vocabularies[tokenizer] = _Vocabulary(tokenizer)
    return _vocabularies[tokenizer]


def _library() -> Any:
    try:
        import llguidance
    except ImportError:
        raise ValueError('outputs by a schema, an expression or choices need llguidance: pip install "triform[guided]"') from None
    return llguidance


def _grammar(constraint: Constraint) -> str:
    if isinstance(constraint, JsonSchema):
        schema = json.loads(str(constraint.schema))
        schema = {} if schema is True else {"not": {}} if schema is False else schema
        body = "%json " + json.dumps(schema | {"x-guidance": {"whitespace_pattern": _WHITESPACE}}, ensure_ascii=False)
    elif isinstance(constraint, Regex):
        body = f"/{_slashes(constraint.pattern)}/"
    else:
        body = " | ".join(json.dumps(text, ensure_ascii=False) for text in constraint.texts)
    # What must come is not forced upon the tokens: the library would choose them by a tokenizer, and an entry is no token.
    found: str = _library().LLMatcher.grammar_from_lark(f'%llguidance {{"no_forcing": true}}\nstart: {body}')
    return found


def _slashes(pattern: str) -> str:
    """A pattern that can stand between slashes, in one line."""
    pattern = re.sub(r"(?s)\\.|/", lambda found: found[0] if found[0] != "/" else r"\/", pattern)
    return pattern.replace("\n", r"\n").replace("\r", r"\r")


def _refused(reason: str) -> ValueError:
    if "NoExtension" in reason:
        return _inexpressible()
    reason = re.sub(r"^at \d+\(\d+\): | \d+ \| %llguidance .*", "", " ".join(reason.replace("<non-verbose/>", "").split()))
    return ValueError(f"the constraint cannot be kept to: {reason[:300].strip()}; change it")


def _inexpressible() -> ValueError:
    return ValueError("the constraint asks for text that cannot be, or that the tokenizer has no tokens for; ask for other text")


# What tokens add to a text

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def _raw(tokenizer: Tokenizer) -> list[bytes] | None:
    """The bytes of each token of a byte-level tokenizer; None for another kind."""
    decoder = json.loads(tokenizer.backend.to_str()).get("decoder") or {}
    if "ByteLevel" not in [decoder.get("type"), *(part.get("type") for part in decoder.get("decoders", ()))]:
        return None
    byte_of = _bytes_of_characters()

    def raw(name: str | None) -> bytes:
        if name is None:
            return b""
        found = [byte_of.get(c) for c in name]
        return name.encode("utf-8", "replace") if None in found else bytes(b for b in found if b is not None)

    special = tokenizer.special_ids
    return [b"" if i in special else raw(tokenizer.backend.id_to_token(i)) for i in range(tokenizer.vocab_size)]


def _bytes_of_characters() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for (GPT-2's table)."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + i): byte for i, byte in enumerate(rest)}


def _decoded(tokenizer: Tokenizer, rows: list[list[int]]) -> list[str]:
    return tokenizer.backend.decode_batch(rows, skip_special_tokens=True)


def _added(tokenizer: Tokenizer, before: int | None) -> list[bytes]:
    """The bytes that each token adds after the token `before`, or at the beginning; none for a special one."""
    lead = [] if before is None else [before]
    known = {i for i in range(tokenizer.vocab_size) if tokenizer.backend.id_to_token(i) is not None} - tokenizer.special_ids
    texts = _decoded(tokenizer, [[*lead, i] if i in known else lead for i in range(tokenizer.vocab_size)])
    start = len(_decoded(tokenizer, [lead])[0])

    def added(i: int, text: str) -> bytes:
        if i not in known:
            return b""
        byte = _BYTE.fullmatch(tokenizer.backend.id_to_token(i) or "")
        if byte and int(byte[1], 16) >= 0x80:
            return bytes([int(byte[1], 16)])
        return b"" if "\ufffd" in text[start:] else text[start:].encode("utf-8", "replace")

    return [added(i, text) for i, text in enumerate(texts)]


def _neighbours(tokenizer: Tokenizer) -> tuple[int | None, np.ndarray | None]:
    """A token after which others keep the space before them, and for each token whether others lose it after that one.

    (None, None) where what a token adds is the same everywhere; the second is None where no token takes the space away.
    """
    first = _added(tokenizer, None)
    candidates = [i for i, part in enumerate(first) if part and part[0] < 0x80 and part.decode("utf-8", "replace").isalnum()]
    candidates += [i for i, part in enumerate(first) if part and part[0] < 0x80]
    if not candidates:
        return None, None
    anchor = candidates[0]
    inside = _added(tokenizer, anchor)
    probe = next((i for i in [*candidates, *range(len(first))] if inside[i] != first[i]), None)
    if probe is None:
        return None, None
    alone = _decoded(tokenizer, [[i] for i in range(len(first))])
    pairs = _decoded(tokenizer, [[i, probe] for i in range(len(first))])
    loses = np.array([bool(f) and p[len(a) :].encode("utf-8", "replace") == first[probe] for f, p, a in zip(first, pairs, alone)])
    return anchor, loses if loses.any() else None
