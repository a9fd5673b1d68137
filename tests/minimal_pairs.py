"""Minimal pairs in BLiMP's manner, made from templates: a few phenomena of English grammar, forty pairs each."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

PEOPLE = (("teacher", "teachers"), ("doctor", "doctors"), ("child", "children"), ("woman", "women"), ("guest", "guests"))
THINGS = (("book", "books"), ("car", "cars"), ("house", "houses"), ("tooth", "teeth"), ("cake", "cakes"))
VERBS = (("sees", "see"), ("likes", "like"), ("has", "have"), ("was near", "were near"))
PAIRS_EACH = 40


def _agreement() -> list[tuple[str, str]]:
    rows = []
    for (one, many), (object_, _), (verb, verbs) in product(PEOPLE, THINGS, VERBS):
        rows += [(f"The {one} {verb} the {object_}.", f"The {one} {verbs} the {object_}.")]
        rows += [(f"The {many} {verbs} the {object_}.", f"The {many} {verb} the {object_}.")]
    return rows


def _distractor() -> list[tuple[str, str]]:
    rows = []
    for (one, many), (_, things), (verb, verbs) in product(PEOPLE, THINGS, VERBS):
        rows += [(f"The {one} behind the {things} {verb} it.", f"The {one} behind the {things} {verbs} it.")]
        rows += [(f"The {many} behind the {things[:-1]} {verbs} it.", f"The {many} behind the {things[:-1]} {verb} it.")]
    return rows


def _anaphor() -> list[tuple[str, str]]:
    rows = []
    for (one, many), verb in product((*PEOPLE, ("king", "kings")), ("hurt", "saw", "blamed", "praised")):
        rows += [(f"The {many} {verb} themselves.", f"The {many} {verb} itself.")]
        rows += [(f"The {one} {verb} the {many}.", f"The {one} {verb} a {many}.")]
    return rows


def _determiner() -> list[tuple[str, str]]:
    rows = []
    for (one, many), (who, _) in product(THINGS, PEOPLE):
        rows += [(f"The {who} bought this {one}.", f"The {who} bought this {many}.")]
        rows += [(f"The {who} bought these {many}.", f"The {who} bought these {one}.")]
    return rows


def _order() -> list[tuple[str, str]]:
    return [
        (f"The {who} put the {thing} on the table.", f"The {who} put on the table {thing} the.")
        for pair, (thing, _) in product(PEOPLE, THINGS) for who in pair
    ]  # fmt: skip


def _negation() -> list[tuple[str, str]]:
    return [
        (f"No {one} has ever seen the {thing}.", f"Some {one} has ever seen the {thing}.")
        for (one, _), (thing, _) in product(PEOPLE, (*THINGS, ("sea", ""), ("moon", ""), ("king", "")))
    ]  # fmt: skip


PHENOMENA = {
    "subject_verb_agreement": _agreement, "distractor_agreement": _distractor, "anaphor_agreement": _anaphor,
    "determiner_noun_agreement": _determiner, "word_order": _order, "negative_polarity": _negation,
}  # fmt: skip


def write(folder: Path) -> int:
    """Write a file for each phenomenon, as BLiMP has them; returns the number of pairs."""
    count = 0
    for name, make in PHENOMENA.items():
        rows = make()
        chosen = [rows[place * len(rows) // PAIRS_EACH] for place in range(PAIRS_EACH)]
        written = [{"sentence_good": good, "sentence_bad": bad, "UID": name} for good, bad in chosen]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written), "utf-8")
        count += len(written)
    return count
