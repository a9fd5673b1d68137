"""Small models from seeds, and tokenizers trained on a few lines."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
import torch

import triform
from triform import config
from triform.text import Tokenizer, train_tokenizer

LINES = (
    "话说天下大势，分久必合，合久必分。",
    "滚滚长江东逝水，浪花淘尽英雄。",
    "是非成败转头空，青山依旧在，几度夕阳红。",
    "白发渔樵江渚上，惯看秋月春风。一壶浊酒喜相逢。",
    "The quick brown fox jumps over the lazy dog 0123456789.",
    "酒店😀房间很干净，服务也好👍🏽，下次还来！",
)


@lru_cache(maxsize=None)
def tokenizer_of(kind: str) -> Tokenizer:
    """A tokenizer of the kind; byte-bpe and wordpiece have all special tokens."""
    size = {"byte-bpe": 320, "bpe": 400, "wordpiece": 160, "unigram": 124, "characters": None}[kind]
    return train_tokenizer(LINES * 4, kind=kind, vocab_size=size, min_frequency=1, byte_fallback=False if kind == "unigram" else None)


CAUSAL = config.Attention(heads=2, kv_heads=1, mask="causal", position=config.Rotary(), bias="none")
FEED_FORWARD = config.FeedForward(hidden=48)
BOTH_WAYS = config.Attention(heads=2)
UNTIED = config.LanguageModel(tied=False)  # a tied head would say the last token again and again


def stack(vocab_size: int, *attentions: config.Attention, cross: bool = False, learned: int | None = None) -> config.Stack:
    """A stack of width 24 and depth 2, with learned positions if a length is given."""
    position = None if learned is None else config.Learned(length=learned)
    blocks = tuple(config.Block(attention=a, feed_forward=FEED_FORWARD, cross=BOTH_WAYS if cross else None) for a in attentions)
    return config.Stack(
        width=24, depth=2, input=config.Tokens(vocab_size=vocab_size, position=position), pattern=blocks, norm=config.LayerNorm()
    )


def decoder_only(vocab_size: int, *attentions: config.Attention, learned: int | None = None) -> config.Transformer:
    return config.Transformer(decoder=stack(vocab_size, *(attentions or (CAUSAL,)), learned=learned), head=UNTIED)


def encoder_decoder(vocab_size: int, learned: int | None = None) -> config.Transformer:
    return config.Transformer(
        encoder=stack(vocab_size, BOTH_WAYS, learned=learned),
        decoder=stack(vocab_size, CAUSAL, cross=True, learned=learned),
        head=UNTIED,
    )


def encoder_only(vocab_size: int, head: Any = None, learned: int | None = 32) -> config.Transformer:
    return config.Transformer(encoder=stack(vocab_size, BOTH_WAYS, learned=learned), head=head or config.LanguageModel())


def built(spec: config.Transformer, seed: int = 0) -> Any:
    """A model with every weight perturbed far enough that its outputs vary from place to place."""
    model = triform.build(spec, seed=seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


@pytest.fixture(params=["plain", "window", "mixed", "learned", "alibi", "bucketed"])
def decoder(request: Any) -> Callable[[int], Any]:
    """Decoder-only models of several kinds of attention and position, by vocabulary size."""
    windowed = config.Attention(heads=2, mask="causal", window=4, position=config.Rotary())
    plain = config.Attention(heads=2, mask="causal")
    kinds: dict[str, tuple[config.Attention, ...]] = {
        "plain": (CAUSAL,),
        "window": (windowed,),
        "mixed": (windowed, CAUSAL),
        "learned": (plain,),
        "alibi": (config.Attention(heads=2, mask="causal", position=config.Alibi()),),
        "bucketed": (config.Attention(heads=2, mask="causal", position=config.Bucketed(buckets=8, max_distance=16)),),
    }
    return lambda size: built(decoder_only(size, *kinds[request.param], learned=64 if request.param == "learned" else None))
