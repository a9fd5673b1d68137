"""Tasks whose answers a model writes: translations, summaries, sums."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from triform.generate import Sampling, generate

from .files import Line, found_in, read, records, some
from .statistics import Array, Metric
from .task import Judged, Result, Settings, fingerprint

_HAN = re.compile("[\u3400-\u9fff]")
_BATCH = 32
_SHOTS = 5


def written(judged: Judged, prompts: Sequence[str], settings: Settings, *, most: int, stop: Sequence[str] = ()) -> list[str]:
    """What a model writes after each prompt, greedily, at most `most` tokens where the settings do not say."""
    sampling = Sampling(max_new_tokens=settings.max_new_tokens or most, temperature=0, stop=tuple(stop))
    found: list[str] = []
    for start in range(0, len(prompts), _BATCH):
        some_of: list[Any] = list(prompts[start : start + _BATCH])
        if settings.chat:
            some_of = [[{"role": "user", "content": prompt}] for prompt in some_of]
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


def _library(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ModuleNotFoundError:
        raise ValueError(f'this task needs {name.split(".")[0]}, which is not installed; pip install "triform[evaluate]"') from None


def translation(judged: Judged, place: Path, settings: Settings) -> Result:
    """Translations, `source` and `target` in .jsonl, .csv or .tsv: BLEU and chrF of the corpus, by sacrebleu.

    BLEU takes sacrebleu's zh tokenizer where most references are Chinese, else 13a. The bootstrap is over sentences.
    """
    library = _library("sacrebleu.metrics")
    pairs, bad, files = _pairs(place, settings, (("source", "src"), ("target", "tgt")))
    wanted = [target for _, target in pairs]
    found = written(judged, _prompted(settings, [text for text, _ in pairs]), settings, most=128)
    chinese = 2 * sum(bool(_HAN.search(target)) for target in wanted) > len(wanted)
    tokenize = "zh" if chinese else "13a"
    metrics = [
        _corpus("bleu", library.BLEU(tokenize=tokenize), found, wanted),
        _corpus("chrf", library.CHRF(), found, wanted),
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
    library = _library("rouge_score.rouge_scorer")
    pairs, bad, files = _pairs(place, settings, (("text", "document", "article"), ("summary", "highlights")))
    found = written(judged, _prompted(settings, [text for text, _ in pairs]), settings, most=128)
    scorer = library.RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=Words())
    scores = [scorer.score(wanted, one) for (_, wanted), one in zip(pairs, found, strict=True)]
    metrics = [Metric.average(name, [one[name].fmeasure for one in scores]) for name in ("rouge1", "rouge2", "rougeL")]
    setting = _written_setting(settings, 128)
    return Result("summarisation", place.stem, metrics, setting, fingerprint(files), bad=bad, items=_items(pairs, found))


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
