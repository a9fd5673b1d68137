"""BART's five noises, alone and together."""

from __future__ import annotations

import math
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
from triform.objectives import Denoising, build_objective
from triform.objectives.denoising import deleted, infilled, masked, permuted, rotated
from triform.text import Tokenizer

MASK = -1
TEXT = "".join(LINES[:6])


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


seeds = st.integers(0, 2**31)
texts = st.integers(1, 60).map(np.arange)
shares = st.floats(0, 0.99)


@settings(deadline=None)
@given(ids=texts, share=shares, span=st.floats(1, 8), seed=seeds)
def test_infilling_keeps_the_rest_in_order(ids: np.ndarray, share: float, span: float, seed: int) -> None:
    found = infilled(ids, share, span, MASK, rng(seed))
    budget = round(share * len(ids))
    assert found[found != MASK].tolist() == sorted(set(ids.tolist()) & set(found.tolist()))
    assert (found != MASK).sum() == len(ids) - budget
    assert len(found) <= len(ids)
    assert (MASK in found) == (budget > 0)


def test_spans_are_poisson() -> None:
    """Lengths of spans alone between kept tokens, against Poisson(3): chi-squared within five standard deviations."""
    counts: Counter[int] = Counter()
    for seed in range(60):
        found = infilled(np.arange(3000), 0.02, 3.0, MASK, rng(seed))  # so few that they hardly ever touch
        for place in np.flatnonzero(found == MASK):
            before, after = (found[place - 1] if place else -1), (found[place + 1] if place + 1 < len(found) else 3000)
            if MASK not in (before if place else 0, after):
                counts[int(after - before - 1)] += 1
    total = sum(counts.values())
    def statistic(mean: float) -> float:
        wanted = [total * math.exp(-mean) * mean**n / math.factorial(n) for n in range(8)]
        return sum((counts[n] - wanted[n]) ** 2 / wanted[n] for n in range(8))

    limit = 7 + 5 * math.sqrt(14)
    assert statistic(3.0) < limit
    assert statistic(2.5) > limit


@settings(deadline=None)
@given(ids=texts, share=shares, seed=seeds)
def test_masking_and_deletion(ids: np.ndarray, share: float, seed: int) -> None:
    hidden, left = masked(ids, share, MASK, rng(seed)), deleted(ids, share, rng(seed))
    assert ((hidden == ids) | (hidden == MASK)).all()
    assert (hidden == MASK).sum() == round(share * len(ids))
    assert len(left) == max(1, len(ids) - round(share * len(ids)))
    assert left.tolist() == sorted(set(left.tolist()))
    assert set(left.tolist()) <= set(ids.tolist())


@settings(deadline=None)
@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=8), seed=seeds)
def test_permutation_moves_whole_sentences_and_rotation_none(sizes: list[int], seed: int) -> None:
    ids = np.arange(sum(sizes))
    begin = np.zeros(len(ids), dtype=bool)
    begin[np.cumsum([0, *sizes[:-1]])] = True
    found = permuted(ids, begin, rng(seed))
    sentences = sorted(part.tolist() for part in np.split(found, np.flatnonzero(begin[found])[1:]))
    assert sentences == sorted(part.tolist() for part in np.split(ids, np.flatnonzero(begin)[1:]))
    turned = rotated(ids, rng(seed))
    assert np.roll(turned, int(turned[0])).tolist() == ids.tolist()


def test_every_order_and_every_turn_comes_up() -> None:
    begin = np.array([True, False, True, True])
    assert {tuple(permuted(np.arange(4), begin, rng(i))) for i in range(200)} == {
        (0, 1, 2, 3), (0, 1, 3, 2), (2, 0, 1, 3), (3, 0, 1, 2), (2, 3, 0, 1), (3, 2, 0, 1),
    }  # fmt: skip
    assert {int(rotated(np.arange(4), rng(i))[0]) for i in range(100)} == {0, 1, 2, 3}


