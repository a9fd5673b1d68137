"""Pairs of sentences: what is paired, what is said of it, and what it costs."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

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
from triform.objectives import Batch, Masked, build_objective
from triform.objectives.sentences import spans
from triform.text import Tokenizer
from triform.text.segment import sentences

DOCUMENTS = ["".join(LINES[i : i + 4]) for i in range(0, 24, 4)]


def segments(made: Batch, row: int, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The two segments of a row, out of their frame, with what was hidden put back."""
    ids = torch.where(made.labels == IGNORE, made.inputs, made.labels)[row]
    assert made.layout is not None
    assert made.layout.segments is not None
    kind = made.layout.segments[row]
    if made.mask is not None:
        ids, kind = ids[made.mask[row]], kind[made.mask[row]]
    assert kind.tolist() == sorted(kind.tolist())
    first, second = ids[kind == 0].tolist(), ids[kind == 1].tolist()
    assert (first[0], first[-1], second[-1]) == (tokenizer.cls, tokenizer.sep, tokenizer.sep)
    return first[1:-1], second[:-1]


def inside(part: list[int], whole: list[int]) -> bool:
    return any(whole[i : i + len(part)] == part for i in range(len(whole) - len(part) + 1))


@settings(max_examples=25, deadline=None)
@given(kind=st.sampled_from(["next", "order"]), length=st.integers(5, 90), words=st.booleans(), seed=st.integers(0, 2**31))
def test_pairs_are_what_their_label_says(
    kind: Any, length: int, words: bool, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tokenizer, folder = trained("all characters"), tmp_path_factory.mktemp("pairs")
    spec = Masked(length=length, pairs=kind, whole_words=words, segmenter="whitespace")
    made = batch(*samples(spec, tokenizer, DOCUMENTS, folder), seed)
    documents = tokenizer.encode_batch(DOCUMENTS, plain=True)
    assert made.sentence is not None
    assert made.inputs.shape[1] <= length
    for row, label in enumerate(made.sentence.tolist()):
        first, second = segments(made, row, tokenizer)
        assert first
        assert second
        if label and kind == "next":
            homes = [{i for i, d in enumerate(documents) if inside(part, d)} for part in (first, second)]
            assert len(homes[0] | homes[1]) > 1 or len(first) < 3 or len(second) < 3
        else:
            a, b = (second, first) if label else (first, second)
            cut = len(a) + len(b) == length - 3  # then both have lost their outer ends, or for swapped ones their inner ones
            assert any(inside(a + b, d) for d in documents) or (cut and label and any(inside(a, d) and inside(b, d) for d in documents))


def test_half_of_the_pairs_are_as_in_the_text(every_character: Tokenizer, tmp_path: Path) -> None:
    objective, found = samples(Masked(length=64, pairs="order"), every_character, DOCUMENTS, tmp_path)
    labels = torch.cat([batch(objective, found, seed).sentence for seed in range(100)])  # type: ignore[misc]
    assert abs(float(labels.double().mean()) - 0.5) < 5 * 0.5 / len(labels) ** 0.5


@settings(deadline=None)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12), room=st.integers(2, 30))
def test_every_sentence_is_in_a_run(sizes: list[int], room: int) -> None:
    bounds = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    found = list(spans(bounds, room))
    assert bool(found) == (len(sizes) > 1)
    for start, end in found:
        count = bounds.index(end) - bounds.index(start)
        assert count >= 2
        assert end - start <= room or count == 2
    if found:
        assert found[0][0] == 0
        assert found[-1][1] == bounds[-1]
        assert all(bounds.index(left[1]) - bounds.index(right[0]) in (0, 1) for left, right in pairwise(found))


@given(st.text(st.sampled_from("天下。！？.”\n a1")))
def test_sentences_are_the_text(text: str) -> None:
    found = sentences(text)
    assert "".join(found) == text
    assert all(found)


def test_sentences_of_both_languages() -> None:
    assert sentences("他说：“走吧！”然后走了。再见……好") == ["他说：“走吧！”", "然后走了。", "再见……", "好"]
    assert sentences('Pi is 3.14. He said "go." Then?\nYes') == ["Pi is 3.14. ", 'He said "go." ', "Then?\n", "Yes"]


