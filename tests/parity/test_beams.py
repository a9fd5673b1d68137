"""Beam search, token for token as the reference's own, and with its scores, in padded batches."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import lru_cache
from itertools import combinations
from typing import Any

import pytest
import torch
from parity.cases import CASES
from parity.lively import BOTH, DECODERS, START, batch, loaded, reference, upto
from torch import Tensor
from transformers import GenerationConfig

from triform.generate import Beams, Sampling, TokenRun, generate_ids

NEW = 12
BEAMS = Beams(num_beams=4, num_return_sequences=3, length_penalty=0.0)  # which likes texts that end
PENALTY = 5.0  # for encoder-decoders, as a random one says but one token else
ATOL = 1e-4


def theirs(name: str, ends: tuple[int, ...], **how: Any) -> tuple[list[list[int]], Tensor]:
    """The reference's rows, after the prompt or what its decoder begins with, each up to its end; and their scores."""
    model, _ = reference(name)
    ids, mask = batch(name)
    both = CASES[name].form == "both"
    how = asdict(BEAMS) | {"max_new_tokens": NEW, "do_sample": False} | how
    how |= {"eos_token_id": list(ends) or None, "pad_token_id": 0, "return_dict_in_generate": True, "output_scores": True}
    how = ({"decoder_start_token_id": START, "repetition_penalty": PENALTY} if both else {}) | how
    out = model.generate(input_ids=ids, attention_mask=mask, generation_config=GenerationConfig(**how))
    rows = out.sequences[:, 1 if both else ids.shape[1] :].tolist()
    return [upto(row, list(ends)) for row in rows], out.sequences_scores


def ours(name: str, ends: tuple[int, ...], rows: slice = slice(None), **how: Any) -> list[TokenRun]:
    """Our texts of some of the prompts; a prompt alone is not padded."""
    ids, mask = (part[rows] for part in batch(name))
    ids, mask = (ids, mask) if len(ids) > 1 else (ids[:, mask[0].bool()], None)
    both = CASES[name].form == "both"
    sampling = Sampling(**({"max_new_tokens": NEW, "search": BEAMS, "repetition_penalty": PENALTY if both else 1.0} | how))
    return generate_ids(loaded(name), ids, mask, sampling, eos=ends, start=START if both else None)


@lru_cache(maxsize=None)
def ends_of(name: str) -> tuple[int, ...]:
    """Two tokens with which texts end soon, late and not at all."""
    rows = [run.ids for run in ours(name, ())]
    for ends in combinations(dict.fromkeys(row[at] for at in (4, 3, 2, 6, 1) for row in rows), 2):
        lengths = {len(run.ids) for run in ours(name, ends)}
        if len(lengths) > 1 and 1 < min(lengths) < NEW - 4:
            return ends
    raise AssertionError("texts that all end alike show little")


def same(name: str, found: list[TokenRun], expected: tuple[list[list[int]], Tensor]) -> None:
    assert [run.ids for run in found] == expected[0]
    torch.testing.assert_close(torch.tensor([run.score for run in found]), expected[1], rtol=1e-4, atol=ATOL)


@pytest.mark.parametrize("name", DECODERS + BOTH)
def test_texts_and_scores_are_the_references(name: str) -> None:
    ends = ends_of(name)
    expected = theirs(name, ends)
    assert len({tuple(row) for row in expected[0]}) > 4, "rows that are alike would hide a mixed up batch"
    found = ours(name, ends)
    same(name, found, expected)
    if CASES[name].form != "both":  # the penalty is in the score
        assert [run.score for run in found] == pytest.approx([sum(run.log_probs) for run in found], abs=ATOL)
    assert "stop" in {run.finish_reason for run in found}
    assert [run.ids for run in ours(name, ())] != expected[0], "the ends were of no consequence"


STOPPING = [(early, penalty) for early in (False, True, "never") for penalty in (1.0, -2.0, 0.0, 2.5)]


@pytest.mark.parametrize("name", ["llama", "mistral", "t5", "bart"])
def test_every_way_to_stop_and_to_rank(name: str) -> None:
    ends, seen = ends_of(name), set()
    for early, penalty in STOPPING:
        expected = theirs(name, ends, early_stopping=early, length_penalty=penalty)
        same(name, ours(name, ends, search=replace(BEAMS, early_stopping=early, length_penalty=penalty)), expected)
        seen.add(str(expected[0]))
    assert len(seen) > 1, "the settings were of no consequence"


@pytest.mark.parametrize("name", ["gpt2", "qwen3", "mt5", "marian"])
def test_with_penalties_and_bars(name: str) -> None:
    ends = ends_of(name)
    plain = theirs(name, ends)[0]
    words = [[token for token in plain[0] if token not in ends][:1], [*plain[0], 5][:2], [*plain[3], 5, 5][1:3]]
    pairs: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"no_repeat_ngram": 2, "repetition_penalty": 1.0}, {"no_repeat_ngram_size": 2, "repetition_penalty": 1.0}),
        ({"repetition_penalty": 1.7}, {"repetition_penalty": 1.7}),
        ({"min_new_tokens": 8}, {"min_new_tokens": 8}),
        ({"bad_words": tuple(map(tuple, words))}, {"bad_words_ids": words}),
        ({"logit_bias": {plain[0][0]: -2.0}}, {"sequence_bias": [[[plain[0][0]], -2.0]]}),
    ]
    for mine, other in pairs:
        expected = theirs(name, ends, **other)
        same(name, ours(name, ends, **mine), expected)
        assert expected[0] != plain, f"{mine} was of no consequence"


@pytest.mark.parametrize("name", ["llama", "mixtral-windows", "gemma3", "t5"])
def test_a_prompt_alone_is_as_among_others(name: str) -> None:
    together, count = ours(name, ends_of(name)), BEAMS.num_return_sequences
    for row in range(3):
        alone = ours(name, ends_of(name), slice(row, row + 1))
        assert [run.ids for run in alone] == [run.ids for run in together[count * row : count * (row + 1)]]


def test_beams_that_are_not_exchanged_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = theirs("llama", ())[0]
    monkeypatch.setattr("triform.generate.rows.Rows.exchange", lambda rows, origins: None)
    assert [run.ids for run in ours("llama", ())] != expected
