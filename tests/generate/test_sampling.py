from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from triform.generate.sampling import Sampler, Sampling, candidates, keep_top_p, penalize, pick

B, V = 5, 40


def theirs(scores: torch.Tensor, ids: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """transformers' processors in the order in which `generate` applies them."""
    chain = LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        chain.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.temperature != 1:
        chain.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        chain.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        chain.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        chain.append(MinPLogitsWarper(sampling.min_p))
    return chain(ids, scores.clone())


def ours(scores: torch.Tensor, ids: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    sampler = Sampler(sampling, [0] * len(ids))
    sampler.start(ids, None, scores.shape[-1])
    changed = scores if sampler.used is None else penalize(scores, sampler.used, sampling.repetition_penalty)
    left, places = candidates(changed, sampling)
    return left if places is None else torch.full_like(scores, -torch.inf).scatter(1, places, left)


SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.7},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": V},
    {"top_k": 10 * V},
    {"top_p": 0.0},
    {"top_p": 0.5},
    {"top_p": 0.9},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.8},
    {"temperature": 1.7, "top_k": 12, "top_p": 0.8, "min_p": 0.05, "repetition_penalty": 1.2},
    {"temperature": 0.3, "top_p": 0.95, "min_p": 0.02},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("kind", ["random", "ties", "flat", "eighths"])
def test_what_is_left_equals_transformers(settings: dict[str, Any], kind: str) -> None:
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(B, V, generator=generator) * 3
    if kind == "ties":
        scores = scores.round()
    elif kind == "flat":
        scores = torch.zeros(B, V)
    elif kind == "eighths":  # sums of probabilities that fall exactly on a top-p of one half
        scores = torch.full((B, V), -torch.inf)
        scores[:, 3:9] = torch.tensor([0.125, 0.25, 0.125, 0.125, 0.25, 0.125]).log()
    ids = torch.randint(V, (B, 6), generator=generator)
    sampling = Sampling(**({"temperature": 1.0} | settings))
    expected = theirs(scores, ids, sampling)
    found = ours(scores, ids, sampling)
    if kind != "random" and sampling.top_p < 1:  # which of several level tokens top-p keeps, transformers leaves to an unstable sort
        found, expected = found.sort(-1).values, expected.sort(-1).values
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_the_comparison_sees_a_different_setting() -> None:
    scores, ids = torch.randn(B, V, generator=torch.Generator().manual_seed(1)), torch.zeros(B, 1, dtype=torch.long)
    other = Sampling(temperature=1.0, top_p=0.6)
    assert not torch.equal(ours(scores, ids, Sampling(temperature=1.0, top_p=0.5)).isfinite(), theirs(scores, ids, other).isfinite())


def chi_square(counts: torch.Tensor, chances: torch.Tensor) -> float:
    expected = chances * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


def test_samples_follow_the_distribution() -> None:
    chances = torch.tensor([0.4, 0.05, 0.2, 0.15, 0.1, 0.1], dtype=torch.double)
    other = torch.tensor([0.37, 0.06, 0.2, 0.16, 0.11, 0.1], dtype=torch.double)
    rows, steps = 64, 320
    sampler = Sampler(Sampling(temperature=1.0), range(rows))
    scores = chances.log().float().expand(rows, -1)
    drawn = torch.cat([sampler(scores)[0] for _ in range(steps)])
    counts = drawn.bincount(minlength=6).double()
    limit = 20.5  # chi-square of 5 degrees of freedom exceeds it once in a thousand
    assert chi_square(counts, chances) < limit
    assert chi_square(counts, other) > 2 * limit


def test_filtered_samples_follow_the_renormalised_distribution() -> None:
    sampling = Sampling(temperature=0.5, top_k=3)
    sampler = Sampler(sampling, range(64))
    scores = torch.tensor([1.0, 0.2, -3.0, 0.9, 0.1, -1.0])
    counts = torch.cat([sampler(scores.expand(64, -1))[0] for _ in range(320)]).bincount(minlength=6).double()
    kept = torch.tensor([0, 1, 3])
    assert counts.sum() == counts[kept].sum()
    assert chi_square(counts[kept], (scores[kept].double() / 0.5).softmax(0)) < 13.9
    assert chi_square(counts[kept], scores[kept].double().softmax(0)) > 100


def test_a_place_of_no_probability_is_never_picked() -> None:
    scores = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]])
    low, high = torch.zeros(1, dtype=torch.double), torch.nextafter(torch.ones(1, dtype=torch.double), torch.zeros(1, dtype=torch.double))
    assert pick(scores, low).item() == 1
    assert pick(scores, high).item() == 3
    assert pick(scores, torch.tensor([0.5], dtype=torch.double)).item() == 3