def _model(tokenizer: Tokenizer, **change: Any) -> Any:
    spec = tiny.encoder("learned")
    fields: dict[str, Any] = {"encoder.input.vocab_size": tokenizer.vocab_size, "encoder.input.position.length": 64}
    fields["sentence_head"] = {"labels": 2, "transform": "tanh"}
    return config.with_overrides(config.Model, spec, fields | change)


@torch.no_grad()
def test_the_loss_is_the_sum_of_both(every_character: Tokenizer, tmp_path: Path) -> None:
    """Against each row alone without padding, and transformers' formula; tolerance 1e-4 of the sum. Without segments it differs."""
    objective, found = samples(Masked(length=40, pairs="order"), every_character, DOCUMENTS, tmp_path)
    made = batch(objective, found)
    assert made.layout is not None
    assert made.layout.segments is not None
    assert made.sentence is not None
    model = tiny.build(_model(every_character))
    wanted = without = 0.0
    for row in range(len(made.inputs)):
        size = int(made.inputs.shape[1] if made.mask is None else made.mask[row].sum())
        ids, labels, kinds = (x[row : row + 1, :size] for x in (made.inputs, made.labels, made.layout.segments))
        for sums, layout in (("wanted", Layout(segments=kinds)), ("without", None)):
            out = model(ids, layout=layout)
            cost = F.cross_entropy(out.logits[0], labels[0], ignore_index=IGNORE, reduction="sum")
            cost = cost + F.cross_entropy(out.sentence_logits, made.sentence[row : row + 1]) * (labels != IGNORE).sum()
            wanted += float(cost) * (sums == "wanted")
            without += float(cost) * (sums == "without")
    got = objective.loss(model, made)
    assert abs(float(got.total) - wanted) <= 1e-4 * wanted
    assert abs(float(got.total) - without) > 1e-2 * wanted
    assert 0 <= got.metrics["sentence_accuracy"] <= made.count


@torch.no_grad()
def test_micro_batches_add_up_to_the_large_batch(every_character: Tokenizer, tmp_path: Path) -> None:
    """Loss, both metrics and the number of labels; tolerance 1e-5 of the sum. Another seed's batch is the control."""
    objective, found = samples(Masked(length=40, pairs="next"), every_character, DOCUMENTS, tmp_path)
    model = tiny.build(_model(every_character))
    chosen = [found[i] for i in range(len(found))]

    def sums(size: int, seed: int = 0) -> list[float]:
        parts = [range(i, min(i + size, len(chosen))) for i in range(0, len(chosen), size)]
        made = [objective.collate([chosen[i] for i in part], [(seed, 0, i) for i in part]) for part in parts]
        costs = [objective.loss(model, each) for each in made]
        metrics = [sum(cost.metrics[name] for cost in costs) for name in ("sentence_loss", "sentence_accuracy")]
        return [sum(float(cost.total) for cost in costs), *metrics, float(sum(each.count for each in made))]

    assert sums(2) == pytest.approx(sums(len(chosen)), rel=1e-5)
    assert sums(2, 1) != pytest.approx(sums(len(chosen)), rel=1e-5)


def test_without_anything_to_pair(every_character: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"two sentences or more, found none; set data.by"):
        samples(Masked(pairs="order"), every_character, ["天下大势", "周末七国。"], tmp_path / "a")
    with pytest.raises(ValueError, match="another document, and there is but one"):
        samples(Masked(pairs="next"), every_character, DOCUMENTS[:1], tmp_path / "b")


def test_models_that_cannot(every_character: Tokenizer) -> None:
    objective = build_objective(Masked(pairs="next"), every_character)
    objective.check(_model(every_character))
    with pytest.raises(ValueError, match="a sentence_head of 2 labels"):
        objective.check(_model(every_character, sentence_head=None))
    with pytest.raises(ValueError, match="an input of 2 segments"):
        objective.check(_model(every_character, **{"encoder.input.segments": 0}))
