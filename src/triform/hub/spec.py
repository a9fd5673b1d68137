"""What a model is, read from wherever it lies, without torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from triform import config

from .families import read_config
from .fields import Fields, read_json
from .names import locate
from .sentence import with_head

ADAPTER = "adapter_config.json"


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no whole model."""
    return (folder / ADAPTER).is_file() and not (folder / "config.json").is_file()


def base_of(folder: Path) -> str:
    """The model that an adapter belongs to, by its path or name. Raises ValueError where the folder does not say."""
    file = folder / ADAPTER
    name = Fields(read_json(file), f"{file}: ").text("base_model_name_or_path", "")
    if not name:
        raise ValueError(f"{file}: base_model_name_or_path: expected the path or name of the model that it belongs to, got nothing")
    beside = folder / name
    return str(beside) if not Path(name).exists() and beside.exists() else name


def read_spec(path: str | Path) -> config.Model:
    """The configuration of a model's folder, Triform's own or a public one or that of an adapter, or of a GGUF file.

    Raises ValueError for a path that holds neither.
    """
    path = Path(path)
    if (path / "triform.json").is_file():
        return config.read(path)
    if is_adapter(path):
        return read_spec(locate(base_of(path), weights=False))
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
