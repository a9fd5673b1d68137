"""Span corruption, beside T5's published `random_spans_noise_mask`."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from collating import batch, samples
from hypothesis import given, settings
from hypothesis import strategies as st
from recipes import LINES

from triform.nn import IGNORE
from triform.objectives import SpanCorruption
from triform.objectives.spans import corrupt, noise_amounts, noise_spans
from triform.text import Tokenizer


def published(length: int, density: float, span: float, rng: np.random.Generator) -> np.ndarray:
    """T5's random_spans_noise_mask, step by step as in text-to-text-transfer-transformer's preprocessors."""
    noise = min(max(int(np.round(length * density)), 1), length - 1)
    spans = max(int(np.round(noise / span)), 1)

    def segmentation(items: int, segments: int) -> np.ndarray:
        first = np.arange(items - 1) < segments - 1
        rng.shuffle(first)
        first = np.pad(first, [[1, 0]])
        _, counts = np.unique(np.cumsum(first), return_counts=True)
        return counts

    lengths = np.stack([segmentation(length - noise, spans), segmentation(noise, spans)], axis=1).reshape(-1)
    starts = np.zeros(length, dtype=np.int64)
    starts[np.cumsum(lengths)[:-1]] = 1
    return np.cumsum(starts) % 2 == 1


def distribution(draw: object, length: int, density: float, span: float, count: int, seed: int) -> Counter[bytes]:
    rng = np.random.default_rng(seed)
    return Counter(draw(length, density, span, rng).tobytes() for _ in range(count))  # type: ignore[operator]


@pytest.mark.parametrize(("length", "density", "span"), [(9, 0.34, 1.5), (8, 0.5, 2.0), (12, 0.15, 3.0)])
def test_the_same_distribution_as_published(length: int, density: float, span: float) -> None:
    """Every mask that can be drawn comes as often: chi-squared within five standard deviations of its mean."""
    count = 6000
    ours, theirs = (distribution(draw, length, density, span, count, seed) for seed, draw in enumerate((noise_spans, published)))
    assert ours.keys() == theirs.keys()
    statistic = sum((ours[m] - theirs[m]) ** 2 / (ours[m] + theirs[m]) for m in ours)
    freedom = max(1, len(ours) - 1)
    assert statistic <= freedom + 5 * math.sqrt(2 * freedom)
    skewed = Counter({m: round(n * (1.5 if i % 2 else 0.5)) for i, (m, n) in enumerate(sorted(ours.items()))})
    control = sum((skewed[m] - theirs[m]) ** 2 / (skewed[m] + theirs[m]) for m in ours)
    assert len(ours) < 3 or control > freedom + 5 * math.sqrt(2 * freedom)


def test_density_and_mean_span() -> None:
    rng = np.random.default_rng(0)
    masks = [noise_spans(512, 0.15, 3.0, rng) for _ in range(50)]
    assert {int(m.sum()) for m in masks} == {77}
    assert {int((m[1:] & ~m[:-1]).sum()) for m in masks} == {26}
    assert not any(m[0] for m in masks)
    where = np.mean(masks, axis=0)[8:]
    assert abs(where.mean() - 77 / 512) < 0.01


@settings(deadline=None)
@given(length=st.integers(2, 200), density=st.floats(0.01, 0.99), span=st.floats(1, 10), seed=st.integers(0, 2**32 - 1))
def test_source_and_target_rebuild_the_text(length: int, density: float, span: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    ids, marks = rng.integers(0, 1000, length), list(range(2000, 2200))
    dropped = noise_spans(length, density, span, rng)
    noise, spans = noise_amounts(length, density, span)
    assert dropped.sum() == noise
    source, target = corrupt(ids, dropped, marks)
    used = [t for t in source.tolist() if t >= 2000]
    assert used == marks[:spans] == [t for t in target.tolist() if t >= 2000]
    assert len(source) == length - noise + spans
    assert len(target) == noise + spans
    assert target[0] == marks[0]
    parts = np.split(target, np.flatnonzero(target >= 2000))[1:]
    rebuilt: list[int] = []
    for token in source.tolist():
        rebuilt += parts.pop(0)[1:].tolist() if token >= 2000 else [token]
    assert rebuilt == ids.tolist()


def test_batches_hold_the_text_in_two_halves(sentinels: Tokenizer, tmp_path: Path) -> None:
    objective, found = samples(SpanCorruption(length=24), sentinels, LINES, tmp_path)
    made = batch(objective, found)
    assert made.target is not None
    marks = set(sentinels.sentinels)
    assert list(sentinels.tokens(sentinels.sentinels[:2])) == ["<extra_id_0>", "<extra_id_1>"]
    rebuilt = []
    for i in range(len(found)):
        read = (made.inputs[i] if made.mask is None else made.inputs[i][made.mask[i]]).tolist()
        labels = made.labels[i][made.labels[i] != IGNORE].tolist()
        seen = slice(None) if made.target_mask is None else made.target_mask[i]
        assert made.target[i][seen].tolist() == [sentinels.bos, *labels[:-1]]
        assert read[-1] == labels[-1] == sentinels.eos
        spans: dict[int, list[int]] = {}
        for token in labels[:-1]:
            spans.setdefault(token, []) if token in marks else spans[next(reversed(spans))].append(token)
        rebuilt.append([t for token in read[:-1] for t in (spans[token] if token in marks else [token])])
    pieces = [ids[i : i + 24] for ids in sentinels.encode_batch(LINES) for i in range(0, len(ids), 24)]
    assert rebuilt == [piece for piece in pieces if len(piece) > 1]


def test_the_same_seed_the_same_spans(sentinels: Tokenizer, tmp_path: Path) -> None:
    objective, found = samples(SpanCorruption(length=24, density=0.5), sentinels, LINES, tmp_path)
    assert batch(objective, found, 1).inputs.tolist() == batch(objective, found, 1).inputs.tolist()
    assert batch(objective, found, 1).inputs.tolist() != batch(objective, found, 2).inputs.tolist()


@settings(deadline=None)
@given(length=st.integers(2, 300), density=st.floats(0.01, 0.99), span=st.floats(1, 10))
def test_the_longest_rows_are_known_before(length: int, density: float, span: float) -> None:
    spec = SpanCorruption(length=length, density=density, span=span)
    for shorter in {2, max(2, length // 2), max(2, length - 1), length}:
        noise, spans = noise_amounts(shorter, density, span)
        assert shorter - noise + spans + 1 <= spec.longest()["encoder"][1]
        assert noise + spans + 1 <= spec.longest()["decoder"][1]
