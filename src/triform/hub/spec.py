"""What a model is, read from wherever it lies, without torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from triform import config

from .families import read_config
from .fields import read_json
from .names import locate
from .sentence import with_head


def read_spec(path: str | Path) -> config.Model:
    """The configuration of a model's folder, Triform's own or a public one, or of a GGUF file.

    Raises ValueError for a path that holds neither.
    """
    path = Path(path)
    if (path / "triform.json").is_file():
        return config.read(path)
    if (path / "config.json").is_file():
        try:
            return with_head(path, *read_config(read_json(path / "config.json")))[0]
        except ValueError as error:
            raise error if str(error).startswith(str(path)) else ValueError(f"{path}: {error}") from None
    if path.suffix == ".gguf" and path.is_file():
        from .gguf import GGUFFile

        return GGUFFile(path).spec
    raise ValueError(f"{path}: expected a folder with triform.json or config.json, or a .gguf file")


def find_spec(name: str, overrides: Iterable[str] = ()) -> tuple[config.Model, Path | None]:
    """The configuration that a name stands for, and where its files lie, None for a configuration alone.

    name: a preset, a .yaml or .json configuration, a model's folder, a .gguf file, or a name that `locate` knows, of which
    only the configuration is fetched. overrides: fields by path. Raises ValueError for what is none of these.
    """
    if name in config.presets() or name.endswith((".yaml", ".yml", ".json")):
        return config.resolve(name, overrides), None
    place = locate(name, weights=False)
    return config.with_overrides(config.Model, read_spec(place), overrides), place
