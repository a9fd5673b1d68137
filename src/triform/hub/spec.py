"""What a model is, read from wherever it lies, without torch."""

from __future__ import annotations

from pathlib import Path

from triform import config

from .families import read_config
from .fields import read_json
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
    raise ValueError(f"{path}: expected a folder with triform.json or config.json, or a .gguf file")
