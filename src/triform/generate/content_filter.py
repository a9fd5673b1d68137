"""A classifier that says which texts are not to pass: what is asked of a model, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from triform import config, hub
from triform.text import Tokenizer
from triform.text.framing import judged, windows

from .classify import Judgement, Problem, classify
from .forms import Module, expect
from .judging import longest_row


@dataclass(frozen=True)
class Verdict:
    """What a filter says of a text: for each category whether it is flagged, and its score."""

    categories: dict[str, bool]
    scores: dict[str, float]

    @property
    def flagged(self) -> bool:
        """Whether any category is."""
        return any(self.categories.values())

    @property
    def reason(self) -> str:
        """The category that is flagged with the highest score, and that score: "negative, 97 %"; empty where none is."""
        found = [name for name, flagged in self.categories.items() if flagged]
        worst = max(found, key=lambda name: self.scores[name], default=None)
        return "" if worst is None else f"{worst}, {100 * self.scores[worst]:.0f} %"


def verdict(judgement: Judgement, problem: Problem | None) -> Verdict:
    """A classifier's judgement as a verdict. Every label but the first is a category to flag.

    It is flagged where it is the most probable label; or, where several labels may fit a text, is more probable than not.
    """
    scores = dict(list(judgement.scores.items())[1:])
    several = problem == "multi_label_classification"
    return Verdict({name: score > 0.5 if several else name == judgement.label for name, score in scores.items()}, scores)


class ContentFilter:
    """A classifier as a filter. A text that is longer than it reads is judged in parts, and flagged where one of them is.

    labels: of the model's head; all but the first are categories to flag. length: tokens of a text, as in training.
    Raises ValueError for a model that is no classifier of two labels or more.
    """

    def __init__(
        self,
        model: Module,
        tokenizer: Tokenizer,
        labels: Sequence[str] | None = None,
        *,
        problem: Problem | None = None,
        length: int | None = None,
    ) -> None:
        net = expect(model, "classify")
        head = net.config.head
        assert isinstance(head, config.Classify)
        if head.labels < 2 or problem == "regression":
            raise ValueError("expected a classifier of two labels or more, of which the first is of texts that may pass")
        self.model, self.tokenizer, self.problem = net, tokenizer, problem
        self.labels = list(labels) if labels else [str(number) for number in range(head.labels)]
        self.length = longest_row(net, tokenizer, length)

    @classmethod
    def open(cls, path_or_name: str | Path) -> ContentFilter:
        """The filter of a model's folder or name (see `hub.locate`). Raises ValueError for a model that is none."""
        path = hub.locate(path_or_name)
        model, tokenizer = hub.load(path)
        if tokenizer is None:
            raise ValueError(f"{path}: expected the model's tokenizer beside it, found none; put tokenizer.json there")
        task = hub.task(path) if path.is_dir() else {}
        try:
            return cls(model, tokenizer, task.get("labels"), problem=task.get("problem_type"), length=task.get("length"))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def __call__(self, text: str) -> Verdict:
        """The verdict on a text; of its parts, a category is flagged where it is in one of them, with its highest score."""
        parts = self._parts(text)
        if not parts:
            return Verdict(dict.fromkeys(self.labels[1:], False), dict.fromkeys(self.labels[1:], 0.0))
        judgements = classify(self.model, self.tokenizer, parts, self.labels, problem=self.problem, length=self.length)
        found = [verdict(one, self.problem) for one in judgements]
        return Verdict(
            {name: any(one.categories[name] for one in found) for name in self.labels[1:]},
            {name: max(one.scores[name] for one in found) for name in self.labels[1:]},
        )

    def _parts(self, text: str) -> list[str]:
        """Pieces of a text that are read whole, each of which repeats a quarter of the one before; none of a blank text."""
        if not text.strip():
            return []
        offsets = self.tokenizer.encodings([text], plain=True)[0].offsets
        room = len(offsets) if self.length is None else self.length - len(judged(self.tokenizer, []))
        if len(offsets) <= room:
            return [text]
        room = max(1, room - 2)  # a piece may have a token or two more by itself
        return [text[offsets[start][0] : offsets[end - 1][1]] for start, end in windows(len(offsets), room, room // 4)]
