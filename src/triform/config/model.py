"""Heads, and the models they stand on, as data."""

from __future__ import annotations

from typing import Literal

from .spec import Activation, LayerNorm, Patches, RMSNorm, Stack, Tokens, at_least, probability, spec

Pooling = Literal["first", "mean", "last", "end"]


@spec
class LanguageModel:
    """Scores over the vocabulary.

    `tied` reuses the token embedding. `scale` multiplies the hidden state first
    (T5's `width ** -0.5`). `transform` puts BERT's linear layer, activation and
    norm first. A `fixed` bias is kept with the weights but not trained (BART).
    """

    tied: bool = True
    bias: Literal["none", "learned", "fixed"] = "none"
    scale: float = 1.0
    transform: Activation | None = None
    norm: LayerNorm | RMSNorm = LayerNorm()


@spec
class Classify:
    """One judgement over the whole sequence.

    The pooled state is the first position's, the mean's, the last seen position's,
    or that at the last `end` token. `transform` puts a square linear layer and an
    activation before the output (BERT's pooler is tanh on the first position).
    BERT's next-sentence head is two labels with that pooler.
    """

    labels: int
    pool: Pooling = "first"
    transform: Activation | None = None
    end_token: int | None = None
    bias: bool = True
    dropout: float = 0.0

    def __post_init__(self) -> None:
        at_least(self, 1, "labels")
        probability(self, "dropout")
        _check_pool(self.pool, self.end_token)


@spec
class ClassifyTokens:
    """One judgement a token (names, parts of speech)."""

    labels: int
    dropout: float = 0.0

    def __post_init__(self) -> None:
        at_least(self, 1, "labels")
        probability(self, "dropout")


@spec
class AnswerSpan:
    """Two scores a token: that an answer starts, and that it ends, there."""

    dropout: float = 0.0


@spec
class Embed:
    """One vector for the sequence: pooled, transformed, projected to `width`, made unit length.

    BERT's pooler alone is `Embed(pool="first", transform="tanh")`; a sentence
    encoder is `Embed(pool="mean", normalize=True)`.
    """

    pool: Pooling = "mean"
    transform: Activation | None = None
    width: int | None = None
    normalize: bool = False
    end_token: int | None = None

    def __post_init__(self) -> None:
        at_least(self, 1, "width")
        _check_pool(self.pool, self.end_token)


def _check_pool(pool: Pooling, end_token: int | None) -> None:
    if (pool == "end") != (end_token is not None):
        raise ValueError("end_token: expected an id with pool 'end', and only with it")


Head = LanguageModel | Classify | ClassifyTokens | AnswerSpan | Embed


@spec
class Init:
    """How weights start.

    `normal`: every matrix from N(0, std); with `scale_residuals` the layers that
    write to the residual stream from N(0, std / sqrt(2 depth)) (GPT-2). `t5`: by
    fan-in and role, as Mesh TensorFlow does. `xavier`: uniform by fan-in and fan-out
    for matrices, N(0, width ** -0.5) for embeddings (2017).
    """

    scheme: Literal["normal", "t5", "xavier"] = "normal"
    std: float = 0.02
    scale_residuals: bool = False


# Models


@spec
class Transformer:
    """An encoder, a decoder, or both, and a head.

    `sentence_head` is a second judgement beside the first (BERT's next sentence).
    `share_tokens` makes one token table serve encoder and decoder.
    """

    encoder: Stack | None = None
    decoder: Stack | None = None
    head: LanguageModel | Classify | ClassifyTokens | AnswerSpan | Embed | None = None
    sentence_head: Classify | None = None
    share_tokens: bool = False
    init: Init = Init()

    def __post_init__(self) -> None:
        if self.encoder is None and self.decoder is None:
            raise ValueError("encoder: expected an encoder, a decoder, or both, got neither")
        if self.encoder and any(block.cross for block in self.encoder.pattern):
            raise ValueError("encoder.pattern: expected no cross-attention, since an encoder has nothing to look at")
        if self.decoder and any((block.cross is not None) != (self.encoder is not None) for block in self.decoder.pattern):
            raise ValueError("decoder.pattern: expected cross-attention in every block with an encoder, and in none without")
        if self.decoder and not isinstance(self.decoder.input, Tokens):
            raise ValueError("decoder.input: expected Tokens, got Patches")
        if isinstance(self.head, LanguageModel) and not isinstance(self.last.input, Tokens):
            raise ValueError("head: expected a stack that reads Tokens for a LanguageModel head")
        if self.share_tokens and (self.encoder is None or self.decoder is None or not self._same_table()):
            raise ValueError("share_tokens: expected an encoder and a decoder of one width and one vocab_size")

    def _same_table(self) -> bool:
        a, b = self.encoder, self.decoder
        return bool(
            a and b and isinstance(a.input, Tokens) and isinstance(b.input, Tokens)
            and (a.width, a.input.vocab_size) == (b.width, b.input.vocab_size)
        )  # fmt: skip

    @property
    def last(self) -> Stack:
        """The stack that the head reads."""
        stack = self.decoder or self.encoder
        assert stack is not None
        return stack

    @property
    def form(self) -> str:
        """encoder-only, decoder-only or encoder-decoder."""
        if self.decoder is None:
            return "encoder-only"
        return "decoder-only" if self.encoder is None else "encoder-decoder"


@spec
class DualEncoder:
    """Two towers that meet in one space of `width` (CLIP, Radford et al. 2021).

    The text is read at its `end_token`; None: at its highest id.
    """

    text: Stack
    image: Stack
    width: int
    end_token: int | None = None
    init: Init = Init()

    def __post_init__(self) -> None:
        at_least(self, 1, "width")
        if not isinstance(self.text.input, Tokens):
            raise ValueError("text.input: expected Tokens")
        if not isinstance(self.image.input, Patches):
            raise ValueError("image.input: expected Patches")

    @property
    def form(self) -> str:
        """dual-encoder."""
        return "dual-encoder"


Model = Transformer | DualEncoder
