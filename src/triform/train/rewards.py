"""What judges the answers of a run: the functions of its recipe and its reward models.

Shapes: N answers, R rewards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from triform import config, hub
from triform.data.conversations import Conversation
from triform.generate.reward import rewards
from triform.objectives.on_policy import Reward, asked_text
from triform.objectives.rewards import RewardFunction, ask, find_function
from triform.text import Tokenizer


@dataclass(frozen=True)
class Answered:
    """Answers, N of each: what a policy was asked, what it said, its tokens, and the rows of the data that the prompts are of."""

    asked: Sequence[Conversation]
    completions: Sequence[str]
    ids: Sequence[Sequence[int]]
    rows: Sequence[Mapping[str, Any]]

    def columns(self) -> dict[str, list[Any]]:
        """The arguments of a reward function; a column that a row lacks is None there."""
        names = dict.fromkeys(name for row in self.rows for name in row)
        found: dict[str, list[Any]] = {name: [row.get(name) for row in self.rows] for name in names}
        found |= {"prompts": self.prompts, "completions": list(self.completions), "completion_ids": [list(ids) for ids in self.ids]}
        return found

    @property
    def prompts(self) -> list[str]:
        """What was asked last, as texts."""
        return [asked_text(each) for each in self.asked]


class Rewards:
    """The judges of a recipe. Raises ValueError for a function that is not there and a model that is no reward model."""

    def __init__(self, judges: Sequence[Reward], device: str) -> None:
        self.judges = judges
        self._found = [_function(judge) if judge.model is None else Scorer(judge.model, device) for judge in judges]

    def __call__(self, answered: Answered) -> np.ndarray:
        """Of each answer the reward and what each judge said, (N, 1 + R); the reward is the weighted sum of what was said.

        Raises ValueError for a function that fails, and for an answer of which no judge says anything.
        """
        said = np.empty((len(answered.completions), 1 + len(self.judges)))
        for place, (judge, found) in enumerate(zip(self.judges, self._found, strict=True), 1):
            if isinstance(found, Scorer):
                said[:, place] = found(answered)
            else:
                said[:, place] = ask(judge.name, found, answered.columns())
        if len(silent := np.flatnonzero(np.isnan(said[:, 1:]).all(1))):
            raise ValueError(f"no reward says anything of the answer to {answered.prompts[silent[0]][:80]!r}; expected a number of one")
        said[:, 0] = np.nansum(said[:, 1:] * [judge.weight for judge in self.judges], axis=1)
        return said


def _function(judge: Reward) -> RewardFunction:
    assert judge.function is not None
    try:
        return find_function(judge.function)
    except ValueError as error:
        raise ValueError(f"objective.rewards: {error}") from error


class Scorer:
    """A reward model: a Classify head of one label, whose score is the reward of an answer to a prompt."""

    def __init__(self, path_or_name: str, device: str) -> None:
        try:
            place = hub.locate(path_or_name)
            self.model, tokenizer = hub.load(place)
        except ValueError as error:
            raise ValueError(f"objective.rewards: {error}") from error
        head = getattr(self.model.config, "head", None)
        if tokenizer is None or not isinstance(head, config.Classify) or head.labels != 1:
            what = "no tokenizer" if tokenizer is None else f"the head {type(head).__name__}"
            wanted = "expected a reward model, with a Classify head of one label"
            raise ValueError(f"objective.rewards: {path_or_name}: {wanted}; it has {what}")
        self.tokenizer: Tokenizer = tokenizer
        self.length: int | None = hub.task(place).get("length") if Path(place).is_dir() else None
        self.model.to(device).eval()

    def __call__(self, answered: Answered) -> list[float]:
        """The scores of answers."""
        said = [({"role": "assistant", "content": text},) for text in answered.completions]
        answers = [(asked.messages, answer) for asked, answer in zip(answered.asked, said, strict=True)]
        tools = [asked.tools for asked in answered.asked]
        found: list[float] = rewards(self.model, self.tokenizer, answers, tools=tools, length=self.length).tolist()
        return found
