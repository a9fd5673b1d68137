from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from triform.generate.processors import keep_top_p, pick
from triform.generate.sampler import NoChoice, State, candidates, choose, remaining
from triform.generate.sampling import Sampling

B, V = 5, 40
ENDS = [3, 11]


def theirs(scores: Tensor, ids: Tensor, sampling: Sampling, made: int = 0) -> Tensor:
    """transformers' processors in the order in which `generate` applies them, after `made` tokens that follow the prompt."""
    chain = LogitsProcessorList()
    if sampling.biases:
        chain.append(SequenceBiasLogitsProcessor([[[token], float(bias)] for token, bias in sampling.biases]))
    if sampling.repetition_penalty != 1:
        chain.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.no_repeat_ngram:
        chain.append(NoRepeatNGramLogitsProcessor(sampling.no_repeat_ngram))
    if sampling.bad_words:
        chain.append(NoBadWordsLogitsProcessor([list(word) for word in sampling.bad_words], ENDS))
    if sampling.min_new_tokens:
        chain.append(MinNewTokensLengthLogitsProcessor(ids.shape[1] - made, sampling.min_new_tokens, ENDS))
    if sampling.greedy:
        return chain(ids, scores.clone())
    if sampling.temperature != 1:
        chain.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        chain.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        chain.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        chain.append(MinPLogitsWarper(sampling.min_p))
    if sampling.typical_p < 1:
        chain.append(TypicalLogitsWarper(sampling.typical_p))
    return chain(ids, scores.clone())


def states_of(sampling: Sampling, seeds: Sequence[int], prompts: Tensor | None = None, **more: Any) -> list[State]:
    before = [[]] * len(seeds) if prompts is None else prompts.tolist()
    return [State(sampling, prompt, seed=seed, **more) for seed, prompt in zip(seeds, before, strict=True)]


def ours(scores: Tensor, ids: Tensor, sampling: Sampling, made: int = 0) -> Tensor:
    states = states_of(sampling, range(len(ids)), ids[:, : ids.shape[1] - made], eos=ENDS)
    for state, row in zip(states, ids.tolist(), strict=True):
        for token in row[len(row) - made :]:
            state.accept(token)
    left, places = remaining(scores, states)
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
    {"typical_p": 0.2},
    {"typical_p": 0.9},
    {"no_repeat_ngram": 1},
    {"no_repeat_ngram": 2},
    {"no_repeat_ngram": 3},
    {"no_repeat_ngram": 30},
    {"bad_words": ((5,), (1, 2), (2, 0, 1), (0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2))},
    {"logit_bias": {0: 5.0, 7: -3.5, 39: 100.0}},
    {"min_new_tokens": 3},
    {"temperature": 0.9, "typical_p": 0.6, "top_k": 20, "no_repeat_ngram": 2, "logit_bias": {4: 1.0}, "min_new_tokens": 3},
    {"temperature": 1.7, "top_k": 12, "top_p": 0.8, "min_p": 0.05, "repetition_penalty": 1.2},
    {"temperature": 0.3, "top_p": 0.95, "min_p": 0.02},
]


