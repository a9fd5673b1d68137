"""Greedy generation, token for token as the reference's own `generate`, in padded batches."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from parity.cases import CASES
from parity.lively import BOTH, DECODERS, START, batch, loaded, reference, upto
from transformers import GenerationConfig

from triform import hub
from triform.generate import Sampling, generate, generate_ids
from triform.text import framing, train_tokenizer

NEW = 30
FORCED = 7  # the token that is forced to come first where an encoder-decoder has one
PENALTY = 5.0  # for encoder-decoders, as a random one says but one token else


def theirs(name: str, ends: list[int], *, least: int = 0, forced: int | None = None) -> list[list[int]]:
    """What the reference generates after the prompt (and after what its decoder begins with), each row up to its end."""
    model, _ = reference(name)
    ids, mask = batch(name)
    begin = 0 if forced is None else 1
    how: dict[str, Any] = {"max_new_tokens": NEW + begin, "min_new_tokens": least + begin, "do_sample": False, "num_beams": 1}
    how |= {"eos_token_id": ends or None, "pad_token_id": 0, "forced_bos_token_id": forced}
    how |= {"decoder_start_token_id": START, "repetition_penalty": PENALTY} if CASES[name].form == "both" else {}
    out = model.generate(input_ids=ids, attention_mask=mask, generation_config=GenerationConfig(**how))
    made = out[:, 1 + begin if CASES[name].form == "both" else ids.shape[1] :].tolist()
    return [upto(row, ends) for row in made]


def ours(
    name: str, ends: list[int], *, least: int = 0, forced: int | None = None, start: int = START, model: Any = None
) -> list[list[int]]:
    ids, mask = batch(name)
    first = None if CASES[name].form != "both" else [start] if forced is None else [start, forced]
    penalty = 1.0 if first is None else PENALTY
    sampling = Sampling(max_new_tokens=NEW, min_new_tokens=least, repetition_penalty=penalty)
    return [run.ids for run in generate_ids(model or loaded(name), ids, mask, sampling, eos=ends, start=first)]


@lru_cache(maxsize=None)
def free(name: str) -> list[list[int]]:
    """What the reference generates when nothing ends it."""
    return theirs(name, [])


def two_ends(rows: list[list[int]]) -> list[int]:
    """Two tokens at which rows would end, late enough and each in a place where the other would not."""
    for first, second in product(dict.fromkeys(rows[0][4:]), dict.fromkeys(rows[1][4:])):
        lengths = [[len(upto(row, ends)) for row in rows] for ends in ([first], [second], [first, second])]
        if lengths[2] not in lengths[:2] and max(lengths[2]) > 4:
            return [first, second]
    raise AssertionError("a model that repeats itself shows little")


@pytest.mark.parametrize("name", DECODERS + BOTH)
def test_tokens_are_the_references(name: str) -> None:
    rows = free(name)
    assert len({tuple(row) for row in rows}) == 3, "rows that are alike would hide a mixed up batch"
    assert len({token for row in rows for token in row}) > 4, "a model that repeats itself would hide much"
    assert ours(name, []) == rows


@pytest.mark.parametrize("name", DECODERS + BOTH)
def test_several_ends_and_a_least_length(name: str) -> None:
    ends = two_ends(free(name))
    ended = theirs(name, ends)
    assert ours(name, ends) == ended
    assert ours(name, ends[:1]) != ended, "the second end was of no consequence"
    longer = theirs(name, ends, least=12)
    assert ours(name, ends, least=12) == longer
    assert longer != ended
    assert min(map(len, longer)) > 12


@pytest.mark.parametrize("name", BOTH)
def test_what_the_decoder_begins_with(name: str) -> None:
    forced = theirs(name, [], forced=FORCED)
    assert ours(name, [], forced=FORCED) == forced
    assert ours(name, []) != forced, "the forced token was of no consequence"
    assert ours(name, [], start=START + 3) != free(name), "another start was of no consequence"


def test_a_wrong_window_is_seen() -> None:
    model = loaded("mistral")
    spec = model.config
    blocks = tuple(replace(block, attention=replace(block.attention, window=5)) for block in spec.decoder.pattern)
    other = hub.load_public(_changed(reference("mistral")[1], sliding_window=5))
    assert other.config.decoder.pattern == blocks
    assert ours("mistral", [], model=other) != free("mistral")


def test_padding_on_the_wrong_side_is_seen() -> None:
    ids, mask = batch("llama")
    found = generate_ids(loaded("llama"), ids.flip(1), mask.flip(1), Sampling(max_new_tokens=NEW))
    assert [run.ids for run in found] != free("llama")


# The same through a folder's own settings and tokenizer

PROMPTS = ["天下大势", "the fox", "合久必分。"]
LINES = ["天下大势，分久必合，合久必分。", "the quick brown fox jumps over the lazy dog"]


def _changed(folder: Path, **settings: Any) -> Path:
    """The folder with some settings of its config.json changed."""
    copy = folder.parent / f"{folder.name}-{'-'.join(settings)}"
    copy.mkdir(exist_ok=True)
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    told = json.loads((folder / "config.json").read_text("utf-8"))
    (copy / "config.json").write_text(json.dumps(told | settings), "utf-8")
    return copy


@pytest.mark.parametrize(("name", "settings"), [("llama", {}), ("bart", {"forced_bos_token_id": FORCED}), ("t5", {})])
def test_a_folders_settings_are_heeded(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """A folder whose tokenizer has fewer tokens than its model, and whose generation_config.json says how to begin and end."""
    both = CASES[name].form == "both"
    for file in reference(name)[1].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    train_tokenizer(LINES, kind="characters", min_frequency=1).save(tmp_path)
    sampling = Sampling(max_new_tokens=NEW, repetition_penalty=PENALTY)

    def made(ends: list[int], **how: Any) -> list[list[int]]:
        told = settings | {"eos_token_id": ends} | ({"decoder_start_token_id": 3} if both else {})
        (tmp_path / "generation_config.json").write_text(json.dumps(told), "utf-8")
        model, tokenizer = hub.load(tmp_path)
        assert tokenizer.ends == ends
        assert tokenizer.start == ([3, *settings.values()] if both else [])
        return [found.ids for found in generate(model, tokenizer, PROMPTS, sampling, **how)]

    model, tokenizer = hub.load(tmp_path)
    first = [3, *settings.values()] if both else None
    unknown = range(tokenizer.vocab_size, CASES[name].arguments["vocab_size"])
    read = [torch.tensor([ids]) for ids in _read(tokenizer, both)]
    rows = [generate_ids(model, ids, None, sampling, start=first, barred=unknown)[0].ids for ids in read]
    ends = two_ends(rows)
    assert made(ends) == [upto(row, ends) for row in rows]
    assert made(ends[:1]) != [upto(row, ends) for row in rows]
    assert not both or made(ends, start=8) != [upto(row, ends) for row in rows]
    without = [generate_ids(model, ids, None, sampling, start=first)[0].ids for ids in read]
    assert max(map(max, without)) in unknown, "the ids that only the model has were never the best"


def _read(tokenizer: Any, both: bool) -> list[list[int]]:
    """What the model reads of the prompts."""
    return [framing.source(tokenizer, ids) for ids in tokenizer.encode_batch(PROMPTS)] if both else framing.prompts(tokenizer, PROMPTS)
