"""Multiple choice by likelihood: the answer that the model finds most probable, over BLiMP, MMLU, CMMLU, C-Eval and plain files."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

from triform.config.files import read_yaml

from .files import Line, found_in, read, records, some
from .likelihood import log_likelihoods
from .statistics import Metric
from .task import Judged, Result, Settings, fingerprint

_LETTERS = "ABCDEFGHIJ"
_EAST_ASIAN = re.compile(r"[\u2e80-\u9fff\uff00-\uffef]")


@dataclass(frozen=True)
class Question:
    """What is asked, the answers that it is scored with (as they follow it), the right one's number, and the part of the task."""

    context: str
    options: tuple[str, ...]
    answer: int
    group: str = ""


def _score(
    judged: Judged, questions: Sequence[Question], settings: Settings, normalised: bool
) -> tuple[list[Metric], list[dict[str, Any]]]:
    """`accuracy` by the sums of log-probabilities, and `accuracy_normalised` by them over the answers' characters."""
    pairs = [(one.context, option) for one in questions for option in one.options]
    found = log_likelihoods(judged.model, judged.tokenizer, pairs, on_rows=settings.on_progress)
    right: list[bool] = []
    right_normalised: list[bool] = []
    items, at = [], 0
    for one in questions:
        own = found[at : at + len(one.options)]
        at += len(own)
        sums = [each.log_prob for each in own]
        chosen = _first_best(sums)
        right.append(chosen == one.answer)
        by_length = _first_best([total / max(1, len(option.strip())) for total, option in zip(sums, one.options, strict=True)])
        right_normalised.append(by_length == one.answer)
        items.append({
            "question": one.context, "options": list(one.options), "log_probs": sums, "answer": one.answer, "chosen": chosen,
            "right": right[-1], "part": one.group, "cut_tokens": max(each.cut for each in own),
        })  # fmt: skip
    metrics = [Metric.right("accuracy", right)]
    if normalised:
        metrics.append(Metric.right("accuracy_normalised", right_normalised))
    return metrics, items


def _first_best(values: Sequence[float]) -> int:
    """The number of the greatest value, the first of several, as NumPy and lm-evaluation-harness have it."""
    return max(range(len(values)), key=values.__getitem__)


def _result(
    kind: str, judged: Judged, place: Path, settings: Settings, data: tuple[list[Question], int, Sequence[Path]], **setting: Any
) -> Result:
    questions, bad, files = data
    some(questions, place)
    metrics, items = _score(judged, questions, settings, normalised=kind == "choice")
    cut = sum(1 for one in items if one["cut_tokens"])
    notes = [f"{cut:,} of {len(items):,} questions are longer than the model reads and were cut at their beginning"] if cut else []
    if judged.model.config.form == "encoder-only":
        notes.append("by pseudo-log-likelihood: each token of an answer hidden in turn")
    return Result(kind, place.stem, metrics, setting, fingerprint(files), [one.group for one in questions], bad, items, notes)


def blimp(judged: Judged, place: Path, settings: Settings) -> Result:
    """Minimal pairs in BLiMP's format: .jsonl with `sentence_good` and `sentence_bad`, a part for each `UID`, else for each file."""
    files = found_in(place, "*.jsonl")

    def make(line: Line) -> Question:
        uid = line.fields.get("UID")
        options = (line.text("sentence_good"), line.text("sentence_bad"))
        return Question("", options, 0, uid if isinstance(uid, str) else line.file.stem)

    questions, bad = read(chain.from_iterable(map(records, files)), make, skip_bad=settings.skip_bad, limit=settings.limit)
    return _result("blimp", judged, place, settings, (questions, bad, files))


def choice(judged: Judged, place: Path, settings: Settings) -> Result:
    """Questions in .jsonl: `question` (or context, prompt, ctx), `choices` (or options, endings) and `answer` (or label, answerKey,
    gold): the right one's number from 0, letter or text."""
    files = found_in(place, "*.jsonl", "*.json")
    questions, bad = read(chain.from_iterable(map(records, files)), _plain, skip_bad=settings.skip_bad, limit=settings.limit)
    return _result("choice", judged, place, settings, (questions, bad, files))


def _plain(line: Line) -> Question:
    context = line.text("question", "context", "prompt", "ctx", "query")
    found: Any = next((line.fields[name] for name in ("choices", "options", "endings") if name in line.fields), None)
    labels: Sequence[Any] = _LETTERS
    if isinstance(found, Mapping):  # ARC's {"text": [...], "label": [...]}
        found, labels = found.get("text"), found.get("label") or _LETTERS
    if not isinstance(found, list) or len(found) < 2 or not all(isinstance(one, str) and one.strip() for one in found):
        raise line.error("expected at least two texts in 'choices'")
    named = next((line.fields[name] for name in ("answer", "label", "answerKey", "gold") if name in line.fields), None)
    answer = _number(named, found, labels)
    if answer is None:
        raise line.error(f"expected in 'answer' the number from 0, letter or text of one of {len(found)} choices, got {str(named)[:40]!r}")
    group = line.fields.get("subject") or line.fields.get("category") or ""
    return Question(context, tuple(joined(context, one) for one in found), answer, str(group))


