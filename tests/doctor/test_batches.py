"""What is looked at in batches: frame, padding, scored labels, stop token. Sick batches are made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from recipes import plain, recipe, write_data

from triform.doctor.findings import Finding
from triform.doctor.labels import check_frame, check_labels, check_padding, check_stop, check_unknown
from triform.doctor.subject import Subject
from triform.nn import IGNORE
from triform.text import Tokenizer, train_tokenizer
from triform.train import read_recipe
from triform.train.prepare import prepare, text_fingerprint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("batches")
    write_data(made)
    return made


@pytest.fixture
def subject(folder: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Subject:
    """A subject of the objective that a test names, SequenceToSequence by default."""
    made = recipe(getattr(request, "param", "SequenceToSequence"), folder)
    prepared = prepare(made, tmp_path, text_fingerprint(made.data), progress=False)
    return Subject(made, made.architecture(prepared.objective.vocab_size), prepared.objective, prepared.train, prepared.validation)


def only(findings: Any) -> Finding:
    (found,) = findings
    return found


kinds = pytest.mark.parametrize("subject", ["Causal", "SequenceToSequence", "Denoising", "SpanCorruption"], indirect=True)


@kinds
def test_objectives_that_write_are_healthy(subject: Subject) -> None:
    for check in (check_labels, check_stop, check_frame, check_padding):
        assert only(check(subject)).severity == "fine", check.__name__


@pytest.mark.parametrize("subject", ["Masked", "Classification", "Contrastive", "ImageClassification"], indirect=True)
def test_objectives_that_write_nothing_have_no_stop_token(subject: Subject) -> None:
    assert list(check_stop(subject)) == []
    assert only(check_labels(subject)).severity == "fine"


def test_answers_that_do_not_stop(subject: Subject) -> None:
    eos = subject.tokenizer.eos  # type: ignore[union-attr]
    for batch in subject.batches:
        batch.labels = batch.labels.masked_fill(batch.labels == eos, IGNORE)
    found = only(check_stop(subject))
    assert (found.severity, found.figures["share"]) == ("error", 0)
    assert "would not stop" in found.advice


def test_answers_of_which_some_do_not_stop(subject: Subject) -> None:
    row = subject.batches[0].labels[0]
    row[row == subject.tokenizer.eos] = IGNORE  # type: ignore[union-attr]
    found = only(check_stop(subject))
    assert found.severity == "warning"
    assert "the end of a turn, or [EOS]" in found.advice


def test_answers_that_stop_at_a_token_generation_does_not_know(subject: Subject) -> None:
    tokenizer = subject.tokenizer
    assert tokenizer is not None
    tokenizer.ends = [tokenizer.sep or 0]
    assert "[EOS], at which generation does not stop" in only(check_stop(subject)).says
    tokenizer.ends = []
    assert "answers would never stop" in only(check_stop(subject)).says


def test_samples_without_anything_to_learn(subject: Subject) -> None:
    subject.batches[0].labels[:] = IGNORE
    found = only(check_labels(subject))
    assert found.severity in ("warning", "error")
    assert "objective.length" in found.advice


def _framed(ids: list[int], subject: Subject) -> Finding:
    for batch in subject.batches:
        batch.inputs = torch.tensor([ids] * len(batch.inputs))
        batch.mask = None
    return only(check_frame(subject))


@pytest.fixture
def llama(folder: Path, tmp_path: Path) -> Subject:
    """A decoder-only subject whose tokenizer puts [BOS] before a text, trained on conversations without a template."""
    made = plain("Causal", folder)
    tokenizer = _with_bos(train_tokenizer((folder / "lines.txt").read_text("utf-8").splitlines(), kind="characters", min_frequency=1))
    tokenizer.save(tmp_path / "tokenizer")
    made["tokenizer"] = {"path": str(tmp_path / "tokenizer")}
    read = read_recipe(made)
    prepared = prepare(read, tmp_path, text_fingerprint(read.data), progress=False)
    found = Subject(read, read.architecture(prepared.objective.vocab_size), prepared.objective, prepared.train, prepared.validation)
    prepared.objective.cuts_rows = False
    return found


def _with_bos(tokenizer: Tokenizer) -> Tokenizer:
    from tokenizers.processors import TemplateProcessing

    name = tokenizer.roles["bos"]
    tokenizer.backend.post_processor = TemplateProcessing(single=f"{name} $A", special_tokens=[(name, tokenizer.bos)])
    return Tokenizer(tokenizer.backend, tokenizer.roles)


def test_bos_as_the_tokenizer_has_it(llama: Subject) -> None:
    bos = llama.tokenizer.bos  # type: ignore[union-attr]
    assert _framed([bos, 20, 21, 22], llama).severity == "fine"
    twice, never = _framed([bos, bos, 20, 21], llama), _framed([20, 21, 22, 23], llama)
    assert (twice.severity, never.severity) == ("error", "warning")
    assert "[BOS] twice" in twice.says
    assert "0 % of" in never.says


def test_padding_that_is_read_or_scored_or_most_of_the_batch(subject: Subject) -> None:
    batch, pad = subject.batches[0], subject.tokenizer.pad  # type: ignore[union-attr]
    healthy = batch.mask
    batch.inputs[0, 1] = pad
    assert "read as if it were text" in only(check_padding(subject)).says
    batch.inputs[0, 1] = 20
    assert batch.target_mask is not None
    batch.target_mask[0] = False
    assert "padding is scored" in only(check_padding(subject)).says
    batch.target_mask[0] = True
    batch.mask = healthy
    for each in subject.batches:
        mask = torch.ones_like(each.inputs, dtype=torch.bool) if each.mask is None else each.mask
        each.inputs = torch.nn.functional.pad(each.inputs, (0, 200), value=pad)
        each.mask = torch.nn.functional.pad(mask, (0, 200), value=False)
    found = only(check_padding(subject))
    assert found.severity == "warning"
    assert "train.bucket" in found.advice


def test_unknown_tokens_in_batches(subject: Subject) -> None:
    tokenizer = subject.tokenizer
    assert tokenizer is not None
    for batch in subject.batches:
        batch.inputs[batch.inputs == tokenizer.unk] = 20
        assert batch.target is not None
        batch.target[batch.target == tokenizer.unk] = 20
    assert only(check_unknown(subject)).severity == "fine"
    subject.batches[0].inputs[:] = tokenizer.unk
    assert only(check_unknown(subject)).severity in ("warning", "error")
