"""What the model reads and what it is asked for, looked at in the first batches: frame, padding, scored labels, the stop token.

Shapes: B batch, T tokens, U target tokens.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from triform import config
from triform.nn import IGNORE
from triform.objectives import Batch
from triform.objectives.answering import QuestionAnswering
from triform.objectives.reward_model import RewardModel
from triform.text import Tokenizer, framing

from .findings import Finding, graded, listed, percent
from .subject import Subject

_NEAR_THE_END = 4  # labels of a turn, the last of which are its stop token and the line break that some templates put after it


def check_labels(subject: Subject) -> Iterator[Finding]:
    """Samples of which nothing is scored teach nothing."""
    rows = [(batch.labels != IGNORE).any(1) for batch in subject.batches if batch.labels.ndim > 1]
    total = sum(map(len, rows)) or sum(batch.count for batch in subject.batches)
    empty = sum(int((~row).sum()) for row in rows)
    share = empty / max(1, total)
    if not empty:
        labels = sum(batch.count for batch in subject.batches)
        yield Finding("labels", "fine", f"every one of {total:,} samples has something to learn, {labels:,} labels in all")
        return
    yield Finding(
        "labels", graded(share, 0.01, 0.5), f"nothing is scored in {percent(share)} of the samples",
        "the answer is cut off before it begins, or missing: raise objective.length, or leave such rows out", {"share": share},
    )  # fmt: skip


def _runs(subject: Subject) -> Iterator[tuple[list[int], bool]]:
    """The last labels of each run of scored positions, and whether its row is full; of a stream only of runs that end within the row."""
    for batch in subject.batches:
        for index, row in enumerate(batch.labels):
            scored = row != IGNORE
            outside = torch.zeros(1, dtype=torch.int)
            edges = torch.nonzero(torch.diff(scored.int(), prepend=outside, append=outside))[:, 0].tolist()
            for start, stop in zip(edges[::2], edges[1::2], strict=True):
                if stop < len(row) or not subject.objective.cuts_rows:
                    yield row[start:stop][-_NEAR_THE_END:].tolist(), subject.is_full(batch, index)


def check_stop(subject: Subject) -> Iterator[Finding]:
    """What the model writes ends with a token that stops generation."""
    tokenizer = subject.tokenizer
    if tokenizer is None or not subject.writes or any(batch.labels.ndim != 2 for batch in subject.batches):
        return
    ends = set(tokenizer.ends)
    if not ends:
        advice = "take a tokenizer with an [EOS], or add one with tokenizer.add"
        yield Finding("stop token", "error", "the tokenizer has no token that ends a text, so answers would never stop", advice)
        return
    runs = list(_runs(subject))
    seen = ends.intersection(label for run, _ in runs for label in run)
    names = ", ".join(tokenizer.tokens(sorted(seen or ends)))
    if not runs and subject.objective.cuts_rows:
        yield Finding("stop token", "fine", f"documents end with {names}; none ends in the first batches")
        return
    others = [(run, full) for run, full in runs if not ends.intersection(run)]
    share = 1 - len(others) / max(1, len(runs))
    if share == 1:
        yield Finding("stop token", "fine", f"all of {len(runs):,} texts to write end with {names}", figures={"share": share})
        return
    says = f"{percent(share)} of {len(runs):,} texts to write end with {names}{_instead(tokenizer, [run for run, _ in others])}"
    advice = "a model trained so would not stop: put the end of a turn, or [EOS], into what the template marks as the assistant's"
    if all(full for _, full in others):
        advice = "the others are cut off: raise the objective's lengths, or leave long rows out"
    yield Finding("stop token", graded(1 - share, 0.02, 0.5), says, advice, {"share": share})


def _instead(tokenizer: Tokenizer, others: list[list[int]]) -> str:
    """What the others end with, where that is one special token."""
    last = {run[-1] for run in others}
    if len(last) == 1 and last <= tokenizer.special_ids:
        return f", the others with {tokenizer.tokens(last)[0]}, at which generation does not stop"
    return ""


def check_frame(subject: Subject) -> Iterator[Finding]:
    """Texts begin as they will when the model is used: with what the tokenizer's own template puts there."""
    tokenizer = subject.tokenizer
    if tokenizer is None:
        return
    wanted, ends = _frame(subject, tokenizer)
    starts = [start for batch in subject.batches for start in _starts(subject, batch, 2 + len(wanted))]
    if not starts:
        yield Finding("frame", "fine", "no text begins within the rows of the first batches")
        return
    bos = tokenizer.bos
    doubled = 0 if bos is None else sum(start[:2] == [bos, bos] for start in starts)
    if doubled:
        yield Finding(
            "frame", "error", f"{percent(doubled / len(starts))} of the texts begin with {tokenizer.tokens([bos or 0])[0]} twice",
            "take it out of the chat template, or out of the tokenizer's own template, which both put it there",
        )  # fmt: skip
        return
    if not wanted:
        yield Finding("frame", "fine", "texts begin without a token before them, as the tokenizer's template has it")
        return
    share = sum(start[: len(wanted)] == wanted for start in starts) / len(starts)
    names = " ".join(tokenizer.tokens(wanted))
    if share == 1:
        after = f" and end with {' '.join(tokenizer.tokens(ends))}" if ends else ""
        yield Finding("frame", "fine", f"texts begin with {names}{after}, as the tokenizer's template has it")
        return
    yield Finding(
        "frame", "error" if subject.recipe.train.start and share < 0.5 else "warning",
        f"the tokenizer's template puts {names} before a text, and {percent(share)} of {len(starts):,} samples begin so",
        "let the chat template begin with it ({{ bos_token }}), or take a tokenizer whose template says nothing of it", {"share": share},
    )  # fmt: skip


