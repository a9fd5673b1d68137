"""Tasks whose answers a model writes: translations, summaries, sums."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from triform.data.conversations import Messages, conversation
from triform.data.conversations import prompt as asked_in
from triform.generate import Conversation, Sampling, generate

from .files import Line, found_in, library, read, records, some
from .statistics import Array, Metric
from .task import Judged, Result, Settings, fingerprint

_HAN = re.compile("[\u3400-\u9fff]")
_BATCH = 32
_SEEDS = 2**30  # rows of a run, each with a seed of its own
_SHOTS = 5


def written(
    judged: Judged, prompts: Sequence[str | Conversation], settings: Settings,
    *, most: int, stop: Sequence[str] = (), temperature: float = 0.0,
) -> list[str]:  # fmt: skip
    """What a model writes after each prompt, at most `most` tokens where the settings do not say.

    temperature: 0 is greedily; above it, with top-p 0.95.
    """
    sampling = Sampling(max_new_tokens=settings.max_new_tokens or most, stop=tuple(stop))
    found: list[str] = []
    for start in range(0, len(prompts), _BATCH):
        some_of: list[Any] = list(prompts[start : start + _BATCH])
        if settings.chat:
            some_of = [[{"role": "user", "content": one}] if isinstance(one, str) else one for one in some_of]
        if temperature:
            seeds = tuple(settings.seed * _SEEDS + start + row for row in range(len(some_of)))
            sampling = replace(sampling, temperature=temperature, top_p=0.95, seed=seeds)
        found += [one.text for one in generate(judged.model, judged.tokenizer, some_of, sampling)]
        if settings.on_progress is not None:
            settings.on_progress(len(found), len(prompts))
    return found


def _pairs(
    place: Path, settings: Settings, names: tuple[tuple[str, ...], tuple[str, ...]]
) -> tuple[list[tuple[str, str]], int, list[Path]]:
    """Inputs and references of .jsonl, .csv or .tsv files with a head, how many lines were bad, and the files."""
    files = found_in(place, "*.jsonl", "*.csv", "*.tsv")
    lines = chain.from_iterable(map(records, files))
    found, bad = read(lines, lambda line: (line.text(*names[0]), line.text(*names[1])), skip_bad=settings.skip_bad, limit=settings.limit)
    some(found, place)
    return found, bad, files


def _prompted(settings: Settings, texts: Sequence[str]) -> list[str]:
    return [settings.prompt.replace("{text}", text) for text in texts]


def translation(judged: Judged, place: Path, settings: Settings) -> Result:
    """Translations, `source` and `target` in .jsonl, .csv or .tsv: BLEU and chrF of the corpus, by sacrebleu.

    BLEU takes sacrebleu's zh tokenizer where most references are Chinese, else 13a. The bootstrap is over sentences.
    """
    sacrebleu = library("sacrebleu.metrics")
    pairs, bad, files = _pairs(place, settings, (("source", "src"), ("target", "tgt")))
    wanted = [target for _, target in pairs]
    found = written(judged, _prompted(settings, [text for text, _ in pairs]), settings, most=128)
    chinese = 2 * sum(bool(_HAN.search(target)) for target in wanted) > len(wanted)
    tokenize = "zh" if chinese else "13a"
    metrics = [
        _corpus("bleu", sacrebleu.BLEU(tokenize=tokenize), found, wanted),
        _corpus("chrf", sacrebleu.CHRF(), found, wanted),
    ]
    setting = {"tokenize": tokenize, **_written_setting(settings, 128)}
    return Result("translation", place.stem, metrics, setting, fingerprint(files), bad=bad, items=_items(pairs, found))


def _corpus(name: str, metric: Any, found: Sequence[str], wanted: Sequence[str]) -> Metric:
    """A figure of sacrebleu's from what each sentence adds to its counts, as sacrebleu's own tests of significance take it."""
    rows = np.array(metric._extract_corpus_statistics(list(found), [list(wanted)]), dtype=np.float64)

    def of(sums: Array, count: int) -> Array:
        flat = sums.reshape(-1, rows.shape[1])
        scores = [metric._compute_score_from_stats([int(one) for one in row]).score for row in flat]
        return np.array(scores).reshape(sums.shape[:-1])

    return Metric(name, rows, of)


def _items(pairs: Sequence[tuple[str, str]], found: Sequence[str]) -> list[dict[str, Any]]:
    return [{"text": text, "answer": wanted, "written": one} for (text, wanted), one in zip(pairs, found, strict=True)]


def _written_setting(settings: Settings, most: int) -> dict[str, Any]:
    return {"max_new_tokens": settings.max_new_tokens or most, "chat": settings.chat, "prompt": settings.prompt}


class Words:
    """Cuts text for ROUGE: Han characters one by one, letters and digits as words in lower case."""

    def tokenize(self, text: str) -> list[str]:
        """The pieces of a text."""
        return re.findall(r"[\u3400-\u9fff]|[^\W_\u3400-\u9fff]+", text.lower())


def summarisation(judged: Judged, place: Path, settings: Settings) -> Result:
    """Summaries, `text` and `summary` in .jsonl, .csv or .tsv: the mean F of ROUGE-1, ROUGE-2 and ROUGE-L, by rouge-score.

    Chinese is cut into characters.
    """
    rouge = library("rouge_score.rouge_scorer")
    pairs, bad, files = _pairs(place, settings, (("text", "document", "article"), ("summary", "highlights")))
    found = written(judged, _prompted(settings, [text for text, _ in pairs]), settings, most=128)
    scorer = rouge.RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=Words())
    scores = [scorer.score(wanted, one) for (_, wanted), one in zip(pairs, found, strict=True)]
    metrics = [Metric.average(name, [one[name].fmeasure for one in scores]) for name in ("rouge1", "rouge2", "rougeL")]
    setting = _written_setting(settings, 128)
    return Result("summarisation", place.stem, metrics, setting, fingerprint(files), bad=bad, items=_items(pairs, found))


class Question(NamedTuple):
    """The turns before an answer, and the answers that are right."""

    turns: Messages
    answers: tuple[str, ...]


def exact(judged: Judged, place: Path, settings: Settings) -> Result:
    """Questions with one right answer, in any shape of `triform.data.conversations` (`question` and `answer`, `messages`, …), or with
    a list of right `answers`: the share of exact matches without marks at the ends (`plain`), and of texts that have the answer in
    them, as the last number where it is one."""
    files = found_in(place, "*.jsonl", "*.csv", "*.tsv", "*.parquet")
    lines = chain.from_iterable(map(records, files))
    asked, bad = read(lines, lambda line: _question(line, settings.chat), skip_bad=settings.skip_bad, limit=settings.limit)
    some(asked, place)
    prompts: list[Any] = [one.turns if settings.chat else settings.prompt.replace("{text}", one.turns[0]["content"]) for one in asked]
    several = any("\n" in answer.strip() for one in asked for answer in one.answers)
    stop = () if settings.chat or several or judged.model.config.form == "encoder-decoder" else ("\n",)
    found = written(judged, prompts, settings, most=64, stop=stop)
    right = [plain(text) in map(plain, one.answers) for text, one in zip(found, asked, strict=True)]
    inside = [any(holds(text, answer) for answer in one.answers) for text, one in zip(found, asked, strict=True)]
    items = [
        {"text": one.turns[-1]["content"], "answers": list(one.answers), "written": text, "right": same}
        for one, text, same in zip(asked, found, right, strict=True)
    ]
    metrics = [Metric.right("exact_match", right), Metric.right("exact_match_flexible", inside)]
    return Result("exact", place.stem, metrics, _written_setting(settings, 64), fingerprint(files), bad=bad, items=items)


def _question(line: Line, chat: bool) -> Question:
    several = line.fields.get("answers")
    try:
        if several is None:
            *turns, last = conversation(line.fields).messages
            several = [last.get("content")]
        else:
            turns = list(asked_in(line.fields).messages)
    except ValueError as error:
        raise line.error(str(error)) from None
    if not isinstance(several, list) or not several or not all(isinstance(one, str) and one.strip() for one in several):
        raise line.error("expected a text as the answer, or several in 'answers'")
    if not turns or (not chat and (len(turns) > 1 or not isinstance(turns[0]["content"], str))):
        raise line.error(f"expected a single question, got {len(turns)} turns before the answer; ask them as a conversation (--chat)")
    return Question(tuple(turns), tuple(several))


def plain(text: str) -> str:
    """A text as answers are compared: NFKC, in lower case, single blanks, without blanks and marks at its ends."""
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    kept = [place for place, character in enumerate(text) if unicodedata.category(character)[0] not in "PZ"]
    if not kept:
        return text
    first = kept[0]
    if first and text[first].isdigit() and text[first - 1] == "-":
        first -= 1
    return text[first : kept[-1] + 1]


def holds(text: str, answer: str) -> bool:
    """Whether an answer stands in a text; a number must be the last one there."""
    wanted = plain(answer)
    if _NUMBER.fullmatch(wanted):
        return last_number(unicodedata.normalize("NFKC", text)) == _amount(wanted)
    return wanted in plain(text)


_AFTER_MARK = re.compile(r"#### (-?[0-9.,]+)")
_NUMBER = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")


def _amount(text: str) -> str:
    return text.replace(",", "").replace("$", "").removesuffix(".")


def marked_number(text: str) -> str | None:
    """The number after "####", as GSM8K's answers end; None where there is none."""
    found = _AFTER_MARK.search(text)
    return _amount(found[1]) if found else None