def test_a_row_draws_from_its_own_seed() -> None:
    scores = torch.randn(4, V, generator=torch.Generator().manual_seed(2))
    sampling = Sampling(temperature=1.0, top_p=0.95)
    together = Sampler(sampling, [11, 12, 13, 14])
    alone = Sampler(sampling, [13])
    other = Sampler(sampling, [99])
    many = [together(scores)[0][2].item() for _ in range(200)]
    assert many == [alone(scores[2:3])[0].item() for _ in range(200)]
    assert many != [other(scores[2:3])[0].item() for _ in range(200)]


def test_rows_that_leave_change_nothing_for_those_that_stay() -> None:
    scores = torch.randn(3, V, generator=torch.Generator().manual_seed(2))
    sampling = Sampling(temperature=1.0, repetition_penalty=1.5)
    whole, cut = Sampler(sampling, [1, 2, 3]), Sampler(sampling, [1, 2, 3])
    for sampler in (whole, cut):
        sampler.start(torch.tensor([[1], [2], [3]]), None, V)
    for _ in range(5):
        assert torch.equal(whole(scores)[0], cut(scores)[0])
    kept = torch.tensor([2, 0])
    cut.keep(kept)
    for _ in range(200):
        assert torch.equal(whole(scores)[0][kept], cut(scores[kept])[0])


def test_padding_is_not_penalised() -> None:
    sampler = Sampler(Sampling(repetition_penalty=2.0), [0])
    sampler.start(torch.tensor([[7, 7, 3]]), torch.tensor([[False, False, True]]), V)
    assert sampler.used is not None
    assert sampler.used.nonzero().tolist() == [[0, 3]]


def test_log_probabilities_are_the_models_own() -> None:
    scores = torch.randn(2, V, generator=torch.Generator().manual_seed(3))
    tokens, log_probs = Sampler(Sampling(temperature=0.2, top_k=2), [0, 1])(scores)
    torch.testing.assert_close(log_probs, scores.log_softmax(-1).gather(1, tokens[:, None])[:, 0], rtol=0, atol=1e-6)


def test_broken_scores_are_told() -> None:
    with pytest.raises(ValueError, match="not finite"):
        Sampler(Sampling(), [0])(torch.tensor([[0.0, math.nan]]))


def test_the_global_generator_is_used_without_a_seed() -> None:
    torch.manual_seed(5)
    first = Sampling(temperature=1.0).seeds(3)
    assert Sampling(temperature=1.0).seeds(3) != first
    torch.manual_seed(5)
    assert Sampling(temperature=1.0).seeds(3) == first


def test_top_p_keeps_one_token_at_least() -> None:
    assert keep_top_p(torch.tensor([[0.0, 1.0, 0.5]]), 0.0).isfinite().tolist() == [[False, True, False]]


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new_tokens": 0},
        {"max_new_tokens": True},
        {"max_new_tokens": 2.0},
        {"min_new_tokens": -1},
        {"min_new_tokens": 129},
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": -1},
        {"top_p": 1.01},
        {"top_p": "0.9"},
        {"min_p": -0.1},
        {"repetition_penalty": 0},
        {"stop": ("",)},
        {"stop": (1,)},
        {"seed": -1},
        {"seed": 2**62},
        {"seed": (1, -1)},
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))}: expected ") as error:
        Sampling(**wrong)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("how", [{}, {"temperature": 1.0, "seed": 1}, {"temperature": 1.0, "top_k": 3, "seed": 1}], ids=str)
def test_barred_tokens_are_not_chosen_and_chances_stay_the_models(how: dict[str, Any]) -> None:
    scores = torch.tensor([[0.0, 9.0, 8.0, 1.0]]).expand(64, -1)

    def chosen(barred: torch.Tensor | None) -> tuple[set[int], torch.Tensor]:
        sampling = Sampling(**how)
        tokens, log_probs = Sampler(sampling, sampling.seeds(64))(scores, barred)
        torch.testing.assert_close(log_probs, scores.log_softmax(-1).gather(-1, tokens[:, None])[:, 0], atol=1e-5, rtol=0)
        return set(tokens.tolist()), log_probs

    assert chosen(torch.tensor([1, 3]))[0] <= {0, 2}
    assert 1 in chosen(None)[0]


def test_one_stop_string_is_a_tuple_of_one() -> None:
    assert Sampling(stop="ab").stop == ("ab",)  # type: ignore[arg-type]


def test_seeds_must_fit_the_prompts() -> None:
    assert Sampling(temperature=1.0, seed=4).seeds(3) == [4, 5, 6]
    with pytest.raises(ValueError, match="seed: expected one seed"):
        Sampling(temperature=1.0, seed=(1, 2)).seeds(3)
