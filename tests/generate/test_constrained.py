"""Constrained output: whatever a model would rather say, the text has its form.

Tokens are drawn at random from those allowed, which is a worse model than any.
"""

from __future__ import annotations

import json
import random
import re
import time
from dataclasses import replace
from functools import lru_cache
from typing import Any

import jsonschema_rs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from triform.generate import Beams, Contrastive, Sampling, generate
from triform.generate.constrained import Constraint, JsonSchema, Matcher, OneOf, Regex
from triform.generate.engine import Engine
from triform.generate.requests import Request
from triform.text import Tokenizer, train_tokenizer

from .conftest import LINES, built, decoder_only, encoder_decoder

KINDS = ["byte-bpe", "bpe", "wordpiece", "unigram", "characters"]
WRITTEN = (
    '{"name": "曹操", "age": 54, "tags": ["魏", "a b"], "ok": true, "none": null, "no": false, "n": -1.5e3}',
    "abcdefghijklmnopqrstuvwxyz ABC 0123456789 abc-def, x.y; [z] (q)",
)


@lru_cache(maxsize=None)
def tokenizer_of(kind: str) -> Tokenizer:
    """A tokenizer of the kind that has seen JSON; every kind can spell ASCII."""
    pieces = [bytes([c]).decode() for c in range(0x20, 0x7F)]
    size = {"byte-bpe": 400, "bpe": 520, "wordpiece": 300, "unigram": 450, "characters": None}[kind]
    fallback = True if kind == "characters" else None
    texts = (*LINES, *WRITTEN, *pieces, *("a" + piece for piece in pieces)) * 3
    return train_tokenizer(texts, kind=kind, vocab_size=size, min_frequency=1, byte_fallback=fallback)


def written(constraint: Constraint, tokenizer: Tokenizer, context: str = "", seed: int = 0, most: int = 400) -> tuple[str, bool]:
    """A text of tokens drawn from those allowed, and whether it came to its end within `most` tokens."""
    before, draw = tokenizer.encode(context), random.Random(seed)
    matcher = Matcher(constraint, tokenizer, tokenizer.ends, before)
    ids: list[int] = []
    ended = False
    while not ended and len(ids) < most:
        allowed = matcher.allowed().nonzero()[:, 0].tolist()
        ends = [i for i in allowed if i in tokenizer.ends]
        token = ends[0] if ends and draw.random() < 0.5 else draw.choice(allowed)
        ended = token in tokenizer.ends
        if not ended:
            ids.append(token)
            matcher.accept(token)
            ended = matcher.complete
    return tokenizer.decode(before + ids)[len(tokenizer.decode(before)) :], ended


SCALARS = st.sampled_from(
    [
        {"type": "integer"}, {"type": "integer", "minimum": -3, "maximum": 250}, {"type": "number", "exclusiveMinimum": 0},
        {"type": "null"}, {"type": "boolean"}, {"type": "string", "maxLength": 6}, {"type": "string", "minLength": 2, "maxLength": 3},
        {"type": "string", "pattern": "^[a-z]{2,4}$"}, {"enum": ["魏", "蜀", "吴", 3, None]}, {"const": {"a": [1]}},
        {"type": ["integer", "null"]}, {"type": "string", "format": "date"}, {"type": "integer", "multipleOf": 7, "maximum": 900},
    ]
)  # fmt: skip
NAMES = st.sampled_from(["a", "名字", "b c", 'quo"te', "é"])


def _nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    objects = st.dictionaries(NAMES, inner, max_size=3).flatmap(
        lambda properties: st.builds(
            lambda required: {"type": "object", "properties": properties, "required": required, "additionalProperties": False},
            st.lists(st.sampled_from(sorted(properties)), unique=True) if properties else st.just([]),
        )
    )
    arrays = st.builds(lambda items, most: {"type": "array", "items": items, "maxItems": most}, inner, st.integers(0, 3))
    return st.one_of(objects, arrays, st.builds(lambda a, b: {"anyOf": [a, b]}, inner, inner))


SCHEMAS = st.recursive(SCALARS, _nested, max_leaves=5)


@pytest.mark.parametrize("kind", ["byte-bpe", "bpe", "unigram", "characters"])
@settings(max_examples=40, deadline=None)
@given(schema=SCHEMAS, context=st.sampled_from(["", "话说", "The "]), seed=st.integers(0, 99))
def test_json_is_the_schemas(kind: str, schema: Any, context: str, seed: int) -> None:
    text, ended = written(JsonSchema(schema), tokenizer_of(kind), context, seed)
    assert not ended or jsonschema_rs.is_valid(schema, json.loads(text)), text


