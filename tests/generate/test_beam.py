from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from triform import hub
from triform.generate import Beams, Contrastive, Sampling, generate, generate_ids

from .conftest import CAUSAL, built, decoder_only, encoder_decoder, tokenizer_of

PROMPTS = ["话说", "The quick brown fox jumps", "是非成败转头空，青山", "白"]
BEAMS = Beams(num_beams=4, num_return_sequences=2)


def model_and_tokenizer(both: bool = False) -> tuple[Any, Any]:
    tokenizer = tokenizer_of("byte-bpe")
    return built((encoder_decoder if both else decoder_only)(tokenizer.vocab_size)), tokenizer


def log_prob(model: Any, prompt: list[int], made: list[int]) -> float:
    """The log-probability of a text after a prompt, by one whole pass."""
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + made])).logits[0].log_softmax(-1)
    return float(logits[range(len(prompt) - 1, len(prompt) + len(made) - 1), made].sum())


@pytest.mark.parametrize("drawn", [False, True])
@pytest.mark.parametrize("both", [False, True])
def test_a_batch_equals_its_prompts(both: bool, drawn: bool) -> None:
    model, tokenizer = model_and_tokenizer(both)
    sampling = Sampling(max_new_tokens=10, search=BEAMS, no_repeat_ngram=3, top_log_probs=2)
    if drawn:
        sampling = replace(sampling, temperature=1.2, top_k=20, seed=5)
    together = generate(model, tokenizer, PROMPTS, sampling)
    assert len({one.text for one in together}) > len(PROMPTS)
    assert all(len(one.tops) == len(one.ids) for one in together)
    for row, prompt in enumerate(PROMPTS):
        alone = generate(model, tokenizer, prompt, replace(sampling, seed=5 + row if drawn else None))
        pair = together[2 * row : 2 * row + 2]
        assert [(one.ids, one.text, one.finish_reason) for one in alone] == [(one.ids, one.text, one.finish_reason) for one in pair]
        assert [one.score for one in alone] == pytest.approx([one.score for one in pair], abs=1e-4)
        assert pair[0].score >= pair[1].score


def test_scores_are_those_of_whole_passes_and_beat_greedy_search() -> None:
    model, tokenizer = model_and_tokenizer()
    greedy = generate(model, tokenizer, PROMPTS, Sampling(max_new_tokens=8))
    found = generate(model, tokenizer, PROMPTS, Sampling(max_new_tokens=8, search=Beams(num_beams=8, length_penalty=0.0)))
    for one in found:
        assert one.score == pytest.approx(log_prob(model, one.prompt_ids, one.ids), abs=1e-3)
        assert one.score == pytest.approx(sum(one.log_probs), abs=1e-4)
    gains = [one.score - sum(other.log_probs) for one, other in zip(found, greedy, strict=True)]
    assert max(gains) > 0.1


def diverse(model: Any, prompt: list[int], length: int, groups: int, size: int, penalty: float) -> list[tuple[float, list[int]]]:
    """Diverse beam search by its definition (Vijayakumar et al. 2018, Hamming diversity), a text and a token at a time."""
    beams: list[list[tuple[float, list[int]]]] = [[(0.0, [])] for _ in range(groups)]
    for _ in range(length):
        taken: Counter[int] = Counter()
        for group in range(groups):
            found = []
            for score, text in beams[group]:
                with torch.inference_mode():
                    chances = model(torch.tensor([prompt + text])).logits[0, -1].log_softmax(-1).tolist()
                found += [(score + chance - penalty * taken[token], [*text, token]) for token, chance in enumerate(chances)]
            beams[group] = sorted(found, key=lambda one: -one[0])[:size]
            taken.update(text[-1] for _, text in beams[group])
    return sorted((one for group in beams for one in group), key=lambda one: -one[0])


@pytest.mark.parametrize(("groups", "size", "penalty"), [(2, 2, 0.5), (3, 1, 2.0), (2, 3, 1.0)])
def test_groups_of_beams_differ_as_they_are_defined_to(groups: int, size: int, penalty: float) -> None:
    model = built(decoder_only(60))
    prompts = torch.randint(60, (3, 5), generator=torch.Generator().manual_seed(2))
    search = Beams(num_beams=groups * size, num_beam_groups=groups, diversity_penalty=penalty, length_penalty=0.0)
    search = replace(search, num_return_sequences=groups * size)

    def found(search: Beams) -> list[list[tuple[float, list[int]]]]:
        runs = generate_ids(model, prompts, sampling=Sampling(max_new_tokens=6, search=search))
        return [[(run.score or 0.0, run.ids) for run in runs[at : at + groups * size]] for at in range(0, len(runs), groups * size)]

    expected = [diverse(model, prompt, 6, groups, size, penalty) for prompt in prompts.tolist()]
    for ours, theirs in zip(found(search), expected, strict=True):
        assert [ids for _, ids in ours] == [ids for _, ids in theirs]
        assert [score for score, _ in ours] == pytest.approx([score for score, _ in theirs], abs=1e-3)
    assert len({tuple(ids) for _, ids in expected[0]}) > size
    other = found(replace(search, diversity_penalty=3.0 if penalty < 1 else 0.1))
    assert [[ids for _, ids in rows] for rows in other] != [[ids for _, ids in rows] for rows in expected]


