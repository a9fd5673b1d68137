from __future__ import annotations

from typing import Any

import pytest
import torch

from triform import config
from triform.generate import fill
from triform.generate.fill import _written

from .conftest import built, decoder_only, encoder_only, tokenizer_of

TEXTS = ["话说天下大[MASK]，分久[MASK]合。", "[MASK][MASK]长江", "The quick [MASK] fox"]


@pytest.fixture(params=["wordpiece", "characters", "byte-bpe"])
def masked(request: Any) -> tuple[Any, Any]:
    tokenizer = tokenizer_of(request.param)
    return built(encoder_only(tokenizer.vocab_size)), tokenizer


def test_candidates_are_the_models_probabilities(masked: tuple[Any, Any]) -> None:
    model, tokenizer = masked
    ids = tokenizer.encode(TEXTS[0], special=True)
    with torch.inference_mode():
        chances = model(torch.tensor([ids])).logits[0].softmax(-1)
    found = fill(model, tokenizer, TEXTS[0], 4)[0]
    places = [place for place, i in enumerate(ids) if i == tokenizer.mask]
    assert len(found.masks) == len(places) == 2
    for place, candidates in zip(places, found.masks, strict=True):
        expected = [(float(p), i) for i, p in enumerate(chances[place]) if i not in tokenizer.special_ids]
        for candidate, (probability, token) in zip(candidates, sorted(expected, reverse=True)[:4], strict=True):
            assert candidate.id == token
            assert candidate.probability == pytest.approx(probability, abs=1e-5)
    assert found.masks[0][0].probability != pytest.approx(found.masks[1][0].probability, abs=1e-5)


def test_the_most_certain_mask_is_filled_first() -> None:
    tokenizer = tokenizer_of("characters")
    model = built(encoder_only(tokenizer.vocab_size))
    barred = sorted(tokenizer.special_ids)

    def filled(certain: bool) -> str:
        ids = torch.tensor([tokenizer.encode(TEXTS[0], special=True)])
        while (left := ids == tokenizer.mask).any():
            with torch.inference_mode():
                best = model(ids).logits.softmax(-1).index_fill(-1, torch.tensor(barred), 0).max(-1)
            chances = best.values.masked_fill(~left, -torch.inf if certain else torch.inf)
            place = chances.argmax() if certain else chances.argmin()
            ids[0, place] = best.indices[0, place]
        return tokenizer.decode(ids[0])

    assert fill(model, tokenizer, TEXTS[0])[0].text == filled(certain=True)
    assert filled(certain=True) != filled(certain=False)


def test_a_batch_equals_its_texts(masked: tuple[Any, Any]) -> None:
    model, tokenizer = masked
    together = fill(model, tokenizer, TEXTS, 3)
    for text, one in zip(TEXTS, together, strict=True):
        alone = fill(model, tokenizer, text, 3)[0]
        assert alone.text == one.text
        assert [[c.id for c in mask] for mask in alone.masks] == [[c.id for c in mask] for mask in one.masks]
        assert len(one.masks) == text.count("[MASK]")
    assert together == fill(model, tokenizer, TEXTS, 3, batch_size=3)


def test_the_rest_of_the_text_stays_as_it_was() -> None:
    tokenizer = tokenizer_of("wordpiece")
    filled = fill(built(encoder_only(tokenizer.vocab_size)), tokenizer, "The  QUICK [MASK]\t龘!")[0].text
    assert filled.startswith("The  QUICK ")
    assert filled.endswith("\t龘!")
    assert "[MASK]" not in filled


def test_tokens_that_share_a_characters_bytes_are_joined() -> None:
    tokenizer = tokenizer_of("byte-bpe")
    ids = tokenizer.encode("龘")
    assert len(ids) == 3
    assert _written(tokenizer, ["天", "", "", "下"], ids) == "天龘下"
    assert _written(tokenizer, ["天", "下", "", ""], [*tokenizer.encode("a"), *tokenizer.encode("bc")]) == "天a下bc"


def test_wrong_input_is_refused() -> None:
    tokenizer = tokenizer_of("wordpiece")
    model = built(encoder_only(tokenizer.vocab_size, learned=12))
    with pytest.raises(ValueError, match=r"text 2 has no \[MASK\]"):
        fill(model, tokenizer, ["[MASK]", "话"])
    with pytest.raises(ValueError, match="12 learned positions"):
        fill(model, tokenizer, "话" * 20 + "[MASK]")
    with pytest.raises(ValueError, match="top: expected"):
        fill(model, tokenizer, "[MASK]", 0)
    with pytest.raises(ValueError, match="`triform generate` fits it"):
        fill(built(decoder_only(tokenizer.vocab_size)), tokenizer, "[MASK]")
    with pytest.raises(ValueError, match="embed` fits it"):
        fill(built(encoder_only(tokenizer.vocab_size, config.Embed())), tokenizer, "[MASK]")
