"""The fields of a public `config.json`, read with their types."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from reprlib import Repr
from typing import Any, cast

from triform import config

_ACTIVATIONS: dict[str, config.Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}

_JSON_LIMIT = 100_000_000


def read_json(file: Path) -> dict[str, Any]:
    """The mapping in a JSON file. Raises ValueError that names the file."""
    data = _json(file)
    if not isinstance(data, dict):
        raise ValueError(f"{file}: expected a mapping, got {type(data).__name__}")
    return data


def read_list(file: Path) -> list[Any]:
    """The list in a JSON file. Raises ValueError that names the file."""
    data = _json(file)
    if not isinstance(data, list):
        raise ValueError(f"{file}: expected a list, got {type(data).__name__}")
    return data


def _json(file: Path) -> Any:
    try:
        if file.stat().st_size > _JSON_LIMIT:
            raise ValueError(f"a file of {file.stat().st_size} bytes, where {_JSON_LIMIT} are the most")
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{file}: expected a file, found none") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file}: expected JSON, got {error}") from None


def activation_name(activation: config.Activation) -> str:
    """An activation's public name."""
    return {"gelu_tanh": "gelu_new"}.get(activation, activation)


_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 80  # a file can say what fills a screen


class Fields:
    """A mapping whose values are asked for by type.

    A field that is absent or null takes the default given; without one it is an error.
    Every ValueError starts with the field's path.
    """

    def __init__(self, data: Mapping[str, Any], where: str = "config.json: ") -> None:
        self.data, self._where = data, where

    def fail(self, name: str, expected: str) -> ValueError:
        """The error that says what was expected of a field and what it is."""
        value = self.data.get(name)
        return ValueError(f"{self._where}{name}: expected {expected}, got {'nothing' if value is None else _SHORT.repr(value)}")

    def _of(self, types: tuple[type, ...], expected: str, name: str, default: Any) -> Any:
        value = self.data.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise self.fail(name, expected)
        return value

    def whole(self, name: str, default: int | None = None) -> int:
        """A whole number."""
        return cast(int, self._of((int,), "a whole number", name, default))

    def count(self, name: str, default: int | None = None, most: int = 10_000) -> int:
        """A whole number from 1 to `most`, for what is listed or looped over (layers)."""
        value = self.whole(name, default)
        if not 1 <= value <= most:
            raise self.fail(name, f"a whole number from 1 to {most}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A number."""
        return float(self._of((int, float), "a number", name, default))

    def flag(self, name: str, default: bool | None = None) -> bool:
        """True or false."""
        return cast(bool, self._of((bool,), "true or false", name, default))

    def text(self, name: str, default: str | None = None) -> str:
        """Text."""
        return cast(str, self._of((str,), "text", name, default))

    def names(self, name: str) -> list[str] | None:
        """A list of texts; None where absent."""
        value = self.data.get(name)
        if value is not None and not (isinstance(value, list) and all(isinstance(v, str) for v in value)):
            raise self.fail(name, "a list of texts")
        return value

    def part(self, name: str) -> Fields:
        """A mapping inside; empty where absent."""
        value = self.data.get(name)
        if value is not None and not isinstance(value, Mapping):
            raise self.fail(name, "a mapping")
        return Fields(value or {}, f"{self._where}{name}.")

    def over(self, **defaults: Any) -> Fields:
        """The same fields, with defaults for those that are absent or null."""
        return Fields(defaults | {name: value for name, value in self.data.items() if value is not None}, self._where)

    def maybe_whole(self, name: str) -> int | None:
        """A whole number; None where absent."""
        return None if self.data.get(name) is None else self.whole(name)

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self.data.get(name) is not None

    def refuse(self, **only: Any) -> None:
        """Raise ValueError where a field is set to something else than the one value that is supported."""
        for name, value in only.items():
            if self.data.get(name) is not None and self.data[name] != value:
                raise self.fail(name, f"{value!r}, as nothing else is supported")

    def activation(self, name: str, default: str | None = None) -> config.Activation:
        """An activation by its public name."""
        value = self.text(name, default)
        if value not in _ACTIVATIONS:
            raise self.fail(name, f"one of {', '.join(_ACTIVATIONS)}")
        return _ACTIVATIONS[value]

    @property
    def architecture(self) -> str | None:
        """The class that the weights were saved from; None where absent."""
        names = self.names("architectures")
        return names[0] if names else None

    def labels(self) -> int:
        """How many labels a classifier has."""
        return len(self.part("id2label").data) or self.whole("num_labels", 2)