def _frame(subject: Subject, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """What stands before and after a text that this model reads."""
    spec = subject.spec
    if isinstance(spec, config.Transformer) and spec.form == "encoder-decoder":
        framed, after = framing.source(tokenizer, []), framing.template(tokenizer)[1]
        return framed[: len(framed) - len(after)], after
    if isinstance(subject.recipe.objective, QuestionAnswering | RewardModel):
        return ([], []) if subject.converses and tokenizer.chat_template else (list(framing.pair(tokenizer).before), [])
    if subject.writes or isinstance(spec, config.DualEncoder):
        return framing.opening(tokenizer), []
    framed = framing.judged(tokenizer, [])
    return framed[:-1], framed[-1:]


def _starts(subject: Subject, batch: Batch, width: int) -> Iterator[list[int]]:
    """The first tokens of each text in a batch; rows of a stream, and those that prompts were cut for, may begin in the middle of one."""
    if batch.inputs.is_floating_point():
        return
    numbers = None if batch.layout is None else batch.layout.documents
    for index, row in enumerate(batch.inputs):
        if not subject.objective.cuts_rows and not (subject.converses and subject.is_full(batch, index)):
            first = 0 if batch.mask is None else int(batch.mask[index].int().argmax())
            yield row[first : first + width].tolist()
        if numbers is not None:
            for place in (torch.nonzero(torch.diff(numbers[index]) > 0)[:, 0] + 1).tolist():
                if place + width <= len(row):
                    yield row[place : place + width].tolist()


def check_padding(subject: Subject) -> Iterator[Finding]:
    """Padding is masked and not scored, nothing else is masked, and there is not too much of it."""
    tokenizer = subject.tokenizer
    batches = [batch for batch in subject.batches if not batch.inputs.is_floating_point()]
    if tokenizer is None or not batches:
        return
    if why := next(filter(None, (_unmasked(batch, tokenizer) for batch in batches)), None):
        yield Finding("padding", "error", *why)
        return
    places = sum(batch.inputs.numel() + (0 if batch.target is None else batch.target.numel()) for batch in batches)
    share = 1 - sum(_read(batch) for batch in batches) / max(1, places)
    also = "; their token also ends texts, which the mask tells apart" if tokenizer.pad in tokenizer.ends else ""
    if share >= 0.5:
        advice = "set train.bucket: 8, so that rows of like length come together, or a shorter objective.length"
        yield Finding("padding", "warning", f"{percent(share)} of the places in a batch are padding", advice, {"share": share})
    else:
        yield Finding("padding", "fine", f"{percent(share)} of the places are padding, all masked{also}", figures={"share": share})


def _read(batch: Batch) -> int:
    return sum(
        x.numel() if mask is None else int(mask.sum())
        for x, mask in ((batch.inputs, batch.mask), (batch.target, batch.target_mask)) if x is not None
    )  # fmt: skip


def _unmasked(batch: Batch, tokenizer: Tokenizer) -> tuple[str, str] | None:
    """What is wrong with a batch's padding, and what to do."""
    pad, mask = tokenizer.pad, batch.mask
    if pad is not None and pad not in tokenizer.ends and pad != tokenizer.unk:
        read = batch.inputs == pad if mask is None else (batch.inputs == pad) & mask.bool()
        if bool(read.any()):
            name = tokenizer.tokens([pad])[0]
            return f"{name} is read as if it were text", f"leave {name} out of the data, or mask it in the objective's collate"
    seen = batch.mask if batch.target is None else batch.target_mask
    if seen is not None and batch.labels.shape == seen.shape and bool(((batch.labels != IGNORE) & ~seen.bool()).any()):
        return "padding is scored, so the model learns to write it", "give the labels of padded places IGNORE in the objective's collate"
    return None


def check_unknown(subject: Subject) -> Iterator[Finding]:
    """How much of the text the tokenizer has no token for."""
    tokenizer = subject.tokenizer
    if tokenizer is None:
        return
    if tokenizer.unk is None or tokenizer.unk in tokenizer.ends:
        yield Finding("unknown tokens", "fine", "the tokenizer spells out whatever it has no token for")
        return
    tokens = [x for batch in subject.batches for x in (batch.inputs, batch.target) if x is not None and not x.is_floating_point()]
    total = sum(_read(batch) for batch in subject.batches if not batch.inputs.is_floating_point())
    share = sum(int((x == tokenizer.unk).sum()) for x in tokens) / max(1, total)
    yield unknown_finding(share, total, ())


def unknown_finding(share: float, total: int, characters: tuple[str, ...]) -> Finding:
    """A share of unknown tokens among so many, with what they stand for as far as that is known."""
    which = f": {listed(characters, 10)}" if characters else ""
    severity = graded(share, 0.005, 0.1)
    help_ = "train the tokenizer on this text with a larger tokenizer.vocab_size, or one that spells out (kind: bpe)"
    advice = "" if severity == "fine" else help_
    figures = {"share": share, "tokens": total, "characters": list(characters)}
    return Finding("unknown tokens", severity, f"{percent(share)} of {total:,} tokens are unknown{which}", advice, figures)
