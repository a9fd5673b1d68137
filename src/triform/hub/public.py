"""Weights of one naming into models of ours, and out of them: tables, layouts, and what must agree before memory is taken."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Size, Tensor

from triform.nn import DualEncoder, Transformer
from triform.nn.nf4 import NF4Linear

from .family import Family
from .files import WeightFiles
from .rules import SAME, STACKED, Match, listed, match, to_theirs

Module = Transformer | DualEncoder

OWN = Family(name="Triform", table=())
"""Triform's own files: the names and layouts of the modules, whatever they are."""


def weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, each shared one under its first name only."""
    return {n: t.detach() for n, t in [*model.named_parameters(), *model.named_buffers()]}


class Places(Mapping[str, Tensor]):
    """Where the weights of a model go, by name: into their own memory, or, of a layer in 4 bits, where they are to be rounded from."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._packed = {f"{name}.weight": layer for name, layer in model.named_modules() if isinstance(layer, NF4Linear)}
        inside = {f"{name.removesuffix('.weight')}.{part}" for name in self._packed for part, _ in self._packed[name].named_buffers()}
        self._own = {name: tensor for name, tensor in weights(model).items() if name not in inside}
        self._open: dict[str, Tensor] = {}

    def shape(self, name: str) -> Size:
        """A weight's shape."""
        return Size((self._packed[name].out_features, self._packed[name].in_features)) if name in self._packed else self._own[name].shape

    def settle(self, names: Iterable[str]) -> None:
        """Keep what was filled in."""
        for name in names:
            if name in self._open:
                self._packed[name].store(self._open.pop(name))

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._packed:
            return self._own[name]
        return self._open.setdefault(name, torch.empty(self.shape(name), device=self._packed[name].codes.device))

    def __iter__(self) -> Iterator[str]:
        return iter((*self._packed, *self._own))

    def __len__(self) -> int:
        return len(self._packed) + len(self._own)


def matches(family: Family, shapes: Mapping[str, Size]) -> list[Match]:
    """How each weight of ours is called and laid out, in our order. Raises ValueError that names weights without a rule."""
    if family is OWN:
        return [Match((name,), (name,), SAME) for name in shapes]
    order = {name: i for i, name in enumerate(shapes)}
    return sorted(match(family.table, shapes), key=lambda found: order[found.ours[0]])


def outgoing(family: Family, shapes: Mapping[str, Size]) -> list[Match]:
    """What is written of weights of ours: each by its rule, and what follows from the configuration."""
    return [*matches(family, shapes), *family.computed]


def table_names(stored: Iterable[str], known: set[str], family: Family) -> dict[str, str]:
    """Names as the table has them, to names as stored: older spellings renamed, the prefix added or taken away."""
    found: dict[str, str] = {}
    for name in stored:
        now = name
        for pattern, replacement in family.renames:
            now = re.sub(f"^{pattern}$", replacement, now)
        if now not in known and family.prefix and family.prefix + now in known:
            now = family.prefix + now
        if now in found:
            raise ValueError(f"the checkpoint holds {listed([name])} twice, once as {listed([found[now]])}")
        found[now] = name
    return found