def test_chinese_sentences_are_permuted(every_character: Tokenizer, tmp_path: Path) -> None:
    objective, found = samples(Denoising(infill=0.0), every_character, [TEXT], tmp_path)
    orders = {every_character.decode(batch(objective, found, seed).inputs[0].tolist()) for seed in range(20)}
    assert len(orders) > 10
    for order in orders:
        assert sorted(order.replace("。", "。|").strip("|").split("|")) == sorted(TEXT.replace("。", "。|").strip("|").split("|"))


@settings(max_examples=40, deadline=None)
@given(
    noises=st.fixed_dictionaries({name: st.floats(0, 0.9) for name in ("permute", "rotate", "infill", "mask", "delete")}),
    length=st.integers(5, 80),
    seed=seeds,
)
def test_any_noises_together(noises: dict[str, float], length: int, seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    from collating import trained

    tokenizer = trained("all characters")
    spec = Denoising(length=length, **(noises if any(noises.values()) else {}))  # type: ignore[arg-type]
    made = batch(*samples(spec, tokenizer, [TEXT, *LINES[8:12]], tmp_path_factory.mktemp("noise")), seed)
    assert made.target is not None
    assert made.inputs.shape[1] <= spec.longest()["encoder"][1]
    assert made.labels.shape[1] <= spec.longest()["decoder"][1]
    labels = made.labels[made.labels != IGNORE].tolist()
    whole = tokenizer.encode(TEXT + "".join(LINES[8:12]), plain=True)
    assert len([t for t in labels if t != tokenizer.eos]) >= len(whole) - 5  # pieces of one token are left out
    for row in range(len(made.inputs)):
        read = (made.inputs[row] if made.mask is None else made.inputs[row][made.mask[row]]).tolist()
        kept = Counter(read[:-1]) - Counter({tokenizer.mask: len(read)})
        assert not kept - Counter(made.labels[row].tolist())


@torch.no_grad()
def test_the_loss_is_that_of_each_row_alone(every_character: Tokenizer, tmp_path: Path) -> None:
    """Tolerance 1e-4 of the sum; the text itself as the source is the control."""
    objective, found = samples(Denoising(length=50), every_character, LINES, tmp_path)
    made = batch(objective, found)
    assert made.target is not None
    sizes = {f"{side}.input.vocab_size": every_character.vocab_size for side in ("encoder", "decoder")}
    model = tiny.build(config.with_overrides(config.Model, tiny.encoder_decoder("bucketed"), sizes))
    sums = [0.0, 0.0]
    for row in range(len(made.inputs)):
        ids = made.inputs[row : row + 1] if made.mask is None else made.inputs[row : row + 1, : int(made.mask[row].sum())]
        out = int((made.labels[row] != IGNORE).sum())
        target, labels = made.target[row : row + 1, :out], made.labels[row, :out]
        for i, source in enumerate((ids, labels[None])):
            sums[i] += float(F.cross_entropy(model(source, target=target).logits[0], labels, reduction="sum"))
    got = float(objective.loss(model, made).total)
    assert abs(got - sums[0]) <= 1e-4 * sums[0]
    assert abs(got - sums[1]) > 1e-3 * sums[0]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"permute": 0.0, "infill": 0.0}, "expected one of permute, rotate, infill, mask and delete above 0"),
        ({"delete": 1.0}, "delete: expected a share from 0 up to but not including 1"),
        ({"rotate": 1.1}, "rotate: expected a share from 0 to 1"),
        ({"span": 0.5}, "span: expected at least 1 token"),
    ],
)
def test_settings_that_do_not_fit(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Denoising(**fields)


def test_a_mask_is_needed_only_for_masks(characters: Tokenizer) -> None:
    without = Tokenizer(characters.backend, {role: token for role, token in characters.roles.items() if role != "mask"})
    with pytest.raises(ValueError, match="a tokenizer with a mask token, or infill and mask of 0"):
        build_objective(Denoising(), without).check(tiny.encoder_decoder())
    build_objective(Denoising(infill=0.0), without).check(tiny.encoder_decoder())
