"""What a model makes of some prompts while it learns, on record beside the metrics."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from triform import config
from triform.generate import Sampling, classify, fill, generate, use_of
from triform.nn import DualEncoder, Transformer
from triform.text import Tokenizer

from .folder import SAMPLES
from .recipe import SampleRecipe

_CANDIDATES = 3  # of each mask
_SHOWN = 160  # characters of the line that is shown


class Samples:
    """Draws them from a model. Nothing that training depends on is changed: random numbers come from generators of their own.

    labels: names of a classifier's classes. chats: prompts are what a user says, where the tokenizer has a chat template.
    Raises ValueError for a model that has nothing to say to text, and for prompts that it cannot read.
    """

    def __init__(
        self, wanted: SampleRecipe, model: Transformer | DualEncoder, tokenizer: Tokenizer | None, labels: Sequence[str], seed: int,
        *, chats: bool = False,
    ) -> None:  # fmt: skip
        self.wanted, self.model, self.labels, self.seed = wanted, model, labels, seed
        self.use = use_of(model.config)
        if tokenizer is None or self.use not in ("generate", "fill", "classify"):
            what = "pictures" if isinstance(model.config, config.DualEncoder) or tokenizer is None else "vectors"
            raise ValueError(f"train.samples: this model is one of {what} and has no words for a prompt; leave it out")
        self.tokenizer, self.chats = tokenizer, chats and tokenizer.chat_template is not None
        try:
            self._drawn(max_new_tokens=1)
        except ValueError as error:
            raise ValueError(f"train.samples.prompts: {error}") from None

    def due(self, step: int, steps: int) -> bool:
        """Whether they are wanted after a step, counted from 1."""
        return step % self.wanted.every == 0 or step == steps

    def draw(self, step: int) -> list[dict[str, Any]]:
        """A row for each prompt: step and prompt, and text (generated, or with its masks filled), masks (of each the likeliest
        tokens) or label and score; "failed" says why where nothing came of it, such as scores that are no numbers."""
        try:
            found = self._drawn(self.wanted.max_new_tokens)
        except ValueError as error:
            found = [{"failed": str(error)}] * len(self.wanted.prompts)
        return [{"step": step, "prompt": prompt, **row} for prompt, row in zip(self.wanted.prompts, found, strict=True)]

    def _drawn(self, max_new_tokens: int) -> list[dict[str, Any]]:
        wanted, prompts = self.wanted, list(self.wanted.prompts)
        if self.use == "generate":
            how = Sampling(max_new_tokens=max_new_tokens, temperature=wanted.temperature, top_p=wanted.top_p, seed=self.seed)
            asked = [[{"role": "user", "content": prompt}] for prompt in prompts] if self.chats else prompts
            return [{"text": one.text} for one in generate(self.model, self.tokenizer, asked, how)]
        if self.use == "fill":
            filled = fill(self.model, self.tokenizer, prompts, _CANDIDATES)
            return [{"text": one.text, "masks": [[[c.text, c.probability] for c in mask] for mask in one.masks]} for one in filled]
        return [{"label": one.label, "score": one.score} for one in classify(self.model, self.tokenizer, prompts, self.labels or None)]


def write_samples(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append rows to a run's `samples.jsonl`."""
    with (folder / SAMPLES).open("a", encoding="utf-8") as out:
        out.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def shown(row: Mapping[str, Any]) -> str:
    """A row in one line."""
    if "label" in row:
        said = f"{row['prompt']} → {row['label']} {100 * row['score']:.0f} %"
    elif "masks" in row:
        said = f"{row['prompt']} → {row['text']}"
    else:
        said = f"{row['prompt']} → {row.get('text', row.get('failed'))}"
    said = " ".join(said.split())
    return f"step {row['step']}: " + (said if len(said) <= _SHOWN else said[: _SHOWN - 1] + "…")
