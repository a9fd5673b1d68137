"""Which models a function here is for, and what all of them share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from triform import config
from triform.nn import DualEncoder, Transformer

Module = Transformer | DualEncoder

_NEEDS = {
    "generate": "a decoder with a LanguageModel head",
    "fill": "an encoder-only model with a LanguageModel head",
    "classify": "a model of texts with a Classify head",
    "see": "a model of pictures with a Classify head, or of pictures and texts",
    "tag": "a model of texts with a ClassifyTokens head",
    "answer": "a model of texts with an AnswerSpan head",
    "embed": "an encoder or a decoder alone with an Embed head",
}


def use_of(spec: config.Model) -> str | None:
    """What a model is for: generate, fill, classify, see (classify pictures), tag, answer, embed, or None of them."""
    if isinstance(spec, config.DualEncoder):
        return "see"
    first = spec.encoder or spec.decoder
    if first is None or not isinstance(first.input, config.Tokens):
        return "see" if isinstance(spec.head, config.Classify) and spec.decoder is None else None
    if isinstance(spec.head, config.LanguageModel):
        return "fill" if spec.decoder is None else "generate"
    if isinstance(spec.head, config.Embed) and spec.form == "encoder-decoder":
        return None
    uses: dict[type, str] = {config.Classify: "classify", config.ClassifyTokens: "tag", config.AnswerSpan: "answer", config.Embed: "embed"}
    return uses.get(type(spec.head))


def expect(model: Module, use: str) -> Transformer:
    """The model, if it is for this use. Raises ValueError that names the use that it is for."""
    found = use_of(model.config)
    if found == use and isinstance(model, Transformer):
        return model
    head = getattr(model.config, "head", None)
    what = f"this one is {model.config.form} with {'no head' if head is None else f'the head {type(head).__name__}'}"
    fitting = "" if found is None else f"; `triform {'classify' if found == 'see' else found}` fits it"
    raise ValueError(f"{use} needs {_NEEDS[use]}, and {what}{fitting}")


def longest(stack: config.Stack | None) -> int | None:
    """The number of positions that a stack has learned, None where it has no such limit."""
    if stack is not None and isinstance(stack.input, config.Tokens) and isinstance(stack.input.position, config.Learned):
        return stack.input.position.length
    return None


def check_ids(rows: Sequence[Sequence[int]], stack: config.Stack) -> None:
    """Raise ValueError if a token is none of the model's, which happens with another model's tokenizer."""
    assert isinstance(stack.input, config.Tokens)
    if (lowest := min((min(row) for row in rows if row), default=0)) < 0:
        raise ValueError(f"expected ids of tokens, from 0 on, got {lowest}")
    highest = max((max(row) for row in rows if row), default=-1)
    if highest >= stack.input.vocab_size:
        size = stack.input.vocab_size
        raise ValueError(f"the tokenizer gave the id {highest} and the model has {size} tokens; use the model's own tokenizer")


def padded(rows: Sequence[Sequence[int]], fill: int, device: torch.device, *, left: bool = False) -> tuple[Tensor, Tensor | None]:
    """Rows of ids as one tensor (B, T) and its mask (B, T), None when no row is padded."""
    width = max(map(len, rows))
    if all(len(row) == width for row in rows):
        return torch.tensor(rows, dtype=torch.long, device=device).view(len(rows), width), None
    gaps = [[0] * (width - len(row)) for row in rows]
    shape = [(gap, [1] * len(row)) if left else ([1] * len(row), gap) for row, gap in zip(rows, gaps, strict=True)]
    mask = torch.tensor([a + b for a, b in shape], dtype=torch.bool, device=device)
    ids = torch.full(mask.shape, fill, dtype=torch.long, device=device)
    ids[mask] = torch.tensor([i for row in rows for i in row], dtype=torch.long, device=device)
    return ids, mask


def batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """The numbers of rows in batches of at most `size`, rows of like length together."""
    if size < 1:
        raise ValueError(f"batch_size: expected at least one row, got {size}")
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    for start in range(0, len(order), size):
        yield order[start : start + size]


@contextmanager
def evaluating(model: Module) -> Iterator[torch.device]:
    """Without gradients and dropout; gives the model's device, and leaves the model in the mode that it was in."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield next(model.parameters()).device
    finally:
        model.train(training)


def listed(texts: Any) -> list[str]:
    """One text or several as a list. Raises ValueError for anything else."""
    found = [texts] if isinstance(texts, str) else list(texts)
    for text in found:
        if not isinstance(text, str):
            raise ValueError(f"expected text, or a list of texts, got {type(text).__name__}")
    return found