@pytest.mark.parametrize("how", SETTINGS, ids=str)
@pytest.mark.parametrize("kind", ["random", "ties", "flat", "eighths"])
def test_what_is_left_equals_transformers(how: dict[str, Any], kind: str) -> None:
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(B, V, generator=generator) * 3
    if kind == "ties":
        scores = scores.round()
    elif kind == "flat":
        scores = torch.zeros(B, V)
    elif kind == "eighths":  # sums of probabilities that fall exactly on a top-p of one half
        scores = torch.full((B, V), -torch.inf)
        scores[:, 3:9] = torch.tensor([0.125, 0.25, 0.125, 0.125, 0.25, 0.125]).log()
    ids = torch.randint(3, (B, 10), generator=generator)  # of few tokens, so that they repeat
    sampling = Sampling(**({"temperature": 1.0} | how))
    expected = theirs(scores, ids, sampling)
    found = ours(scores, ids, sampling)
    if kind != "random" and sampling.top_p < 1:  # which of several level tokens top-p keeps, transformers leaves to an unstable sort
        found, expected = found.sort(-1).values, expected.sort(-1).values
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("spread", [0.1, 2.0, 4.0])
@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999])
def test_of_a_large_vocabulary_top_p_keeps_the_same(spread: float, top_p: float) -> None:
    """The head holds enough of a narrow distribution, and not of a broad one; both are as the whole would be."""
    scores = spread * torch.randn(3, 8000, generator=torch.Generator().manual_seed(8))
    sampling, ids = Sampling(temperature=1.0, top_p=top_p), torch.zeros(3, 1, dtype=torch.long)
    found, expected = ours(scores, ids, sampling), theirs(scores, ids, sampling)
    differ = found.isfinite() != expected.isfinite()
    assert (differ * scores.softmax(-1)).sum() < 1e-5  # rounding may move the edge by a token
    other = ours(scores, ids, Sampling(temperature=1.0, top_p=top_p / 2))
    assert ((other.isfinite() != expected.isfinite()) * scores.softmax(-1)).sum() > 1e-3
    _, head = candidates(scores, sampling)
    assert (head is not None) == ((spread, top_p) in ((2.0, 0.3), (4.0, 0.3), (4.0, 0.9)))


def test_the_comparison_sees_a_different_setting() -> None:
    scores, ids = torch.randn(B, V, generator=torch.Generator().manual_seed(1)), torch.tensor([[0, 1, 2, 3, 4, 5, 6, 0, 1]]).expand(B, -1)
    pairs = [("top_p", 0.5, 0.6), ("typical_p", 0.5, 0.6), ("no_repeat_ngram", 2, 1), ("min_new_tokens", 1, 0), ("bad_words", ((0,),), ())]
    for name, one, other in pairs:
        found, expected = (Sampling(**{"temperature": 1.0, name: value}) for value in (one, other))
        assert not torch.equal(ours(scores, ids, found).isfinite(), theirs(scores, ids, expected).isfinite()), name


def shares(values: Any) -> Any:
    return st.floats(0.05, values)


@settings(max_examples=150, deadline=None)
@given(
    how=st.fixed_dictionaries(
        {"temperature": st.sampled_from([0.0, 0.3, 1.0, 1.8])},
        optional={
            "top_k": st.integers(1, V + 3),
            "top_p": shares(0.99),
            "min_p": shares(0.9),
            "typical_p": shares(0.95),
            "repetition_penalty": st.floats(0.5, 3),
            "no_repeat_ngram": st.integers(1, 4),
            "bad_words": st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=3).map(tuple), min_size=1, max_size=3, unique=True)
            .filter(lambda words: not {(end,) for end in ENDS} & set(words))
            .map(tuple),
            "logit_bias": st.dictionaries(st.integers(0, V - 1), st.floats(-5, 5), min_size=1, max_size=4),
            "min_new_tokens": st.integers(0, 6),
        },
    ),
    seed=st.integers(0, 10_000),
    made=st.integers(0, 5),
)
def test_any_combination_equals_transformers(how: dict[str, Any], seed: int, made: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = 3 * torch.randn(B, V, generator=generator)
    ids = torch.randint(5, (B, 8), generator=generator)
    sampling = Sampling(**how)
    found, expected = ours(scores, ids, sampling, made), theirs(scores, ids, sampling, made)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(("presence", "frequency"), [(0.5, 0.0), (0.0, 0.7), (-1.0, 0.25)])
def test_presence_and_frequency_count_what_was_generated(presence: float, frequency: float) -> None:
    scores, ids = torch.randn(2, V, generator=torch.Generator().manual_seed(6)), torch.tensor([[9, 8, 7, 7, 4], [7, 9, 9, 9, 9]])
    sampling = Sampling(presence_penalty=presence, frequency_penalty=frequency)
    expected = scores.clone()
    for row, made in enumerate(ids[:, 2:].tolist()):
        for token in set(made):
            expected[row, token] -= presence + frequency * made.count(token)
    torch.testing.assert_close(ours(scores, ids, sampling, made=3), expected, rtol=0, atol=1e-6)
    assert (ours(scores, ids, sampling, made=4) - expected).abs().max() > 0.1
    assert torch.equal(ours(scores, ids, sampling), scores)


def chi_square(counts: Tensor, chances: Tensor) -> float:
    expected = chances * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


WARPERS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.5},
    {"top_k": 3},
    {"top_p": 0.7},
    {"min_p": 0.3},
    {"typical_p": 0.6},
    {"logit_bias": {0: -1.0, 3: 1.5}},
    {"repetition_penalty": 2.0},
    {"presence_penalty": 0.8},
    {"frequency_penalty": 0.6},
    {"temperature": 1.4, "top_k": 5, "top_p": 0.9, "presence_penalty": 0.3},
]


