"""Masked language modelling: which tokens are hidden, and how. Tolerances are five standard deviations of what is counted."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from collating import batch, samples
from hypothesis import given, settings
from hypothesis import strategies as st
from recipes import LINES

from triform.nn import IGNORE
from triform.objectives import Masked, build_objective
from triform.objectives.masked import MaskedObjective
from triform.text import Tokenizer
from triform.text.segment import register_segmenter, segmenter

LENGTH, ROUNDS = 64, 150


def drawn(spec: Masked, tokenizer: Tokenizer, folder: Path, rounds: int = ROUNDS) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Many batches of the same text: what was there, what is there now (rounds, B, T), and the labels."""
    objective, found = samples(spec, tokenizer, LINES, folder)
    assert isinstance(objective, MaskedObjective)
    many = [batch(objective, found, seed) for seed in range(rounds)]
    labels, inputs = torch.stack([b.labels for b in many]), torch.stack([b.inputs for b in many])
    return torch.where(labels == IGNORE, inputs, labels), inputs, labels


def within(part: int, whole: int, share: float) -> bool:
    return abs(part / whole - share) <= 5 * math.sqrt(share * (1 - share) / whole)


@pytest.mark.parametrize("whole_words", [False, True])
def test_rate_and_fates(whole_words: bool, tokenizer: Tokenizer, tmp_path: Path) -> None:
    before, now, labels = drawn(Masked(length=LENGTH, whole_words=whole_words), tokenizer, tmp_path)
    assert (before == before[0]).all()
    special = torch.tensor(sorted(tokenizer.special_ids))
    real = ~torch.isin(before, special)
    hidden = labels != IGNORE
    assert not (hidden & ~real).any()
    assert (now[~hidden] == before[~hidden]).all()
    # a row's goal is rounded to whole tokens, which moves its rate by at most half a token
    room = real[0].sum(-1).double()
    assert abs(float(hidden.sum()) / float(real.sum()) - 0.15) <= 0.5 / float(room.mean())
    count = int(hidden.sum())
    masked, same = hidden & (now == tokenizer.mask), hidden & (now == before)
    by_chance = 0.1 / len(build_objective(Masked(), tokenizer).ordinary)  # type: ignore[attr-defined]
    assert within(int(masked.sum()), count, 0.8)
    assert within(int(same.sum()), count, 0.1 + by_chance)
    assert not within(int(same.sum()), count, 0.2)
    others = now[hidden & ~masked & ~same]
    assert within(len(others), count, 0.1 - by_chance)
    assert not torch.isin(others, special).any()
    assert len(others.unique()) > 0.5 * tokenizer.vocab_size or len(others) < 3 * tokenizer.vocab_size


@pytest.mark.parametrize(("hidden", "random"), [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (0.5, 0.5)])
def test_other_shares(hidden: float, random: float, characters: Tokenizer, tmp_path: Path) -> None:
    before, now, labels = drawn(Masked(length=LENGTH, rate=0.4, hidden=hidden, random=random), characters, tmp_path, 40)
    chosen = labels != IGNORE
    assert within(int((now[chosen] == characters.mask).sum()), int(chosen.sum()), hidden)
    if hidden == random == 0:
        assert torch.equal(now, before)


def _words(tokenizer: Tokenizer, name: str, line: str) -> list[tuple[int, ...]]:
    """The places in a line's tokens of each word with more than one token."""
    ends = np.cumsum([len(word) for word in segmenter(name)(line)])
    starts = [start for start, _ in tokenizer.encodings([line])[0].offsets]
    found = np.searchsorted(ends, starts, side="right")
    return [tuple(np.flatnonzero(found == w)) for w in np.unique(found) if (found == w).sum() > 1]


@pytest.mark.parametrize("name", ["jieba", "pairs"])
def test_whole_words_are_hidden_as_wholes(name: str, every_character: Tokenizer, tmp_path: Path) -> None:
    register_segmenter("pairs", lambda text: [text[i : i + 2] for i in range(0, len(text), 2)])
    line = LINES[3]
    words = _words(every_character, name, line)
    assert len(words) > 5
    parted = {}
    for whole in (True, False):
        objective, found = samples(Masked(whole_words=whole, segmenter=name, rate=0.3), every_character, [line], tmp_path / str(whole))
        shares = []
        for seed in range(60):
            hidden = (batch(objective, found, seed).labels[0, 1:-1] != IGNORE).tolist()
            shares += [len({hidden[i] for i in word}) for word in words]
        parted[whole] = sum(share > 1 for share in shares)
    assert parted[True] == 0
    assert parted[False] > 0