class Source:
    """Stored tensors, looked up by the names of a family's table.

    Raises ValueError where a name is missing or left over. `found` is how they belong to ours.
    """

    def __init__(self, stored: Mapping[str, Tensor], family: Family, shapes: Mapping[str, Size]) -> None:
        self.stored, self.family, self.shapes = stored, family, shapes
        self.found = matches(family, shapes)
        needed = {name for found in self.found for name in found.theirs}
        repeats = dict(family.repeats)
        self.names = table_names(stored, {*needed, *repeats}, family)
        for repeat, original in repeats.items():  # files that kept only the copy
            if original in needed and original not in self.names and repeat in self.names and repeat not in needed:
                self.names[original] = self.names.pop(repeat)
        if missing := needed - self.names.keys():
            raise ValueError(f"the checkpoint lacks {listed(missing)}, which a {family.name} model of this configuration needs")
        left = self.names.keys() - needed
        self.copies = {name: repeats[name] for name in left if name in repeats}
        extra = [n for n in left if n not in repeats and not any(re.fullmatch(p, n) for p in family.ignore)]
        if extra:
            raise ValueError(f"the checkpoint also has {listed(extra)}, which a {family.name} model of this configuration has not")

    def __getitem__(self, name: str) -> Tensor:
        return self.stored[self.names[name]]

    def shape(self, name: str) -> Size:
        """The shape as stored."""
        stored = self.names[name]
        shape = getattr(self.stored, "shape", None)
        return self.stored[stored].shape if shape is None else Size(shape(stored))

    def dtype(self, name: str) -> torch.dtype:
        """The type as stored."""
        stored = self.names[name]
        dtype = getattr(self.stored, "dtype", None)
        found: torch.dtype = self.stored[stored].dtype if dtype is None else dtype(stored)
        return found

    def differs(self, copy: str) -> bool:
        """Whether a weight that should repeat another holds something else."""
        if copy not in self.copies:
            return False
        original = self.copies[copy]
        if isinstance(self.stored, WeightFiles):
            return not self.stored.equal(self.names[copy], self.names[original])
        return not torch.equal(self[copy], self[original])

    def check(self) -> None:
        """Sizes agree and weights are numbers with a fraction, before memory is taken; copies are copies."""
        for found in self.found:
            ours, theirs = [self.shapes[n] for n in found.ours], [self.shape(n) for n in found.theirs]
            if sum(shape.numel() for shape in ours) != sum(shape.numel() for shape in theirs):
                raise ValueError(mismatch(found, ours, theirs))
            for name, dtype in ((name, self.dtype(name)) for name in found.theirs):
                if not dtype.is_floating_point:
                    raise ValueError(f"the checkpoint's {name} is {dtype}, expected floating point; quantized weights are not supported")
        for copy in sorted(self.copies):
            if self.differs(copy):
                raise ValueError(
                    f"{copy} differs from {self.copies[copy]}, though the configuration makes them one; set tie_word_embeddings to false"
                )

    @torch.no_grad()
    def fill(self, targets: Mapping[str, Tensor], only: Collection[str] | None = None) -> None:
        """Copy into those of our weights that are given (and in `only`), one at a time; each belongs to them whole or not at all."""
        for found in self.found:
            if found.ours[0] in (targets if only is None else only):
                self._move(found, [targets[n] for n in found.ours])
                if isinstance(targets, Places):
                    targets.settle(found.ours)
                if isinstance(self.stored, WeightFiles):
                    for name in found.theirs:
                        self.stored.release(self.names[name])

    def _move(self, found: Match, wanted: list[Tensor]) -> None:
        read_into = getattr(self.stored, "read_into", None)
        direct = read_into is not None and found.layout in (SAME, STACKED)
        ours = wanted[0].unbind() if direct and found.layout is STACKED else wanted
        if direct and [t.shape for t in ours] == [self.shape(n) for n in found.theirs]:
            assert read_into is not None
            for name, target in zip(found.theirs, ours, strict=True):
                read_into(self.names[name], target)
            return
        try:
            tensors = found.layout.load([self[n] for n in found.theirs], [t.shape for t in wanted])
        except RuntimeError:  # shapes that the layout cannot take apart
            raise ValueError(mismatch(found, [t.shape for t in wanted], [self.shape(n) for n in found.theirs])) from None
        if [t.shape for t in tensors] != [t.shape for t in wanted]:
            raise ValueError(mismatch(found, [t.shape for t in wanted], [t.shape for t in tensors]))
        for target, tensor in zip(wanted, tensors, strict=True):
            target.copy_(tensor)


def mismatch(found: Match, ours: list[Size], theirs: list[Size]) -> str:
    """What to say of shapes that do not belong together."""

    def text(shapes: list[Size]) -> str:
        return " and ".join(str(tuple(shape)) for shape in shapes[:3])

    return f"{listed(found.ours)} should be {text(ours)}, and the checkpoint's {listed(found.theirs)} is {text(theirs)}"


def load_weights(model: Module, source: str | Path | Mapping[str, Tensor], family: Family) -> None:
    """Copy the weights of a public checkpoint into a model, one tensor at a time.

    source: a file, a folder with one or with shards and their index, or tensors by name.
    family: their names, from `read_config` (or `families.VANILLA`).

    Raises ValueError that names what is missing, left over or of another shape; missing
    and left over names are found before anything is written.
    """
    stored = WeightFiles(source) if isinstance(source, str | Path) else source
    ours = weights(model)
    known = Source(stored, family.as_stored(stored), {n: t.shape for n, t in ours.items()})
    known.check()
    known.fill(ours)


def read_weights(model: torch.nn.Module, file: Path, only: Mapping[str, Tensor] | None = None) -> None:
    """Copy the tensors of a file of Triform's own into a model, one at a time; with `only` into some of its weights, which the file holds.

    Raises ValueError that names the file, and what is missing, left over or of another shape.
    """
    ours = weights(model) if only is None else only
    try:
        known = Source(WeightFiles(file), OWN, {n: t.shape for n, t in ours.items()})
        known.check()
        known.fill(ours)
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(str(file)) else f"{file}: {error}") from None


def export_weights(model: Module, family: Family) -> dict[str, Tensor]:
    """The weights of a model under the names and in the layouts of a family's files, each shared one once."""
    exported = to_theirs(weights(model), family.table)
    exported |= {name: found.layout.save([])[0] for found in family.computed for name in found.theirs}
    return {n.removeprefix(family.prefix) if family.bare else n: t.contiguous() for n, t in exported.items()}