@pytest.mark.parametrize("how", WARPERS, ids=str)
def test_samples_follow_the_distribution(how: dict[str, Any]) -> None:
    """Over eight tokens, after the tokens 0, 1, 1, of which the last two were generated; chances are told by transformers or by hand."""
    scores, ids = torch.tensor([[1.0, 2.2, -0.5, 0.9, 0.1, -2.0, 1.6, 0.4]]), torch.tensor([[0, 1, 1]])
    sampling, rows = Sampling(**({"temperature": 1.0} | how)), 4096
    states = states_of(sampling, range(rows), ids[:, :1].expand(rows, -1))
    for state in states:
        state.accept(1)
        state.accept(1)
    counts = choose(scores.expand(rows, -1), states).tokens.bincount(minlength=8).double()

    def misfit(scores: Tensor) -> float:
        """Chi-square, divided by what it exceeds once in ten thousand (Wilson and Hilferty 1931)."""
        less = torch.tensor([0.0, sampling.presence_penalty + 2 * sampling.frequency_penalty, *[0.0] * 6])
        chances = theirs(scores - less, ids, sampling)[0].double().softmax(-1)
        kept = chances > 0
        if counts[~kept].sum() > 0:
            return math.inf
        free = int(kept.sum()) - 1
        return chi_square(counts[kept], chances[kept]) / (free * (1 - 2 / (9 * free) + 3.72 * (2 / (9 * free)) ** 0.5) ** 3)

    assert misfit(scores) < 1
    assert misfit(scores + torch.tensor([0.0, 0.4, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])) > 1


def test_a_place_of_no_probability_is_never_picked() -> None:
    scores = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]])
    low, high = torch.zeros(1, dtype=torch.double), torch.nextafter(torch.ones(1, dtype=torch.double), torch.zeros(1, dtype=torch.double))
    assert pick(scores, low).item() == 1
    assert pick(scores, high).item() == 3
    assert pick(scores, torch.tensor([0.5], dtype=torch.double)).item() == 3


def test_a_row_draws_from_its_own_seed() -> None:
    scores = torch.randn(4, V, generator=torch.Generator().manual_seed(2))
    sampling = Sampling(temperature=1.0, top_p=0.95)
    together, alone, other = (states_of(sampling, seeds) for seeds in ([11, 12, 13, 14], [13], [99]))
    many = [choose(scores, together).tokens[2].item() for _ in range(200)]
    assert many == [choose(scores[2:3], alone).tokens.item() for _ in range(200)]
    assert many != [choose(scores[2:3], other).tokens.item() for _ in range(200)]


MIXED = [
    Sampling(),
    Sampling(temperature=1.0, repetition_penalty=1.5),
    Sampling(temperature=0.7, top_k=5, frequency_penalty=0.4, top_log_probs=3),
    Sampling(temperature=1.3, top_p=0.8, no_repeat_ngram=2),
    Sampling(temperature=1.0, typical_p=0.7, logit_bias={3: 2.0, 5: -math.inf}, min_new_tokens=4),
    Sampling(temperature=0.7, top_k=5, presence_penalty=1.0, bad_words=((4,), (1, 2)), top_log_probs=1),
]


