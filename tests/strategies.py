"""Hypothesis strategies for small, valid configurations of every kind."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from triform import config

NORMS = st.one_of(st.builds(config.LayerNorm, bias=st.booleans()), st.builds(config.RMSNorm, unit_offset=st.booleans()))
MAYBE_NORM = st.none() | NORMS
ACTIVATIONS = st.sampled_from(["relu", "gelu", "gelu_tanh", "quick_gelu", "silu", "tanh"])
TRANSFORMS = st.none() | ACTIVATIONS
SCALINGS = st.one_of(
    st.none(),
    st.builds(config.Linear, factor=st.sampled_from([1.0, 2.0])),
    st.just(config.Llama3(factor=8.0, low=1.0, high=4.0, original_length=16)),
    st.just(config.Yarn(factor=4.0, original_length=16)),
)
POSITIONS = st.one_of(
    st.none(),
    st.builds(config.Rotary, theta=st.sampled_from([100.0, 10_000.0]), scaling=SCALINGS),
    st.builds(config.Bucketed, buckets=st.sampled_from([4, 8]), max_distance=st.just(16)),
    st.just(config.Alibi()),
)
POOLING = st.sampled_from(["first", "mean", "last"])


@st.composite
def attentions(draw: Any, *, masks: tuple[str, ...] = ("bidirectional", "causal", "prefix"), cross: bool = False) -> config.Attention:
    """An attention that fits a width divisible by 8."""
    heads = draw(st.sampled_from([1, 2, 4]))
    return config.Attention(
        heads=heads,
        kv_heads=draw(st.none() | st.sampled_from([n for n in (1, 2, 4) if heads % n == 0])),
        head_width=draw(st.sampled_from([None, 4, 6])),
        mask="bidirectional" if cross else draw(st.sampled_from(masks)),
        window=None if cross else draw(st.none() | st.integers(1, 6)),
        position=None if cross else draw(POSITIONS),
        qk_norm=draw(MAYBE_NORM),
        bias=draw(st.sampled_from(["none", "qkv", "out", "all"])),
        scale=draw(st.sampled_from([None, 1.0])),
    )


def feed_forwards() -> st.SearchStrategy[config.FeedForward]:
    return st.builds(config.FeedForward, hidden=st.integers(1, 24), activation=ACTIVATIONS, gated=st.booleans(), bias=st.booleans())


@st.composite
def experts(draw: Any) -> config.Experts:
    count = draw(st.integers(1, 4))
    return config.Experts(
        expert=draw(feed_forwards()),
        count=count,
        top_k=draw(st.integers(1, count)),
        renormalize=draw(st.booleans()),
        shared=draw(st.none() | feed_forwards()),
    )


@st.composite
def stacks(draw: Any, *, masks: tuple[str, ...], patches: bool = False, cross: bool = False) -> config.Stack:
    blocks = st.builds(
        config.Block,
        attention=attentions(masks=masks),
        feed_forward=feed_forwards() | experts(),
        cross=attentions(cross=True) if cross else st.none(),
        norm=NORMS,
        placement=st.sampled_from(["pre", "post", "sandwich"]),
    )
    tokens = st.builds(
        config.Tokens,
        vocab_size=st.integers(8, 40),
        position=st.one_of(
            st.none(),
            st.builds(config.Learned, length=st.integers(16, 20), offset=st.integers(0, 2)),
            st.builds(config.Sinusoidal, interleaved=st.booleans()),
        ),
        segments=st.integers(0, 2),
        scale=st.sampled_from([1.0, 4.0]),
        norm=MAYBE_NORM,
    )
    images = st.builds(
        config.Patches, image=st.just(8), patch=st.sampled_from([2, 4]), channels=st.integers(1, 3), bias=st.booleans(), norm=MAYBE_NORM
    )
    return config.Stack(
        width=draw(st.sampled_from([8, 16, 24])),
        depth=draw(st.integers(1, 4)),
        input=draw(images if patches else tokens),
        pattern=tuple(draw(st.lists(blocks, min_size=1, max_size=3))),
        norm=draw(MAYBE_NORM),
    )


def heads(*, tokens: bool = True) -> st.SearchStrategy[config.Head | None]:
    """Any head, or none; a language model only on a stack that reads tokens."""
    judges: list[st.SearchStrategy[config.Head | None]] = [
        st.none(),
        sentence_heads(),
        st.builds(config.ClassifyTokens, labels=st.integers(1, 5)),
        st.just(config.AnswerSpan()),
        st.builds(config.Embed, pool=POOLING, transform=TRANSFORMS, width=st.none() | st.integers(1, 9), normalize=st.booleans()),
    ]
    if tokens:
        bias = st.sampled_from(["none", "learned", "fixed"])
        judges.append(st.builds(config.LanguageModel, tied=st.booleans(), bias=bias, transform=TRANSFORMS, norm=NORMS))
    return st.one_of(judges)


def sentence_heads() -> st.SearchStrategy[config.Classify]:
    return st.builds(config.Classify, labels=st.integers(1, 5), pool=POOLING, transform=TRANSFORMS, bias=st.booleans())


@st.composite
def transformers(draw: Any, forms: tuple[str, ...] = ("encoder-only", "decoder-only", "encoder-decoder")) -> config.Transformer:
    form = draw(st.sampled_from(forms))
    encoder = decoder = None
    patches = form != "decoder-only" and draw(st.booleans())
    if form != "decoder-only":
        encoder = draw(stacks(masks=("bidirectional",), patches=patches))
    if form != "encoder-only":
        decoder = draw(stacks(masks=("causal", "prefix"), cross=form == "encoder-decoder"))
    can_share = (
        encoder and decoder and isinstance(encoder.input, config.Tokens) and isinstance(decoder.input, config.Tokens)
        and (encoder.width, encoder.input.vocab_size) == (decoder.width, decoder.input.vocab_size)
    )  # fmt: skip
    last = decoder or encoder
    assert last is not None
    return config.Transformer(
        encoder=encoder,
        decoder=decoder,
        head=draw(heads(tokens=isinstance(last.input, config.Tokens))),
        sentence_head=draw(st.none() | sentence_heads()),
        share_tokens=bool(can_share) and draw(st.booleans()),
    )


def dual_encoders() -> st.SearchStrategy[config.DualEncoder]:
    return st.builds(
        config.DualEncoder,
        text=stacks(masks=("bidirectional", "causal")),
        image=stacks(masks=("bidirectional",), patches=True),
        width=st.integers(1, 9),
    )


def models() -> st.SearchStrategy[config.Model]:
    """A configuration of any form."""
    return transformers() | dual_encoders()
