"""What the models that judge share: texts framed and cut as they were in training, read in batches.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from triform import config
from triform.nn import Layout, Transformer
from triform.text import Tokenizer
from triform.text.framing import decoder_start, judged

from .forms import batches, check_ids, evaluating, longest, padded


def longest_row(net: Transformer, tokenizer: Tokenizer, length: int | None) -> int | None:
    """The most tokens of a row: `length`, the tokenizer's, or the positions that the model has learned; None without any of them."""
    limits = (length, tokenizer.length, longest(net.config.encoder), longest(net.config.decoder))
    return min((limit for limit in limits if limit is not None), default=None)


def framed(net: Transformer, tokenizer: Tokenizer, texts: Sequence[str], length: int | None) -> list[list[int]]:
    """The ids of each text with what stands around it; a warning says how many were cut. Raises ValueError for an empty row."""
    limit = longest_row(net, tokenizer, length)
    plain = tokenizer.encode_batch(texts, plain=True)
    rows = [judged(tokenizer, ids) for ids in plain]
    if limit is not None:
        cut = sum(len(row) > limit for row in rows)
        if cut:
            warnings.warn(f"{cut:,} of {len(rows):,} texts are longer than {limit:,} tokens and were cut to that", stacklevel=4)
        rows = [judged(tokenizer, ids, limit) if len(row) > limit else row for ids, row in zip(plain, rows, strict=True)]
    for number, row in enumerate(rows, 1):
        if not row:
            raise ValueError(f"text {number} is empty, and the tokenizer has no special token to put in its place; leave it out")
    return rows


def outputs(
    net: Transformer, tokenizer: Tokenizer, rows: Sequence[Sequence[int]], batch_size: int, segments: Sequence[Sequence[int]] | None = None
) -> Iterator[tuple[list[int], Tensor]]:
    """The numbers of the rows of each batch, and what the head gives for them, on the right of a row also for padding.

    segments: of each token of each row, for a model that tells them apart. The decoder of an encoder-decoder reads the
    rows again, a place to the right (BART, T5).
    """
    spec = net.config.encoder or net.config.decoder
    assert spec is not None
    check_ids(rows, spec)
    parts = isinstance(spec.input, config.Tokens) and spec.input.segments > 1 and segments is not None
    for numbers in batches([len(row) for row in rows], batch_size):
        with evaluating(net) as device:
            ids, mask = padded([rows[number] for number in numbers], tokenizer.pad or 0, device)
            layout = None
            if parts and segments is not None:
                layout = Layout(segments=padded([segments[number] for number in numbers], 0, device)[0])
            logits = net(ids, mask, *_shifted(net, tokenizer, ids, mask), layout=layout).logits
        yield numbers, logits


def _shifted(net: Transformer, tokenizer: Tokenizer, ids: Tensor, mask: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """What the decoder of an encoder-decoder reads, and its mask, which a head that pools needs."""
    if net.encoder is None or net.decoder is None:
        return None, None
    start = (tokenizer.start or [decoder_start(tokenizer)])[0]
    return torch.cat((ids.new_full((len(ids), 1), start), ids[:, :-1]), dim=1), mask
