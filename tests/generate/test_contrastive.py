from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from triform.generate import Contrastive, Sampling, generate, generate_ids

from .conftest import CAUSAL, built, decoder_only, encoder_decoder, tokenizer_of

SEARCH = Contrastive(penalty_alpha=0.6, top_k=5)
PROMPT = [5, 9, 33, 2, 17, 40, 41]


def by_the_paper(model: Any, ids: list[int], steps: int, search: Contrastive, source: Tensor | None = None) -> list[int]:
    """Equation 5 of Su et al. 2022 by passes over everything, every candidate a row, without a cache."""

    def passed(rows: Tensor) -> Any:
        return model(rows) if source is None else model(source.expand(len(rows), -1), target=rows)

    made = torch.tensor([ids])
    with torch.inference_mode():
        for _ in range(steps):
            chances, tokens = passed(made).logits[0, -1].softmax(-1).topk(search.top_k)
            tried = torch.cat((made.expand(search.top_k, -1), tokens[:, None]), dim=1)
            hidden = torch.nn.functional.normalize(passed(tried).hidden, dim=-1)
            likeness = (hidden[:, :-1] @ hidden[:, -1:].mT).amax((1, 2))
            best = ((1 - search.penalty_alpha) * chances - search.penalty_alpha * likeness).argmax()
            made = tried[best][None]
    found: list[int] = made[0, len(ids) :].tolist()
    return found


def test_the_tokens_are_the_papers(decoder: Callable[[int], Any]) -> None:
    model = decoder(60)
    expected = by_the_paper(model, PROMPT, 16, SEARCH)
    assert generate_ids(model, torch.tensor([PROMPT]), sampling=Sampling(max_new_tokens=16, search=SEARCH))[0].ids == expected
    for other in (replace(SEARCH, penalty_alpha=0.0), replace(SEARCH, top_k=2)):
        assert by_the_paper(model, PROMPT, 16, other) != expected, "the settings were of no consequence"


def test_an_encoder_decoders_too() -> None:
    model, source = built(encoder_decoder(60)), torch.tensor([PROMPT])
    expected = by_the_paper(model, [3, 8], 16, SEARCH, source)
    run = generate_ids(model, source, sampling=Sampling(max_new_tokens=16, search=SEARCH), start=[3, 8])[0]
    assert run.ids == expected
    assert by_the_paper(model, [3, 8], 16, SEARCH, source + 1) != expected


def test_without_a_penalty_it_is_greedy(decoder: Callable[[int], Any]) -> None:
    model, ids = decoder(60), torch.tensor([PROMPT])
    greedy = generate_ids(model, ids, sampling=Sampling(max_new_tokens=16))[0]
    found = generate_ids(model, ids, sampling=Sampling(max_new_tokens=16, search=replace(SEARCH, penalty_alpha=0.0)))[0]
    assert found.ids == greedy.ids
    assert found.log_probs == pytest.approx(greedy.log_probs, abs=1e-4)
    assert generate_ids(model, ids, sampling=Sampling(max_new_tokens=16, search=SEARCH))[0].ids != greedy.ids


@pytest.mark.parametrize("both", [False, True])
def test_a_batch_equals_its_rows(both: bool) -> None:
    tokenizer = tokenizer_of("byte-bpe")
    model = built((encoder_decoder if both else decoder_only)(tokenizer.vocab_size))
    prompts = ["话说", "The quick brown fox jumps", "是非成败转头空，青山", "白"]
    sampling = Sampling(max_new_tokens=20, search="contrastive", no_repeat_ngram=2, top_log_probs=2, stop=("说",))
    together = generate(model, tokenizer, prompts, sampling)
    alone = [generate(model, tokenizer, prompt, sampling)[0] for prompt in prompts]
    assert [(one.ids, one.text) for one in together] == [(one.ids, one.text) for one in alone]
    assert len({one.text for one in together}) == len(prompts)
    assert all(len(one.tops) == len(one.ids) for one in together)


def upto(row: list[int], ends: set[int]) -> list[int]:
    return row[: next((at for at, token in enumerate(row) if token in ends), len(row) - 1) + 1]


def test_rows_that_end_leave_the_others_as_they_are() -> None:
    model = built(decoder_only(60))
    ids = torch.tensor([PROMPT, PROMPT[::-1], [1, *PROMPT[1:]], [7, *PROMPT[1:]]])
    sampling = Sampling(max_new_tokens=24, search=SEARCH)
    free = [run.ids for run in generate_ids(model, ids, sampling=sampling)]
    pairs = [{first, second} for first in free[0] for second in free[1]]
    ends = max(pairs, key=lambda pair: len({len(upto(row, pair)) for row in free}))
    expected = [upto(row, ends) for row in free]
    assert len({len(row) for row in expected}) > 2
    assert [run.ids for run in generate_ids(model, ids, sampling=sampling, eos=ends)] == expected


def test_every_learned_position_is_used_and_none_beyond() -> None:
    model = built(decoder_only(60, replace(CAUSAL, position=None), learned=20))
    found = generate_ids(model, torch.tensor([PROMPT]), sampling=Sampling(max_new_tokens=50, search=SEARCH))[0]
    assert len(found.ids) == 13  # the last token is read too, as every candidate is
    assert found.ids == by_the_paper(model, PROMPT, 13, SEARCH)
    full = torch.tensor([PROMPT * 2 + PROMPT[:6]])
    assert generate_ids(model, full, sampling=Sampling(search=SEARCH))[0].ids == []


def test_what_is_barred_is_not_chosen() -> None:
    model, ids = built(decoder_only(60)), torch.tensor([PROMPT])
    sampling = Sampling(max_new_tokens=16, search=SEARCH)
    usual = generate_ids(model, ids, sampling=sampling)[0].ids
    found = generate_ids(model, ids, sampling=sampling, barred=usual[:2])[0].ids
    assert not {*usual[:2]} & {*found}
    with pytest.raises(ValueError, match="every token is barred"):
        generate_ids(model, ids, sampling=sampling, barred=range(60))
