"""Chat templates (Jinja) run in a sandbox: what a public file says is never code that reaches the machine, takes its memory or its time.

Python's attributes are out of reach (jinja2's ImmutableSandboxedEnvironment), methods and filters are those of a list, there are no
files to include, and a `Budget` counts steps, characters and processor time; what goes over it ends in a ValueError of one line.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache, update_wrapper
from typing import Any

from jinja2 import Environment, Template, TemplateError, nodes, pass_context, pass_eval_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

LONGEST_TEMPLATE = 2**18  # characters
MOST_STEPS = 200_000  # passes of loops and macros, calls and filters
LARGEST_VALUE = 2**24  # characters of one text, or of all in a list
_PART = 32
MOST_WRITTEN = 2**28  # characters made in all
SECONDS = 4.0  # of processor time
TURN_BEGINS, TURN_ENDS = "\ufdd1", "\ufdd2"  # noncharacters of Unicode, around what {% generation %} holds

_WIDE = re.compile(r"\d{4,}|\*")
_METHODS: dict[type, frozenset[str]] = {
    str: frozenset({
        "capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha", "isascii", "isdecimal", "isdigit", "islower",
        "isnumeric", "isspace", "istitle", "isupper", "join", "lower", "lstrip", "partition", "removeprefix", "removesuffix", "replace",
        "rfind", "rindex", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase", "title", "upper",
    }),
    dict: frozenset({"get", "items", "keys", "values"}),
    list: frozenset({"count", "index"}),
    tuple: frozenset({"count", "index"}),
}  # fmt: skip
# these look at no more than the first layer of what they are given
_SHALLOW = frozenset({
    "abs", "batch", "count", "d", "default", "dictsort", "first", "float", "groupby", "int", "items", "last", "length", "list", "map",
    "max", "min", "reject", "rejectattr", "reverse", "round", "select", "selectattr", "sort", "unique",
})  # fmt: skip
_FILTERS = _SHALLOW | {
    "capitalize", "e", "escape", "format", "indent", "join", "lower", "replace", "safe", "string", "title", "trim", "upper",
}  # fmt: skip
_WIDTHS = frozenset({"batch", "indent", "round", "tojson"})


class TooMuch(TemplateError):
    """A template went over its budget."""


@dataclass
class Budget:
    """What a rendering may still use."""

    steps: int = MOST_STEPS
    characters: int = MOST_WRITTEN
    deadline: float = 0.0

    def step(self) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise TooMuch(f"it takes more than {MOST_STEPS:,} steps")
        if time.thread_time() > self.deadline:
            raise TooMuch(f"it takes more than {SECONDS:g} seconds")

    def write(self, size: int) -> None:
        self.characters -= size
        if size > LARGEST_VALUE or self.characters < 0:
            raise TooMuch(f"it makes a text of more than {LARGEST_VALUE:,} characters, or {MOST_WRITTEN:,} in all")


_budget: ContextVar[Budget] = ContextVar("budget")


def size_of(value: Any) -> int:
    """The characters of a value, each part of it taken for `_PART` more; counted no further than `LARGEST_VALUE`."""
    if isinstance(value, str):
        return len(value)
    total, waiting = 0, [value]
    while waiting and total <= LARGEST_VALUE:
        value = waiting.pop()
        total += _PART + (len(value) if isinstance(value, str) else 0)
        if isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, (list, tuple)):
            waiting += value if len(value) <= LARGEST_VALUE else ()
    return total


def _replaced(text: Any, old: Any, new: Any, *_: Any) -> None:
    if isinstance(text, str) and isinstance(old, str) and isinstance(new, str):
        _budget.get().write(len(text) + text.count(old) * len(new))


def _formatted(text: Any) -> None:
    if isinstance(text, str) and _WIDE.search(text):
        raise TooMuch("it formats with a width of more than 999 or one taken from a value")


class _Namespace(Namespace):
    """Holds no private names; shows nothing of what it holds, which may hold it again."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, rest = args[0], args[1:]
        Namespace.__init__(self, *rest, **kwargs)
        for name in dict(*rest, **kwargs):
            _private(name)

    def __setitem__(self, name: str, value: Any) -> None:
        _private(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<namespace>"


def _private(name: Any) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"the private name {name!r} cannot be set")


class _Generation(Extension):
    """{% generation %} … {% endgeneration %}: what the assistant writes, as transformers has it."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    @pass_eval_context
    def _mark(self, context: Any, caller: Macro) -> str:
        return f"{TURN_BEGINS}{caller()}{TURN_ENDS}"


class _Counted(NodeTransformer):
    """Puts a step into every loop and macro, and a check around what operators and literals make."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        return self._body(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._body(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        return self._body(node)

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _call("bounded", node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _call("bounded", node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _call("bounded", node) if node.ctx == "load" else node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("concatenated", *node.nodes)

    def _body(self, node: nodes.For | nodes.Macro | nodes.CallBlock) -> nodes.Node:
        literals = sum(len(text.data) for part in node.body for text in part.find_all(nodes.TemplateData))
        literals += sum(len(part.data) for part in node.body if isinstance(part, nodes.TemplateData))
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_call("step", nodes.Const(literals)), lineno=node.lineno))
        return node