def test_groups_end_by_themselves_and_heed_the_rest() -> None:
    model, tokenizer = model_and_tokenizer()
    search = Beams(num_beams=4, num_beam_groups=2, diversity_penalty=1.0, num_return_sequences=4, early_stopping=True)
    sampling = Sampling(max_new_tokens=14, search=search, no_repeat_ngram=2)
    free = generate(model, tokenizer, PROMPTS, sampling)
    sampling = replace(sampling, stop=tuple({one.text[3] for one in free[::3] if len(one.text) > 3}))
    together = generate(model, tokenizer, PROMPTS, sampling)
    alone = [one for prompt in PROMPTS for one in generate(model, tokenizer, prompt, sampling)]
    assert [one.ids for one in together] == [one.ids for one in alone]
    assert len({len(one.ids) for one in together}) > 1
    for one in together:
        pairs = list(zip(one.prompt_ids + one.ids, (one.prompt_ids + one.ids)[1:], strict=False))
        assert len(pairs[len(one.prompt_ids) :]) == len(set(pairs[len(one.prompt_ids) :]))


def test_a_stop_string_ends_a_beam_and_is_cut() -> None:
    model, tokenizer = model_and_tokenizer()
    free = generate(model, tokenizer, PROMPTS, Sampling(max_new_tokens=12, search=BEAMS))
    counts = Counter(character for one in free for character in set(one.text[1:-1]))
    stop = counts.most_common(1)[0][0]
    found = generate(model, tokenizer, PROMPTS, Sampling(max_new_tokens=12, search=replace(BEAMS, length_penalty=-1.0), stop=(stop,)))
    ended = [one for one in found if one.finish_reason == "stop_string"]
    assert ended
    for one in found:
        assert stop not in one.text
        assert (stop in tokenizer.decode(one.ids)) == (one.finish_reason == "stop_string")


def test_a_prompt_that_is_done_bars_nothing_for_the_others() -> None:
    model, tokenizer = model_and_tokenizer()
    free = generate(model, tokenizer, PROMPTS, Sampling(max_new_tokens=12, search=BEAMS))
    stop = tuple({one.text[:1] for one in free[:2]} | {*free[0].text} - {*free[-1].text})
    sampling = Sampling(max_new_tokens=12, min_new_tokens=10, search=replace(BEAMS, early_stopping=True), stop=stop)
    together = generate(model, tokenizer, PROMPTS, sampling)
    alone = [one for prompt in PROMPTS for one in generate(model, tokenizer, prompt, sampling)]
    assert [one.ids for one in together] == [one.ids for one in alone]
    assert len({len(one.ids) for one in together}) > 1


def test_the_best_text_is_told_at_the_end() -> None:
    model, tokenizer = model_and_tokenizer()
    told: list[tuple[int, str]] = []
    found = generate(model, tokenizer, PROMPTS, Sampling(max_new_tokens=6, search=BEAMS), on_text=lambda *piece: told.append(piece))
    assert sorted(told) == [(row, found[2 * row].text) for row in range(len(PROMPTS))]
    with pytest.raises(ValueError, match="watch: expected none with beams"):
        generate_ids(model, torch.tensor([[1]]), sampling=Sampling(search=BEAMS), watch=lambda *_: False)


def test_the_longest_length_ends_a_prompt_wherever_its_neighbours_are() -> None:
    tokenizer = tokenizer_of("byte-bpe")
    model = built(decoder_only(tokenizer.vocab_size, replace(CAUSAL, position=None), learned=24))
    found = generate(model, tokenizer, PROMPTS, Sampling(max_new_tokens=100, search=BEAMS))
    assert {len(one.prompt_ids) + len(one.ids) for one in found if one.finish_reason == "length"} == {25}
    for row, prompt in enumerate(PROMPTS):
        alone = generate(model, tokenizer, prompt, Sampling(max_new_tokens=100, search=BEAMS))
        assert [one.ids for one in alone] == [one.ids for one in found[2 * row : 2 * row + 2]]


