"""Judgements from text: what transformers' pipelines say of the same small random models, and for answers a plain search.

Probabilities are compared to 1e-5; spans, labels and characters exactly.
"""

from __future__ import annotations

import itertools
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from parity.cases import BART, T5, TEXT, saved

import triform
from triform import hub
from triform.generate import Answering, answer, classify, tag
from triform.text import Tokenizer, train_tokenizer

LINES = (
    "曹操在许昌见了刘备，关羽往荆州去。",
    "Ada Lovelace was born in London in 1815.",
    "话说天下大势，分久必合，合久必分。Unlikely washing machines!",
)
WRITTEN = ["曹操在London见了Ada Lovelace。", "Unlikely washing machines in 许昌!", "关羽往荆州去，刘备 was born."]
LABELS = ["O", "B-人", "I-人", "B-地", "I-地"]
CLOSE = 1e-5
pytestmark = pytest.mark.filterwarnings("ignore")


@lru_cache(maxsize=None)
def tokenizer_of(kind: str) -> Tokenizer:
    special = {"pad": "<pad>", "eos": "</s>", "unk": "<unk>"} if kind == "unigram" else ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    size = {"wordpiece": 100, "unigram": 315, "byte-bpe": 330}[kind]
    return train_tokenizer(LINES * 4, kind=kind, vocab_size=size, special_tokens=special, min_frequency=1)


@lru_cache(maxsize=None)
def models(name: str, settings: str, kind: str, **more: Any) -> tuple[Any, Tokenizer, Any, Any, Path]:
    """Our model and tokenizer, transformers' of the same files, and the folder."""
    tokenizer = tokenizer_of(kind)
    torch.manual_seed(sum(map(ord, name)))
    positions = {"max_position_embeddings": 256}
    sizes = {
        "BertConfig": TEXT | positions,
        "DistilBertConfig": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, **positions},
        "T5Config": T5,
        "BartConfig": BART | positions,
    }[settings]
    marks = {"pad_token_id": tokenizer.pad, "vocab_size": tokenizer.vocab_size}
    if settings in ("T5Config", "BartConfig"):
        end = tokenizer.eos if tokenizer.eos is not None else tokenizer.sep
        marks |= {"eos_token_id": end, "decoder_start_token_id": tokenizer.pad}
    theirs = getattr(transformers, name)(getattr(transformers, settings)(**sizes | marks | more)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    folder = saved(theirs)
    tokenizer.save(folder)
    return *triform.load(folder), theirs, transformers.AutoTokenizer.from_pretrained(folder), folder


CLASSIFIERS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "one of three": ("BertForSequenceClassification", "BertConfig", "wordpiece", {"num_labels": 3}),
    "several of three": (
        "BertForSequenceClassification", "BertConfig", "wordpiece", {"num_labels": 3, "problem_type": "multi_label_classification"},
    ),
    "numbers": ("BertForSequenceClassification", "BertConfig", "wordpiece", {"num_labels": 2, "problem_type": "regression"}),
    "one number": ("BertForSequenceClassification", "BertConfig", "wordpiece", {"num_labels": 1, "problem_type": "regression"}),
    "one label": ("DistilBertForSequenceClassification", "DistilBertConfig", "wordpiece", {"num_labels": 1}),
    "T5": ("T5ForSequenceClassification", "T5Config", "unigram", {"num_labels": 4}),
    "BART": ("BartForSequenceClassification", "BartConfig", "byte-bpe", {"num_labels": 4}),
}  # fmt: skip


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classes(name: str) -> None:
    *case, more = CLASSIFIERS[name]
    model, tokenizer, theirs, their_tokenizer, folder = models(*case, **more)
    pipeline = transformers.TextClassificationPipeline(model=theirs, tokenizer=their_tokenizer, top_k=None)
    task = hub.task(folder)
    found = classify(model, tokenizer, WRITTEN, task.get("labels"), problem=task.get("problem_type"))
    for one, expected in zip(found, pipeline(WRITTEN), strict=True):
        scores = {each["label"]: each["score"] for each in expected}
        assert {f"LABEL_{name.removeprefix('LABEL_')}": score for name, score in one.scores.items()} == pytest.approx(scores, abs=CLOSE)
        assert one.label.removeprefix("LABEL_") == max(scores, key=lambda label: scores[label]).removeprefix("LABEL_")
    apart = {name for name, score in found[0].scores.items() if abs(score - found[1].scores[name]) > 100 * CLOSE}
    assert apart, "the texts must be judged differently, or nothing is compared"


