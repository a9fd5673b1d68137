"""A recipe, examined before its run: the rows, what becomes of them, the settings, the first loss, and ten examples learnt by heart."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

from triform.data.rows import BadRows
from triform.data.sources import open_source
from triform.data.transform import Transformed
from triform.objectives import Objective
from triform.planner.machine import total_memory
from triform.train.loop import Trainer
from triform.train.outlook import device_here, outlook
from triform.train.peak import choose_precision
from triform.train.prepare import Prepared, bad_rows, check_length, objective_of, splits, text_fingerprint
from triform.train.recipe import Recipe

from . import labels, rows, settings, tokens
from .conversations import check_rollout, check_serving, rolls
from .findings import Examination, Finding, graded, percent
from .loss import check_loss
from .overfit import check_overfit
from .subject import ENCODED_PICTURES, ENCODED_ROWS, MOST_ROWS, Part, Subject, encoded, no_samples, read_part

Report = Callable[[str, int, int], None]
_QUICK_ROWS, _QUICK_CHARACTERS = 200, 200_000


@dataclass(frozen=True)
class Examiner:
    """How a recipe is examined.

    against: evaluation sets whose text should not be in the training text, beside those of data.clean.overlap. rows: so many rows of
    a part are read; 0: all. overfit: whether ten examples are learnt by heart. report: called with a stage, how much of it is done, of
    how much.
    """

    against: Sequence[str] = ()
    rows: int = MOST_ROWS
    overfit: bool = False
    report: Report = lambda stage, done, total: None

    def examine(self, recipe: Recipe, name: str = "recipe") -> Examination:
        """Examine a recipe; nothing is left behind but cleaned text, which its run finds again. Raises ValueError as the run would
        for what is no recipe, or whose data cannot be read."""
        with tempfile.TemporaryDirectory(prefix="triform-doctor-") as place:
            return Examination("recipe", name, tuple(self._findings(recipe, Path(place))))

    def _findings(self, recipe: Recipe, folder: Path) -> Iterator[Finding]:
        check_length(recipe)
        bad = bad_rows(recipe.data) if recipe.data.clean is not None else BadRows(skip=True)
        self.report("reading", 0, 0)
        text = text_fingerprint(recipe.data)
        training, held = splits(recipe.data, text, progress=False, bad=bad)
        objective = objective_of(recipe, training, text, folder, bad)
        train, validation = read_part(training, self.rows), read_part(held, self.rows)
        prepared, share = _prepared(recipe, objective, (train, validation), folder, bad)
        yield from _check_bad(recipe, bad, train)
        subject = Subject(recipe, recipe.architecture(objective.vocab_size), objective, prepared.train, prepared.validation, share)
        yield from self._data(subject, train, validation, folder)
        yield from self._run(subject, prepared, train, folder)

    def _data(self, subject: Subject, train: Part, validation: Part, folder: Path) -> Iterator[Finding]:
        """What the rows tell."""
        compared = partial(self.report, "comparing texts")
        yield from rows.check_duplicates(train, subject.recipe.data)
        yield from rows.check_classes(subject, train, validation)
        yield from rows.check_overlap(train, validation, compared)
        clean = subject.recipe.data.clean
        named = [*self.against, *(clean.overlap.sources if clean is not None and clean.overlap is not None else ())]
        yield from rows.check_contamination(list(dict.fromkeys(named)), train, self.rows, compared)
        self.report("encoding", 0, 0)
        yield from rows.check_truncation(subject.objective, train.some(ENCODED_ROWS), folder)
        yield from rows.check_unknown_text(subject, train)

    def _run(self, subject: Subject, prepared: Prepared, train: Part, folder: Path) -> Iterator[Finding]:
        """What the run would do with them."""
        recipe = subject.recipe
        self.report("planning", 0, 0)
        plan = outlook(recipe, subject.spec, choose_precision(recipe.train.precision, device_here()))
        plain = replace(recipe.train, precision="fp32", linear="torch", compile=False, guard=None, track=(), samples=None)
        trainer = None
        if plan.memory.training.total <= (total_memory(device_here()) or plan.memory.capacity):
            self.report("beginning", 0, 0)
            try:
                trainer = Trainer(replace(recipe, train=plain), folder, progress=False, force=True, prepared=prepared)
            except ValueError as error:
                yield Finding("beginning", "error", str(error), "the run would stop with this line")
                return
            subject = replace(subject, source=trainer.train)
        yield from _checked(subject)
        yield from check_serving(subject, train.some(_QUICK_ROWS))
        yield from settings.check_plan(plan)
        if trainer is not None:
            yield from self._tried(subject, trainer)

    def _tried(self, subject: Subject, trainer: Trainer) -> Iterator[Finding]:
        """What the model does before it has learnt anything, and whether it can learn."""
        if rolls(subject):
            self.report("the first answers", 0, 0)
            yield from check_rollout(subject, trainer)
            if self.overfit:
                says = "there are no examples to learn by heart: the model learns from its own answers"
                yield Finding("overfit", "note", says, "look at `first answers`, and at rollouts.jsonl of a short run")
            return
        self.report("the first loss", 0, 0)
        yield from check_loss(subject, trainer)
        if self.overfit:
            yield check_overfit(subject, trainer, partial(self.report, "learning ten examples"))


def examine_recipe(recipe: Recipe, name: str = "recipe", *, against: Sequence[str] = (), overfit: bool = False) -> Examination:
    """Examine a recipe; see `Examiner`."""
    return Examiner(against=against, overfit=overfit).examine(recipe, name)


def first_look(trainer: Trainer) -> list[Finding]:
    """What may spoil a run that is about to begin, by the checks that take no time: warnings and errors alone."""
    recipe, nothing = trainer.recipe, trainer.train.samples
    held = trainer.validation.samples if trainer.validation is not None else nothing
    subject = Subject(recipe, trainer.spec, trainer.objective, trainer.train.samples, held, source=trainer.train)
    found = [*_checked(subject), *_truncated(subject)]
    if not rolls(subject):
        found += labels.check_unknown(subject)
    return [finding for finding in found if finding.severity in ("warning", "error")]


def _checked(subject: Subject) -> Iterator[Finding]:
    of_batches = (labels.check_labels, labels.check_stop, labels.check_frame, labels.check_padding)
    for check in (*(() if rolls(subject) else of_batches), settings.check_rate, settings.check_steps):
        yield from check(subject)
    if subject.tokenizer is not None and subject.converses:
        yield from tokens.check_template(subject.tokenizer, writes=True)


def _truncated(subject: Subject) -> Iterator[Finding]:
    """Truncation among the first rows of the first source."""
    data = subject.recipe.data
    source = open_source(data.sources[0].source, text=None, by=data.by, bad=BadRows(skip=True))
    some = Part(list(islice(Transformed(source, data.transform), _QUICK_ROWS)), whole=False).some(_QUICK_ROWS, _QUICK_CHARACTERS)
    with tempfile.TemporaryDirectory(prefix="triform-doctor-") as place, suppress(ValueError):  # of rows that the run has dealt with
        yield from rows.check_truncation(subject.objective, some, Path(place))


def _prepared(
    recipe: Recipe, objective: Objective, parts: tuple[Part, Part], folder: Path, bad: BadRows
) -> tuple[Prepared, float | None]:
    """The samples of some rows of both parts, and the share of the training rows that they are of (None: nobody counted those)."""
    most = ENCODED_PICTURES if hasattr(recipe.objective, "image") else ENCODED_ROWS
    train, validation = (part.some(most) for part in parts)
    made = encoded(objective, train, folder / "examined" / "train", bad)
    held = encoded(objective, validation, folder / "examined" / "validation", bad) if validation else no_samples()
    return Prepared(objective, made, held), len(train) / len(parts[0].rows) if parts[0].whole else None


def _check_bad(recipe: Recipe, bad: BadRows, train: Part) -> Iterator[Finding]:
    """Rows that cannot be read or trained on."""
    if not len(bad):
        return
    share = len(bad) / max(1, len(bad) + len(train.rows))
    says = f"{len(bad):,} rows ({percent(share)}) cannot be used; the first: {bad.first}"
    if recipe.data.skip_bad:
        yield Finding("bad rows", graded(share, 0.01, 0.5), says, "mend them: they are left out", {"rows": len(bad)})
    else:
        advice = "mend them, or leave them out with data.skip_bad=true; the run would stop at the first"
        yield Finding("bad rows", "error", says, advice, {"rows": len(bad), "reasons": dict(islice(bad.reasons.items(), 100))})
