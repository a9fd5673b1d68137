"""The weights of a model's folder or file: numbers that are none, matrices of zeros, rows of the token table, tied tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from triform import config, hub
from triform.text import Tokenizer

from .findings import Finding, listed, percent

Report = Callable[[int, int], None]
_FAINT = 0.01  # of the median row's norm


def _pieces(stored: Any, name: str) -> Iterator[Tensor]:
    """The numbers of a stored tensor, a piece at a time where its file allows it."""
    tensors = getattr(stored, "stored", None)
    yield from tensors[name].pieces() if isinstance(tensors, dict) else (stored[name],)


def check_numbers(start: hub.Checkpoint, report: Report) -> Iterator[Finding]:
    """Every stored number is one, and no matrix is zero throughout."""
    bad, zero, count = [], [], 0
    for number, name in enumerate(start.stored):
        report(number, len(start.stored))
        size, wrong, some = 0, 0, False
        for piece in _pieces(start.stored, name):
            size += piece.numel()
            if piece.is_floating_point():
                wrong += int((~torch.isfinite(piece.float())).sum())
            some = some or bool((piece != 0).any())
        count += size
        bad += [f"{name} ({wrong:,} of {size:,})"] if wrong else []
        if size > 1 and not some and not name.endswith("bias"):
            zero.append(name)
    if bad:
        advice = "the file is damaged or the training went astray: take an earlier checkpoint, or fetch the model again"
        yield Finding("weights", "error", f"not all weights are numbers: {listed(bad)}", advice, {"tensors": bad})
    if zero:
        advice = "they were never filled: look at how the model was saved or converted"
        yield Finding("weights", "warning", f"zero throughout: {listed(zero)}", advice, {"tensors": zero})
    if not bad and not zero:
        yield Finding("weights", "fine", f"all of {count:,} stored numbers are numbers, in {len(start.stored):,} tensors")


def check_tied(start: hub.Checkpoint, model: Any) -> Iterator[Finding]:
    """The output matrix is the token table where the configuration says so, and another where it says that."""
    head = getattr(start.spec, "head", None)
    if not isinstance(head, config.LanguageModel) or model.token_table is None:
        return
    if head.tied:
        yield Finding("tied weights", "fine", "the output matrix is the token table, as the configuration says")
        return
    table, matrix = model.token_table, model.head.matrix(model.token_table)
    if table.shape == matrix.shape and torch.equal(table, matrix):
        advice = "set tie_word_embeddings to true (model.head.tied) to keep one: it saves memory, and training would part them"
        yield Finding("tied weights", "note", "the output matrix equals the token table though the configuration has two", advice)
    else:
        yield Finding("tied weights", "fine", "the output matrix and the token table are two, as the configuration says")


def check_rows(tokenizer: Tokenizer, model: Any) -> Iterator[Finding]:
    """The token table has a row for each token, not many more, and rows of tokens in use were trained."""
    stack = getattr(model, "encoder", None) or getattr(model, "decoder", None) or getattr(model, "text", None)
    table = getattr(getattr(stack, "input", None), "token", None)
    if table is None:
        return
    weight, tokens = table.weight.detach().float(), tokenizer.vocab_size
    figures = {"rows": len(weight), "tokens": tokens}
    if tokens > len(weight):
        advice = "use the model's own tokenizer, or give the table more rows and train them"
        says = f"the tokenizer has {tokens:,} tokens and the token table {len(weight):,} rows"
        yield Finding("token table", "error", says, advice, figures)
        return
    norms = weight[:tokens].norm(dim=1)
    typical = float(norms.median())
    faint = torch.nonzero(norms <= _FAINT * typical)[:, 0].tolist()
    used = [i for i in faint if i in _in_use(tokenizer)]
    if used:
        names = listed([repr(name) for name in tokenizer.tokens(used)])
        advice = "the model never learnt them: train with them, or give them the rows of like tokens"
        says = f"the rows of {names} are zero or nearly so, and these tokens are in use"
        yield Finding("token table", "warning", says, advice, figures | {"faint": used})
    elif len(weight) > 1.1 * tokens + 256:
        spare = percent(1 - tokens / len(weight))
        yield Finding("token table", "note", f"{spare} of its {len(weight):,} rows have no token", "they only take memory", figures)
    else:
        yield Finding("token table", "fine", f"{len(weight):,} rows for {tokens:,} tokens", figures=figures)


def _in_use(tokenizer: Tokenizer) -> set[int]:
    """Special tokens that texts and conversations are written with; padding is not read."""
    written = "".join(tokenizer.chat_templates.values())
    added = tokenizer.backend.get_added_tokens_decoder().items()
    named = {tokenizer.id(token) for role, token in tokenizer.roles.items() if role not in ("pad", "unk", "mask")}
    return {i for i in {*named, *tokenizer.ends, *(i for i, token in added if token.content in written)} if i is not None} - {tokenizer.pad}