@pytest.mark.parametrize("context", ["", "话说", "The"])
def test_wordpiece_writes_what_its_spaces_allow(context: str) -> None:
    tokenizer = tokenizer_of("wordpiece")
    properties = {"话": {"enum": ["天", "江"]}, "说": {"type": "integer", "minimum": 0, "maximum": 9}}
    schema = {"type": "object", "properties": properties, "required": ["话", "说"], "additionalProperties": False}
    for seed in range(20):
        text, ended = written(JsonSchema(schema), tokenizer, context, seed)
        assert ended
        jsonschema_rs.validate(schema, json.loads(text))
    with pytest.raises(ValueError, match="has no tokens for"):  # ' "' does not close a word
        written(JsonSchema({"const": {"a": 1}}), tokenizer, context)


PATTERNS = st.recursive(
    st.sampled_from(["a", "[a-f]", "[0-9]{2,3}", "天", "[下大]", "x y", r"\.", "-", "(?:ab|a)"]),
    lambda inner: st.one_of(
        st.builds("{}{}".format, inner, inner), st.builds("(?:{}|{})".format, inner, inner), st.builds("(?:{}){{0,3}}".format, inner)
    ),
    max_leaves=6,
)


@pytest.mark.parametrize("kind", ["byte-bpe", "bpe", "unigram", "characters"])
@settings(max_examples=40, deadline=None)
@given(pattern=PATTERNS, context=st.sampled_from(["", "话说", "The"]), seed=st.integers(0, 99))
def test_text_matches_the_expression(kind: str, pattern: str, context: str, seed: int) -> None:
    text, ended = written(Regex(pattern), tokenizer_of(kind), context, seed)
    assert not ended or re.fullmatch(pattern, text)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("context", ["", "话说", "The"])
def test_one_of_several_texts(kind: str, context: str) -> None:
    texts = ("天下", "天下大势", "The quick", "no", "(a|b)*")
    tokenizer = tokenizer_of(kind)
    if kind == "wordpiece":
        texts = ("天下", "天下大势", "no", "The quick")
    found = {written(OneOf(texts), tokenizer, context, seed) for seed in range(60)}
    assert {text.removeprefix(" ") if kind == "wordpiece" else text for text, _ in found} == set(texts)
    assert all(ended for _, ended in found)


def test_what_begins_no_text_is_not_allowed() -> None:
    tokenizer = tokenizer_of("characters")
    matcher = Matcher(OneOf(("天下", "大势")), tokenizer, tokenizer.ends)
    allowed = matcher.allowed().nonzero()[:, 0].tolist()
    assert set(tokenizer.tokens(allowed)) == {"天", "大", "<0xE5>"}  # and the first byte of both
    with pytest.raises(ValueError, match="the constraint"):
        matcher.accept(tokenizer.encode("话")[0])


def test_a_finished_output_may_end_and_a_longer_one_may_go_on() -> None:
    tokenizer = tokenizer_of("byte-bpe")
    matcher = Matcher(OneOf(("no", "nothing")), tokenizer, tokenizer.ends)
    for token in tokenizer.encode("no"):
        assert not matcher.allowed()[tokenizer.ends].any()
        matcher.accept(token)
    assert matcher.allowed()[tokenizer.ends].all()
    assert not matcher.complete
    twin = matcher.copy()
    for token in tokenizer.encode("thing"):
        twin.accept(token)
    assert twin.complete
    assert not matcher.complete


def test_scores_of_a_model_with_more_rows_than_the_tokenizer() -> None:
    tokenizer = tokenizer_of("byte-bpe")
    matcher = Matcher(Regex("a+"), tokenizer, tokenizer.ends)
    scores = torch.zeros(tokenizer.vocab_size + 7)
    matcher.apply(scores)
    kept = (scores == 0).nonzero()[:, 0].tolist()
    assert kept == matcher.allowed().nonzero()[:, 0].tolist()
    assert {tokenizer.decode([i]).strip("a") for i in kept} == {""}


DEEP: dict[str, Any] = {"type": "integer"}
for _ in range(40):
    DEEP = {"type": "object", "properties": {"a": DEEP}}
