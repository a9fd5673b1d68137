"""Prompts and answers as batches: for models that learn which answers are better, others' or their own.

Shapes: B rows, T tokens of a row, U of an encoder-decoder's answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from triform import config
from triform.data.conversations import prompt
from triform.nn import IGNORE
from triform.text import Tokenizer
from triform.text.framing import decoder_start
from triform.text.turns import encode_prompt

from .base import Batch, need, need_language_model, stack_rows


def prompt_ids(tokenizer: Tokenizer, rows: Sequence[Mapping[str, Any]], *, encodes: bool) -> list[list[int]]:
    """What a model reads before it answers each row. Raises ValueError for a row without a prompt."""
    asked = [prompt(row) for row in rows]
    return [encode_prompt(tokenizer, each.messages, tools=each.tools, encodes=encodes) for each in asked]


def answer_batch(
    tokenizer: Tokenizer,
    prompts: Sequence[np.ndarray],
    answers: Sequence[np.ndarray],
    written: Sequence[np.ndarray] | None = None,
    *,
    encodes: bool,
) -> Batch:
    """A batch whose labels are the answers' tokens.

    In: for each row a prompt and an answer, (tokens,) each, with what ends it, and which of the answer's tokens are scored; all of
    them without `written`. Out, decoder-only: inputs (B, T), the prompt and the answer but its last token; labels (B, T) one token
    ahead, IGNORE in the prompt. encoder-decoder (`encodes`): inputs (B, T), the prompts; target (B, U), the start token and the
    answer but its last token; labels (B, U), the answer. Masks where rows are padded.
    """
    pad = tokenizer.pad or 0
    written = [np.ones(len(answer), dtype=bool) for answer in answers] if written is None else written
    scored = [np.where(which, answer, IGNORE) for answer, which in zip(answers, written, strict=True)]
    if encodes:
        inputs, mask = stack_rows(prompts, pad)
        start = np.full(1, decoder_start(tokenizer), dtype=np.int64)
        target, target_mask = stack_rows([np.concatenate((start, answer[:-1])) for answer in answers], pad)
        labels = torch.full_like(target, IGNORE)  # of answers without a token too
        found, _ = stack_rows(scored, IGNORE)
        labels[:, : found.shape[1]] = found
        return Batch(inputs, labels, mask, target, target_mask)
    rows = [np.concatenate((asked, answer)) for asked, answer in zip(prompts, answers, strict=True)]
    ahead = [np.concatenate((np.full(len(asked), IGNORE), wanted)) for asked, wanted in zip(prompts, scored, strict=True)]
    inputs, mask = stack_rows([row[:-1] for row in rows], pad)
    return Batch(inputs, stack_rows([row[1:] for row in ahead], IGNORE)[0], mask)


def fitted(asked: Sequence[int], answers: Sequence[Sequence[int]], length: int) -> tuple[Sequence[int], list[Sequence[int]]]:
    """A prompt and its answers so that `length` tokens hold it with each of them.

    Answers keep their first tokens, half of the length at least; the prompt its last ones, as many as the longest answer leaves.
    """
    room = length - min(len(asked), length // 2)
    kept = [answer[:room] for answer in answers]
    return asked[max(0, len(asked) + max(map(len, kept)) - length) :], kept


def need_answers(model: config.Model, objective: str, tokenizer: Tokenizer, *, encodes: bool) -> None:
    """Raise ValueError unless the model, an encoder-decoder (`encodes`) or decoder-only, can be trained on answers."""
    form = "encoder-decoder" if encodes else "decoder-only"
    found = need_language_model(model, f"{objective} {'with' if encodes else 'without'} target_length", form)
    assert found.decoder is not None
    masks = {block.attention.mask for block in found.decoder.pattern}
    need("bidirectional" not in masks, objective, "attention whose mask is causal or prefix", "bidirectional")
    need(bool(tokenizer.ends), objective, "a tokenizer with an eos token, by which answers end", "one without")
    if encodes:
        decoder_start(tokenizer)
