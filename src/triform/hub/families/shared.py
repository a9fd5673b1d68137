"""What several families read alike."""

from __future__ import annotations

from collections.abc import Sequence

from triform import config

from ..fields import Fields


def causal_head(hf: Fields, *, tied: bool) -> tuple[config.LanguageModel | None, bool]:
    """The head of a decoder-only model, and whether its files hold the bare model; `tied` is the family's default."""
    architecture = hf.architecture or "ForCausalLM"
    if architecture.endswith(("ForCausalLM", "LMHeadModel")):
        return config.LanguageModel(tied=hf.flag("tie_word_embeddings", tied)), False
    if architecture.endswith("Model"):
        return None, True
    raise hf.fail("architectures", "a class that ends in ForCausalLM, LMHeadModel or Model")


def period(blocks: Sequence[config.Block]) -> tuple[config.Block, ...]:
    """The shortest pattern that repeats to `blocks`."""
    for length in range(1, len(blocks)):
        if all(block == blocks[i % length] for i, block in enumerate(blocks)):
            return tuple(blocks[:length])
    return tuple(blocks)
