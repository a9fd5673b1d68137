"""Padding, on either side, changes nothing; a row that is all padding does no harm."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from triform import config

LENGTHS = (5, 2, 7)
HEADS: dict[str, config.Head] = {
    "language model": config.LanguageModel(tied=False, bias="learned", transform="gelu"),
    "first": config.Classify(labels=3, pool="first", transform="tanh"),
    "mean": config.Classify(labels=3, pool="mean"),
    "last": config.Classify(labels=3, pool="last"),
    "end": config.Classify(labels=3, pool="end", end_token=4),
    "token classes": config.ClassifyTokens(labels=3),
    "answer span": config.AnswerSpan(),
    "embedding": config.Embed(pool="mean", transform="gelu", width=5, normalize=True),
}


def padded(rows: list[Tensor], side: str, extra: int = 2, fill: int = 4) -> tuple[Tensor, Tensor]:
    """Rows of ids (B, T) and their mask; padded with a token that means something elsewhere."""
    length = max(map(len, rows)) + extra
    out, mask = torch.full((len(rows), length), fill), torch.zeros(len(rows), length, dtype=torch.bool)
    for i, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(length - len(row), length)
        out[i, place], mask[i, place] = row, True
    return out, mask


def some_rows() -> list[Tensor]:
    rows = [tiny.ids(n, seed=n) for n in LENGTHS]
    for row in rows:
        row[len(row) // 2] = 4  # the end token, not the last
    return rows


def per_row(logits: Tensor, mask: Tensor, whole: bool) -> list[Tensor]:
    return [row if whole else row[m] for row, m in zip(logits, mask, strict=True)]


def check_same(spec: config.Transformer, side: str, masked: bool = True) -> None:
    """Logits and gradients of a padded batch are those of its rows alone."""
    model, rows = tiny.build(spec), some_rows()
    whole = isinstance(spec.head, config.Classify | config.Embed)
    alone = [model(row[None]).logits[0] for row in rows]
    sum((a * torch.linspace(-1, 1, a.numel()).view_as(a)).sum() for a in alone).backward()
    wanted = tiny.gradients(model)
    inputs, mask = padded(rows, side)
    together = per_row(model(inputs, mask if masked else None).logits, mask, whole)
    sum((a * torch.linspace(-1, 1, a.numel()).view_as(a)).sum() for a in together).backward()
    for got, want in zip(together, alone, strict=True):
        tiny.assert_close(got, want, 2e-5)
    tiny.assert_close(tiny.gradients(model), wanted, 1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("position", tiny.POSITIONS)
@pytest.mark.parametrize("form", [tiny.encoder, tiny.decoder])
def test_padding_changes_nothing_for_any_position(form: Any, position: str, side: str) -> None:
    check_same(form(position), side)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("head", HEADS)
def test_padding_changes_nothing_for_any_head(head: str, side: str) -> None:
    check_same(tiny.encoder("rotary", HEADS[head]), side)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    "fields",
    [
        {"mask": "causal", "window": 3},
        {"mask": "bidirectional", "window": 2},
        {"mask": "causal", "kv_heads": 1, "qk_norm": config.RMSNorm()},
        {"mask": "prefix", "kv_heads": 2, "bias": "none"},
    ],
    ids=str,
)
def test_padding_changes_nothing_for_any_attention(fields: dict[str, Any], side: str) -> None:
    check_same(tiny.decoder("rotary", **fields), side)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("placement", ["pre", "post", "sandwich"])
@pytest.mark.parametrize("norm", [config.LayerNorm(bias=False), config.RMSNorm(unit_offset=True)], ids=str)
def test_padding_changes_nothing_for_any_block(placement: Any, norm: Any, side: str) -> None:
    stack = tiny.stack(tiny.attention("bucketed"), placement=placement, norm=norm, feed_forward=tiny.EXPERTS)
    check_same(config.Transformer(encoder=stack, head=config.LanguageModel()), side)


@pytest.mark.parametrize("position", ["none", "learned", "rotary", "bucketed"])
@pytest.mark.parametrize("sides", [("left", "right"), ("right", "left")], ids=str)
def test_padding_changes_nothing_in_an_encoder_decoder(position: str, sides: tuple[str, str]) -> None:
    model, rows = tiny.build(tiny.encoder_decoder(position)), some_rows()
    targets = [tiny.ids(n, seed=10 + n) for n in (3, 6, 1)]
    alone = [model(row[None], target=target[None]).logits[0] for row, target in zip(rows, targets, strict=True)]
    (inputs, mask), (target, target_mask) = padded(rows, sides[0]), padded(targets, sides[1])
    got = model(inputs, mask, target, target_mask).logits
    for found, wanted in zip(per_row(got, target_mask, False), alone, strict=True):
        tiny.assert_close(found, wanted, 2e-5)
    with pytest.raises(AssertionError):
        tiny.assert_close(per_row(model(inputs, None, target, target_mask).logits, target_mask, False)[1], alone[1], 2e-5)


@pytest.mark.parametrize(("head", "side"), [("language model", "left"), ("mean", "right"), ("end", "right"), ("last", "right")])
def test_the_comparison_finds_a_forgotten_mask(head: str, side: str) -> None:
    with pytest.raises(AssertionError):
        check_same(tiny.encoder("rotary", HEADS[head]), side, masked=False)


def test_a_sentence_head_leaves_padding_out() -> None:
    spec = config.Transformer(
        encoder=tiny.encoder("learned").encoder,
        head=config.LanguageModel(),
        sentence_head=config.Classify(labels=2, pool="mean", transform="tanh"),
    )
    model, rows = tiny.build(spec), some_rows()
    alone = torch.cat([model(row[None]).sentence_logits for row in rows])
    for side in ("left", "right"):
        tiny.assert_close(model(*padded(rows, side)).sentence_logits, alone, 2e-5)


def test_learned_positions_count_tokens_and_not_padding() -> None:
    model, row = tiny.build(tiny.encoder("learned")), tiny.ids(24)
    inputs, mask = padded([row, row[:3]], "left")
    tiny.assert_close(model(inputs, mask).logits[0][mask[0]], model(row[None]).logits[0], 2e-5)
    with pytest.raises(ValueError, match=r"24 learned positions and the sequence needs 25") as error:
        model(tiny.ids(1, 25))
    assert "\n" not in str(error.value)


PRECISIONS = {
    "fp32": (torch.float32, nullcontext),
    "bf16": (torch.bfloat16, nullcontext),
    "autocast": (torch.float32, lambda: torch.autocast("cpu", torch.bfloat16)),
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("position", tiny.POSITIONS)
@pytest.mark.parametrize("mask", ["bidirectional", "causal"])
def test_a_row_of_nothing_but_padding_gives_no_nan(mask: Any, position: str, precision: str) -> None:
    spec = tiny.attention(position, mask=mask, kv_heads=2, dropout=0.1)
    stack = tiny.stack(spec, position=position, feed_forward=tiny.EXPERTS, norm=config.RMSNorm())
    dtype, context = PRECISIONS[precision]
    model = tiny.build(config.Transformer(decoder=stack, head=config.LanguageModel()), dtype)
    inputs, seen = tiny.ids(3, 6), torch.ones(3, 6, dtype=torch.bool)
    seen[1], seen[2, :4] = False, False
    for training in (False, True):  # dropout on the weights takes another kernel
        model.train(training)
        with context():
            out = model(inputs, seen)
            assert out.logits is not None
            loss = out.logits.float()[seen].logsumexp(-1).sum() + out.aux.load_balance + out.aux.router_z
        loss.backward()
        assert out.logits.isfinite().all()
        assert all(gradient.isfinite().all() for gradient in tiny.gradients(model).values())
    model.eval()
    with context(), torch.no_grad():
        tolerance = 2e-2 if precision != "fp32" else 1e-5
        tiny.assert_close(model(inputs, seen).logits[[0, 2]], model(inputs[[0, 2]], seen[[0, 2]]).logits, tolerance)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("position", ["sinusoidal", "bucketed"])
def test_an_encoder_of_nothing_but_padding_gives_no_nan(position: str, precision: str) -> None:
    dtype, context = PRECISIONS[precision]
    model = tiny.build(tiny.encoder_decoder(position), dtype)
    seen = torch.tensor([[True] * 5, [False] * 5])
    with context():
        out = model(tiny.ids(2, 5), seen, tiny.ids(2, 4))
    out.logits.float().logsumexp(-1).sum().backward()
    assert out.logits.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in tiny.gradients(model).values())


def test_a_batch_of_nothing_but_padding_gives_no_nan() -> None:
    stack = tiny.stack(tiny.attention(), feed_forward=tiny.EXPERTS)
    with torch.no_grad():
        out = tiny.build(config.Transformer(encoder=stack))(tiny.ids(2, 3), torch.zeros(2, 3, dtype=torch.bool))
    assert out.hidden.isfinite().all()
    assert float(out.aux.load_balance) == 0
    assert float(out.aux.router_z) == 0
