"""SentencePiece's `.model` files: a protobuf message, read here field by field so that a damaged one is refused before memory is taken.

The fields are those of sentencepiece_model.proto of https://github.com/google/sentencepiece.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .formats import NORMAL, Normalization, Piece

UNIGRAM, BPE = 1, 2
_AT_ONCE = 1024  # nodes of a table of replacements
_KINDS = {3: "word", 4: "character"}


@dataclass(frozen=True)
class SentencePieceModel:
    """What a `.model` file says. kind: `UNIGRAM` or `BPE`."""

    kind: int
    pieces: list[Piece]
    byte_fallback: bool
    normalization: Normalization
    bos: str | None
    eos: str | None
    pad: str | None


def parse(data: bytes) -> SentencePieceModel:
    """Read a SentencePiece model. Raises ValueError for what is none, or one of a kind that `tokenizers` does not have."""
    pieces: list[Piece] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for field, value in _fields(data):
        if field == 1:
            pieces.append(_piece(_message(value)))
        elif field in (2, 3):
            (trainer if field == 2 else normalizer).update(_fields(_message(value)))
    if not pieces:
        raise ValueError("it holds no pieces")
    kind = _number(trainer, 3, UNIGRAM)
    if kind not in (UNIGRAM, BPE):
        raise ValueError(f"its model is of the kind {_KINDS.get(kind, kind)}; only bpe and unigram are read")
    if _number(trainer, 24, 0) or not _number(normalizer, 5, 1):
        raise ValueError("it writes spaces at the end of pieces, or leaves them as they are; neither is read")
    charsmap = _bytes(normalizer, 2)
    if charsmap:
        check_charsmap(charsmap)
    text = Normalization(charsmap or None, "segment" if _number(normalizer, 3, 1) else "", bool(_number(normalizer, 4, 1)))
    names = [_named(trainer, pieces, 41 + i, default) for i, default in enumerate((1, 2, -1))]
    return SentencePieceModel(kind, pieces, bool(_number(trainer, 35, 0)), text, *names)


def _named(trainer: dict[int, int | bytes], pieces: list[Piece], field: int, default: int) -> str | None:
    i = _number(trainer, field, default)
    i -= 2**64 if i >= 2**63 else 0
    return pieces[i][0] if 0 <= i < len(pieces) else None


def _piece(data: bytes) -> Piece:
    fields = dict(_fields(data))
    raw = _bytes(fields, 1)
    score = fields.get(2, b"\0\0\0\0")
    if not isinstance(score, bytes) or len(score) != 4:
        raise ValueError("a piece's score is not a number")
    return _text(raw), struct.unpack("<f", score)[0], _number(fields, 3, NORMAL)


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise ValueError(f"the piece {raw[:40]!r} is not UTF-8") from None


def _number(fields: dict[int, int | bytes], field: int, default: int) -> int:
    value = fields.get(field, default)
    if not isinstance(value, int):
        raise ValueError(f"field {field} is not a whole number")
    return value


def _bytes(fields: dict[int, int | bytes], field: int) -> bytes:
    return _message(fields.get(field, b""))


def _message(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a number stands where a message is expected")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protobuf message: (number, value); a value is an int, or the bytes of a string, a message or a fixed number."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        field, wire = key >> 3, key & 7
        if field == 0:
            raise ValueError(f"not a SentencePiece model: no field begins at byte {at}")
        if wire == 0:
            value, at = _varint(data, at)
            yield field, value
            continue
        size = {1: 8, 5: 4}.get(wire)
        if wire == 2:
            size, at = _varint(data, at)
        if size is None:
            raise ValueError(f"not a SentencePiece model: byte {at} is of the unknown wire type {wire}")
        if size > len(data) - at:
            raise ValueError(f"not a SentencePiece model, or cut short: a field of {size} bytes begins where {len(data) - at} are left")
        yield field, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("not a SentencePiece model, or cut short: it ends within a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (2**64 - 1), at
    raise ValueError(f"not a SentencePiece model: the number that ends at byte {at} is too long")


def check_charsmap(charsmap: bytes) -> None:
    """Refuse a table of replacements that would lead its reader out of its bounds.

    The table is the size of a double array (Darts), the array, and the replacements, each ended by a zero byte.
    """
    damaged = "its table of replacements (precompiled_charsmap) is damaged"
    size = int.from_bytes(charsmap[:4], "little")
    if len(charsmap) < 8 or size % 4 or not 0 < size <= len(charsmap) - 4:
        raise ValueError(f"{damaged}: it is cut short")
    units = np.frombuffer(charsmap, "<u4", size // 4, 4).astype(np.int64)
    replacements = charsmap[4 + size :]
    try:
        replacements.decode()
    except UnicodeDecodeError:
        raise ValueError(f"{damaged}: the replacements are not UTF-8") from None
    bases = np.arange(len(units)) ^ (units >> 10) << ((units & (1 << 9)) >> 6)
    labels, leaves = units & (1 << 31 | 0xFF), (units >> 8 & 1).astype(bool)
    characters = np.arange(1, 256)
    seen = np.zeros(len(units), bool)
    waiting = [np.zeros(1, np.int64)]
    while waiting:
        nodes = waiting.pop()
        seen[nodes] = True
        base = bases[nodes]
        if ((base | 0xFF) >= len(units)).any():
            raise ValueError(f"{damaged}: it points outside itself")
        starts = units[base[leaves[nodes]]] & (2**31 - 1)
        if (starts > len(replacements)).any() or any(replacements[i : i + 1] >= b"\x80" and replacements[i] < 0xC0 for i in starts):
            raise ValueError(f"{damaged}: it points outside the replacements")
        following = (base[:, None] ^ characters).ravel()
        following = following[labels[following] == np.tile(characters, len(base))]
        following = np.unique(following[~seen[following]])
        waiting += [following[at : at + _AT_ONCE] for at in range(0, len(following), _AT_ONCE)]
