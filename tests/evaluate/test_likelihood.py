"""Likelihoods against sums of the model's own scores, one text at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from generate.conftest import LINES, built, decoder_only, encoder_decoder, encoder_only, tokenizer_of
from hypothesis import given, settings
from hypothesis import strategies as st

from triform import config
from triform.evaluate.likelihood import log_likelihoods
from triform.evaluate.perplexity import perplexity, windows
from triform.evaluate.task import Judged, Settings
from triform.text import Tokenizer
from triform.text.framing import judged, opening, source

PAIRS = [("话说天下", "大势"), ("话说天下", "春风"), ("", "滚滚长江"), ("The quick", " brown fox"), (LINES[2], LINES[3])]
TOLERANCE = 1e-4  # nats, of sums of some tens; the control differs by far more


def tokenizer() -> Tokenizer:
    return tokenizer_of("byte-bpe")


def by_hand(model: Any, ids: list[int], continuation: int, target: list[int] | None = None) -> tuple[float, bool]:
    """Log-probability of the last tokens of ids, or of a target, and whether greedy search would write them."""
    with torch.no_grad():
        if target is None:
            scores = model(torch.tensor([ids[:-1]])).logits[0].log_softmax(-1)[-continuation:]
            wanted = ids[-continuation:]
        else:
            scores = model(torch.tensor([ids]), None, torch.tensor([target[:-1]])).logits[0].log_softmax(-1)
            wanted = target[1:]
    chosen = scores[torch.arange(len(wanted)), torch.tensor(wanted)]
    return float(chosen.sum()), scores.argmax(-1).tolist() == wanted


@pytest.mark.parametrize("kind", ["plain", "window"])
def test_a_decoder_scores_continuations(kind: str) -> None:
    text = tokenizer()
    windowed = config.Attention(heads=2, mask="causal", window=4, position=config.Rotary())
    model = built(decoder_only(text.vocab_size, *([windowed] if kind == "window" else [])))
    found = log_likelihoods(model, text, PAIRS)
    for (context, continuation), one in zip(PAIRS, found, strict=True):
        whole, before = text.encode(context + continuation), text.encode(context)
        ids = (opening(text) if context else [text.bos or 0]) + whole
        log_prob, greedy = by_hand(model, ids, len(whole) - len(before))
        assert one.log_prob == pytest.approx(log_prob, abs=TOLERANCE)
        assert one.greedy == greedy
        assert one.tokens == len(whole) - len(before)
    assert abs(found[0].log_prob - found[1].log_prob) > 100 * TOLERANCE


def test_an_encoder_decoder_reads_the_context_and_scores_what_it_would_write() -> None:
    text = tokenizer()
    model = built(encoder_decoder(text.vocab_size))
    for (context, continuation), one in zip(PAIRS, log_likelihoods(model, text, PAIRS), strict=True):
        log_prob, greedy = by_hand(model, source(text, text.encode(context)), 0, [text.bos or 0, *text.encode(continuation)])
        assert one.log_prob == pytest.approx(log_prob, abs=TOLERANCE)
        assert one.greedy == greedy


def test_an_encoder_hides_each_token_in_turn() -> None:
    text = tokenizer_of("wordpiece")
    model = built(encoder_only(text.vocab_size, learned=64))
    pairs = [("话说", "天下大势"), ("", "春风")]
    for (context, continuation), one in zip(pairs, log_likelihoods(model, text, pairs), strict=True):
        ids, count = judged(text, text.encode(context + continuation)), len(text.encode(continuation))
        total = 0.0
        for place in range(len(ids) - 1 - count, len(ids) - 1):
            hidden = [*ids[:place], text.mask, *ids[place + 1 :]]
            with torch.no_grad():
                total += float(model(torch.tensor([hidden])).logits[0, place].log_softmax(-1)[ids[place]])
        assert one.log_prob == pytest.approx(total, abs=TOLERANCE)
        assert one.tokens == count


def test_what_is_too_long_is_cut_at_its_beginning() -> None:
    text = tokenizer()
    model = built(decoder_only(text.vocab_size, config.Attention(heads=2, mask="causal"), learned=16))
    (found,) = log_likelihoods(model, text, [(LINES[0] * 4, "春风")])
    ids, count = text.encode(LINES[0] * 4 + "春风")[-17:], len(text.encode("春风"))
    assert found.log_prob == pytest.approx(by_hand(model, ids, count)[0], abs=TOLERANCE)
    assert found.cut > 0


def test_blanks_that_end_a_context_belong_to_the_continuation() -> None:
    text = tokenizer()
    model = built(decoder_only(text.vocab_size))
    first, second = log_likelihoods(model, text, [("The quick ", "brown"), ("The quick", " brown")])
    assert first == second


def test_an_empty_continuation_and_another_head_are_refused() -> None:
    text = tokenizer()
    with pytest.raises(ValueError, match="item 2: expected a continuation"):
        log_likelihoods(built(decoder_only(text.vocab_size)), text, [("a", "b"), ("a", "")])
    with pytest.raises(ValueError, match="LanguageModel head"):
        log_likelihoods(built(encoder_only(text.vocab_size, config.Classify(labels=2))), text, [("a", "b")])


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(2, 20), st.data())
def test_windows_score_each_token_once_with_what_came_before(size: int, window: int, data: Any) -> None:
    stride = data.draw(st.integers(1, window))
    ids = list(range(100, 100 + size))
    found = windows(ids, window, stride, [7])
    assert [token for _, tokens in found for token in tokens] == ids
    at = 0
    for context, tokens in found:
        assert len(context) + len(tokens) - 1 <= window
        assert ([7] + ids)[: at + 1][-len(context) :] == context
        at += len(tokens)
        if at > len(tokens):
            assert len(tokens) <= stride


def test_perplexity_of_one_window_is_that_of_the_text(tmp_path: Any) -> None:
    text = tokenizer()
    model = built(decoder_only(text.vocab_size))
    (tmp_path / "valid.txt").write_text(LINES[5], "utf-8")
    result = perplexity(Judged(model, text), tmp_path / "valid.txt", Settings())
    values = {metric.name: metric.value for metric in result.metrics}
    ids = [text.bos or 0, *text.encode(LINES[5])]
    nats = -by_hand(model, ids, len(ids) - 1)[0]
    log2 = nats / torch.log(torch.tensor(2.0)).item()
    assert values["perplexity"] == pytest.approx(torch.tensor(nats / (len(ids) - 1)).exp().item(), rel=1e-4)
    assert values["bits_per_byte"] == pytest.approx(log2 / len(LINES[5].encode()), rel=1e-4)
    assert values["bits_per_character"] == pytest.approx(log2 / len(LINES[5]), rel=1e-4)
    assert values["bits_per_byte"] != pytest.approx(values["bits_per_character"], rel=0.1)


def test_windows_of_a_text_have_all_its_bytes_and_more_context_is_scored_otherwise(tmp_path: Any) -> None:
    text = tokenizer()
    model = built(decoder_only(text.vocab_size))
    (tmp_path / "valid.txt").write_text("".join(LINES), "utf-8")

    def of(stride: int) -> Any:
        return perplexity(Judged(model, text), tmp_path / "valid.txt", Settings(window=16, stride=stride))

    near, far = of(16), of(4)
    for result in (near, far):
        assert result.setting["bytes"] == len("".join(LINES).encode())
        assert result.setting["tokens"] == len(text.encode("".join(LINES)))
    assert len(far.metrics[0].rows) > len(near.metrics[0].rows) > 1
    assert near.metrics[0].value != pytest.approx(far.metrics[0].value, rel=1e-4)