def test_too_few_possible_texts_are_told() -> None:
    model = built(decoder_only(60))
    with pytest.raises(ValueError, match="num_return_sequences is 2; ask for fewer"):
        generate_ids(model, torch.tensor([[5]]), sampling=Sampling(max_new_tokens=3, search=BEAMS), barred=range(1, 60))
    run = generate_ids(model, torch.tensor([[5]]), sampling=Sampling(max_new_tokens=3, search=Beams()), barred=range(1, 60))[0]
    assert run.ids == [0, 0, 0]


def test_broken_scores_are_told() -> None:
    model = built(decoder_only(60))
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    for search in (BEAMS, Contrastive()):
        with pytest.raises(ValueError, match="not finite"):
            generate_ids(model, torch.tensor([[5]]), sampling=Sampling(max_new_tokens=3, search=search))


@pytest.mark.parametrize("how", [{"temperature": 1.0}, {"temperature": 0.7, "top_k": 4}, {"temperature": 1.3, "top_p": 0.8}], ids=str)
def test_drawn_beams_are_distributed_as_the_references(how: dict[str, Any], tmp_path: Path) -> None:
    """Two steps over seven tokens with two beams, many times: the counts of the texts found, by a two-sample chi-square."""
    settings = transformers.GPT2Config(vocab_size=7, n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=6)
    torch.manual_seed(3)
    reference = transformers.GPT2LMHeadModel(settings).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    reference.save_pretrained(tmp_path)
    model, rows = hub.load_public(tmp_path), 3000
    ids = torch.tensor([[1, 2, 3]]).expand(rows, -1)
    out = reference.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=True, num_beams=2, max_new_tokens=2, eos_token_id=6, pad_token_id=0,
        **({"top_k": 0} | how),
    )  # fmt: skip
    theirs = Counter(tuple(row) for row in out[:, 3:].tolist())

    def ours(**how: Any) -> Counter[tuple[int, ...]]:
        sampling = Sampling(max_new_tokens=2, seed=1, search=Beams(num_beams=2), **how)
        return Counter((*run.ids, 0)[:2] for run in generate_ids(model, ids, sampling=sampling, eos=[6]))

    def misfit(found: Counter[tuple[int, ...]]) -> float:
        """Chi-square of two samples of one size, divided by what it exceeds once in ten thousand (Wilson and Hilferty 1931)."""
        texts = [text for text in {*found, *theirs} if found[text] + theirs[text] >= 10]
        value = sum((found[text] - theirs[text]) ** 2 / (found[text] + theirs[text]) for text in texts)
        free = len(texts) - 1
        return value / (free * (1 - 2 / (9 * free) + 3.72 * (2 / (9 * free)) ** 0.5) ** 3)

    assert len(theirs) > 5
    assert misfit(ours(**how)) < 1
    assert misfit(ours(**how | {"temperature": how["temperature"] * 0.75})) > 1


def test_the_named_searches_are_chatlms() -> None:
    assert Sampling(search="greedy") == Sampling()
    beam = Beams(num_beams=5, length_penalty=-2.0, early_stopping=True)
    assert Sampling(search="beam") == Sampling(temperature=1.0, top_k=50, top_p=0.95, no_repeat_ngram=4, search=beam)
    assert Sampling(search="sampling") == Sampling(temperature=0.98, top_k=50, top_p=0.80, no_repeat_ngram=4)
    assert Sampling(search="contrastive") == Sampling(search=Contrastive(penalty_alpha=0.5, top_k=50))
    assert Sampling(search="sampling", top_k=7, max_new_tokens=9) == replace(Sampling(search="sampling"), top_k=7, max_new_tokens=9)


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (Beams, {"num_beams": 1}),
        (Beams, {"length_penalty": math.inf}),
        (Beams, {"early_stopping": "always"}),
        (Beams, {"num_return_sequences": 5}),
        (Beams, {"num_beam_groups": 3, "diversity_penalty": 1.0}),
        (Beams, {"diversity_penalty": 1.0}),
        (Beams, {"diversity_penalty": 0.0, "num_beam_groups": 2}),
        (Beams, {"num_beam_groups": 0}),
        (Contrastive, {"penalty_alpha": 1.5}),
        (Contrastive, {"top_k": 0}),
        (Sampling, {"search": "beams"}),
        (Sampling, {"search": 3}),
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(make: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))}: expected ") as error:
        make(**wrong)
    assert "\n" not in str(error.value)


def test_contrastive_search_and_groups_draw_nothing() -> None:
    with pytest.raises(ValueError, match="temperature: expected 0 with groups of beams"):
        Sampling(temperature=1.0, search=Beams(num_beam_groups=2, diversity_penalty=1.0))
    with pytest.raises(ValueError, match="temperature: expected 0 with contrastive search"):
        Sampling(temperature=1.0, search=Contrastive())
