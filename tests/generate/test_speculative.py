"""Speculative decoding: the same text greedily, the same distribution by chance, whatever is proposed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from triform.generate import Beams, OneOf, Sampling, State, generate
from triform.generate import speculative as speculation
from triform.generate.speculative import Draft, Lookup
from triform.text import train_tokenizer

from .conftest import LINES, built, decoder_only, encoder_decoder, tokenizer_of

PROMPTS = ["话说天下大势，分久必合，合久必分。话说", "The quick brown fox jumps over the lazy dog. The quick"]
HOW: dict[str, Callable[[Any, int], Any]] = {
    "itself": lambda model, size: Draft(model, tokens=3),
    "another": lambda model, size: Draft(built(replace_form(model, size), seed=9)),
    "wider table": lambda model, size: Draft(built(replace_form(model, size + 9), seed=9)),
    "few positions": lambda model, size: Draft(built(replace_form(model, size, 45), seed=9)),
    "look-up": lambda model, size: Lookup(),
    "short look-up": lambda model, size: Lookup(tokens=1, ngram=1),
}


def replace_form(model: Any, size: int, learned: int | None = None) -> Any:
    return (decoder_only if model.config.form == "decoder-only" else encoder_decoder)(size, learned=learned)


def texts(found: Any) -> list[Any]:
    return [(one.ids, one.text, one.finish_reason) for one in found]


@pytest.mark.parametrize("how", HOW)
def test_greedily_the_same_tokens(how: str, decoder: Callable[[int], Any]) -> None:
    tokenizer = tokenizer_of("byte-bpe")
    model = decoder(tokenizer.vocab_size)
    sampling = Sampling(max_new_tokens=25, repetition_penalty=1.2)
    proposals = HOW[how](model, tokenizer.vocab_size) if how != "itself" else Draft(model)
    plain, found = generate(model, tokenizer, PROMPTS, sampling), generate(model, tokenizer, PROMPTS, sampling, speculate=proposals)
    assert texts(found) == texts(plain)
    for one, other in zip(found, plain, strict=True):
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-4)
        assert one.speculation is not None
        if how == "itself":
            assert one.speculation.rate == 1
            assert one.speculation.passes < len(one.ids)


@pytest.mark.parametrize("how", HOW)
def test_encoder_decoders_too(how: str) -> None:
    tokenizer = tokenizer_of("byte-bpe")
    model = built(encoder_decoder(tokenizer.vocab_size))
    sampling = Sampling(max_new_tokens=25)
    found = generate(model, tokenizer, PROMPTS, sampling, speculate=HOW[how](model, tokenizer.vocab_size))
    assert texts(found) == texts(generate(model, tokenizer, PROMPTS, sampling))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 50), tokens=st.integers(1, 9), most=st.integers(1, 30), lookup=st.booleans())
def test_any_number_of_proposals_and_any_end(seed: int, tokens: int, most: int, lookup: bool) -> None:
    tokenizer = tokenizer_of("byte-bpe")
    model = built(decoder_only(tokenizer.vocab_size, learned=60), seed)
    how = Lookup(tokens, 2) if lookup else Draft(built(decoder_only(tokenizer.vocab_size, learned=50), seed + 1), tokens=tokens)
    plain = generate(model, tokenizer, PROMPTS[0], Sampling(max_new_tokens=most))[0]
    stop = (plain.text[len(plain.text) // 2 :][:2],) if len(plain.text) > 3 else ()
    sampling = Sampling(max_new_tokens=most, stop=tuple(s for s in stop if s))
    pieces: list[str] = []
    (found,) = generate(model, tokenizer, PROMPTS[0], sampling, speculate=how, on_text=lambda row, piece: pieces.append(piece))
    assert texts([found]) == texts(generate(model, tokenizer, PROMPTS[0], sampling))
    assert "".join(pieces) == found.text


def small() -> tuple[Any, Any, Any]:
    """A tokenizer of 8 tokens, a model and another."""
    tokenizer = train_tokenizer(["abcdef"], kind="characters", special_tokens={"eos": "[EOS]", "unk": "[UNK]"}, min_frequency=1)
    return tokenizer, built(decoder_only(tokenizer.vocab_size)), built(decoder_only(tokenizer.vocab_size), seed=5)


SAMPLINGS = {
    "warm": Sampling(max_new_tokens=3, temperature=1.3, seed=0),
    "top-k": Sampling(max_new_tokens=3, temperature=0.7, top_k=4, seed=0),
    "top-p": Sampling(max_new_tokens=3, temperature=1.0, top_p=0.8, repetition_penalty=1.3, seed=0),
}
RUNS = 400


def exactly(tokenizer: Any, model: Any, sampling: Sampling) -> dict[tuple[int, ...], float]:
    """The probability of each beginning of at most two tokens, from the model's scores; the second is the first that is proposed."""
    ids = tokenizer.encode("abcab")

    def after(made: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            scores = model(torch.tensor([ids + made])).logits[:, -1]
        return speculation._chances(scores.float(), State(sampling, ids + made))

    found: dict[tuple[int, ...], float] = {}
    for first, chance in enumerate(after([]).tolist()):
        if first in tokenizer.ends:
            found[first,] = chance
        elif chance:
            found |= {(first, second): chance * p for second, p in enumerate(after([first]).tolist()) if p}
    return found


def unlikely(tokenizer: Any, model: Any, sampling: Sampling, how: Any) -> float:
    """The probability of a difference as large as that of the beginnings found from what they should be; rare ones count as one."""
    found = Counter(tuple(one.ids[:2]) for one in generate(model, tokenizer, ["abcab"] * RUNS, sampling, speculate=how))
    wanted = exactly(tokenizer, model, sampling)
    assert set(found) <= set(wanted)
    common = [text for text, chance in wanted.items() if chance * RUNS >= 6]
    pairs = [(found[text], wanted[text] * RUNS) for text in common]
    rest = RUNS - sum(a for a, _ in pairs), RUNS - sum(b for _, b in pairs)
    pairs += [rest] if rest[1] > 1e-6 else []
    return float(chisquare([a for a, _ in pairs], [b for _, b in pairs]).pvalue)


@pytest.mark.parametrize(("kind", "name"), [*(("draft", name) for name in SAMPLINGS), ("look-up", "warm")])
def test_by_chance_the_same_distribution(kind: str, name: str) -> None:
    tokenizer, model, other = small()
    how: Any = Draft(other, tokens=2) if kind == "draft" else Lookup(2, 2)
    assert unlikely(tokenizer, model, SAMPLINGS[name], how) > 1e-4


def test_taking_every_proposal_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, model, other = small()
    real = speculation._chosen
    monkeypatch.setattr(speculation, "_chosen", lambda s, state, p: real(s, state, p) if p is None else (p.token, True))
    assert unlikely(tokenizer, model, SAMPLINGS["warm"], Draft(other, tokens=2)) < 1e-6


def test_drawing_what_replaces_a_proposal_from_all_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, model, other = small()

    def wrong(scores: Any, state: Any, proposal: Any) -> tuple[int, bool]:
        chances = speculation._chances(scores, state)
        if proposal is not None and state.draw() < chances[proposal.token] / proposal.chances[proposal.token]:
            return proposal.token, True
        return speculation._drawn(chances, state), False

    monkeypatch.setattr(speculation, "_chosen", wrong)
    assert unlikely(tokenizer, model, SAMPLINGS["warm"], Draft(other, tokens=2)) < 1e-4


def test_look_up_finds_the_latest_longest_match() -> None:
    found = speculation._Found(Lookup(3, 2), [1, 2, 3, 4, 1, 2, 5, 6])
    assert [one.token for one in found.propose(None, [7, 1, 2], 3)] == [5, 6, 7]  # type: ignore[arg-type]
    assert [one.token for one in found.propose(None, [9, 4], 2)] == [1, 2]  # type: ignore[arg-type]
    assert found.propose(None, [8], 3) == []  # type: ignore[arg-type]


def test_repeated_text_takes_few_passes() -> None:
    tokenizer = tokenizer_of("byte-bpe")
    model = built(decoder_only(tokenizer.vocab_size), seed=3)
    (found,) = generate(model, tokenizer, PROMPTS[0], Sampling(max_new_tokens=60), speculate=Lookup(4, 2))
    assert found.speculation is not None
    assert found.speculation.proposed >= found.speculation.accepted
    assert found.speculation.passes + found.speculation.accepted == len(found.ids)


def test_a_constraint_holds_for_proposals() -> None:
    tokenizer = tokenizer_of("byte-bpe")
    model, other = (built(decoder_only(tokenizer.vocab_size), seed) for seed in (0, 1))
    sampling = Sampling(constraint=OneOf(("天下大势", "滚滚长江")), temperature=1.0, seed=4)
    for how in (Draft(other), Lookup()):
        assert {one.text for one in generate(model, tokenizer, PROMPTS, sampling, speculate=how)} <= {"天下大势", "滚滚长江"}


def test_drafts_that_do_not_fit_are_refused() -> None:
    tokenizer = tokenizer_of("byte-bpe")
    model = built(decoder_only(tokenizer.vocab_size))
    with pytest.raises(ValueError, match="expected two of one form"):
        generate(model, tokenizer, PROMPTS, speculate=Draft(built(encoder_decoder(tokenizer.vocab_size))))
    with pytest.raises(ValueError, match="expected a draft with the same tokenizer"):
        generate(model, tokenizer, PROMPTS, speculate=Draft(model, train_tokenizer(LINES, kind="characters")))
    with pytest.raises(ValueError, match="the draft has 300 tokens and the tokenizer 320"):
        generate(model, tokenizer, PROMPTS, speculate=Draft(built(decoder_only(300))))
    with pytest.raises(ValueError, match="expected no `search`"):
        generate(model, tokenizer, PROMPTS, Sampling(search=Beams()), speculate=Lookup())
    with pytest.raises(ValueError, match="ngram: expected at least 1, got 0"):
        Lookup(ngram=0)
