"""Names and layouts of the same weights elsewhere: one table, read in both directions.

A rule pairs our names with theirs. `{i}` stands for a layer and `{e}` for an expert. A
table may hold more rules than a model has weights, so that one table serves a whole
family; a weight without a rule is an error, in either direction.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # tables are read where torch is absent
    from torch import Size, Tensor


class Layout(NamedTuple):
    """How tensors of theirs become ours, whose shapes are given, and back."""

    load: Callable[[list[Tensor], list[Size]], list[Tensor]]
    save: Callable[[list[Tensor]], list[Tensor]]


def leading(count: int) -> Layout:
    """Theirs has `count` dimensions of one before ours."""
    return Layout(
        lambda tensors, shapes: [t.reshape(s) if t.numel() == s.numel() else t for t, s in zip(tensors, shapes, strict=True)],
        lambda tensors: [t.reshape((1,) * count + t.shape) for t in tensors],
    )


def _split(tensors: list[Tensor], shapes: list[Size], dim: int = 0) -> list[Tensor]:
    import torch

    return list(torch.split(tensors[0], [shape[dim] for shape in shapes], dim))


def _joined(tensors: list[Tensor], dim: int = 0) -> Tensor:
    import torch

    return torch.cat(tensors, dim)


def _stacked(tensors: list[Tensor]) -> Tensor:
    import torch

    return torch.stack(tensors)


SAME = Layout(lambda tensors, shapes: tensors, lambda tensors: tensors)
TRANSPOSED = Layout(lambda tensors, shapes: [t.T for t in tensors], lambda tensors: [t.T for t in tensors])
FUSED = Layout(_split, lambda tensors: [_joined(tensors)])
"""Theirs is ours, one after the other along the first dimension."""
FUSED_TRANSPOSED = Layout(lambda tensors, shapes: _split([tensors[0].T], shapes), lambda tensors: [_joined(tensors).T])
FUSED_SECOND = Layout(lambda tensors, shapes: _split(tensors, shapes, 1), lambda tensors: [_joined(tensors, 1)])
"""Theirs is ours, one after the other along the second dimension."""
STACKED = Layout(lambda tensors, shapes: [_stacked(tensors)], lambda tensors: list(tensors[0].unbind()))
"""Ours is theirs, one for each expert, along a new first dimension."""


class Rule(NamedTuple):
    """One row of a table."""

    ours: tuple[str, ...]
    theirs: str
    layout: Layout = SAME


Row = tuple[str | tuple[str, ...], str] | tuple[str | tuple[str, ...], str, Layout]


def rules(*rows: Row) -> tuple[Rule, ...]:
    """Rules from rows (ours, theirs) or (ours, theirs, layout); ours is a name or several."""
    return tuple(Rule((ours,) if isinstance(ours, str) else ours, *rest) for ours, *rest in rows)  # type: ignore[arg-type]


def pairs(ours: str, theirs: str, names: Mapping[str, str], kinds: Iterable[str] = ("weight", "bias")) -> Iterator[Row]:
    """Rows for the weight and the bias of modules, where both sides only differ in names: {ours}.{key} and {theirs}.{value}."""
    for mine, name in names.items():
        for kind in kinds:
            yield f"{ours}.{mine}.{kind}", f"{theirs}.{name}.{kind}" if theirs else f"{name}.{kind}"


class Match(NamedTuple):
    """A rule, applied to one layer: full names on both sides."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    layout: Layout


def match(table: Iterable[Rule], shapes: Mapping[str, Size]) -> list[Match]:
    """Every rule, once for each layer of ours that it applies to. Raises ValueError that names weights without a rule."""
    found: dict[str, Match] = {}
    for rule in table:
        pattern = re.compile(re.escape(rule.ours[0]).replace(r"\{i\}", r"(?P<i>\d+)"))
        for name in shapes:
            layer = pattern.fullmatch(name)
            if layer is None:
                continue
            ours = tuple(n.format(**layer.groupdict()) for n in rule.ours)
            experts = range(shapes[name][0]) if "{e}" in rule.theirs else (0,)
            theirs = tuple(rule.theirs.format(**layer.groupdict(), e=e) for e in experts)
            assert not any(n in found for n in ours), f"two rules for {ours}"
            found |= dict.fromkeys(ours, Match(ours, theirs, rule.layout))
    if unmapped := shapes.keys() - found.keys():
        raise ValueError(f"no rule for {listed(unmapped)}")
    return list({m.ours: m for m in found.values()}.values())


def computed(name: str, make: Callable[[], Tensor]) -> Match:
    """A tensor of theirs that follows from the configuration, and that nothing of ours holds."""
    return Match((), (name,), Layout(lambda tensors, shapes: [], lambda tensors: [make()]))


def listed(names: Iterable[str], most: int = 5) -> str:
    """The first names in order, and how many more there are."""
    names = sorted(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def to_theirs(ours: Mapping[str, Tensor], table: Iterable[Rule]) -> dict[str, Tensor]:
    """Weights of ours under the names and in the layouts of a table. Raises ValueError that names weights without a rule."""
    theirs: dict[str, Tensor] = {}
    for found in match(table, {name: tensor.shape for name, tensor in ours.items()}):
        theirs |= zip(found.theirs, found.layout.save([ours[n] for n in found.ours]), strict=True)
    return theirs
