"""Sentence embeddings: what each anchor looks for among the batch, and that the same text twice is no mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from collating import batch, samples
from recipes import LINES

from triform import config
from triform.nn import IGNORE
from triform.objectives import SentenceEmbedding, build_objective
from triform.objectives.embedding import in_batch_loss
from triform.text import Tokenizer

ROWS = [{"anchor": LINES[i], "positive": LINES[i + 1], "negative": LINES[i + 2 : i + 2 + n]} for i, n in ((0, 2), (4, 0), (8, 1))]


def test_anchors_then_positives_then_negatives(every_character: Tokenizer, tmp_path: Path) -> None:
    made = batch(*samples(SentenceEmbedding(), every_character, ROWS, tmp_path))
    said = [every_character.decode(ids[kept]).replace(" ", "") for ids, kept in zip(made.inputs, made.mask, strict=True)]
    assert said == [LINES[i] for i in (0, 4, 8, 1, 5, 9, 2, 3, 10)]
    assert made.labels.tolist() == [0, 1, 2, *[IGNORE] * 6]
    assert made.count == 3


def test_the_loss_is_that_of_the_formula_written_out() -> None:
    generator = torch.Generator().manual_seed(0)
    anchors, candidates = (torch.randn(n, 8, generator=generator, dtype=torch.float64) for n in (4, 7))
    wanted = 0.0
    for i in range(4):
        cosines = [float(torch.cosine_similarity(anchors[i], candidates[j], dim=0)) for j in range(7)]
        wanted -= 20 * cosines[i] - torch.tensor([20 * c for c in cosines], dtype=torch.float64).logsumexp(0).item()
    nothing = torch.zeros(4, 7, dtype=torch.bool)
    assert abs(float(in_batch_loss(anchors, candidates, nothing, 20.0)[0]) - wanted) < 1e-9 * wanted
    assert abs(float(in_batch_loss(anchors, candidates, nothing, 19.0)[0]) - wanted) > 1e-3 * wanted


def test_a_text_that_comes_twice_is_nothing_to_tell_apart(every_character: Tokenizer, tmp_path: Path) -> None:
    model = tiny.build(tiny.encoder("rotary", head=config.Embed(normalize=True)))

    def loss(rows, name: str) -> float:
        objective, found = samples(SentenceEmbedding(), every_character, rows, tmp_path / name)
        made = batch(objective, found)
        made.inputs = made.inputs.remainder(tiny.VOCAB)
        return float(objective.loss(model, made).total.detach()) / made.count

    once = {"anchor": LINES[0], "positive": LINES[1]}
    assert loss([once, once | {"anchor": LINES[2]}], "twice") < 1e-6
    assert loss([once, once | {"positive": LINES[3]}], "other") > 1e-3


def test_smoothing_leaves_out_what_is_nothing_to_tell_apart() -> None:
    """The loss is that without such candidates; control: they count where they are not said to be the same."""
    generator = torch.Generator().manual_seed(0)
    anchors, candidates = (torch.randn(n, 8, generator=generator, dtype=torch.float64) for n in (2, 4))
    same = torch.zeros(2, 4, dtype=torch.bool)
    found, fewer = (in_batch_loss(anchors, c, same[:, : len(c)], 20.0, 0.1)[0] for c in (candidates, candidates[:2]))
    same[:, 2:] = True
    assert abs(float(in_batch_loss(anchors, candidates, same, 20.0, 0.1)[0] - fewer)) < 1e-12
    assert abs(float(found - fewer)) > 1e-3


def test_symmetric_is_the_mean_of_both_directions(every_character: Tokenizer, tmp_path: Path) -> None:
    model = tiny.build(tiny.encoder("rotary", head=config.Embed()))
    rows = [{"anchor": LINES[i], "positive": LINES[i + 1]} for i in (0, 4, 8)]
    back = [{"anchor": row["positive"], "positive": row["anchor"]} for row in rows]

    def loss(made_rows, name: str, symmetric: bool = False) -> float:
        objective, found = samples(SentenceEmbedding(symmetric=symmetric), every_character, made_rows, tmp_path / name)
        made = batch(objective, found)
        made.inputs = made.inputs.remainder(tiny.VOCAB)
        return float(objective.loss(model, made).total.detach())

    one, other, both = loss(rows, "a"), loss(back, "b"), loss(rows, "c", symmetric=True)
    assert abs(both - (one + other) / 2) < 1e-5
    assert abs(one - other) > 1e-3


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"anchor": "a"}, "no field 'positive' for the positive"),
        ({"anchor": "a", "positive": 3}, "has 3 in its field 'positive'; expected text"),
        ({"anchor": "a", "positive": " "}, "expected texts that are not empty"),
        ({"anchor": "a", "positive": "b", "negative": ["c", None]}, "expected texts that are not empty"),
    ],
)
def test_rows_that_do_not_fit(row, message, every_character: Tokenizer) -> None:
    with pytest.raises(ValueError, match=message):
        build_objective(SentenceEmbedding(), every_character).encode([row])


def test_models_that_do_not_fit(every_character: Tokenizer) -> None:
    objective = build_objective(SentenceEmbedding(), every_character)
    objective.check(tiny.encoder(head=config.Embed()))
    with pytest.raises(ValueError, match="expected an Embed head, got LanguageModel"):
        objective.check(tiny.encoder())
