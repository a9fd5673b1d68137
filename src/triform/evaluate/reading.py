"""Reading comprehension: answers to questions about passages, by SQuAD's rules and by CMRC's for Chinese."""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from triform.generate.answer import Answering, answer
from triform.generate.forms import use_of

from .files import found_in, some, text_of
from .statistics import Metric
from .task import Judged, Result, Settings, fingerprint
from .writing import written

_HAN = re.compile("[\u4e00-\u9fa5]")
_MARKS = frozenset("-:_*^/\\~`+=，。：？！“”；’《》…·、「」（）－～『』")  # those that CMRC's own script drops
_PIECES = re.compile(r"\w+|[^\w\s]")


class Asked(NamedTuple):
    """A question, its passage, and the answers that are right; none where the passage has no answer (SQuAD 2)."""

    question: str
    passage: str
    answers: tuple[str, ...]


def squad(judged: Judged, place: Path, settings: Settings) -> Result:
    """SQuAD's files, 1.1 and 2.0: exact match and F1 over words, as its own script has them (lower case, no articles or marks)."""
    return _read(judged, place, settings, "squad", (_squad_words, lambda one, other: f1(Counter(one), Counter(other))))


def cmrc(judged: Judged, place: Path, settings: Settings) -> Result:
    """CMRC 2018's files: exact match without marks, and F1 by the longest run of Han characters and words that answers share."""
    return _read(judged, place, settings, "cmrc", (cmrc_pieces, run_f1))


def _squad_words(text: str) -> list[str]:
    kept = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()


def cmrc_pieces(text: str) -> list[str]:
    """Han characters one by one, and what stands between them as words, in lower case and without marks."""
    pieces: list[str] = []
    rest = ""
    for character in text.lower().strip():
        if character in _MARKS:
            continue
        if _HAN.match(character):
            pieces += [*_PIECES.findall(rest), character]
            rest = ""
        else:
            rest += character
    return pieces + _PIECES.findall(rest)


def f1(one: Counter[str], other: Counter[str]) -> float:
    """Of two bags of words; 1 where both are empty."""
    if not one or not other:
        return float(one == other)
    return 2 * (one & other).total() / (one.total() + other.total())


def run_f1(one: Sequence[str], other: Sequence[str]) -> float:
    """By the longest run of pieces that both have; 1 where both are empty."""
    if not one or not other:
        return float(not one and not other)
    longest, row = 0, [0] * (len(other) + 1)
    for piece in one:
        row = [0] + [row[place] + 1 if piece == other[place] else 0 for place in range(len(other))]
        longest = max(longest, *row)
    return 2 * longest / (len(one) + len(other))


Rules = tuple[Callable[[str], list[str]], Callable[[Sequence[str], Sequence[str]], float]]


def _read(judged: Judged, place: Path, settings: Settings, kind: str, rules: Rules) -> Result:
    pieces, score = rules
    files = found_in(place, "*.json")
    asked: list[Asked] = []
    bad = 0
    for file in files:
        for one in _questions(file):
            if isinstance(one, Asked):
                asked.append(one)
            elif settings.skip_bad:
                bad += 1
            else:
                raise one
    some(asked, place)
    asked = asked[: settings.limit]
    found = _answers(judged, asked, settings)
    right, scores, items = [], [], []
    for one, text in zip(asked, found, strict=True):
        mine = pieces(text)
        wanted = [pieces(each) for each in one.answers] or [[]]
        right.append(mine in wanted)
        scores.append(max(score(mine, each) for each in wanted))
        items.append({"question": one.question, "answers": list(one.answers), "chosen": text, "right": right[-1], "f1": scores[-1]})
    metrics = [Metric.right("exact_match", right), Metric.average("f1", scores)]
    # the published files of CMRC have some that annotators wrote in their own words, and count them
    absent = sum(any(each not in one.passage for each in one.answers) for one in asked)
    notes = [f"{absent:,} of {len(asked):,} questions have an answer that does not stand in the passage"] if absent else []
    return Result(kind, place.stem, metrics, {}, fingerprint(files), bad=bad, items=items, notes=notes)


def _answers(judged: Judged, asked: Sequence[Asked], settings: Settings) -> list[str]:
    """By a head that points into the passage, or written by a language model."""
    if use_of(judged.model.config) == "answer":
        show = settings.on_progress
        total = len(asked)
        how = Answering(may_abstain=any(not one.answers for one in asked), length=judged.task.get("length"))
        questions, passages = [one.question for one in asked], [one.passage for one in asked]
        on_batch = None if show is None else lambda done: show(min(done, total), total)
        found = answer(judged.model, judged.tokenizer, questions, passages, how, on_batch=on_batch)
        return [one[0].text for one in found]
    prompts = [_prompt(one) for one in asked]
    return [text.strip() for text in written(judged, prompts, settings, most=32, stop=() if settings.chat else ("\n",))]


def _prompt(one: Asked) -> str:
    if _HAN.search(one.question):
        return f"{one.passage}\n\n问题：{one.question}\n答案："
    return f"{one.passage}\n\nQuestion: {one.question}\nAnswer:"


def _questions(file: Path) -> Iterator[Asked | ValueError]:
    """The questions of a file in SQuAD's shape, each that is none as the error that says why."""
    try:
        found = json.loads(text_of(file))
        paragraphs = [paragraph for article in found["data"] for paragraph in article["paragraphs"]]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: expected JSON as SQuAD has it, with data and paragraphs ({error!r:.80})") from None
    for number, paragraph in enumerate(paragraphs, 1):
        questions = paragraph.get("qas") if isinstance(paragraph, Mapping) else None
        if not isinstance(questions, list) or not isinstance(paragraph.get("context"), str):
            yield ValueError(f"{file}: paragraph {number}: expected a 'context' and 'qas'; mend it, or skip it (--skip-bad)")
            continue
        for question in questions:
            try:
                yield _question(paragraph["context"], question)
            except (ValueError, KeyError, TypeError) as error:
                name = question.get("id") if isinstance(question, Mapping) else None
                yield ValueError(f"{file}: paragraph {number}, question {name}: {error}; mend it, or skip it (--skip-bad)")


def _question(passage: str, found: Mapping[str, Any]) -> Asked:
    text, answers = found.get("question"), found.get("answers")
    if not isinstance(text, str) or not text.strip() or not isinstance(answers, list):
        raise ValueError("expected a 'question' and 'answers'")
    given = tuple(dict.fromkeys(str(one["text"]) for one in answers))
    if not given and not found.get("is_impossible"):
        raise ValueError("expected at least one answer")
    if any(not one.strip() for one in given):
        raise ValueError("expected answers with text, got an empty one")
    return Asked(text, passage, given)
