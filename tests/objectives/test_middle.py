"""Fill-in-the-middle: every rearranged document can be put together again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from collating import batch, samples
from hypothesis import given, settings
from hypothesis import strategies as st
from recipes import LINES
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from triform.objectives import Causal, build_objective
from triform.objectives.middle import FAMILIES, middle_tokens, rearranged
from triform.text import Tokenizer, train_tokenizer

_MADE: list[Tokenizer] = []


def with_middle(names: tuple[str, ...] = FAMILIES[0]) -> Tokenizer:
    made = train_tokenizer([*LINES, "def f(x):\n    return x + 1\n"], kind="bpe", vocab_size=620, min_frequency=1)
    made.backend.add_special_tokens(list(names))
    return made


def tokenizer() -> Tokenizer:
    if not _MADE:
        _MADE.append(with_middle())
    return _MADE[0]


def together(tokenizer: Tokenizer, ids: list[int]) -> tuple[str, str]:
    """The form of a document's tokens, and its text."""
    before, between, after = middle_tokens(tokenizer)
    if before not in ids:
        assert not {between, after} & set(ids)
        return "whole", tokenizer.decode(ids)
    assert [ids.count(mark) for mark in (before, between, after)] == [1, 1, 1]
    assert ids[0] == before
    second, third = ids.index(between), ids.index(after)
    assert second < third
    if second == 1:
        return "spm", tokenizer.decode(ids[third + 1 :]) + tokenizer.decode(ids[2:third])
    prefix, suffix, middle = ids[1:second], ids[second + 1 : third], ids[third + 1 :]
    return "psm", tokenizer.decode(prefix) + tokenizer.decode(middle) + tokenizer.decode(suffix)


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(codec="utf-8"), max_size=40), rate=st.floats(0, 1), first=st.floats(0, 1))
def test_any_text_can_be_put_together_again(text: str, rate: float, first: float) -> None:
    found = tokenizer()
    (ids,) = rearranged(found, [text], rate, first)
    plain = found.decode(found.encode(text, plain=True))
    assert together(found, ids)[1] == plain


def test_the_shares_are_those_asked_for() -> None:
    """2,000 texts; each share within five standard deviations."""
    texts = [f"{''.join(LINES[:9])}{i}" for i in range(2000)]  # long, so that hardly a part is empty
    forms = [together(tokenizer(), ids)[0] for ids in rearranged(tokenizer(), texts, 0.6, 0.25)]
    for form, share in (("whole", 0.4), ("psm", 0.45), ("spm", 0.15)):
        assert abs(forms.count(form) / 2000 - share) < 5 * np.sqrt(share * (1 - share) / 2000)


def test_it_does_not_matter_who_encodes_a_text_or_when() -> None:
    whole = rearranged(tokenizer(), LINES, 0.5, 0.5)
    assert whole == [ids for line in LINES for ids in rearranged(tokenizer(), [line], 0.5, 0.5)]
    assert whole[::-1] == rearranged(tokenizer(), LINES[::-1], 0.5, 0.5)
    assert rearranged(tokenizer(), LINES, 0.0, 0.5) == tokenizer().encode_batch(LINES, plain=True)


def test_documents_are_rearranged_before_they_are_packed(tmp_path: Path) -> None:
    found = tokenizer()
    made = batch(*samples(Causal(length=30, fim=1.0), found, LINES, tmp_path))
    stream = (made.inputs if made.mask is None else made.inputs[made.mask]).flatten().tolist()
    documents = []
    for token in stream:
        if token == found.bos:
            documents.append([])
        documents[-1].append(token)
    assert all(document[-1] == found.eos for document in documents)
    assert [together(found, document[1:-1])[1] for document in documents] == LINES
    assert made.count == len(stream) - len(LINES)


@pytest.mark.parametrize("names", FAMILIES)
def test_the_tokens_of_public_models_are_known(names: tuple[str, str, str]) -> None:
    found = with_middle(names)
    assert found.tokens(middle_tokens(found)) == list(names)


def test_a_space_that_a_tokenizer_puts_first_comes_but_once() -> None:
    words = {piece: i for i, piece in enumerate(["▁", *"abcdef", "☺", *FAMILIES[0]])}
    backend = Backend(models.BPE(words, [], unk_token="▁"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    backend.add_special_tokens(list(FAMILIES[0]))
    found = Tokenizer(backend, {})
    assert found.tokens(found.encode("ab")) == ["▁", "a", "b"]
    texts = ["abcdef", "fedcba", "ab cd", "def", "a b c d", "ef ef ef"]
    for text, ids in zip(texts, rearranged(found, texts, 1.0, 0.5), strict=True):
        assert together(found, ids)[1].replace(" ", "") == text.replace(" ", "")
        assert found.tokens(ids).count("▁") - text.count(" ") in (0, 1)  # none where the first part is empty


def test_a_tokenizer_without_the_tokens_is_told_how_to_get_them(characters: Tokenizer) -> None:
    objective = build_objective(Causal(fim=0.5), characters)
    with pytest.raises(ValueError, match=r"set tokenizer.add: \['<\|fim_prefix\|>', '<\|fim_suffix\|>', '<\|fim_middle\|>'\]") as caught:
        objective.encode([{"text": "天下"}])
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="fim: expected a share from 0 to 1"):
        Causal(fim=1.5)
