"""What goes into the collators of causal, paired and classified text, and what comes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from collating import batch, samples
from hypothesis import given, settings
from hypothesis import strategies as st
from recipes import LINES, REVIEWS

from triform.nn import IGNORE
from triform.objectives import Causal, Classification, SequenceToSequence
from triform.objectives.pairs import pair_batch
from triform.text import Tokenizer


@pytest.mark.parametrize("length", [7, 16, 64, 4096])
def test_causal_labels_are_the_next_token_of_the_same_document(length: int, tokenizer: Tokenizer, tmp_path: Path) -> None:
    made = batch(*samples(Causal(length=length), tokenizer, LINES, tmp_path))
    stream: list[int | None] = []
    number: list[int] = []
    for n, line in enumerate(LINES):
        stream += [tokenizer.bos, *tokenizer.encode(line), tokenizer.eos]
        number += [n] * (len(stream) - len(number))
    rows = -(-len(stream) // length)
    width = min(length, len(stream))
    assert made.inputs.shape == made.labels.shape == (rows, width)
    seen = torch.ones(rows, width, dtype=torch.bool) if made.mask is None else made.mask
    assert made.inputs[seen].tolist() == stream
    following = [*stream[1:], None]
    belongs = [*number[1:], None]
    wanted = [t if n == m else IGNORE for t, n, m in zip(following, number, belongs, strict=True)]
    assert made.labels[seen].tolist() == wanted
    assert (made.labels[~seen] == IGNORE).all()
    assert made.count == len(stream) - len(LINES)


def test_packed_documents_are_told_apart(characters: Tokenizer, tmp_path: Path) -> None:
    made = batch(*samples(Causal(length=32), characters, LINES, tmp_path))
    assert made.layout is not None
    assert made.layout.documents is not None
    assert made.layout.documents.shape == made.inputs.shape
    begins = made.inputs == characters.bos
    changes = torch.zeros_like(begins)
    changes[:, 1:] = made.layout.documents[:, 1:] != made.layout.documents[:, :-1]
    seen = torch.ones_like(begins) if made.mask is None else made.mask
    assert ((begins == changes) | ~seen)[:, 1:].all()
    assert (made.layout.documents[:, 0] == 0).all()


def test_one_document_a_row_needs_no_layout(characters: Tokenizer, tmp_path: Path) -> None:
    made = batch(*samples(Causal(length=8), characters, ["".join(LINES)], tmp_path))
    assert made.layout is None


@pytest.mark.parametrize("length", [5, 12, 60])
def test_pairs(length: int, tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = [{"source": line, "target": line[::-1]} for line in LINES]
    spec = SequenceToSequence(length=length, target_length=length + 1)
    made = batch(*samples(spec, tokenizer, rows, tmp_path))
    assert made.target is not None
    assert made.inputs.shape[0] == made.target.shape[0] == len(rows)
    assert made.target.shape == made.labels.shape
    assert made.inputs.shape[1] <= length
    assert made.labels.shape[1] <= length + 1
    for i, row in enumerate(rows):
        read = made.inputs[i] if made.mask is None else made.inputs[i][made.mask[i]]
        seen = slice(None) if made.target_mask is None else made.target_mask[i]
        target = tokenizer.encode(row["target"])[:length]
        labels = made.labels[i][seen].tolist()
        assert labels == [*target, tokenizer.eos]
        assert made.target[i][seen].tolist() == [tokenizer.bos if tokenizer.bos is not None else tokenizer.pad, *target]
        framed = tokenizer.encode(row["source"], special=True)
        framed = framed[1:] if framed[0] == tokenizer.bos else framed
        after = [framed[-1]]
        before = [framed[0]] if framed[0] == tokenizer.cls else []
        text = tokenizer.encode(row["source"])[: length - len(before) - 1]
        assert read.tolist() == [*before, *text, *after]
        assert (made.labels[i] != IGNORE).sum() == len(labels)


def test_pairs_without_a_side_are_left_out(characters: Tokenizer, tmp_path: Path) -> None:
    rows = [{"source": "天下", "target": ""}, {"source": "", "target": "三国"}, {"source": "天下", "target": "三国"}]
    made = batch(*samples(SequenceToSequence(), characters, rows, tmp_path))
    assert len(made.inputs) == 1


def test_without_bos_the_decoder_starts_with_padding(characters: Tokenizer) -> None:
    roles = {role: token for role, token in characters.roles.items() if role != "bos"}
    made = pair_batch(Tokenizer(characters.backend, roles), [np.array([20, 21])], [np.array([22])])
    assert made.target is not None
    assert made.target.tolist() == [[characters.pad, 22]]


@pytest.mark.parametrize("length", [4, 10, 60])
def test_classification(length: int, tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = [{"text": text, "label": label} for text, label in REVIEWS]
    made = batch(*samples(Classification(labels=("negative", "positive"), length=length), tokenizer, rows, tmp_path))
    assert made.labels.tolist() == [1, 1, 0, 0]
    for i, (text, _) in enumerate(REVIEWS):
        read = made.inputs[i] if made.mask is None else made.inputs[i][made.mask[i]]
        assert read.tolist() == [tokenizer.cls, *tokenizer.encode(text)[: length - 2], tokenizer.sep]
    assert made.tokens == sum(min(length, len(tokenizer.encode(text)) + 2) for text, _ in REVIEWS)


@settings(max_examples=30, deadline=None)
@given(texts=st.lists(st.text(min_size=1, max_size=30), min_size=1, max_size=6), length=st.integers(2, 40))
def test_any_text_gives_each_token_once(texts: list[str], length: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    from triform.text import train_tokenizer

    tokenizer = _bytes(train_tokenizer)
    made = batch(*samples(Causal(length=length), tokenizer, texts, tmp_path_factory.mktemp("any")))
    read = made.inputs if made.mask is None else made.inputs[made.mask]
    documents = [[tokenizer.bos, *ids, tokenizer.eos] for ids in tokenizer.encode_batch(texts, plain=True)]
    assert read.flatten().tolist() == [token for document in documents for token in document]
    assert made.count == sum(len(document) - 1 for document in documents)


def _bytes(train: Any, made: list[Tokenizer] = []) -> Tokenizer:  # noqa: B006
    if not made:
        made.append(train(LINES, kind="bpe", vocab_size=560, min_frequency=1))
    return made[0]


def test_the_name_of_a_special_token_in_a_text_is_text(words: Tokenizer, tmp_path: Path) -> None:
    rows = [{"text": "天下[MASK]三国[SEP]", "label": "a", "source": "[EOS]", "target": "[BOS]"}]
    for spec in (Causal(length=64), Classification(labels=("a", "b")), SequenceToSequence()):
        made = batch(*samples(spec, words, rows, tmp_path / type(spec).__name__))
        middle = [*made.inputs[0].tolist()[1:-1], *([] if made.target is None else made.target[0].tolist()[1:])]
        assert not set(middle) & (words.special_ids - {words.eos})


@pytest.mark.parametrize(
    ("spec", "row", "says"),
    [
        (Causal(), {"body": "天下"}, "no field 'text' for the text; it has body"),
        (Causal(), {"text": None}, "None in its field 'text'; expected text"),
        (Classification(labels=("a", "b")), {"text": "天下"}, "no field 'label' for the label"),
        (Classification(labels=("a", "b")), {"text": "天下", "label": "c"}, "label 'c': expected one of a, b"),
        (SequenceToSequence(), {"source": "天下"}, "no field 'target' for the target"),
    ],
)
def test_rows_that_do_not_fit(spec: Any, row: dict[str, Any], says: str, characters: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=says):
        samples(spec, characters, [row], tmp_path)


@pytest.mark.parametrize("label", [1, "1"])
def test_labels_may_be_numbers(label: Any, characters: Tokenizer, tmp_path: Path) -> None:
    made = batch(*samples(Classification(labels=("0", "1")), characters, [{"text": "天下", "label": label}], tmp_path))
    assert made.labels.tolist() == [1]