def _call(name: str, *arguments: Any) -> nodes.Call:
    line = getattr(arguments[0], "lineno", 1)
    return nodes.Call(nodes.EnvironmentAttribute(name), list(arguments), [], None, None, lineno=line)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, optimized=False, finalize=_checked_output, extensions=[_Generation, loopcontrols]
        )
        known = {name: self.filters[name] for name in _FILTERS} | {"tojson": _tojson}
        self.filters = {name: _counted_filter(name, function) for name, function in known.items()}
        kept = {name: self.globals[name] for name in ("range",)}
        own = {"dict": _Dict(), "namespace": _Namespace, "raise_exception": _raise, "strftime_now": _strftime_now}
        self.globals = kept | own

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = super()._parse(source, name, filename)
        _Counted().visit(tree)
        return tree

    def step(self, literals: int) -> None:
        budget = _budget.get()
        budget.step()
        budget.write(literals)

    def bounded(self, value: Any) -> Any:
        _budget.get().write(size_of(value))
        return value

    def concatenated(self, *values: Any) -> str:
        _budget.get().write(sum(map(size_of, values)))
        return "".join(map(str, values))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and not (abs(left) <= 10**6 and abs(right) <= 16):
            raise TooMuch("it takes too large a power")
        if operator == "%":
            _formatted(left)
        size, other = size_of(left), size_of(right)
        if operator == "*" and any(isinstance(each, int) and each.bit_length() > 512 for each in (left, right)):
            raise TooMuch("it multiplies too large a number")
        if operator == "*":
            count = right if isinstance(right, int) else left if isinstance(left, int) else 0
            sequence = not (isinstance(left, (int, float)) and isinstance(right, (int, float)))
            size = max(size, other) * max(count, 0) if sequence else size + other
        _budget.get().write(size if operator == "*" else size + other)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        budget = _budget.get()
        budget.step()
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str):
            if name == "replace":
                _replaced(owner, *args)
            if name == "join" and args:
                args = (list(args[0]),)
                budget.write(size_of(args[0]) + len(args[0]) * len(owner))
        result = super().call(__context, __obj, *args, **kwargs)
        if isinstance(result, (str, list, dict, tuple)):
            budget.write(len(result) if isinstance(owner, dict) else size_of(result))
        return result

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        names = next((names for kind, names in _METHODS.items() if isinstance(obj, kind)), None)
        return super().is_safe_attribute(obj, attr, value) and (names is None or attr in names)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            text = value.__self__
            _formatted(text)
            if re.search(r"{[^{}]*:[^{}]*{", text):
                raise TooMuch("it formats with a width taken from a value")
        return wrapped


@pass_context
def _checked_output(context: Context, value: Any) -> Any:
    _budget.get().write(size_of(value))
    return value


def _counted_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def counted(*args: Any, **kwargs: Any) -> Any:
        budget = _budget.get()
        budget.step()
        start = 1 if hasattr(function, "jinja_pass_arg") else 0
        value: Any = args[start] if len(args) > start else None
        rest = [*args[start + 1 :], *kwargs.values()]
        if name in _WIDTHS and any(isinstance(each, int) and abs(each) > 1000 for each in rest):
            raise TooMuch(f"its filter {name} has a number of more than 1000")
        if name == "format":
            _formatted(value)
        if name == "replace":
            _replaced(value, *rest)
        if name == "join":
            value = list(value)
            args = (*args[:start], value, *args[start + 1 :])
            budget.write(len(value) * max([0, *map(size_of, rest)]))
        if name == "indent" and isinstance(value, str):
            budget.write((value.count("\n") + 1) * max([4, *(len(each) if isinstance(each, str) else int(each) for each in rest)]))
        if name not in _SHALLOW:
            budget.write(size_of(value) + sum(map(size_of, rest)))
        result = function(*args, **kwargs)
        if isinstance(result, (str, list)):
            budget.write(len(result))
        return result

    return update_wrapper(counted, function)


class _Dict:
    """The global `dict`, without its class's other methods."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)


def _raise(message: Any) -> None:
    raise TemplateError(str(message)[:500])


def _strftime_now(form: str) -> str:
    if len(form) > 100 or re.search(r"\d{3,}", form):
        raise TooMuch("its date has too long a format")
    return datetime.now().strftime(form)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: tuple[str, str] | None = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@lru_cache(maxsize=1)
def environment() -> Environment:
    """The sandbox."""
    return _Environment()


def parsed(source: str) -> nodes.Template:
    """A template's syntax tree. Raises ValueError for what is no template."""
    if len(source) > LONGEST_TEMPLATE:
        raise ValueError(f"the chat template has {len(source):,} characters; at most {LONGEST_TEMPLATE:,} are read")
    try:
        return environment().parse(source)
    except (TemplateError, RecursionError) as error:
        raise ValueError(f"the chat template is no Jinja template: {' '.join(str(error).split())[:300]}") from None


@lru_cache(maxsize=32)
def _compiled(source: str) -> Template:
    return environment().from_string(source)


@lru_cache(maxsize=32)
def _check(source: str) -> None:
    """Raise ValueError for what is no template; to parse it again takes longer than to render it."""
    parsed(source)


def render(source: str, variables: Mapping[str, Any]) -> str:
    """What a template makes of variables (plain data). Raises ValueError, in one line, where it fails or goes over the budget."""
    _check(source)
    token = _budget.set(Budget(deadline=time.thread_time() + SECONDS))
    try:
        size = 0
        parts = []
        for part in _compiled(source).generate(**variables):
            size += len(part)
            _budget.get().write(len(part))
            if size > LARGEST_VALUE:
                raise TooMuch(f"it writes more than {LARGEST_VALUE:,} characters")
            parts.append(part)
        return "".join(parts)
    except RecursionError:
        raise ValueError("the chat template fails: it is nested, or calls itself, too deep") from None
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:  # a template's failure can be any
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"the chat template fails: {reason}") from None
    finally:
        _budget.reset(token)
