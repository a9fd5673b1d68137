"""The chunked cross-entropy against the plain one: value, gradients, memory."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from triform import config
from triform.nn import IGNORE, linear_cross_entropy, loss

TOKENS, WIDTH, VOCAB = 19, 6, 11


def case(ignored: list[int], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((TOKENS, WIDTH), (VOCAB, WIDTH), (VOCAB,)))
    labels = torch.randint(0, VOCAB, (TOKENS,), generator=generator)
    labels[ignored] = IGNORE
    hidden, weight, bias = (t.to(dtype).requires_grad_() for t in (hidden, weight, bias))
    return hidden, weight, bias, labels


def plain(hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None, z_loss: float, smoothing: float) -> Tensor:
    logits = F.linear(hidden, weight, bias)
    kept = logits[labels != IGNORE]
    return F.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing) + z_loss * kept.logsumexp(-1).square().sum()


def gradients(value: Tensor, *leaves: Tensor | None) -> list[Tensor]:
    return list(torch.autograd.grad(3 * value, [t for t in leaves if t is not None]))


@pytest.fixture
def chunk(monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda rows: monkeypatch.setattr(loss, "chunk_rows", lambda vocab_size: rows)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, TOKENS + 2),
    ignored=st.sets(st.integers(0, TOKENS - 1)).map(sorted),
    z_loss=st.sampled_from([0.0, 1e-2]),
    smoothing=st.sampled_from([0.0, 0.1]),
    with_bias=st.booleans(),
)
def test_any_chunk_gives_the_plain_loss(rows: int, ignored: list[int], z_loss: float, smoothing: float, with_bias: bool) -> None:
    hidden, weight, bias, labels = case(ignored)
    used = bias if with_bias else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss, "chunk_rows", lambda vocab_size: rows)
        got = linear_cross_entropy(hidden, weight, labels, used, z_loss=z_loss, smoothing=smoothing)
    wanted = plain(hidden, weight, labels, used, z_loss, smoothing)
    tiny.assert_close(got, wanted, 1e-12)
    if len(ignored) < TOKENS:
        for a, b in zip(gradients(got, hidden, weight, used), gradients(wanted, hidden, weight, used), strict=True):
            tiny.assert_close(a, b, 1e-12)


def test_the_comparison_finds_a_forgotten_term() -> None:
    hidden, weight, bias, labels = case([3])
    got = linear_cross_entropy(hidden, weight, labels, bias, z_loss=1e-2, smoothing=0.1)
    for z_loss, smoothing, used in ((0.0, 0.1, bias), (1e-2, 0.0, bias), (1e-2, 0.1, None)):
        with pytest.raises(AssertionError):
            tiny.assert_close(got, plain(hidden, weight, labels, used, z_loss, smoothing), 1e-6)


def test_nothing_to_score_is_zero() -> None:
    hidden, weight, bias, labels = case(list(range(TOKENS)))
    got = linear_cross_entropy(hidden, weight, labels, bias, z_loss=1e-2, smoothing=0.1)
    assert got == 0
    assert all(g.eq(0).all() for g in gradients(got, hidden, weight, bias))
    model = tiny.build(tiny.encoder(head=config.LanguageModel(transform="gelu", bias="learned")))
    out = model(tiny.ids(2, 3))
    model.language_model_loss(out.hidden, torch.full((2, 3), IGNORE)).backward()
    assert all(g.eq(0).all() for g in tiny.gradients(model).values())


def test_large_logits_stay_finite() -> None:
    hidden, weight, bias, labels = case([], torch.float32)
    got = linear_cross_entropy(hidden * 1e4, weight, labels, bias)
    tiny.assert_close(got, plain(hidden * 1e4, weight, labels, bias, 0.0, 0.0), 1e-5)
    assert all(g.isfinite().all() for g in gradients(got, hidden, weight, bias))


def test_autocast_is_near_the_plain_loss(chunk: Any) -> None:
    chunk(4)
    hidden, weight, bias, labels = case([2], torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got = linear_cross_entropy(hidden, weight, labels, bias)
    wanted = plain(hidden, weight, labels, bias, 0.0, 0.0)
    assert got.dtype == torch.float32
    tiny.assert_close(got, wanted, 1e-2)
    for a, b in zip(gradients(got, hidden, weight, bias), gradients(wanted, hidden, weight, bias), strict=True):
        assert a.dtype == b.dtype
        tiny.assert_close(a, b, 2e-2)
    with pytest.raises(AssertionError):
        tiny.assert_close(got, wanted, 1e-7)


def test_without_gradients_none_are_worked_out(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, bias, labels = case([])
    with monkeypatch.context() as patch:
        patch.setattr(torch, "mm", lambda *_, **__: pytest.fail("a gradient was worked out"))
        with torch.no_grad():
            got = linear_cross_entropy(hidden, weight, labels, bias)
    tiny.assert_close(got, plain(hidden, weight, labels, bias, 0.0, 0.0), 1e-12)


def test_only_what_needs_a_gradient_gets_one() -> None:
    hidden, weight, bias, labels = case([])
    got = linear_cross_entropy(hidden.detach(), weight, labels, bias.detach())
    tiny.assert_close(gradients(got, weight)[0], gradients(plain(hidden, weight, labels, bias, 0.0, 0.0), weight)[0], 1e-12)


@pytest.mark.parametrize(
    "head",
    [
        config.LanguageModel(),
        config.LanguageModel(tied=False, bias="learned"),
        config.LanguageModel(scale=0.25, bias="fixed"),
        config.LanguageModel(transform="gelu", bias="learned"),
    ],
    ids=str,
)
def test_a_model_has_the_loss_of_its_logits(head: config.LanguageModel) -> None:
    model, ids = tiny.build(tiny.decoder("rotary", head)), tiny.ids(2, 6)
    labels = tiny.ids(2, 6, seed=1)
    labels[0, 2:4] = IGNORE
    out = model(ids)
    wanted = F.cross_entropy(out.logits.flatten(0, 1), labels.flatten(), reduction="sum")
    wanted.backward()
    expected = tiny.gradients(model)
    out = model(ids, logits=False)
    assert out.logits is None
    got = model.language_model_loss(out.hidden, labels)
    got.backward()
    tiny.assert_close(got, wanted, 1e-5)
    tiny.assert_close(tiny.gradients(model), expected, 1e-5)


def test_a_model_without_a_language_model_head_has_no_such_loss() -> None:
    model = tiny.build(tiny.encoder(head=config.Classify(labels=2)))
    with pytest.raises(ValueError, match="needs a LanguageModel head, and this model has Classify"):
        model.language_model_loss(torch.zeros(1, 2, tiny.WIDTH), torch.zeros(1, 2, dtype=torch.long))


class LiveBytes(TorchDispatchMode):
    """The most bytes that tensors made under it held at once."""

    def __init__(self) -> None:
        super().__init__()
        self.live, self.peak, self.known = 0, 0, set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.known:
                    self.known.add(storage._cdata)
                    self.live += storage.nbytes()
                    weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return out

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


def test_the_full_logits_are_never_held() -> None:
    tokens, vocab = 4096, 6000
    hidden, weight = torch.randn(tokens, 4, requires_grad=True), torch.randn(vocab, 4, requires_grad=True)
    labels, full = torch.randint(0, vocab, (tokens,)), 4 * tokens * vocab
    with LiveBytes() as chunked:
        linear_cross_entropy(hidden, weight, labels).backward()
    with LiveBytes() as whole:
        F.cross_entropy(hidden @ weight.T, labels, reduction="sum").backward()
    assert chunked.peak < full / 2
    assert whole.peak >= 2 * full
    assert loss.chunk_rows(vocab) * 4 < tokens


def test_second_derivatives_are_refused() -> None:
    hidden, weight, bias, labels = case([])
    (first,) = torch.autograd.grad(linear_cross_entropy(hidden, weight, labels, bias).square(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