def _number(named: Any, choices: Sequence[str], labels: Sequence[Any]) -> int | None:
    if isinstance(named, bool) or not isinstance(named, int | str):
        return None
    if isinstance(named, str):
        if named in choices:
            return choices.index(named)
        if named.strip() in list(labels):
            return list(labels).index(named.strip())
        named = int(named) if named.strip().isdecimal() else -1
    return named if 0 <= named < len(choices) else None


def joined(context: str, answer: str) -> str:
    """An answer as it follows a question: after a blank, but for scripts without blanks."""
    answer = answer.strip()
    bare = context[-1:].isspace() or _EAST_ASIAN.match(context[-1:]) or _EAST_ASIAN.match(answer)
    return answer if bare else " " + answer


@dataclass(frozen=True)
class Exam:
    """Questions with letters to answer, in a folder with a file for each subject.

    folders: where the questions may lie, the first that is there; head: of a question's prompt, with {subject}; cue: before the
    letter; columns: of tables without a head.
    """

    folders: tuple[str, ...]
    head: str
    cue: str
    columns: tuple[str, ...] | None = None


EXAMS = {
    "mmlu": Exam(
        ("test", "val"), "The following are multiple choice questions (with answers) about {subject}.\n\n", "Answer:",
        ("question", "a", "b", "c", "d", "answer"),
    ),
    "cmmlu": Exam(("test",), "以下是关于{subject}的单项选择题，请直接给出正确答案的选项。\n\n", "答案："),
    "ceval": Exam(("val", "test"), "以下是中国关于{subject}的单项选择题，请选出其中的正确答案。\n\n", "答案："),
}  # fmt: skip
_SHOTS = 5


def exam(kind: str) -> Callable[[Judged, Path, Settings], Result]:
    """The task of an exam of `EXAMS`."""

    def measure(judged: Judged, place: Path, settings: Settings) -> Result:
        return _sit(kind, judged, place, settings)

    measure.__doc__ = f"The files of {kind}: a .csv for each subject, worked examples from `dev`, each subject a part."
    return measure


def _sit(kind: str, judged: Judged, place: Path, settings: Settings) -> Result:
    own = EXAMS[kind]
    files = found_in(place, *(f"{folder}/*.csv" for folder in own.folders), "*.csv")
    shots = _SHOTS if settings.shots is None else settings.shots
    questions: list[Question] = []
    bad = 0
    used = list(files)
    for file in files:
        subject = _subject(file)
        examples: list[tuple[str, str]] = []
        if shots:
            worked = _examples_of(file, subject)
            if worked is not None:
                lines = records(worked, own.columns)
                examples, wrong = read(lines, lambda line: _asked(line, own), skip_bad=settings.skip_bad, limit=shots)
                bad += wrong
                used.append(worked)
            if len(examples) < shots and settings.shots is not None:
                raise ValueError(f"{file}: expected {shots} worked examples beside it, in ../dev, found {len(examples)}; lower shots")
        head = own.head.format(subject=_called(kind, subject))
        head += "".join(f"{text} {letter}\n\n" for text, letter in examples)

        def make(line: Line, head: str = head, subject: str = subject) -> Question:
            text, letter = _asked(line, own)
            return Question(head + text, tuple(f" {one}" for one in _LETTERS[:4]), _LETTERS.index(letter), subject)

        left = None if settings.limit is None else settings.limit - len(questions)
        found, wrong = read(records(file, own.columns), make, skip_bad=settings.skip_bad, limit=left)
        questions, bad = questions + found, bad + wrong
    result = _result(kind, judged, place, settings, (questions, bad, used), shots=shots)
    if shots and len(used) == len(files):
        result.setting["shots"] = 0
        result.notes.append("no worked examples, as there is no folder `dev` beside the questions")
    return result


def _subject(file: Path) -> str:
    """The subject by a file's name: anatomy_test.csv, anatomy.csv."""
    return re.sub("_(dev|val|test)$", "", file.stem)


def _called(kind: str, subject: str) -> str:
    """What the harness calls a subject in its prompt."""
    return _names().get(kind, {}).get(subject) or subject.replace("_", " ")


@lru_cache(maxsize=1)
def _names() -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = read_yaml(Path(__file__).with_name("subjects.yaml"))
    return found


def _examples_of(file: Path, subject: str) -> Path | None:
    folder = file.parent.parent / "dev"
    return next((one for one in (folder / f"{subject}_dev.csv", folder / f"{subject}.csv") if one.is_file() and one != file), None)


def _asked(line: Line, own: Exam) -> tuple[str, str]:
    """A question with its answers, up to where the letter follows, and the letter."""
    letter = line.text("answer").strip().upper()
    if letter not in _LETTERS[:4]:
        raise line.error(f"expected A, B, C or D as the answer, got {letter[:20]!r}")
    answers = "".join(f"{name.upper()}. {line.text(name).strip()}\n" for name in "abcd")
    return f"{line.text('question').strip()}\n{answers}{own.cue}", letter


mmlu, cmmlu, ceval = map(exam, EXAMS)
