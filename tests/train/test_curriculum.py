"""A curriculum by length is a function of the seed and the step, and shows every sample as often as a run without it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recipes import plain, recipe
from runs import assert_same, outcome, quiet, stopped_and_resumed

from triform.nn import IGNORE
from triform.train import read_recipe, run
from triform.train.batches import Batches
from triform.train.loop import Trainer

STREAMS = ["Causal", "Prefix", "FillInTheMiddle"]
SAMPLES = ["SequenceToSequence", "Denoising", "Contrastive", "Classification"]
HOW = {"share": 0.5, "start": 0.25}


def batches(kind: str, data: Path, folder: Path, steps: int = 24, **train: Any) -> Batches:
    return Trainer(recipe(kind, data, steps=steps, **train), folder, progress=False).train


def same(left: Any, right: Any) -> bool:
    return all(torch.equal(a.inputs, b.inputs) and torch.equal(a.labels, b.labels) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("kind", [*STREAMS, *SAMPLES])
def test_any_step_is_the_same_whoever_asks_and_in_whatever_order(kind: str, data: Path, tmp_path: Path) -> None:
    one = batches(kind, data, tmp_path / "a", curriculum=HOW, accumulate=2)
    other = batches(kind, data, tmp_path / "b", curriculum=HOW, accumulate=2)
    forward = [one.step(step) for step in range(16)]
    assert all(same(forward[step], other.step(step)) for step in reversed(range(16)))
    third = batches(kind, data, tmp_path / "c", curriculum=HOW, accumulate=2, seed=1)
    assert not all(b.inputs.shape == c.inputs.shape and same([b], [c]) for b, c in zip(forward[9], third.step(9), strict=True))  # control


@pytest.mark.parametrize("kind", STREAMS)
def test_rows_of_a_stream_grow_and_lose_no_token(kind: str, data: Path, tmp_path: Path) -> None:
    grown, plainly = batches(kind, data, tmp_path / "a", curriculum=HOW), batches(kind, data, tmp_path / "b")
    widths = [max(batch.inputs.shape[1] for batch in grown.step(step)) for step in range(24)]
    assert widths[0] == 4
    assert widths == sorted(widths)
    assert widths[12:] == [16] * 12
    assert len(set(widths)) > 2
    for step in range(24):
        assert np.array_equal(grown.indices(step), plainly.indices(step))
        assert sum(b.tokens for b in grown.step(step)) == sum(b.tokens for b in plainly.step(step))
        if kind == "Causal":  # every token is followed by the one it was followed by
            pairs = [
                Counter((int(i), int(j)) for b in found for i, j in zip(b.inputs.flatten(), b.labels.flatten(), strict=True) if j != IGNORE)
                for found in (grown.step(step), plainly.step(step))
            ]
            assert pairs[0] == pairs[1]


def test_documents_of_a_piece_are_counted_from_its_beginning(data: Path, tmp_path: Path) -> None:
    grown = batches("Causal", data, tmp_path / "a", curriculum=HOW)
    sample = next(s for s in (grown.samples[i] for i in range(len(grown.samples))) if s["document"][-1] >= 2)
    pieces = grown.objective.cut(sample, 5)
    assert [len(piece["text"]) for piece in pieces] == [4, 3, 3, 3, 3]
    assert all(piece["document"][0] == 0 for piece in pieces)
    assert np.array_equal(np.concatenate([piece["text"] for piece in pieces]), sample["text"])
    assert len(grown.objective.cut({name: values[:3] for name, values in sample.items()}, 5)) == 3


@pytest.mark.parametrize("kind", SAMPLES)
def test_samples_come_in_the_order_of_their_lengths_each_as_often_as_without(kind: str, data: Path, tmp_path: Path) -> None:
    grown, plainly = batches(kind, data, tmp_path / "a", curriculum=HOW), batches(kind, data, tmp_path / "b")
    lengths = [grown.samples.lengths[grown.indices(step)] for step in range(24)]
    early = np.concatenate(lengths[:12])
    assert np.array_equal(early, np.sort(early))
    assert early[0] < early[-1]
    others = np.concatenate([plainly.samples.lengths[plainly.indices(step)] for step in range(12)])
    assert not np.array_equal(others, np.sort(others))  # control
    assert all(np.array_equal(grown.indices(step), plainly.indices(step)) for step in range(12, 24))
    whole = [Counter(np.concatenate([found.indices(step) for step in range(12)]).tolist()) for found in (grown, plainly)]
    assert whole[0] == whole[1]


def test_buckets_begin_where_the_curriculum_ends(data: Path, tmp_path: Path) -> None:
    grown = batches("SequenceToSequence", data, tmp_path / "a", curriculum=HOW, bucket=5)
    plainly = batches("SequenceToSequence", data, tmp_path / "b", bucket=5)
    seen = [Counter(np.concatenate([found.indices(step) for step in range(20)]).tolist()) for found in (grown, plainly)]
    assert seen[0] == seen[1]
    assert all(np.array_equal(grown.indices(step), plainly.indices(step)) for step in range(10, 20))


@pytest.mark.parametrize("kind", ["Causal", "Prefix", "SequenceToSequence"])
def test_a_run_with_it_goes_on_bit_for_bit(kind: str, data: Path, tmp_path: Path) -> None:
    made = recipe(kind, data, curriculum={"share": 0.7, "start": 0.2})
    run(made, tmp_path / "whole", report=quiet)
    stopped_and_resumed(made, tmp_path / "stopped", [1, 3, 5])
    assert_same(outcome(tmp_path / "whole"), outcome(tmp_path / "stopped"))
    run(recipe(kind, data), tmp_path / "without", report=quiet)
    with pytest.raises(AssertionError):
        assert_same(outcome(tmp_path / "whole"), outcome(tmp_path / "without"))


def test_samples_of_one_length_have_no_order_by_it(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train\.curriculum: expected samples of different lengths, and all have 1; leave it out"):
        run(recipe("ImageClassification", data, curriculum={}), tmp_path / "run")
    for wrong in ({"share": 0}, {"share": 1.5}, {"start": 0}):
        with pytest.raises(ValueError, match=r"train\.curriculum\.(share|start): expected a share above 0"):
            read_recipe(plain("Causal", data, curriculum=wrong))
