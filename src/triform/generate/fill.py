"""The words behind the masks of a text, by a masked language model.

Shapes: B batch, T tokens, M masks of a text, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from triform.nn import Transformer
from triform.text import Tokenizer

from .forms import Module, batches, check_ids, evaluating, expect, listed, longest, padded

MASK = "[MASK]"


@dataclass(frozen=True)
class Candidate:
    """A token that may stand in a mask's place, and its probability."""

    text: str
    id: int
    probability: float


@dataclass(frozen=True)
class Filled:
    """A text with its masks filled, the most certain first, and the candidates of each mask while all were hidden, best first."""

    text: str
    masks: list[list[Candidate]]


def fill(model: Module, tokenizer: Tokenizer, texts: str | Sequence[str], top: int = 5, *, batch_size: int = 32) -> list[Filled]:
    """Rank what may stand at every [MASK] of each text, and fill them.

    The `top` candidates of a mask are ranked with all masks hidden. Filling takes the most
    certain mask first and looks again, until none is left. Special tokens are no candidates.

    Raises ValueError for a model that is not a masked language model, a text without [MASK],
    and one longer than the model's learned positions.
    """
    net = expect(model, "fill")
    if top < 1:
        raise ValueError(f"top: expected at least one candidate, got {top}")
    if tokenizer.mask is None:
        raise ValueError("the tokenizer has no mask token, so it is not a masked language model's; use the model's own tokenizer")
    name = tokenizer.tokens([tokenizer.mask])[0]
    written = [text.replace(MASK, name) for text in listed(texts)]
    encoded = tokenizer.encode_batch(written, special=True)
    assert net.config.encoder is not None
    check_ids(encoded, net.config.encoder)
    limit = longest(net.config.encoder)
    for number, found in enumerate(encoded, 1):
        if tokenizer.mask not in found:
            raise ValueError(f"text {number} has no {MASK} to fill; write {MASK} where a token is wanted")
        if limit is not None and len(found) > limit:
            raise ValueError(f"text {number} has {len(found):,} tokens and the model has {limit:,} learned positions; shorten it")
    results: dict[int, Filled] = {}
    for rows in batches([len(row) for row in encoded], batch_size):
        with evaluating(net) as device:
            filled, ranked = _fill(net, tokenizer, padded([encoded[row] for row in rows], tokenizer.pad or 0, device), top)
        for row, new, masks in zip(rows, filled, ranked, strict=True):
            results[row] = Filled(_written(tokenizer, written[row].split(name), new), masks)
    return [results[row] for row in range(len(written))]


def _fill(
    net: Transformer, tokenizer: Tokenizer, batch: tuple[Tensor, Tensor | None], top: int
) -> tuple[list[list[int]], list[list[list[Candidate]]]]:
    """For each row of ids (B, T), the tokens chosen for its masks, and their candidates."""
    ids, mask = batch
    blank = tokenizer.mask
    assert blank is not None
    hidden = ids.eq(blank)  # (B, T)
    places = hidden.nonzero()
    counts = hidden.sum(1).tolist()
    barred = torch.tensor(sorted(tokenizer.special_ids), dtype=torch.long, device=ids.device)
    ranked: list[list[Candidate]] = []
    ids = ids.clone()
    while bool((left := ids.eq(blank)).any()):
        at = left.nonzero()  # (M, 2)
        chances = _chances(net, ids, mask, left).index_fill(1, barred, 0.0)
        if not ranked:
            best = chances.topk(min(top, chances.shape[1] - len(barred)))
            ranked = [
                [Candidate(_token_text(tokenizer, i), i, p) for i, p in zip(row_ids, row, strict=True)]
                for row_ids, row in zip(best.indices.tolist(), best.values.tolist(), strict=True)
            ]
        certainty, tokens = chances.max(-1)
        by_place = torch.full(ids.shape, -1.0, device=ids.device)
        by_place[left] = certainty
        column = by_place.argmax(1)  # the most certain mask of each row
        chosen = column[at[:, 0]] == at[:, 1]
        ids[at[chosen, 0], at[chosen, 1]] = tokens[chosen]
    new, candidates = iter(ids[places[:, 0], places[:, 1]].tolist()), iter(ranked)
    return [list(islice(new, count)) for count in counts], [list(islice(candidates, count)) for count in counts]


def _chances(net: Transformer, ids: Tensor, mask: Tensor | None, wanted: Tensor) -> Tensor:
    """Probabilities (M, V) over the vocabulary at the wanted places of ids (B, T); the head reads no others."""
    out = net(ids, mask, logits=False)
    scores = net.score(out.hidden[wanted])
    assert scores is not None
    return scores.float().softmax(-1)


def _token_text(tokenizer: Tokenizer, token: int) -> str:
    """What a token adds inside a text: with its own space where it has one, without WordPiece's mark."""
    name, text = tokenizer.tokens([token])[0], tokenizer.decode([token])
    if name.startswith("##"):
        return text.removeprefix("##")
    return f" {text}" if name.startswith("▁") and not text.startswith(" ") else text


def _run_text(tokenizer: Tokenizer, run: Sequence[int]) -> str:
    """What tokens add that stand together, which may share a character's bytes."""
    parts = [_token_text(tokenizer, token) for token in run]
    return tokenizer.decode(run) if any("\ufffd" in part for part in parts) else "".join(parts)


def _written(tokenizer: Tokenizer, parts: Sequence[str], tokens: Sequence[int]) -> str:
    """The parts of a text with tokens between them."""
    text, run = parts[0], list[int]()
    for index, (part, token) in enumerate(zip(parts[1:], tokens, strict=True), 1):
        run.append(token)
        if part or index == len(tokens):
            text = _joined(text, _run_text(tokenizer, run)) + part
            run = []
    return text


def _joined(left: str, right: str) -> str:
    return left + (right.lstrip(" ") if not left or left[-1].isspace() else right)
