"""Sentence encoders as sentence-transformers keeps them: a model of any family, and files that say how its states become one vector.

`modules.json` lists what follows the model: a folder with the pooling's config.json, and
normalization. `sentence_bert_config.json` says how long a text may be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from triform import config

from .family import Family
from .fields import Fields, read_json, read_list

MODULES = "modules.json"
_POOLINGS: dict[str, config.Pooling] = {"mean_tokens": "mean", "cls_token": "first", "lasttoken": "last"}
_SPELLINGS: dict[str, config.Pooling] = {"mean": "mean", "cls": "first", "lasttoken": "last"}
_UNUSED = (r"(.*\.)?pooler\..*", r"(.*\.)?lm_head\..*", r"cls\..*")  # heads that the vector is not made with


def read_head(folder: Path) -> config.Embed | None:
    """How a folder's sentence encoder makes its vector; None where the folder holds no such encoder.

    Raises ValueError for modules and poolings that the core has no counterpart for.
    """
    if not (folder / MODULES).is_file():
        return None
    steps = read_list(folder / MODULES)
    kinds = [str(step.get("type", "")).rpartition(".")[2] if isinstance(step, Mapping) else "" for step in steps]
    if kinds[:2] != ["Transformer", "Pooling"] or kinds[2:] not in ([], ["Normalize"]):
        raise ValueError(f"{folder / MODULES}: expected Transformer, Pooling and perhaps Normalize, got {', '.join(kinds) or 'nothing'}")
    path = steps[1].get("path")
    if not isinstance(path, str) or not path or Path(path).name != path:
        raise ValueError(f"{folder / MODULES}: expected the name of a folder beside it as the pooling's path, got {path!r}")
    file = folder / path / "config.json"
    return config.Embed(pool=_pooling(Fields(read_json(file), f"{file}: ")), normalize=len(kinds) == 3)


def _pooling(fields: Fields) -> config.Pooling:
    told = fields.text("pooling_mode", "")
    flags = {name.removeprefix("pooling_mode_"): on for name, on in fields.data.items() if name.startswith("pooling_mode_")}
    chosen = [told] if told else [name for name, on in flags.items() if on is True]
    known = _SPELLINGS if told else _POOLINGS
    if len(chosen) != 1 or chosen[0] not in known:
        raise fields.fail("pooling_mode", f"one of {', '.join(known)}, as nothing else is supported (here: {', '.join(chosen) or 'none'})")
    return known[chosen[0]]


def longest(folder: Path) -> int | None:
    """The tokens that a sentence encoder's texts are cut to; None where its folder does not say."""
    file = folder / "sentence_bert_config.json"
    return Fields(read_json(file), f"{file}: ").maybe_whole("max_seq_length") if file.is_file() else None


def with_head(folder: Path, model: config.Model, family: Family) -> tuple[config.Model, Family]:
    """A public folder's model and names with the sentence encoder's head in the place of the model's own, where the folder says so."""
    head = read_head(folder)
    if head is None or not isinstance(model, config.Transformer):
        return model, family
    names = tuple(rule for rule in family.table if not any(name.startswith(("head.", "sentence_head.")) for name in rule.ours))
    return replace(model, head=head, sentence_head=None), replace(family, table=names, ignore=(*family.ignore, *_UNUSED))


def files(head: config.Embed, width: int, length: int | None = None) -> dict[str, Any]:
    """What `read_head` and `longest` read, by the name of the file, for a head without weights on states of `width`."""
    steps = ["Transformer", "Pooling", *(["Normalize"] if head.normalize else [])]
    places = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modes = {f"pooling_mode_{name}": pool == head.pool for name, pool in _POOLINGS.items()}
    found: dict[str, Any] = {
        MODULES: [
            {"idx": i, "name": str(i), "path": places[step], "type": f"sentence_transformers.models.{step}"} for i, step in enumerate(steps)
        ],
        "1_Pooling/config.json": {"word_embedding_dimension": width} | modes,
    }
    if length is not None:
        found["sentence_bert_config.json"] = {"max_seq_length": length, "do_lower_case": False}
    return found
