"""What a family of public checkpoints is: names and layouts, never modules."""

from __future__ import annotations

from dataclasses import dataclass

from .rules import Rule


@dataclass(frozen=True, kw_only=True)
class Family:
    """How the weights of a model are named and laid out in public files.

    table: our names against theirs.
    prefix: what stands before the names of the base model in the files of a model with a
        head. Files of a bare model lack it (`bare`); either is read.
    repeats: (name, name of which it is a copy), for weights that some files hold twice.
    ignore: patterns of names that hold nothing the model has.
    renames: (pattern, replacement) for older spellings.
    """

    name: str
    table: tuple[Rule, ...]
    prefix: str = ""
    bare: bool = False
    repeats: tuple[tuple[str, str], ...] = ()
    ignore: tuple[str, ...] = ()
    renames: tuple[tuple[str, str], ...] = ()
