"""Prefix language models: what is read both ways, what is scored, and that packing changes neither."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from collating import batch, samples, trained
from hypothesis import given, settings
from hypothesis import strategies as st
from recipes import LINES

from triform import config
from triform.nn import IGNORE, Layout
from triform.objectives import Batch, Causal, Objective, Prefix, build_objective
from triform.text import Tokenizer


def model(tokenizer: Tokenizer, mask: str = "prefix") -> Any:
    spec = tiny.decoder("rotary", mask=mask)
    return tiny.build(config.with_overrides(config.Model, spec, {"decoder.input.vocab_size": tokenizer.vocab_size}))


def runs(made: Batch) -> list[tuple[int, int, int]]:
    """Row, start and end of each packed document."""
    found = []
    for row in range(len(made.inputs)):
        size = len(made.inputs[row]) if made.mask is None else int(made.mask[row].sum())
        numbers = torch.zeros(size) if made.layout is None or made.layout.documents is None else made.layout.documents[row, :size]
        cuts = [0, *((numbers[1:] != numbers[:-1]).nonzero().flatten() + 1).tolist(), size]
        found += [(row, a, b) for a, b in pairwise(cuts)]
    return found


@settings(max_examples=40, deadline=None)
@given(length=st.integers(2, 40), share=st.none() | st.floats(0.01, 0.99), seed=st.integers(0, 2**31))
def test_every_document_has_a_prefix_and_only_the_rest_is_scored(
    length: int, share: float | None, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tokenizer, folder = trained("characters"), tmp_path_factory.mktemp("prefix")
    made = batch(*samples(Prefix(length=length, share=share), tokenizer, LINES, folder / "a"), seed)
    plain = batch(*samples(Causal(length=length), tokenizer, LINES, folder / "b"), seed)
    assert torch.equal(made.inputs, plain.inputs)
    assert made.layout is not None
    assert made.layout.prefix is not None
    for row, start, end in runs(made):
        inside = made.layout.prefix[row, start:end].tolist()
        size = sum(inside)
        assert inside == [True] * size + [False] * (end - start - size)
        assert 1 <= size <= max(1, end - start - 1)
        if share is not None:
            assert size == min(max(round(share * (end - start)), 1), max(1, end - start - 1))
        assert (made.labels[row, start : start + size - 1] == IGNORE).all()
        assert torch.equal(made.labels[row, start + size - 1 : end], plain.labels[row, start + size - 1 : end])
    if made.mask is not None:
        assert not made.layout.prefix[~made.mask].any()


def test_a_random_prefix_has_every_length_alike(characters: Tokenizer) -> None:
    objective: Any = build_objective(Prefix(), characters)
    rng = np.random.default_rng(0)
    sizes = [int(objective.prefix(np.zeros(11, dtype=np.int64), rng).sum()) for _ in range(5000)]
    counts = np.bincount(sizes, minlength=12)
    assert counts[0] == counts[11] == 0
    expected = 500
    assert ((counts[1:11] - expected) ** 2 / expected).sum() < 9 + 5 * np.sqrt(18)


@torch.no_grad()
def test_the_loss_is_that_of_each_document_alone(characters: Tokenizer, tmp_path: Path) -> None:
    """Summed over packed documents, against each one in a pass of its own; tolerance 1e-4 of the sum. A causal mask is the control."""
    objective, found = samples(Prefix(length=40), characters, LINES[:8], tmp_path)
    made = batch(objective, found)
    assert made.layout is not None
    assert made.layout.prefix is not None
    net = model(characters)
    wanted = apart = 0.0
    for row, start, end in runs(made):
        ids, labels, prefix = (x[row : row + 1, start:end] for x in (made.inputs, made.labels, made.layout.prefix))
        logits = net(ids, layout=Layout(prefix=prefix)).logits
        wanted += float(F.cross_entropy(logits[0], labels[0], ignore_index=IGNORE, reduction="sum"))
        apart += float(F.cross_entropy(net(ids).logits[0], labels[0], ignore_index=IGNORE, reduction="sum"))
    got = float(objective.loss(net, made).total.detach())
    assert abs(got - wanted) <= 1e-4 * wanted
    assert abs(got - apart) > 1e-2


def test_models_that_cannot(characters: Tokenizer) -> None:
    def check(mask: str, objective: Objective) -> None:
        objective.check(model(characters, mask).config)

    objective = build_objective(Prefix(), characters)
    check("prefix", objective)
    with pytest.raises(ValueError, match="mask is prefix in every layer, got causal"):
        check("causal", objective)
    with pytest.raises(ValueError, match="share: expected a share between 0 and 1"):
        Prefix(share=1.0)