def test_rows_of_any_settings_that_come_and_go_are_as_if_alone() -> None:
    steps, generator = 80, torch.Generator().manual_seed(4)
    scores = torch.randn(steps, len(MIXED), 2, V, generator=generator)

    def begun(row: int) -> list[State]:
        return [State(MIXED[row], [1, 2, row], eos={7}, barred={9}, seed=10 * row + copy) for copy in range(2)]

    alone = []
    for row in range(len(MIXED)):
        states = begun(row)
        alone.append([choose(scores[step, row], states) for step in range(10 * row, 40 + 5 * row)])
    states = [begun(row) for row in range(len(MIXED))]
    for step in range(steps):
        there = [row for row in reversed(range(len(MIXED))) if 10 * row <= step < 40 + 5 * row]
        if not there:
            continue
        found = choose(scores[step, there].flatten(0, 1), [state for row in there for state in states[row]])
        for place, row in enumerate(there):
            expected = alone[row][step - 10 * row]
            assert torch.equal(found.tokens[2 * place : 2 * place + 2], expected.tokens)
            assert torch.equal(found.log_probs[2 * place : 2 * place + 2], expected.log_probs)
            assert found.tops[2 * place : 2 * place + 2] == expected.tops
            assert {len(top) for top in expected.tops} == {MIXED[row].top_log_probs}
    drawn = [[token for choice in choices for token in choice.tokens.tolist()] for choices in alone]
    assert len({tuple(tokens[:30]) for tokens in drawn}) == len(MIXED)
    assert 7 not in drawn[4][:8]
    assert all(9 not in tokens for tokens in drawn)
    assert 4 not in drawn[5]
    assert 5 not in drawn[4]


def test_the_most_probable_tokens_are_told_as_the_model_had_them() -> None:
    scores = torch.randn(3, V, generator=torch.Generator().manual_seed(3))
    found = choose(scores, states_of(Sampling(top_log_probs=4, logit_bias={int(scores[0].argmax()): -9.0}), range(3)))
    best = scores.log_softmax(-1).topk(4)
    for row, top in enumerate(found.tops):
        assert [token for token, _ in top] == best.indices[row].tolist()
        torch.testing.assert_close(torch.tensor([value for _, value in top]), best.values[row], rtol=0, atol=1e-6)
    assert found.tokens[0] != found.tops[0][0][0]
    assert found.tokens[1] == found.tops[1][0][0]


def test_log_probabilities_are_the_models_own() -> None:
    scores = torch.randn(2, V, generator=torch.Generator().manual_seed(3))
    found = choose(scores, states_of(Sampling(temperature=0.2, top_k=2), [0, 1]))
    torch.testing.assert_close(found.log_probs, scores.log_softmax(-1).gather(1, found.tokens[:, None])[:, 0], rtol=0, atol=1e-6)


def test_rows_without_a_choice_are_named_and_nothing_has_happened() -> None:
    scores = torch.zeros(3, 4)
    scores[1, 2] = math.nan
    sampling = Sampling(temperature=1.0, repetition_penalty=2.0)
    states, others = states_of(sampling, [1, 2, 3]), states_of(sampling, [1, 2, 3])
    with pytest.raises(NoChoice, match="not finite") as error:
        choose(scores, states)
    assert error.value.rows == [1]
    closed = State(sampling, barred=range(4), seed=2)
    with pytest.raises(NoChoice, match="every token is barred") as error:
        choose(torch.zeros(3, 4), [states[0], states[2], closed])
    assert error.value.rows == [2]
    assert torch.equal(choose(torch.zeros(3, 4), states).tokens, choose(torch.zeros(3, 4), others).tokens)


@pytest.mark.parametrize("how", [{"repetition_penalty": 5e-324}, {"repetition_penalty": 5e-324, "typical_p": 0.5, "min_p": 0.1}], ids=str)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_scores_that_overflow_are_told(how: dict[str, Any], temperature: float) -> None:
    scores = torch.randn(3, V, generator=torch.Generator().manual_seed(3)).abs()
    fine, wild = Sampling(temperature=1.0, seed=1), Sampling(temperature=temperature, seed=1, **how)
    states = [State(fine), State(wild, [0, 1]), State(fine)]
    with pytest.raises(NoChoice, match="the scores overflow") as error:
        choose(scores, states)
    assert error.value.rows == [1]


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

    def chosen(barred: Tensor | None) -> tuple[set[int], Tensor]:
        sampling = Sampling(**how)
        found = choose(scores, states_of(sampling, sampling.seeds(64), barred=() if barred is None else barred.tolist()))
        tokens, log_probs = found.tokens, found.log_probs
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
