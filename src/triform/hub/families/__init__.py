"""Every family of public checkpoints: a reader and a writer of its configuration, and a table of names each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from triform import config

from ..family import Family, NoCounterpart
from ..fields import Fields
from ..function import depths, differences
from . import bart, bert, gpt2, llama, t5, vision
from .vanilla import FAMILY as VANILLA

__all__ = ["READERS", "VANILLA", "WRITERS", "read_config", "write_config"]

READERS: dict[str, Callable[[Fields], tuple[config.Model, Family]]] = {
    "bart": bart.read,
    "bert": bert.read,
    "clip": vision.read_clip,
    "clip_text_model": vision.read_clip_tower,
    "clip_vision_model": vision.read_clip_tower,
    "distilbert": bert.read,
    "gemma3_text": llama.read,
    "gpt2": gpt2.read,
    "llama": llama.read,
    "marian": bart.read,
    "mistral": llama.read,
    "mixtral": llama.read,
    "mt5": t5.read,
    "pegasus": bart.read,
    "qwen2": llama.read,
    "qwen3": llama.read,
    "qwen3_moe": llama.read,
    "roberta": bert.read,
    "roberta-prelayernorm": bert.read,
    "switch_transformers": t5.read,
    "t5": t5.read,
    "vit": vision.read_vit,
}

# Asked in this order, so the most widely read family that fits is taken
WRITERS: tuple[Callable[[config.Model], dict[str, Any] | None], ...] = (
    *(partial(llama.write, name=name) for name in ("llama", "mistral", "qwen2", "qwen3")),
    gpt2.write,
    *(partial(llama.write, name=name) for name in ("mixtral", "qwen3_moe", "gemma3_text")),
    *(partial(bert.write, kind=kind) for kind in ("bert", "roberta", "distilbert", "roberta-prelayernorm")),
    *(partial(t5.write, name=name) for name in ("t5", "mt5", "switch_transformers")),
    *(partial(bart.write, name=name) for name in ("bart", "marian", "pegasus")),
    vision.write_vit,
    vision.write_clip,
    vision.write_clip_tower,
)
OWN = "triform"
"""The key of a public configuration that holds ours, with what only training uses."""


def read_config(data: Mapping[str, Any]) -> tuple[config.Model, Family]:
    """Our configuration of a public `config.json`, and how its weights are named.

    Older spellings are understood: `rope_theta` with `rope_scaling`, and absent
    `layer_types`, `head_dim`, `tie_word_embeddings`. What the core has no counterpart
    for is refused with ValueError, rather than read as something else. A configuration
    that `write_config` added is taken where it computes what the public fields say.
    """
    hf = Fields(data)
    kind = hf.text("model_type")
    if kind not in READERS:
        raise hf.fail("model_type", f"one of {', '.join(READERS)}")
    try:
        model, family = READERS[kind](hf)
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith("config.json") else f"config.json: {error}") from None
    return _exact(data.get(OWN), model), family


def _exact(said: Any, model: config.Model) -> config.Model:
    try:
        exact: config.Model = config.from_dict(config.Model, said)
    except ValueError:
        return model
    if depths(exact) != depths(model):  # before the layers are listed
        return model
    return model if differences(exact, model) else exact


def write_config(model: config.Model) -> tuple[dict[str, Any], Family]:
    """A public `config.json` of a configuration, and how its weights are named.

    `architectures` names the class of Hugging Face's transformers that opens it. Ids of
    special tokens are there only where they must be, and are the tokenizer's to say.
    Raises NoCounterpart, which names the fields that the nearest family has otherwise.
    """
    nearest: tuple[str, dict[str, tuple[str, str]]] | None = None
    for write in WRITERS:
        data = write(model)
        if data is None:
            continue
        try:
            found, family = read_config(data)
        except ValueError:
            continue  # a size that this family cannot have
        differing = differences(model, found)
        if not differing:
            return data | {OWN: config.to_dict(model, hint=config.Model)}, family
        if nearest is None or len(differing) < len(nearest[1]):
            nearest = family.name, differing
    raise NoCounterpart(_missing(model, nearest))


def _missing(model: config.Model, nearest: tuple[str, dict[str, tuple[str, str]]] | None) -> str:
    form = f"no public family computes what this {model.form} model does"
    if nearest is None:
        return f"{form}; none has its inputs"
    name, differing = nearest
    listed = [f"{path} ({ours} here, {theirs} there)" for path, (ours, theirs) in differing.items()]
    more = f" and {len(listed) - 4} more" if len(listed) > 4 else ""
    return f"{form}; the nearest, {name}, has other {', '.join(listed[:4])}{more}"
