"""What a family of public checkpoints is: names and layouts, never modules."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace

from .rules import Match, Rule


class NoCounterpart(ValueError):
    """A configuration that no public family expresses; the text names what stands in the way."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """How the weights of a model are named and laid out in public files.

    table: our names against theirs.
    prefix: what stands before the names of the base model in the files of a model with a
        head. Files of a bare model lack it (`bare`); either is read.
    repeats: (name, name of which it is a copy), for weights that some files hold twice.
    ignore: patterns of names that hold nothing the model has.
    renames: (pattern, replacement) for older spellings.
    variant: rows for files that hold some weights in another layout, told by their names.
    computed: weights that follow from the configuration, which files hold besides; never read.
    modules: (pattern, replacement) from names of files to those that transformers' modules have in memory, where it renames
        them; adapters are on modules.
    """

    name: str
    table: tuple[Rule, ...]
    prefix: str = ""
    bare: bool = False
    repeats: tuple[tuple[str, str], ...] = ()
    ignore: tuple[str, ...] = ()
    renames: tuple[tuple[str, str], ...] = ()
    variant: tuple[Rule, ...] = ()
    computed: tuple[Match, ...] = ()
    modules: tuple[tuple[str, str], ...] = ()

    def under(self, prefix: str) -> Family:
        """The family with another prefix before the names of the base model; heads keep theirs."""

        def moved(name: str) -> str:
            return prefix + name.removeprefix(self.prefix) if name.startswith(self.prefix) else name

        return replace(
            self,
            prefix=prefix,
            table=tuple(r if r.ours[0].startswith("head.") else r._replace(theirs=moved(r.theirs)) for r in self.table),
            repeats=tuple((moved(copy), moved(original)) for copy, original in self.repeats),
        )

    def in_memory(self, name: str) -> str:
        """What transformers calls a module of the family's files."""
        for pattern, replacement in self.modules:
            name = re.sub(pattern, replacement, name)
        return name

    def as_stored(self, names: Collection[str]) -> Family:
        """The family with the layout that a file with these names has."""
        usual = {rule.theirs for rule in self.table}
        own = [rule.theirs for rule in self.variant if rule.theirs not in usual]
        told = [re.compile(r"(.*\.)?" + re.escape(name).replace(r"\{i\}", r"\d+")) for name in own]
        if not any(pattern.fullmatch(name) for pattern in told for name in names):
            return self
        ours = {name for rule in self.variant for name in rule.ours}
        kept = tuple(rule for rule in self.table if not ours.intersection(rule.ours))
        return replace(self, table=kept + self.variant, variant=())
