"""Public checkpoints: a `config.json` and safetensors files in the layout of Hugging Face's hub."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Size, Tensor

from triform import config
from triform.nn import build

from .families import read_config
from .family import Family
from .fields import read_json
from .files import WeightFiles
from .folder import Module, weights
from .rules import Match, listed, match, to_theirs


def _named(stored: Iterable[str], known: set[str], family: Family) -> dict[str, str]:
    """Names as the table has them, to names as stored: older spellings renamed, the prefix added or taken away."""
    found = {}
    for name in stored:
        now = name
        for pattern, replacement in family.renames:
            now = re.sub(f"^{pattern}$", replacement, now)
        if now not in known and family.prefix and family.prefix + now in known:
            now = family.prefix + now
        found[now] = name
    return found


class _Source:
    """Stored tensors, looked up by the names of a family's table."""

    def __init__(self, stored: Mapping[str, Tensor], family: Family, matches: list[Match]) -> None:
        self.stored, self.family = stored, family
        needed = [name for found in matches for name in found.theirs]
        repeats = dict(family.repeats)
        self.names = _named(stored, {*needed, *repeats}, family)
        for repeat, original in repeats.items():  # files that kept only the copy
            if original in needed and original not in self.names and repeat in self.names and repeat not in needed:
                self.names[original] = self.names.pop(repeat)
        if missing := set(needed) - self.names.keys():
            raise ValueError(f"the checkpoint lacks {listed(missing)}, which a {family.name} model of this configuration needs")
        left = self.names.keys() - set(needed)
        self.copies = {name: repeats[name] for name in left if name in repeats}
        extra = [n for n in left if n not in repeats and not any(re.fullmatch(p, n) for p in family.ignore)]
        if extra:
            raise ValueError(f"the checkpoint also has {listed(extra)}, which a {family.name} model of this configuration has not")

    def __getitem__(self, name: str) -> Tensor:
        return self.stored[self.names[name]]

    def shape(self, name: str) -> Size:
        stored = self.names[name]
        return self.stored.shape(stored) if isinstance(self.stored, WeightFiles) else self.stored[stored].shape

    def differs(self, copy: str) -> bool:
        """Whether a weight that should repeat another holds something else."""
        return copy in self.copies and not torch.equal(self[copy], self[self.copies[copy]])

    def check(self, matches: list[Match], shapes: Mapping[str, Size]) -> None:
        """Sizes agree, before memory is taken; copies are copies."""
        for found in matches:
            ours, theirs = [shapes[n] for n in found.ours], [self.shape(n) for n in found.theirs]
            if sum(shape.numel() for shape in ours) != sum(shape.numel() for shape in theirs):
                raise ValueError(_mismatch(found, ours, theirs))
        for copy in sorted(self.copies):
            if self.differs(copy):
                raise ValueError(
                    f"{copy} differs from {self.copies[copy]}, though the configuration makes them one; set tie_word_embeddings to false"
                )


def _mismatch(found: Match, ours: list[Size], theirs: list[Size]) -> str:
    def shown(shapes: list[Size]) -> str:
        return " and ".join(str(tuple(shape)) for shape in shapes[:3])

    return f"{listed(found.ours)} should be {shown(ours)}, and the checkpoint's {listed(found.theirs)} is {shown(theirs)}"


def _fill(model: Module, source: _Source, matches: list[Match]) -> None:
    targets = weights(model)
    for found in matches:
        wanted = [targets[n] for n in found.ours]
        tensors = found.layout.load([source[n] for n in found.theirs], [t.shape for t in wanted])
        if [t.shape for t in tensors] != [t.shape for t in wanted]:
            raise ValueError(_mismatch(found, [t.shape for t in wanted], [t.shape for t in tensors]))
        for target, tensor in zip(wanted, tensors, strict=True):
            target.copy_(tensor)


def load_weights(model: Module, source: str | Path | Mapping[str, Tensor], family: Family) -> None:
    """Copy the weights of a public checkpoint into a model, one tensor at a time.

    source: a safetensors file, a folder with one or with shards and their index, or
        tensors by name.
    family: their names, from `read_config` (or `families.VANILLA`).

    Raises ValueError that names what is missing, left over or of another shape; missing
    and left over names are found before anything is written.
    """
    stored = WeightFiles(source) if isinstance(source, str | Path) else source
    shapes = {n: t.shape for n, t in weights(model).items()}
    matches = match(family.table, shapes)
    known = _Source(stored, family, matches)
    known.check(matches, shapes)
    _fill(model, known, matches)


def export_weights(model: Module, family: Family) -> dict[str, Tensor]:
    """The weights of a model under the names and in the layouts of a family's files, each shared one once."""
    theirs = to_theirs(weights(model), family.table)
    return {n.removeprefix(family.prefix) if family.bare else n: t.contiguous() for n, t in theirs.items()}


def load_public(folder: str | Path, *, device: str | torch.device = "cpu") -> Module:
    """The model, ready to evaluate, of a folder with `config.json` and `model.safetensors` or its shards.

    Weights are converted to fp32.
    """
    folder = Path(folder)
    spec, family = read_config(read_json(folder / "config.json"))
    stored = WeightFiles(folder)
    try:
        _check_depth(spec, stored)
        spec = _as_stored(spec, family, stored)
        model: Module = build(spec, device="meta")
        shapes = {n: t.shape for n, t in weights(model).items()}
        matches = match(family.table, shapes)
        source = _Source(stored, family, matches)
        source.check(matches, shapes)
        model.to_empty(device=device)
        _fill(model, source, matches)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    return model.eval()


def _check_depth(spec: config.Model, stored: WeightFiles) -> None:
    """Before modules are made for layers that cannot be there."""
    stacks = (spec.text, spec.image) if isinstance(spec, config.DualEncoder) else (spec.encoder, spec.decoder)
    depth = sum(stack.depth for stack in stacks if stack is not None)
    if depth > len(stored):
        raise ValueError(f"config.json asks for {depth} layers, and the checkpoint holds {len(stored)} tensors in all")


def _as_stored(spec: config.Model, family: Family, stored: WeightFiles) -> config.Model:
    """The configuration with its output untied, where the file holds an output matrix that is not the token table.

    Hugging Face's transformers 5 writes `tie_word_embeddings: true` for every T5, the untied 1.1 too.
    """
    output = next((rule.theirs for rule in family.table if rule.ours == ("head.weight",)), None)
    if not (isinstance(spec, config.Transformer) and isinstance(spec.head, config.LanguageModel) and spec.head.tied):
        return spec
    if output is None or output not in stored:
        return spec
    source = _Source(stored, family, match(family.table, {n: t.shape for n, t in weights(build(spec, device="meta")).items()}))
    return replace(spec, head=replace(spec.head, tied=False)) if source.differs(output) else spec
