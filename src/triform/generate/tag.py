"""A label for each token of a text, and what labels in a row name: people, places, words (IOB2: B-X begins an X, I-X goes on with it).

Shapes: N tokens of a text, L labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import tokenizers
import torch
from torch import Tensor

from triform import config
from triform.nn import Transformer
from triform.text import Tokenizer
from triform.text.framing import judged, windows

from .forms import Module, expect, listed
from .judging import longest_row, outputs

Aggregate = Literal["none", "simple", "first", "average", "max"]
_OUTSIDE = "O"
_EAST_ASIAN = "\u2e80"  # from here on scripts that put no spaces between words


@dataclass(frozen=True)
class Entity:
    """A part of a text that has a label: its characters from `start` up to `end`, and the mean probability of its tokens."""

    label: str
    score: float
    start: int
    end: int
    text: str


@dataclass(frozen=True)
class _Piece:
    """A token, or a word of several: the probability of each label (L,), and its characters."""

    chances: Tensor
    start: int
    end: int
    goes_on: bool  # with the word of the piece before


def tag(
    model: Module,
    tokenizer: Tokenizer,
    texts: str | Sequence[str],
    labels: Sequence[str] | None = None,
    *,
    aggregate: Aggregate = "simple",
    length: int | None = None,
    batch_size: int = 32,
    on_batch: Callable[[int], None] | None = None,
) -> list[list[Entity]]:
    """The entities of each text, in order, by a model that has a ClassifyTokens head. Tokens labelled "O" are left out.

    labels: their names in the order of the head's scores, as IOB2 has them ("B-PER", "I-PER", "O") or plain; left out, "0", "1"
        and so on.
    aggregate: "none" gives each token with its label; "simple" joins tokens in a row that go on with a label; "first",
        "average" and "max" first give all tokens of a word one label, by its first token, the mean of their probabilities, or the
        surest token.
    length: as in `classify`, but longer texts are read in windows that overlap by half, and nothing is cut.
    on_batch: called with the number of windows done, after each batch.

    Raises ValueError for a model without such a head, and for another number of labels than it has.
    """
    net = expect(model, "tag")
    head = net.config.head
    assert isinstance(head, config.ClassifyTokens)
    names = [str(i) for i in range(head.labels)] if labels is None else list(labels)
    if len(names) != head.labels:
        raise ValueError(f"labels: expected {head.labels} names, as the model's head has, got {len(names)}")
    if aggregate not in ("none", "simple", "first", "average", "max"):
        raise ValueError(f"aggregate: expected none, simple, first, average or max, got {aggregate!r}")
    written = listed(texts)
    found = []
    for text, pieces in zip(written, _pieces(net, tokenizer, written, (length, batch_size, on_batch)), strict=True):
        if aggregate not in ("none", "simple"):
            pieces = [_word(word, aggregate) for word in _words(pieces)]
        runs = [[piece] for piece in pieces] if aggregate == "none" else _runs(pieces, names)
        entities = [_entity(run, names, text, whole=aggregate == "none") for run in runs]
        found.append([entity for entity in entities if entity.label != _OUTSIDE])
    return found


def _pieces(
    net: Transformer, tokenizer: Tokenizer, texts: list[str], how: tuple[int | None, int, Callable[[int], None] | None]
) -> list[list[_Piece]]:
    """The tokens of each text. Where windows overlap, a token is judged by the one that shows more of what is around it."""
    length, batch_size, on_batch = how
    limit, frame = longest_row(net, tokenizer, length), judged(tokenizer, [])
    if limit is not None and limit <= len(frame):
        raise ValueError(f"length: expected more than the {len(frame)} tokens that stand around a text, got {limit}")
    encodings = tokenizer.encodings(texts, plain=True)
    places = []
    for number, encoding in enumerate(encodings):
        room = max(1, len(encoding.ids)) if limit is None else limit - len(frame)
        places += [(number, start, end) for start, end in windows(len(encoding.ids), room, room // 2) if end > start]
    rows = [judged(tokenizer, encodings[number].ids[start:end]) for number, start, end in places]
    before = max(0, len(frame) - 1)  # [CLS], where there is one
    judgements: list[dict[int, tuple[float, Tensor]]] = [{} for _ in texts]
    done = 0
    for numbers, scores in outputs(net, tokenizer, rows, batch_size):
        for row, own in zip(numbers, scores.float().softmax(-1).cpu(), strict=True):
            number, start, end = places[row]
            known, whole = judgements[number], len(encodings[number].ids)
            for at in range(start, end):
                margin = min(at - start if start else math.inf, end - 1 - at if end < whole else math.inf)
                if at not in known or margin > known[at][0]:
                    known[at] = margin, own[before + at - start]
        done += len(numbers)
        if on_batch is not None:
            on_batch(done)
    return [
        [_Piece(known[i][1], *encoding.offsets[i], goes_on=_goes_on(encoding, i, text)) for i in range(len(encoding.ids))]
        for known, encoding, text in zip(judgements, encodings, texts, strict=True)
    ]


def _goes_on(encoding: tokenizers.Encoding, index: int, text: str) -> bool:
    """Whether a token goes on with the word of the one before: by WordPiece's mark, or where letters or digits stand side by side."""
    (start, end), token = encoding.offsets[index], encoding.tokens[index]
    if index == 0 or token.startswith("##"):
        return index > 0
    if encoding.offsets[index - 1][1] != start:
        return encoding.offsets[index - 1] == (start, end) != (end, end)  # bytes of one character
    if any(name.startswith("##") for name in encoding.tokens):
        return False
    return all(c.isalnum() and c < _EAST_ASIAN for c in text[start - 1 : start + 1])


def _words(pieces: list[_Piece]) -> list[list[_Piece]]:
    words: list[list[_Piece]] = []
    for piece in pieces:
        if piece.goes_on and words:
            words[-1].append(piece)
        else:
            words.append([piece])
    return words


def _word(pieces: list[_Piece], aggregate: Aggregate) -> _Piece:
    """The pieces of a word as one."""
    if aggregate == "first":
        chances = pieces[0].chances
    elif aggregate == "max":
        chances = max(pieces, key=lambda piece: float(piece.chances.max())).chances
    else:
        chances = torch.stack([piece.chances for piece in pieces]).mean(0)
    return _Piece(chances, pieces[0].start, pieces[-1].end, False)


def _runs(pieces: list[_Piece], names: list[str]) -> list[list[_Piece]]:
    """Pieces in a row that belong together: the first begins an entity, the others go on with it."""
    runs: list[list[_Piece]] = []
    last = None
    for piece in pieces:
        name = names[int(piece.chances.argmax())]
        kind = _kind(name)
        if runs and kind == last and not name.startswith("B-"):
            runs[-1].append(piece)
        else:
            runs.append([piece])
        last = kind
    return runs


def _kind(name: str) -> str:
    return name[2:] if name.startswith(("B-", "I-")) else name


def _entity(run: list[_Piece], names: list[str], text: str, whole: bool) -> Entity:
    name = names[int(run[0].chances.argmax())]
    score = sum(float(piece.chances.max()) for piece in run) / len(run)
    start, end = run[0].start, run[-1].end
    return Entity(name if whole else _kind(name), score, start, end, text[start:end])
