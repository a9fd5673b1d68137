"""Fill-in-the-middle: documents rearranged so that a causal model learns to write what stands between two parts (Bavarian et al. 2022)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from triform.text import Tokenizer

# prefix, suffix, middle, as public models have them; the first set that the tokenizer holds is taken
FAMILIES = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen, CodeGemma
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),  # Code Llama
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek-Coder
    ("[PREFIX]", "[SUFFIX]", "[MIDDLE]"),  # Codestral
)


def middle_tokens(tokenizer: Tokenizer) -> tuple[int, int, int]:
    """The ids that stand before prefix, suffix and middle. Raises ValueError for a tokenizer without them."""
    for names in FAMILIES:
        ids = [tokenizer.id(name) for name in names]
        if all(i is not None for i in ids):
            return ids[0], ids[1], ids[2]  # type: ignore[return-value]
    wanted = ", ".join(f"'{name}'" for name in FAMILIES[0])
    expected = "expected a tokenizer with tokens for prefix, suffix and middle, got one without"
    raise ValueError(f"objective.fim: {expected}; set tokenizer.add: [{wanted}]")


def rearranged(tokenizer: Tokenizer, texts: Sequence[str], rate: float, suffix_first: float) -> list[list[int]]:
    """The tokens of texts, a share `rate` of which are cut in three at random characters and rearranged.

    PSM: before each part its token, in the order prefix, suffix, middle. SPM, a share `suffix_first` of those: the tokens
    of prefix and suffix, the suffix, the token of middle, prefix and middle (the paper's second variant, appendix D). Both share a
    text's tokens out among the parts as they would be met in use, where a part ends wherever the writer stopped. What is drawn
    comes from the text alone, so that neither the order of texts nor who encodes them changes it.
    """
    before, between, after = middle_tokens(tokenizer)
    drawn = [_drawn(text, rate, suffix_first) for text in texts]
    forms, parts = [form for form, _ in drawn], [pieces for _, pieces in drawn]
    ids = iter(_encoded(tokenizer, parts))
    found = []
    for form in forms:
        if form == "whole":
            found.append(next(ids))
            continue
        prefix, middle, suffix = next(ids), next(ids), next(ids)
        if form == "psm":
            found.append([before, *prefix, between, *suffix, after, *middle])
        else:
            found.append([before, between, *suffix, after, *prefix, *middle])
    return found


def _drawn(text: str, rate: float, suffix_first: float) -> tuple[str, list[str]]:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    rng = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "big")))
    whether, which, *cuts = rng.random(4)
    if whether >= rate:
        return "whole", [text]
    first, second = sorted(int(cut * (len(text) + 1)) for cut in cuts)
    return "spm" if which < suffix_first else "psm", [text[:first], text[first:second], text[second:]]


def _encoded(tokenizer: Tokenizer, parts: Sequence[Sequence[str]]) -> list[list[int]]:
    """The tokens of every part. Where a tokenizer begins a text with a space of its own, only a text's first part gets it."""
    spaced = tokenizer.tokens(tokenizer.encode("a"))[:1]
    guard = "☺" if spaced and spaced[0].startswith(("▁", "Ġ")) else ""
    begins = tokenizer.encode(guard)
    texts = [piece if i == 0 else guard + piece for pieces in parts for i, piece in enumerate(pieces)]
    later = [i > 0 for pieces in parts for i in range(len(pieces))]
    encoded = tokenizer.encode_batch(texts, plain=True)
    return [ids[len(begins) :] if cut else ids for ids, cut in zip(encoded, later, strict=True)]
