"""Configurations to plain data and back, strictly.

A member of a union is named by its key "kind". A key that does not exist, a value
of the wrong type or out of range, and a missing key are refused with the path to them.
"""

from __future__ import annotations

import math
import re
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from functools import lru_cache
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import yaml

T = TypeVar("T")


@lru_cache(maxsize=None)
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _members(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def to_dict(value: Any, *, defaults: bool = False, hint: Any = None) -> Any:
    """Plain data (dictionaries, lists, numbers, strings) for a configuration.

    With `defaults`, fields at their default value are written too. `hint` is the
    type that the value stands in for, which decides whether its "kind" is needed.
    """
    if is_dataclass(value) and not isinstance(value, type):
        cls = type(value)
        choices = [m for m in _members(hint) if is_dataclass(m)]
        data: dict[str, Any] = {"kind": cls.__name__} if len(choices) != 1 else {}
        for f in fields(value):
            part = getattr(value, f.name)
            if defaults or part != f.default:
                data[f.name] = to_dict(part, defaults=defaults, hint=_hints(cls)[f.name])
        return data
    if isinstance(value, tuple | list):
        inner = next((get_args(m)[0] for m in _members(hint) if get_origin(m) in (tuple, list)), None)
        return [to_dict(v, defaults=defaults, hint=inner) for v in value]
    if isinstance(value, Mapping):
        return {k: to_dict(v, defaults=defaults) for k, v in value.items()}
    return value


_PLAIN = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}


def _name(hint: Any) -> str:
    names = []
    for member in _members(hint):
        if get_origin(member) is Literal:
            names += [repr(v) for v in get_args(member)]
        elif get_origin(member) in (tuple, list):
            names.append("a list")
        elif get_origin(member) is dict:
            names.append("a mapping")
        elif is_dataclass(member):
            names.append(f"a {cast(type, member).__name__}")
        else:
            names.append(_PLAIN.get(member, str(member)))
    return " or ".join(names)


def _at(where: str, name: str) -> str:
    name = name if name.isprintable() else repr(name)
    return f"{where}.{name}" if where else name


def _build(choices: Iterable[Any], data: Mapping[str, Any], where: str) -> Any:
    named = {m.__name__: m for m in choices}
    only = next(iter(named)) if len(named) == 1 else None
    tagged = only is None or all(f.name != "kind" for f in fields(named[only]))  # "kind" may be a field where no tag is needed
    kind = data.get("kind", only) if tagged else only
    if kind not in named:
        raise ValueError(f"{_at(where, 'kind')}: expected one of {', '.join(sorted(named))}, got {kind!r}")
    cls = named[kind]
    known = {f.name: f for f in fields(cls) if f.init}
    for key in data:
        if key not in known and not (tagged and key == "kind"):
            near = get_close_matches(str(key), known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{_at(where, str(key))}: expected one of the keys {', '.join(known)}, got {key!r}{hint}")
    for name, f in known.items():
        if f.default is MISSING and f.default_factory is MISSING and name not in data:
            raise ValueError(f"{_at(where, name)}: expected {_name(_hints(cls)[name])}, got nothing")
    values = {k: from_dict(_hints(cls)[k], v, _at(where, k)) for k, v in data.items() if k in known}
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(_at(where, str(error))) from None


def from_dict(hint: Any, data: Any, where: str = "") -> Any:
    """The value of type `hint` that `data` describes.

    Raises ValueError whose text starts with the path of the field at fault.
    """
    members = _members(hint)
    choices = [m for m in members if is_dataclass(m)]
    if isinstance(data, Mapping):
        if choices:
            return _build(choices, data, where)
        if any(m is dict or get_origin(m) is dict for m in members):
            return dict(data)
    if isinstance(data, list | tuple):
        for member in members:
            if get_origin(member) in (tuple, list):
                inner = get_args(member)[0]
                return tuple(from_dict(inner, v, f"{where}[{i}]") for i, v in enumerate(data))
    for member in members:
        if get_origin(member) is Literal:
            if any(data == v and type(data) is type(v) for v in get_args(member)):
                return data
        elif member is float and isinstance(data, int) and not isinstance(data, bool) and int not in members:
            return float(data)
        elif member is float and isinstance(data, str) and str not in members and _EXPONENT.fullmatch(data):
            return float(data)  # YAML reads 1e-3 as text
        elif member in (int, float, str, bool, type(None)) and type(data) is member and (member is not float or math.isfinite(data)):
            return data
    shown = repr(data) if not isinstance(data, Mapping | list | tuple) else f"a {'mapping' if isinstance(data, Mapping) else 'list'}"
    raise ValueError(f"{where or 'the configuration'}: expected {_name(hint)}, got {shown}")


_EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d{1,2}")
_STEP = re.compile(r"([^.\[\]]+)|\[(\d+)\]")


def _set(data: Any, path: str, value: Any) -> None:
    steps = [int(i) if i else n for n, i in _STEP.findall(path)]
    steps = [int(s) if isinstance(s, str) and s.isdigit() else s for s in steps]
    if not steps or not path.isprintable():
        raise ValueError(f"override {path!r}: expected a path such as decoder.depth")
    here = data
    for depth, step in enumerate(steps[:-1]):
        done = ".".join(map(str, steps[: depth + 1]))
        here = _enter(here, step, done)
        if here is None:
            rest = ".".join(map(str, steps[depth + 1 :]))
            raise ValueError(f"{done}: expected a part to set {rest} in, got nothing; set {done} as a whole")
    last = steps[-1]
    if isinstance(here, list):
        _enter(here, last, path)
        here[cast(int, last)] = value
    elif isinstance(here, dict):
        here[str(last)] = value
    else:
        raise ValueError(f"{path}: expected a part with fields, got {here!r}")


def _enter(here: Any, step: int | str, where: str) -> Any:
    if isinstance(here, list):
        if not isinstance(step, int) or step >= len(here):
            raise ValueError(f"{where}: expected an index below {len(here)}")
        return here[step]
    if isinstance(here, dict):
        if step not in here:
            near = get_close_matches(str(step), map(str, here), 1)
            raise ValueError(f"{where}: expected one of {', '.join(map(str, here))}" + (f"; did you mean {near[0]!r}?" if near else ""))
        return here[step]
    raise ValueError(f"{where}: expected a part with fields, got {here!r}")


def with_overrides(hint: Any, value: T, overrides: Mapping[str, Any] | Iterable[str]) -> T:
    """`value` with some fields set by path, as in `decoder.depth=6` or `decoder.pattern[0].attention.heads=8`.

    Values given as text are read as YAML. The order does not matter: the result is
    checked once, when all are set.
    """
    pairs: dict[str, Any] = {}
    if isinstance(overrides, Mapping):
        pairs = dict(overrides)
    else:
        for text in overrides:
            path, equals, raw = text.partition("=")
            if not equals:
                raise ValueError(f"override {text!r}: expected path=value, such as decoder.depth=6")
            try:
                pairs[path.strip()] = yaml.safe_load(raw)
            except yaml.YAMLError:
                raise ValueError(f"override {text!r}: expected a YAML value after '=', got {raw!r}") from None
    if not pairs:
        return value
    data = to_dict(value, defaults=True, hint=hint)
    for path, part in pairs.items():
        _set(data, path, part)
    return cast(T, from_dict(hint, data))
