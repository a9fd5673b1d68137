"""UL2's mixture of denoisers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from collating import batch, samples
from hypothesis import given, settings
from hypothesis import strategies as st
from recipes import LINES

from triform import config
from triform.nn import IGNORE
from triform.objectives import SpanCorruption, build_objective
from triform.objectives.spans import UL2, corrupt
from triform.text import Tokenizer, train_tokenizer


def tokenizer() -> Tokenizer:
    found = train_tokenizer(LINES, kind="bpe", vocab_size=600, min_frequency=1, sentinels=40)
    found.backend.add_special_tokens(["[R]", "[S]", "[X]"])
    return found


def test_the_table_of_the_paper() -> None:
    assert {(d.mode, d.span, d.density) for d in UL2} == {
        ("R", 3, 0.15), ("R", 8, 0.15), ("S", None, 0.25), ("X", 3, 0.5), ("X", 8, 0.5), ("X", 64, 0.15), ("X", 64, 0.5),
    }  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(which=st.integers(0, 6), length=st.integers(2, 300), longer=st.integers(0, 50), seed=st.integers(0, 2**31))
def test_source_and_target_rebuild_the_text_and_are_no_longer_than_said(which: int, length: int, longer: int, seed: int) -> None:
    denoiser, rng = UL2[which], np.random.default_rng(seed)
    ids, marks = rng.integers(0, 1000, length), list(range(2000, 2200))
    dropped = denoiser.draw(length, rng)
    assert not dropped[0]
    assert dropped.any()
    if denoiser.span is None:
        assert dropped.tolist() == sorted(dropped.tolist())
    source, target = corrupt(ids, dropped, marks)
    for got, most in zip((source, target), denoiser.longest(length + longer), strict=True):
        assert len(got) <= most
    parts = np.split(target, np.flatnonzero(target >= 2000))[1:]
    rebuilt = [t for token in source.tolist() for t in (parts.pop(0)[1:].tolist() if token >= 2000 else [token])]
    assert rebuilt == ids.tolist()


def test_the_sequential_one_drops_a_quarter_on_average() -> None:
    rng, denoiser = np.random.default_rng(0), UL2[2]
    shares = [denoiser.draw(400, rng).mean() for _ in range(2000)]
    assert abs(np.mean(shares) - 0.25) < 5 * 0.5 / np.sqrt(12) / np.sqrt(2000)
    assert max(shares) <= 0.5


def test_each_denoiser_is_drawn_alike_and_says_its_mode(tmp_path: Path) -> None:
    found = tokenizer()
    objective, rows = samples(SpanCorruption(length=64, mixture="ul2", modes=True), found, ["".join(LINES)], tmp_path)
    first: Counter[str] = Counter()
    count = 0
    for seed in range(150):
        made = batch(objective, rows, seed)
        for row in made.inputs:
            first[found.tokens(row[:1])[0]] += 1
            assert not {found.id(f"[{mode}]") for mode in "RSX"} & set(row[1:].tolist())
        count += len(made.inputs)
    assert first.keys() == {"[R]", "[S]", "[X]"}
    for mode, share in (("[R]", 2 / 7), ("[S]", 1 / 7), ("[X]", 4 / 7)):
        assert abs(first[mode] / count - share) < 5 * (share * (1 - share) / count) ** 0.5


@torch.no_grad()
def test_the_loss_is_that_of_each_row_alone(tmp_path: Path) -> None:
    """Tolerance 1e-4 of the sum; another target is the control."""
    found = tokenizer()
    objective, rows = samples(SpanCorruption(length=40, mixture="ul2"), found, LINES, tmp_path)
    made = batch(objective, rows)
    assert made.target is not None
    spec = tiny.encoder_decoder("bucketed")
    sizes = {f"{side}.input.vocab_size": found.vocab_size for side in ("encoder", "decoder")}
    model = tiny.build(config.with_overrides(config.Model, spec, sizes))
    sums = [0.0, 0.0]
    for row in range(len(made.inputs)):
        size = int(made.inputs.shape[1] if made.mask is None else made.mask[row].sum())
        out = int((made.labels[row] != IGNORE).sum())
        ids, target, labels = made.inputs[row : row + 1, :size], made.target[row : row + 1, :out], made.labels[row, :out]
        for i, shown in enumerate((target, target.flip(1))):
            sums[i] += float(F.cross_entropy(model(ids, target=shown).logits[0], labels, reduction="sum"))
    got = float(objective.loss(model, made).total)
    assert abs(got - sums[0]) <= 1e-4 * sums[0]
    assert abs(got - sums[1]) > 1e-2 * sums[0]


def test_what_is_missing_is_said(sentinels: Tokenizer) -> None:
    model: Any = tiny.encoder_decoder()
    with pytest.raises(ValueError, match=r"set tokenizer.add: \['\[R\]', '\[S\]', '\[X\]'\]"):
        build_objective(SpanCorruption(length=24, mixture="ul2", modes=True), sentinels).check(model)
    with pytest.raises(ValueError, match="at least 85 sentinels"):
        build_objective(SpanCorruption(length=512, mixture="ul2"), sentinels).check(model)
    with pytest.raises(ValueError, match="modes: expected mixture"):
        SpanCorruption(modes=True)
