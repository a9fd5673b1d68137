"""Perplexity and bits per byte of texts, by windows that slide over them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from triform.generate.forms import expect

from .files import found_in, read, records, some, text_of
from .likelihood import beginning, limit_of, token_log_probs
from .statistics import Array, Metric
from .task import Judged, Result, Settings, fingerprint

_WINDOW = 1024


class Window(NamedTuple):
    """What is read before, the tokens that are scored after it, and the bytes that they stand for."""

    context: list[int]
    tokens: list[int]
    bytes: int


def windows(ids: Sequence[int], window: int, stride: int, start: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Context and scored tokens of windows over a text, so that each token is scored once.

    The first window begins with `start` and scores all that it holds; each other reads `window` tokens, of which those before the
    last `stride` are context that was scored before.
    """
    found = []
    end = min(len(ids), window - len(start) + 1)
    found.append((list(start), list(ids[:end])))
    while end < len(ids):
        until = min(len(ids), end + stride)
        found.append((list(ids[max(0, until - window - 1) : end]), list(ids[end:until])))
        end = until
    return found


def perplexity(judged: Judged, place: Path, settings: Settings) -> Result:
    """Perplexity (a token), bits per byte and bits per character of texts: .txt files, each one text, or the `text` of .jsonl lines.

    Decoder-only models. The bootstrap is over windows. Raises ValueError for another model and a text without tokens.
    """
    net = expect(judged.model, "generate")
    if net.config.form != "decoder-only":
        raise ValueError("perplexity needs a decoder-only model, as the text is all that is read; this one is encoder-decoder")
    files = found_in(place, "*.txt", "*.jsonl")
    texts, bad = _texts(files, settings)
    limit = limit_of(net, judged.tokenizer)
    window = min(settings.window or _WINDOW, limit or settings.window or _WINDOW)
    stride = settings.stride or max(1, window // 2)
    start = beginning(judged.tokenizer)
    if stride > window:
        raise ValueError(f"stride: expected at most the window's {window} tokens, got {stride}")
    if window <= len(start):
        raise ValueError(f"window: expected more than the {len(start)} tokens that a text begins with, got {window}")
    made: list[Window] = []
    characters: list[int] = []
    for text in texts:
        for one, count in _cut(judged, text, (window, stride, start)):
            made.append(one)
            characters.append(count)
    some(made, place)
    made, characters = made[: settings.limit], characters[: settings.limit]
    found = token_log_probs(judged.model, judged.tokenizer, [(one.context, one.tokens) for one in made], on_rows=settings.on_progress)
    rows = np.array([(-each.log_prob, each.tokens, one.bytes, size) for each, one, size in zip(found, made, characters, strict=True)])
    metrics = [
        Metric("perplexity", rows, _perplexity, higher_is_better=False),
        Metric("bits_per_byte", rows, _bits_per_byte, higher_is_better=False),
        Metric("bits_per_character", rows, _bits_per_character, higher_is_better=False),
    ]
    setting = {"window": window, "stride": stride, "tokens": int(rows[:, 1].sum()), "bytes": int(rows[:, 2].sum())}
    return Result("perplexity", place.stem, metrics, setting, fingerprint(files), bad=bad)


def _texts(files: Sequence[Path], settings: Settings) -> tuple[list[str], int]:
    found, bad = [], 0
    for file in files:
        if file.suffix == ".txt":
            found.append(text_of(file))
            continue
        texts, wrong = read(records(file), lambda line: line.text("text"), skip_bad=settings.skip_bad)
        found, bad = found + texts, bad + wrong
    return found, bad


def _cut(judged: Judged, text: str, how: tuple[int, int, list[int]]) -> list[tuple[Window, int]]:
    """The windows of a text, each with the characters of its scored tokens; together they have all bytes of the text."""
    encoding = judged.tokenizer.encodings([text], plain=True)[0]
    ids, places = encoding.ids, [start for start, _ in encoding.offsets]
    if not ids:
        return []
    found = []
    at, place = 0, 0
    for context, tokens in windows(ids, *how):
        at += len(tokens)
        end = len(text) if at == len(ids) else max(place, places[at])
        piece = text[place:end]
        found.append((Window(context, tokens, len(piece.encode("utf-8", "replace"))), len(piece)))
        place = end
    return found


def _perplexity(sums: Array, count: int) -> Array:
    found: Array = np.exp(sums[..., 0] / sums[..., 1])
    return found


def _bits_per_byte(sums: Array, count: int) -> Array:
    found: Array = sums[..., 0] / np.log(2) / np.maximum(sums[..., 2], 1)
    return found


def _bits_per_character(sums: Array, count: int) -> Array:
    found: Array = sums[..., 0] / np.log(2) / np.maximum(sums[..., 3], 1)
    return found
