"""References whose generated tokens vary, what they read, and the same models as ours."""

from __future__ import annotations

from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from parity.cases import CASES, inputs, perturb, saved
from parity.cases import reference as still
from torch import Tensor
from transformers import GenerationConfig

from triform import hub

DECODERS = [
    "gpt2", "llama", "llama-tied-biases", "llama-3.1", "llama-yarn", "mistral", "mixtral", "mixtral-windows", "qwen2", "qwen2-windows",
    "qwen3", "qwen3-experts", "qwen3-experts-windows", "gemma3",
]  # fmt: skip
BOTH = ["t5", "t5-1.1", "mt5", "switch", "bart", "marian", "pegasus"]
START = 2  # what decoders of encoder-decoders begin with


@lru_cache(maxsize=None)
def reference(name: str) -> tuple[Any, Path]:
    """A case's reference whose layers weigh far more than its token table, and the folder that it saved itself to.

    With layers of little weight a model says its last token again and again, where the table is the output matrix too.
    """
    model = deepcopy(still(name)[0])
    torch.manual_seed(1)
    with torch.no_grad():
        named = model.named_parameters()
        layers = {key: p for key, p in named if p.ndim > 1 and any(part in key for part in (".layers.", ".block.", ".h."))}
        perturb(layers, CASES[name].arguments, 0.6)
    folder = saved(model)
    model.generation_config = GenerationConfig()  # what is None in a call's settings is taken from here
    return model, folder


@lru_cache(maxsize=None)
def loaded(name: str) -> Any:
    """The same model, read by us."""
    return hub.load_public(reference(name)[1])


def batch(name: str) -> tuple[Tensor, Tensor]:
    """Three prompts of 12, 7 and 9 tokens, (3, 12) ids and mask: padded on the left for a decoder, on the right for an encoder."""
    rows = [inputs(length, seed=4)[0] for length in (12, 7, 9)]
    ids, mask = torch.zeros(3, 12, dtype=torch.long), torch.zeros(3, 12, dtype=torch.long)
    for row, tokens in enumerate(rows):
        place = slice(0, len(tokens)) if CASES[name].form == "both" else slice(12 - len(tokens), 12)
        ids[row, place], mask[row, place] = tokens, 1
    return ids, mask


def upto(row: list[int], ends: list[int]) -> list[int]:
    """A row up to the first token that ends it."""
    last = next((i for i, token in enumerate(row) if token in ends), len(row) - 1)
    return row[: last + 1]