@pytest.mark.parametrize("aggregate", ["none", "simple", "first", "average", "max"])
@pytest.mark.parametrize("seed", range(3))
def test_entities(aggregate: Any, seed: int) -> None:
    names = dict(enumerate(LABELS))
    model, tokenizer, theirs, their_tokenizer, folder = models(
        "BertForTokenClassification", "BertConfig", "wordpiece", num_labels=5, id2label=_frozen(names), hidden_dropout_prob=seed / 10
    )
    pipeline = transformers.TokenClassificationPipeline(model=theirs, tokenizer=their_tokenizer, aggregation_strategy=aggregate)
    found = tag(model, tokenizer, WRITTEN, hub.task(folder)["labels"], aggregate=aggregate)
    for text, own in zip(WRITTEN, found, strict=True):
        expected = pipeline(text)
        key = "entity" if aggregate == "none" else "entity_group"
        assert [(e.label, e.start, e.end) for e in own] == [(e[key], e["start"], e["end"]) for e in expected]
        assert [e.score for e in own] == pytest.approx([float(e["score"]) for e in expected], abs=CLOSE)
        assert all(text[e.start : e.end] == e.text for e in own)
    assert any(found)


class _frozen(dict[int, str]):
    """A mapping that can be an argument of a cached function."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(self.items()))


PASSAGE = LINES[0] + LINES[1] + LINES[2]
ANSWERERS = {
    "BERT": ("BertForQuestionAnswering", "BertConfig", "wordpiece"),
    "DistilBERT": ("DistilBertForQuestionAnswering", "DistilBertConfig", "wordpiece"),
    "T5": ("T5ForQuestionAnswering", "T5Config", "unigram"),
    "BART": ("BartForQuestionAnswering", "BartConfig", "byte-bpe"),
}


Spans = dict[tuple[int, int], float]


def plain_search(theirs: Any, tokenizer: Any, question: str, longest: int, how: dict[str, Any]) -> tuple[Spans, float]:
    """Every span's probability by transformers' model and tokenizer, window by window, and that of no answer."""
    segments = theirs.config.model_type == "bert"  # which its own tokenizer would give
    how |= {"return_overflowing_tokens": bool(how), "return_token_type_ids": segments}
    encoded = tokenizer(question, PASSAGE, return_offsets_mapping=True, **how)
    spans: Spans = {}
    none = 1.0
    for row in encoded.encodings:
        inputs = {"input_ids": torch.tensor([row.ids])} | ({"token_type_ids": torch.tensor([row.type_ids])} if segments else {})
        inside = [part == 1 for part in row.sequence_ids]
        with torch.no_grad():
            out = theirs(**inputs)
        seen = torch.tensor(inside)
        seen[0] = seen[0] or tokenizer.cls_token is not None
        start, end = (s[0].masked_fill(~seen, -torch.inf).softmax(0) for s in (out.start_logits, out.end_logits))
        none = min(none, float(start[0] * end[0]))
        offsets = row.offsets
        places = [i for i, own in enumerate(inside) if own]
        for a, b in itertools.product(places, places):
            text = PASSAGE[offsets[a][0] : offsets[b][1]]
            if a <= b < a + longest and text.strip():
                first = offsets[a][0] + len(text) - len(text.lstrip())
                span = first, first + len(text.strip())
                spans[span] = max(spans.get(span, 0.0), float(start[a] * end[b]))
    return spans, none


@pytest.mark.parametrize("name", ANSWERERS)
@pytest.mark.parametrize("longest", [4, 30])
@pytest.mark.parametrize("length", [None, 40])
def test_answers(name: str, longest: int, length: int | None) -> None:
    case = ANSWERERS[name]
    model, tokenizer, theirs, their_tokenizer, _ = models(*case)
    question = "刘备在哪?"
    how = {} if length is None else {"max_length": length, "stride": 6, "truncation": "only_second"}
    expected, none = plain_search(theirs, their_tokenizer, question, longest, how)
    (found,) = answer(model, tokenizer, question, PASSAGE, Answering(top=5, longest=longest, length=length, overlap=6))
    best = sorted(expected.items(), key=lambda pair: -pair[1])[:5]
    assert [one.score for one in found] == pytest.approx([score for _, score in best], abs=CLOSE)
    assert (found[0].start, found[0].end) == best[0][0]
    assert all(PASSAGE[one.start : one.end] == one.text for one in found)
    if tokenizer.cls is not None:
        all_of_them = Answering(top=10**6, longest=longest, length=length, overlap=6, may_abstain=True)
        (some,) = answer(model, tokenizer, question, PASSAGE, all_of_them)
        assert [one.score for one in some if not one.text] == pytest.approx([none], abs=CLOSE)