def last_number(text: str) -> str | None:
    """The last number of a text; None where there is none."""
    found = _NUMBER.findall(text)
    return _amount(found[-1]) if found else None


def gsm8k(judged: Judged, place: Path, settings: Settings) -> Result:
    """Arithmetic in GSM8K's format, `question` and `answer` that ends in "#### number": the share of exact matches of the number
    after "####", and of the last number (lm-evaluation-harness' strict and flexible filters); five worked examples of train.jsonl."""
    files = found_in(place, "test.jsonl", "*.jsonl")

    def make(line: Line) -> tuple[str, str]:
        answer = line.text("answer")
        if marked_number(answer) is None:
            raise line.error("expected an answer that ends in '#### ' and a number")
        return line.text("question"), answer

    asked, bad = read(chain.from_iterable(map(records, files)), make, skip_bad=settings.skip_bad, limit=settings.limit)
    some(asked, place)
    worked = files[0].with_name("train.jsonl")
    shots = _SHOTS if settings.shots is None else settings.shots
    examples: list[tuple[str, str]] = []
    if shots and worked.is_file() and worked not in files:
        examples, _ = read(records(worked), make, skip_bad=settings.skip_bad, limit=shots)
        files = [*files, worked]
    if settings.shots is not None and len(examples) < shots:
        raise ValueError(f"{place}: expected {shots} worked examples in train.jsonl beside it, found {len(examples)}; lower shots")
    head = "".join(f"Question: {question}\nAnswer: {answer}\n\n" for question, answer in examples)
    prompts = [f"{head}Question: {question}\nAnswer:" for question, _ in asked]
    found = written(judged, prompts, settings, most=256, stop=("Question:",))
    wanted = [marked_number(answer) for _, answer in asked]
    readers: dict[str, Callable[[str], str | None]] = {"exact_match": marked_number, "exact_match_flexible": last_number}
    metrics = [
        Metric.right(name, [reader(text) == number for text, number in zip(found, wanted, strict=True)]) for name, reader in readers.items()
    ]
    setting = {"shots": len(examples), "max_new_tokens": settings.max_new_tokens or 256, "chat": settings.chat}
    return Result("gsm8k", place.stem, metrics, setting, fingerprint(files), bad=bad, items=_items(asked, found))
