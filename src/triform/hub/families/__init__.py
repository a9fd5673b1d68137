"""Every family of public checkpoints that is read: a configuration reader and a table of names each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from triform import config

from ..family import Family
from ..fields import Fields
from . import bart, bert, gpt2, llama, t5, vision
from .vanilla import FAMILY as VANILLA

__all__ = ["READERS", "VANILLA", "read_config"]

READERS: dict[str, Callable[[Fields], tuple[config.Model, Family]]] = {
    "bart": bart.read,
    "bert": bert.read,
    "clip": vision.read_clip,
    "distilbert": bert.read,
    "gemma3_text": llama.read,
    "gpt2": gpt2.read,
    "llama": llama.read,
    "mistral": llama.read,
    "mixtral": llama.read,
    "qwen2": llama.read,
    "qwen3": llama.read,
    "qwen3_moe": llama.read,
    "roberta": bert.read,
    "switch_transformers": t5.read,
    "t5": t5.read,
    "vit": vision.read_vit,
}


def read_config(data: Mapping[str, Any]) -> tuple[config.Model, Family]:
    """Our configuration of a public `config.json`, and how its weights are named.

    Older spellings are understood: `rope_theta` with `rope_scaling`, and absent
    `layer_types`, `head_dim`, `tie_word_embeddings`. What the core has no counterpart
    for is refused with ValueError, rather than read as something else.
    """
    hf = Fields(data)
    kind = hf.text("model_type")
    if kind not in READERS:
        raise hf.fail("model_type", f"one of {', '.join(READERS)}")
    try:
        return READERS[kind](hf)
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith("config.json") else f"config.json: {error}") from None
