"""Every command of the command line with its arguments and options, read from the functions themselves."""

from __future__ import annotations

import inspect
from importlib import import_module
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from typer.models import ArgumentInfo, OptionInfo

from triform.cli import COMMANDS


class Parameter(NamedTuple):
    """An argument or an option as a user writes it, with its type and default."""

    name: str
    type: str
    default: str

    def __str__(self) -> str:
        return f"{self.name} {self.type}{self.default}"


def commands() -> dict[str, list[Parameter]]:
    """The parameters of each command, and of each command of a group ("data list")."""
    found = {}
    for name, (module, _) in COMMANDS.items():
        registered = import_module(f"triform.cli.{module}").app.registered_commands
        for command in registered:
            own = command.name or command.callback.__name__
            found[f"{name} {own}" if len(registered) > 1 else name] = _parameters(command.callback)
    return found


def _parameters(function: Any) -> list[Parameter]:
    hints = get_type_hints(function, include_extras=True)
    return [_parameter(p, *get_args(hints[p.name])) for p in inspect.signature(function).parameters.values()]


def _parameter(parameter: inspect.Parameter, hint: Any, info: ArgumentInfo | OptionInfo) -> Parameter:
    if isinstance(info, OptionInfo):
        # inside Annotated, typer takes the first declaration for a default until it reads the function
        written = [part for part in (info.default, *(info.param_decls or ())) if isinstance(part, str) and part.startswith("-")]
        name = " ".join(written) or f"--{parameter.name.replace('_', '-')}"
    else:
        name = (info.metavar or parameter.name).split()[0].strip(".").upper()
    needed = parameter.default is inspect.Parameter.empty
    return Parameter(name, _type(hint), "" if needed else f" = {parameter.default}")


def _type(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "|".join(map(str, get_args(hint)))
    if get_origin(hint) in (Union, UnionType):
        return "|".join(_type(member) for member in get_args(hint) if member is not NoneType)
    if get_origin(hint) is list:
        return f"{_type(get_args(hint)[0])}..."
    return "flag" if hint is bool else str(hint.__name__)