def test_words_begin_anew_in_each_packed_document(every_character: Tokenizer, tmp_path: Path) -> None:
    """Two documents of one word each, packed into a row: hiding one leaves the other."""
    register_segmenter("whole", lambda text: [text])
    spec = Masked(length=16, whole_words=True, segmenter="whole", rate=0.5)
    objective, found = samples(spec, every_character, ["天下大势", "周末七国"], tmp_path)
    assert len(found) == 1
    sides = set()
    for seed in range(20):
        hidden = (batch(objective, found, seed).labels[0] != IGNORE).tolist()
        assert sum(hidden) == 4
        sides.add(tuple(hidden))
    assert sides == {(False, *[True] * 4, *[False] * 7), (*[False] * 7, *[True] * 4, False)}


@pytest.mark.parametrize("dynamic", [True, False])
def test_masks_are_drawn_anew_or_once(dynamic: bool, characters: Tokenizer, tmp_path: Path) -> None:
    objective, found = samples(Masked(length=LENGTH, dynamic=dynamic), characters, LINES, tmp_path)
    one, two = batch(objective, found, 0), objective.collate([found[i] for i in range(len(found))], [(0, 7, i) for i in range(len(found))])
    again = batch(objective, found, 0)
    assert torch.equal(one.inputs, again.inputs)
    assert torch.equal(one.labels, again.labels)
    assert torch.equal(one.labels, two.labels) == (not dynamic)


def test_rows_are_packed_documents_each_in_its_frame(tokenizer: Tokenizer, tmp_path: Path) -> None:
    made = batch(*samples(Masked(length=LENGTH, hidden=0.0, random=0.0), tokenizer, [*LINES, "", "".join(LINES)], tmp_path))
    assert made.layout is not None
    assert made.layout.documents is not None
    mask = torch.ones_like(made.inputs, dtype=torch.bool) if made.mask is None else made.mask
    found = []
    for row, numbers, seen in zip(made.inputs, made.layout.documents, mask, strict=True):
        for n in numbers[seen].unique().tolist():
            found.append(row[(numbers == n) & seen].tolist())
    room, whole = LENGTH - 2, tokenizer.encode("".join(LINES))
    texts = [tokenizer.encode(line) for line in LINES] + [whole[i : i + room] for i in range(0, len(whole), room)]
    assert sorted(found) == sorted([tokenizer.cls, *ids[i : i + room], tokenizer.sep] for ids in texts for i in range(0, len(ids), room))
    assert made.inputs.shape[1] <= LENGTH


def test_special_names_in_a_text_do_not_shift_the_words(characters: Tokenizer, tmp_path: Path) -> None:
    objective = build_objective(Masked(whole_words=True), characters)
    row = objective.encode([{"text": "天下[SEP]大势"}])[0]
    assert len(row["text"]) == len(row["word"])
    assert list(row["text"]).count(characters.sep) == 1


@settings(deadline=None)
@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=30), rate=st.floats(0.01, 0.99), seed=st.integers(0, 2**32 - 1))
def test_never_more_than_the_rate_and_never_nothing(sizes: list[int], rate: float, seed: int) -> None:
    objective = _one_tokenizer(rate)
    word = np.concatenate([[0], np.repeat(np.arange(len(sizes)) + 1, sizes), [0]])
    ids = np.full(len(word), 50)
    _, labels = objective.hide(ids, word, np.zeros_like(word), np.random.default_rng(seed))
    hidden = labels != IGNORE
    chosen = set(word[hidden])
    assert 0 not in chosen
    assert hidden.sum() == np.isin(word, list(chosen)).sum()
    goal = round(rate * sum(sizes))
    assert 1 <= hidden.sum() <= max(goal, max(sizes) if goal < max(sizes) else goal)


def _one_tokenizer(rate: float) -> Any:
    from triform.text import train_tokenizer

    global _TOKENIZER
    if _TOKENIZER is None:
        _TOKENIZER = train_tokenizer(LINES, kind="characters", vocab_size=150, min_frequency=1)
    return build_objective(Masked(rate=rate), _TOKENIZER)


_TOKENIZER: Tokenizer | None = None


def test_an_unknown_segmenter_is_named(characters: Tokenizer) -> None:
    with pytest.raises(ValueError, match="no segmenter is named 'thulac'"):
        build_objective(Masked(whole_words=True, segmenter="thulac"), characters)
