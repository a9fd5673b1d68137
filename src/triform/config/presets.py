"""Named models, kept as data files in `triform/presets`.

A preset is a YAML file: a whole configuration, or `base` (another preset's name)
and `set` (fields by path). Files of one family may stand together, one document a name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from difflib import get_close_matches
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import yaml

from .model import Model
from .serial import from_dict, to_dict, with_overrides

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@lru_cache(maxsize=1)
def _documents() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for file in sorted(files("triform").joinpath("presets").iterdir(), key=lambda f: f.name):
        if file.name.endswith(".yaml"):
            for document in yaml.load_all(file.read_text(encoding="utf-8"), Loader=_Loader):
                name = document.pop("name")
                if name in found:
                    raise AssertionError(f"two presets are named {name}")
                found[name] = document
    return found


def presets() -> list[str]:
    """The names of all presets."""
    return sorted(_documents())


@lru_cache(maxsize=None)
def preset(name: str) -> Model:
    """The configuration of a preset. Raises ValueError with the nearest names."""
    documents = _documents()
    if name not in documents:
        near = get_close_matches(name.lower(), documents, 3, 0.4)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ValueError(f"no preset is named {name!r}{hint} (`triform presets` lists all)")
    document = documents[name]
    if "base" in document:
        return with_overrides(Model, preset(document["base"]), document.get("set", {}))
    return cast(Model, from_dict(Model, {k: v for k, v in document.items() if k != "source"}))


def source(name: str) -> str | None:
    """Where a preset's shape is published, if the file says."""
    return _documents()[name].get("source") if name in _documents() else None


def read(path: str | Path) -> Model:
    """The configuration in a Triform .yaml or .json file, or in the folder of a model that `triform.save` wrote.

    Of other public folders and of GGUF files `triform.hub.read_spec` gives it.
    """
    file = Path(path)
    if file.is_dir():
        file = file / ("triform.json" if (file / "triform.json").is_file() or not (file / "config.json").is_file() else "config.json")
    if not file.is_file():
        raise ValueError(f"{file}: expected a configuration file, found none")
    try:
        text = file.read_text(encoding="utf-8")
        data = json.loads(text) if file.suffix == ".json" else yaml.load(text, Loader=_Loader)
    except (UnicodeDecodeError, json.JSONDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{file}: expected {'JSON' if file.suffix == '.json' else 'YAML'}, got {str(error).splitlines()[0]}") from None
    if file.name == "config.json" and isinstance(data, dict) and "model_type" in data:
        if "triform" not in data:
            raise ValueError(f"{file}: a public configuration, which triform.hub.read_spec reads")
        data = data["triform"]
    if isinstance(data, dict) and "base" in data:
        if unknown := data.keys() - {"base", "set", "source", "name"}:
            raise ValueError(f"{file}: expected the keys base and set, got {', '.join(sorted(unknown))}")
        return with_overrides(Model, resolve(data["base"]), data.get("set", {}))
    try:
        return cast(Model, from_dict(Model, data))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def resolve(model: str | Path | Model | dict[str, Any], overrides: Iterable[str] = ()) -> Model:
    """A configuration from a preset's name, a file or folder, plain data, or itself, with overrides by path."""
    if isinstance(model, dict):
        found = cast(Model, from_dict(Model, model))
    elif isinstance(model, str | Path):
        is_path = isinstance(model, Path) or model.endswith((".yaml", ".yml", ".json")) or "/" in model or Path(model).is_dir()
        found = read(model) if is_path and model not in _documents() else preset(str(model))
    else:
        found = model
    return with_overrides(Model, found, overrides)


def save(model: Model, path: str | Path) -> None:
    """Write a configuration as JSON to a file that `read` takes."""
    Path(path).write_text(json.dumps(to_dict(model, hint=Model), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
