"""A model's folder or file, examined: weights, tokenizer, template, settings, and a first look at what it makes of text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from triform import config, hub
from triform.generate.forms import longest
from triform.nn import IGNORE
from triform.text import Tokenizer, framing

from . import tokens, weights
from .findings import Examination, Finding

Report = Callable[[int, int], None]
_TEXTS = (
    "今天天气很好，我们一起去公园散步，孩子们在草地上跑来跑去。",
    "The old man sat by the river and watched the boats go by until the sun went down.",
)


def examine_model(path_or_name: str | Path, *, report: Report = lambda done, total: None) -> Examination:
    """Examine a model that lies in a folder or a .gguf file, or has a name that `hub.locate` knows.

    report: called with how many tensors were read, of how many. Raises ValueError where there is no model.
    """
    start = hub.Checkpoint.open(path_or_name)
    return Examination("model", str(path_or_name), tuple(_findings(start, report)))


def _findings(start: hub.Checkpoint, report: Report) -> Iterator[Finding]:
    yield from weights.check_numbers(start, report)
    try:
        model = start.build()
    except ValueError as error:
        yield Finding("weights", "error", str(error), "fetch or save the model again, or mend its config.json")
        return
    yield from weights.check_tied(start, model)
    if start.path.is_dir():
        yield from tokens.check_task(start.path, start.spec)
    if not _reads_text(start.spec):
        return
    try:
        tokenizer = start.tokenizer()
    except ValueError as error:
        yield Finding("tokenizer", "error", str(error), "put the model's own tokenizer.json beside it")
        return
    if tokenizer is None:
        yield Finding("tokenizer", "error", "there is none beside the model", "put the model's own tokenizer.json there")
        return
    yield from weights.check_rows(tokenizer, model)
    if start.path.is_dir():
        yield from tokens.check_ids(start.path, tokenizer, _writes(start.spec))
        yield from tokens.check_family(start.path, tokenizer)
        yield from tokens.check_generation(start.path)
        yield from tokens.check_written(start.path, tokenizer)
    yield from tokens.check_length(tokenizer, start.spec)
    yield from tokens.check_template(tokenizer, _writes(start.spec))
    yield from check_pass(tokenizer, model)


def _reads_text(spec: config.Model) -> bool:
    stack = spec.text if isinstance(spec, config.DualEncoder) else spec.encoder or spec.decoder
    return stack is not None and isinstance(stack.input, config.Tokens)


def _writes(spec: config.Model) -> bool:
    return isinstance(spec, config.Transformer) and spec.decoder is not None and isinstance(spec.head, config.LanguageModel)


@torch.no_grad()
def check_pass(tokenizer: Tokenizer, model: Any) -> Iterator[Finding]:
    """What the model makes of two short texts is numbers, and a decoder-only model knows something of one of them."""
    spec = model.config
    if isinstance(spec, config.DualEncoder):
        return
    most = min(filter(None, (longest(stack) for stack in (spec.encoder, spec.decoder))), default=64)
    losses = []
    for text in _TEXTS:
        before = framing.opening(tokenizer) if spec.form == "decoder-only" else []
        ids = torch.tensor([[*before, *tokenizer.encode(text, plain=True)][:most]])
        if ids.numel() == 0 or int(ids.max()) >= spec_rows(model):
            return  # said of the token table
        target = ids if spec.form == "encoder-decoder" else None
        hidden = model(ids, target=target, logits=False).hidden
        if not bool(torch.isfinite(hidden).all()):
            says = f"what the model makes of {text[:12]!r} is not all numbers"
            yield Finding("a pass", "error", says, "look at its weights and at its precision")
            return
        if spec.form == "decoder-only" and isinstance(spec.head, config.LanguageModel) and ids.shape[1] > 1:
            labels = torch.cat([ids[:, 1:], torch.full((1, 1), IGNORE)], 1)
            losses.append(float(model.language_model_loss(hidden, labels)) / (ids.shape[1] - 1))
    yield _knows(losses, math.log(spec_rows(model)))


def spec_rows(model: Any) -> int:
    """How many rows the table of the stack that reads first has."""
    first = model.encoder if model.encoder is not None else model.decoder
    return len(first.input.token.weight)


def _knows(losses: list[float], ignorant: float) -> Finding:
    if not losses:
        return Finding("a pass", "fine", "what the model makes of text is numbers")
    shown = " and ".join(f"{loss:.2f}" for loss in losses)
    told = f"{shown} nats a token of a Chinese and an English text, where knowing nothing is {ignorant:.2f}"
    figures = {"losses": losses, "knowing_nothing": ignorant}
    if min(losses) > 0.95 * ignorant:
        advice = "the weights, the tokenizer or the configuration are not those that belong together, or the model is not trained"
        return Finding("a pass", "warning", told, advice, figures)
    return Finding("a pass", "fine", told, figures=figures)