HOSTILE: dict[str, Any] = {
    "repeats": lambda: Regex("(a{1000}){1000}"),
    "open end": lambda: Regex(".*a.{200}"),
    "stars": lambda: Regex("(((a*)*)*)*b"),
    "parentheses": lambda: Regex("(" * 50_000 + "a" + ")" * 50_000),
    "long": lambda: Regex("a" * 2**20),
    "look-ahead": lambda: Regex("(?=a)b"),
    "unclosed": lambda: Regex("(a"),
    "nothing": lambda: Regex(r"[^\x00-\x{10FFFF}]"),
    "itself": lambda: JsonSchema({"$ref": "#"}),
    "itself in all": lambda: JsonSchema({"allOf": [{"$ref": "#"}]}),
    "elsewhere": lambda: JsonSchema({"$ref": "http://example.com/schema"}),
    "unknown": lambda: JsonSchema({"type": "nonsense"}),
    "not": lambda: JsonSchema({"not": {}}),
    "items": lambda: JsonSchema({"type": "array", "minItems": 10**6, "items": {"type": "integer"}}),
    "characters": lambda: JsonSchema({"type": "string", "minLength": 10**9}),
    "multiples": lambda: JsonSchema({"type": "integer", "multipleOf": 99_999_989}),
    "multiples of multiples": lambda: JsonSchema({"allOf": [{"multipleOf": 9973}, {"multipleOf": 9967}]}),
    "coarse": lambda: JsonSchema({"multipleOf": 1e300}),
    "large": lambda: JsonSchema({"description": "x" * 2**20}),
    "deep": lambda: JsonSchema(DEEP),
    "deep text": lambda: JsonSchema("[" * 100_000),
    "no schema": lambda: JsonSchema("[1]"),
    "no JSON": lambda: JsonSchema("{"),
    "many texts": lambda: OneOf(tuple(map(str, range(10_000)))),
    "empty text": lambda: OneOf(("",)),
    "a text": lambda: OneOf("abc"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_constraints_cost_little(name: str) -> None:
    tokenizer = tokenizer_of("byte-bpe")
    start = time.process_time()
    try:
        written(HOSTILE[name](), tokenizer, most=40)
        refused = ""
    except ValueError as error:
        refused = str(error)
    assert time.process_time() - start < 2
    assert "\n" not in refused
    assert len(refused) < 500
    runs = name in ("repeats", "open end", "stars", "items", "characters")
    assert bool(refused) != runs, refused


def test_the_tokenizer_must_have_the_text() -> None:
    poor = train_tokenizer(LINES * 4, kind="unigram", vocab_size=124, min_frequency=1, byte_fallback=False)
    with pytest.raises(ValueError, match="has no tokens for"):
        written(JsonSchema({"type": "object"}), poor)


SEARCHES = {
    "greedy": Sampling(max_new_tokens=60),
    "sampling": Sampling(max_new_tokens=60, temperature=1.5, seed=3),
    "beams": Sampling(max_new_tokens=60, search=Beams(num_beams=3, num_return_sequences=2)),
    "contrastive": Sampling(max_new_tokens=60, search=Contrastive()),
}


@pytest.mark.parametrize("form", [decoder_only, encoder_decoder])
@pytest.mark.parametrize("search", SEARCHES)
def test_every_search_keeps_to_it(form: Any, search: str) -> None:
    tokenizer = tokenizer_of("byte-bpe")
    model = built(form(tokenizer.vocab_size + 5))
    schema = {"type": "object", "properties": {"a": {"type": "integer", "maximum": 99, "minimum": 0}, "b": {"enum": ["魏", "x"]}}}
    schema |= {"required": ["a", "b"], "additionalProperties": False}
    found = generate(model, tokenizer, ["话说", "The quick brown fox"], replace(SEARCHES[search], constraint=JsonSchema(schema)))
    assert {one.finish_reason for one in found} <= {"stop", "length"}
    for one in found:
        if one.finish_reason == "stop":
            jsonschema_rs.validate(schema, json.loads(one.text))
    free = generate(model, tokenizer, ["话说", "The quick brown fox"], SEARCHES[search])
    assert [one.text for one in free] != [one.text for one in found]


@pytest.mark.parametrize("ends", [True, False])
def test_requests_of_the_engine_keep_to_their_own(ends: bool) -> None:
    special = ("[PAD]", "[UNK]", "[EOS]") if ends else ("[PAD]", "[UNK]")
    tokenizer = train_tokenizer(LINES * 3, kind="byte-bpe", vocab_size=300, special_tokens=special)
    model = built(decoder_only(tokenizer.vocab_size))
    constraints = [OneOf(("天下", "大势")), Regex("[0-9]{4}"), None, OneOf(("no",))]
    ids = tokenizer.encode("话说天下")
    with Engine(model, tokenizer, slots=4, capacity=64) as engine:
        tickets = [
            engine.submit(Request(ids=ids, sampling=Sampling(max_new_tokens=20, temperature=1.0, seed=i, constraint=constraint)))
            for i, constraint in enumerate(constraints)
        ]
        runs = [ticket.result(30) for ticket in tickets]
        broken = engine.submit(Request(ids=ids, sampling=Sampling(constraint=Regex(r"[^\x00-\x{10FFFF}]"))))
        with pytest.raises(ValueError, match="the constraint asks for text that cannot be"):
            broken.result(30)
        assert engine.stats().slots_used == 0
    assert runs[0].text in ("天下", "大势")
    assert re.fullmatch("[0-9]{4}", runs[1].text)
    assert runs[3].text == "no"
    assert {runs[0].finish_reason, runs[1].finish_reason, runs[3].finish_reason} == {"stop"}


def test_only_constraints_are_constraints() -> None:
    with pytest.raises(ValueError, match="constraint: expected a JsonSchema, a Regex or a OneOf, got str"):
        Sampling(constraint="yes|no")  # type: ignore[arg-type]
