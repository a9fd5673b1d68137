from __future__ import annotations

from typing import Any

import pytest
import torch

from triform import config
from triform.generate import classify, embed
from triform.text.framing import judged

from .conftest import CAUSAL, built, encoder_only, stack, tokenizer_of

TEXTS = ["酒店很干净", "话说天下大势，分久必合", "", "The quick brown fox"]
LABELS = ["坏", "好", "无"]


def classifier(size: int, learned: int | None = 32) -> Any:
    return built(encoder_only(size, config.Classify(labels=3, transform="tanh"), learned))


def test_scores_are_the_models_probabilities() -> None:
    tokenizer = tokenizer_of("wordpiece")
    model = classifier(tokenizer.vocab_size)
    found = classify(model, tokenizer, TEXTS, LABELS)
    for text, one in zip(TEXTS, found, strict=True):
        with torch.inference_mode():
            chances = model(torch.tensor([tokenizer.encode(text, special=True)])).logits[0].softmax(-1)
        torch.testing.assert_close(torch.tensor(list(one.scores.values())), chances, rtol=0, atol=1e-5)
        assert list(one.scores) == LABELS
        assert one.label == LABELS[int(chances.argmax())]
        assert one.score == max(one.scores.values())
    assert found[0].score != pytest.approx(found[1].score, abs=1e-4)


@pytest.mark.parametrize("pool", ["first", "mean", "last"])
def test_a_batch_equals_its_texts(pool: Any) -> None:
    tokenizer = tokenizer_of("byte-bpe")
    head = config.Classify(labels=3, pool=pool)
    decoder = stack(tokenizer.vocab_size, CAUSAL)
    for spec in (encoder_only(tokenizer.vocab_size, head, None), config.Transformer(decoder=decoder, head=head)):
        model = built(spec)
        together = classify(model, tokenizer, TEXTS, LABELS)
        for text, one in zip(TEXTS, together, strict=True):
            assert one.score == pytest.approx(classify(model, tokenizer, text, LABELS)[0].score, abs=1e-5)


def test_long_texts_are_cut_and_it_is_said() -> None:
    tokenizer = tokenizer_of("wordpiece")
    model = classifier(tokenizer.vocab_size, learned=8)
    with pytest.warns(UserWarning, match="1 of 2 texts are longer than 8 tokens"):
        found = classify(model, tokenizer, ["好", "话说天下大势" * 9], LABELS)
    assert found[1].score == pytest.approx(classify(model, tokenizer, "话说天下大势", LABELS)[0].score, abs=1e-5)
    with pytest.warns(UserWarning, match="longer than 5 tokens"):
        assert classify(model, tokenizer, "话说天下大势", LABELS, length=5) == classify(model, tokenizer, "话说天", LABELS)


def test_a_name_of_a_special_token_in_a_text_is_plain_text() -> None:
    tokenizer = tokenizer_of("wordpiece")
    model = classifier(tokenizer.vocab_size)
    assert tokenizer.mask not in tokenizer.encode("[MASK]", plain=True)
    assert classify(model, tokenizer, "[MASK]")[0].scores == pytest.approx(
        classify(model, tokenizer, ["[MASK]", "话"])[0].scores, abs=1e-5
    )
    with torch.inference_mode():
        ids = judged(tokenizer, tokenizer.encode("[MASK]", plain=True))
        expected = float(model(torch.tensor([ids])).logits[0].softmax(-1).max())
    assert classify(model, tokenizer, "[MASK]")[0].score == pytest.approx(expected, abs=1e-5)


def test_vectors_are_the_models() -> None:
    tokenizer = tokenizer_of("wordpiece")
    model = built(encoder_only(tokenizer.vocab_size, config.Embed(pool="mean", width=7, normalize=True)))
    vectors = embed(model, tokenizer, TEXTS, batch_size=2)
    assert vectors.shape == (len(TEXTS), 7)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(TEXTS)), rtol=0, atol=1e-5)
    with torch.inference_mode():
        alone = model(torch.tensor([tokenizer.encode(TEXTS[1], special=True)])).logits
    torch.testing.assert_close(vectors[1:2], alone, rtol=0, atol=1e-5)
    assert (vectors[0] - alone[0]).abs().max() > 1e-2


def test_wrong_input_is_refused() -> None:
    tokenizer = tokenizer_of("wordpiece")
    with pytest.raises(ValueError, match="labels: expected 3 names, as the model's head has, got 2"):
        classify(classifier(tokenizer.vocab_size), tokenizer, TEXTS, ["a", "b"])
    with pytest.raises(ValueError, match="`triform fill` fits it"):
        classify(built(encoder_only(tokenizer.vocab_size)), tokenizer, TEXTS)
    with pytest.raises(ValueError, match="expected text, or a list of texts, got int"):
        classify(classifier(tokenizer.vocab_size), tokenizer, [1])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="batch_size: expected at least one"):
        classify(classifier(tokenizer.vocab_size), tokenizer, TEXTS, batch_size=0)


def test_progress_is_told() -> None:
    tokenizer = tokenizer_of("wordpiece")
    done: list[int] = []
    classify(classifier(tokenizer.vocab_size), tokenizer, TEXTS, batch_size=3, on_batch=done.append)
    assert done == [3, 4]
