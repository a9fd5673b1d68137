"""The log-probabilities of labels, made in chunks, against those of all logits at once."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch

from triform import config
from triform.nn import IGNORE, linear_log_probs


def _given(dtype: torch.dtype, bias: bool = True) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in ((700, 16), (tiny.VOCAB, 16), (tiny.VOCAB,))]
    labels = torch.randint(tiny.VOCAB, (700,), generator=generator)
    return {"hidden": drawn[0], "weight": drawn[1], "labels": labels, "bias": drawn[2] if bias else None}


def _plain(given: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    logits = given["hidden"] @ given["weight"].T + (0 if given["bias"] is None else given["bias"])
    log_probs = logits.log_softmax(-1)
    return log_probs.gather(1, given["labels"][:, None])[:, 0], -(log_probs.exp() * log_probs).sum(-1)


@pytest.mark.parametrize("bias", [True, False])
def test_values_gradients_and_entropies(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In fp64, tolerance 1e-12, over more chunks than one; other weights of the labels give other gradients."""
    monkeypatch.setattr("triform.nn.log_probs.chunk_rows", lambda vocab_size: 256)
    given = _given(torch.float64, bias)
    scale = torch.linspace(-1, 1, 700, dtype=torch.float64)

    def gradients(values: torch.Tensor, scale: torch.Tensor) -> dict[str, torch.Tensor]:
        leaves = {name: given[name] for name in ("hidden", "weight", "bias") if given[name] is not None}
        return dict(zip(leaves, torch.autograd.grad((values * scale).sum(), list(leaves.values())), strict=True))

    wanted, entropy = _plain(given)
    found, told = linear_log_probs(**given, entropy=True)
    assert told is not None
    assert not told.requires_grad
    tiny.assert_close(found, wanted, 1e-12)
    tiny.assert_close(told, entropy, 1e-12)
    got = gradients(found, scale)
    tiny.assert_close(got, gradients(wanted, scale), 1e-12)
    other = gradients(_plain(given)[0], scale.flip(0))
    with pytest.raises(AssertionError):
        tiny.assert_close(got, other, 1e-3)


def test_only_what_is_asked_for() -> None:
    given = _given(torch.float32, bias=False)
    frozen = given | {"weight": given["weight"].detach()}
    values, entropy = linear_log_probs(**frozen)
    assert entropy is None
    values.sum().backward()
    assert given["hidden"].grad is not None
    assert given["weight"].grad is None


@pytest.mark.parametrize("head", [config.LanguageModel(), config.LanguageModel(tied=False, bias="learned", transform="gelu", scale=0.5)])
def test_a_model_places_them_where_its_labels_are(head: config.LanguageModel) -> None:
    """By the whole logits, divided by a temperature; tolerance 1e-5. Without the temperature they differ."""
    model = tiny.build(tiny.decoder("rotary", head))
    ids, labels = tiny.ids(3, 9), tiny.ids(3, 9, seed=1)
    labels[0, :4] = labels[2, 6:] = IGNORE
    out = model(ids)
    kept = labels != IGNORE
    found, entropy = model.language_model_log_probs(out.hidden, labels, temperature=0.7, entropy=True)
    for temperature in (0.7, 1.0):
        log_probs = (out.logits / temperature).log_softmax(-1)
        wanted = torch.where(kept, log_probs.gather(2, labels.clamp(min=0)[..., None])[..., 0], torch.zeros(()))
        entropies = torch.where(kept, -(log_probs.exp() * log_probs).sum(-1), torch.zeros(()))
        close = (found - wanted).abs().max() < 1e-5 and (entropy - entropies).abs().max() < 1e-5
        assert bool(close) == (temperature == 0.7)


def test_a_model_without_such_a_head() -> None:
    model = tiny.build(tiny.decoder(head=config.Classify(labels=2, pool="last")))
    with pytest.raises(ValueError, match="needs a LanguageModel head, and this model has Classify"):
        model.language_model_log_probs(torch.zeros(1, 2, 16), torch.zeros(1, 2, dtype=torch.long))
