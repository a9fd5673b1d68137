"""Small models of every kind for tests: two layers, sixteen wide, every weight disturbed."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from triform import config, nn

VOCAB, WIDTH = 23, 16
FEED_FORWARD = config.FeedForward(hidden=24, activation="gelu_tanh")
GATED = config.FeedForward(hidden=24, activation="silu", gated=True, bias=False)
EXPERTS = config.Experts(expert=GATED, count=4, top_k=2, renormalize=True)
INPUT_POSITIONS = {
    "none": None,
    "learned": config.Learned(length=24, offset=2),
    "sinusoidal": config.Sinusoidal(),
}
SCORE_POSITIONS = {
    "rotary": config.Rotary(theta=100.0),
    "llama3": config.Rotary(theta=100.0, scaling=config.Llama3(factor=8.0, low=1.0, high=4.0, original_length=8)),
    "bucketed": config.Bucketed(buckets=4, max_distance=8),
    "alibi": config.Alibi(),
}
POSITIONS = [*INPUT_POSITIONS, *SCORE_POSITIONS]


def attention(position: str = "none", **fields: Any) -> config.Attention:
    """An attention of 4 heads with a position of `POSITIONS`."""
    return config.Attention(**{"heads": 4, "position": SCORE_POSITIONS.get(position)} | fields)


def stack(*attentions: config.Attention, position: str = "none", depth: int = 2, cross: bool = False, **fields: Any) -> config.Stack:
    """A stack whose blocks have these attentions in turn; `fields` go to the blocks."""
    fields = {"feed_forward": FEED_FORWARD, "cross": config.Attention(heads=2) if cross else None} | fields
    norm = fields.get("norm", config.LayerNorm())
    return config.Stack(
        width=WIDTH,
        depth=depth,
        input=config.Tokens(vocab_size=VOCAB, position=INPUT_POSITIONS.get(position), segments=2),
        pattern=tuple(config.Block(attention=a, **fields) for a in attentions),
        norm=None if fields.get("placement") == "post" else norm,
    )


def encoder(position: str = "none", head: config.Head | None = None, **fields: Any) -> config.Transformer:
    """An encoder-only model; `fields` go to its attention."""
    return config.Transformer(encoder=stack(attention(position, **fields), position=position), head=head or config.LanguageModel())


def decoder(position: str = "none", head: config.Head | None = None, **fields: Any) -> config.Transformer:
    """A decoder-only model; `fields` go to its attention."""
    spec = attention(position, **{"mask": "causal"} | fields)
    return config.Transformer(decoder=stack(spec, position=position), head=head or config.LanguageModel())


def encoder_decoder(position: str = "none", head: config.Head | None = None) -> config.Transformer:
    """An encoder-decoder with one token table."""
    return config.Transformer(
        encoder=stack(attention(position), position=position),
        decoder=stack(attention(position, mask="causal"), position=position, cross=True),
        head=head or config.LanguageModel(),
        share_tokens=True,
    )


@lru_cache(maxsize=None)
def _built(spec: config.Model, dtype: torch.dtype) -> Any:
    model = nn.build(spec, dtype=dtype, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor += 0.3 * torch.randn(tensor.shape, generator=generator).to(dtype)
    return model


def build(spec: config.Model, dtype: torch.dtype = torch.float32) -> Any:
    """The model in evaluation mode, without gradients; the same object each time, so leave its weights alone."""
    model = _built(spec, dtype).eval()
    model.zero_grad()
    return model


def ids(*shape: int, seed: int = 0) -> torch.Tensor:
    """Token ids from 1; 0 is left for padding."""
    return torch.randint(1, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def gradients(model: Any) -> dict[str, torch.Tensor]:
    """The gradients by name, zeros where there is none, taken off the model."""
    found = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
    model.zero_grad()
    return found


def assert_close(got: Any, wanted: Any, tolerance: float) -> None:
    """Assert that two tensors, or dictionaries of them, differ by at most `tolerance` times the larger of 1 and the largest wanted."""
    if isinstance(wanted, dict):
        assert got.keys() == wanted.keys()
        for name in wanted:
            assert_close(got[name], wanted[name], tolerance)
        return
    assert got.shape == wanted.shape
    if wanted.numel():
        limit = tolerance * max(1.0, float(wanted.detach().abs().max()))
        assert float((got.detach() - wanted.detach()).abs().max()) <= limit
