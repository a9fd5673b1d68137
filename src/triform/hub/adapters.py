"""Adapters in the format of Hugging Face's PEFT: adapter_config.json and adapter_model.safetensors, by the public family's names.

A layer of a family may hold several of ours (GPT-2's c_attn holds query, key and value). An adapter of such a one is taken apart
row by row; the other way their matrices stand in one of the sum of their ranks, which computes the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Size, Tensor, nn

from triform import config
from triform.config.files import replacing_all
from triform.nn import build
from triform.nn.adapter import DEFAULT, LowRank, adapter_parts, attach, linear_layers, matrix_of, merged, whole_parts
from triform.text import Tokenizer

from . import safetensors
from .family import Family, NoCounterpart
from .fields import Fields, read_json
from .files import WeightFiles
from .folder import Checkpoint
from .public import OWN, Module, matches, table_names, weights
from .rules import FUSED_TRANSPOSED, STACKED, TRANSPOSED, Match, listed
from .saving import marks_of, owned, public_files, write_files
from .spec import ADAPTER

WEIGHTS = "adapter_model.safetensors"
_OLDER = "adapter_model.bin"
_PREFIX = "base_model.model."
_KEY = re.compile(r"(?P<module>.+)\.(?P<kind>lora_A|lora_B|lora_magnitude_vector)(\.default)?(\.weight)?")
_MOST = 1 << 16  # ranks above are a mistake
# What PEFT knows beyond this, where it is not switched off
_REFUSED = {"bias": "none", "lora_bias": False, "layer_replication": None, "trainable_token_indices": None, "target_parameters": None,
            "alora_invocation_tokens": None, "use_qalora": False, "use_bdlora": None}  # fmt: skip


@dataclass(frozen=True)
class Part:
    """What an adapter holds of one layer of ours: A (R, K), B (M, R) and DoRA's lengths (M,)."""

    spec: config.Adapter
    a: Tensor
    b: Tensor
    magnitude: Tensor | None = None


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter as it was read: its parts by the names of our layers, and weights that it brings whole, by ours."""

    path: Path
    parts: dict[str, Part]
    whole: dict[str, Tensor]


def families_of(spec: config.Model, stored: Family | None = None) -> list[Family]:
    """The families whose names an adapter of a model may use, the likeliest first; `stored` is that of the model's files."""
    found = [] if stored is None or stored is OWN else [stored]
    with suppress(NoCounterpart):
        found.append(public_files(spec, None)[1])
    return [*found, OWN]


# Reading


def read_adapter(folder: Path, spec: config.Model, families: Sequence[Family]) -> StoredAdapter:
    """The adapter in a folder, for a model of this configuration; its names are those of the first family that has them all.

    Raises ValueError of one line that names the file for what PEFT knows and this does not, and for layers and shapes that the
    model has not.
    """
    file = folder / WEIGHTS if (folder / WEIGHTS).exists() or not (folder / _OLDER).exists() else folder / _OLDER
    try:
        said = _Said(Fields(read_json(folder / ADAPTER), f"{folder / ADAPTER}: "))
        stored = WeightFiles(file)
        meta = build(spec, device="meta")
        shapes = {name: tensor.shape for name, tensor in weights(meta).items()}
        reader = _Reader(said, stored, shapes, set(linear_layers(meta)))
        return StoredAdapter(folder, *reader.read(families))
    except ValueError as error:
        raise error if str(error).startswith(str(folder)) else ValueError(f"{file}: {error}") from None


class _Said:
    """What adapter_config.json says."""

    def __init__(self, data: Fields) -> None:
        if data.text("peft_type", "LORA") != "LORA":
            raise data.fail("peft_type", "LORA")
        Fields({name: value for name, value in data.data.items() if value not in ([], {})}, f"{ADAPTER}: ").refuse(**_REFUSED)
        rank, alpha = data.whole("r", 8), data.number("lora_alpha", 8.0)
        if not 1 <= rank <= _MOST:
            raise data.fail("r", f"a rank from 1 to {_MOST:,}")
        self.spec = config.Adapter(
            rank=rank, alpha=alpha, dropout=data.number("lora_dropout", 0.0), kind="dora" if data.flag("use_dora", False) else "lora",
            rslora=data.flag("use_rslora", False),
        )  # fmt: skip
        self._ranks, self._alphas = (dict(data.data.get(name) or {}) for name in ("rank_pattern", "alpha_pattern"))

    def of(self, module: str) -> config.Adapter:
        """For a layer of theirs."""
        found = [_pattern(patterns, module) for patterns in (self._ranks, self._alphas)]
        return replace(self.spec, rank=int(found[0] or self.spec.rank), alpha=float(found[1] or self.spec.alpha))


def _pattern(patterns: Mapping[str, Any], module: str) -> Any:
    """The value of the first pattern that a module's name ends with, as PEFT looks it up; None for none."""
    for pattern, value in patterns.items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        except re.error as error:
            raise ValueError(f"{ADAPTER}: expected patterns of modules' names, got {pattern!r} ({error})") from None
    return None


class _Reader:
    """Tensors by PEFT's names to parts by ours."""

    def __init__(self, said: _Said, stored: WeightFiles, shapes: Mapping[str, Size], layers: set[str]) -> None:
        self.said, self.stored, self.shapes, self.layers = said, stored, shapes, layers
        self.tensors: dict[str, dict[str, str]] = {}  # by module of theirs, then lora_A and so on
        self.others: dict[str, str] = {}
        for key in stored:
            name = key.removeprefix(_PREFIX)
            found = _KEY.fullmatch(name)
            if found is None:
                self.others[name.replace(".modules_to_save.default.", ".").replace(".base_layer.", ".")] = key
            else:
                self.tensors.setdefault(found["module"], {})[found["kind"]] = key

    def read(self, families: Sequence[Family]) -> tuple[dict[str, Part], dict[str, Tensor]]:
        wanted = [*(f"{module}.weight" for module in self.tensors), *self.others]
        if not self.tensors:
            raise ValueError("expected matrices of an adapter (lora_A and lora_B), found none")
        for family in families:
            by_theirs = {name: match for match in self._matches(family) for name in match.theirs}
            named = {theirs: name for name, theirs in table_names(wanted, set(by_theirs), family).items()}
            if all(named[name] in by_theirs for name in wanted):
                break
        else:
            lost = [name for name in wanted if named[name] not in by_theirs]
            raise ValueError(f"adapts {listed(lost)}, which this model has not; is it another model's?")
        parts: dict[str, Part] = {}
        for module in self.tensors:
            parts |= self._parts(module, by_theirs[named[f"{module}.weight"]])
        return parts, self._whole({named[name]: key for name, key in self.others.items()}, by_theirs)

    def _matches(self, family: Family) -> list[Match]:
        try:
            return matches(family, self.shapes)
        except ValueError:  # a head that the family's files have not
            return []

    def _parts(self, module: str, match: Match) -> dict[str, Part]:
        """What each of our layers in a module of theirs has of its adapter."""
        spec, keys = self.said.of(module), self.tensors[module]
        layers = [name.removesuffix(".weight") for name in match.ours]
        if any(layer not in self.layers for layer in layers) or match.layout is STACKED:
            raise ValueError(f"adapts {module}, and only linear layers can be adapted here")
        rows, columns = [self.shapes[name][0] for name in match.ours], self.shapes[match.ours[0]][1]
        expected: dict[str, tuple[int, ...]] = {"lora_A": (spec.rank, columns), "lora_B": (sum(rows), spec.rank)}
        expected |= {"lora_magnitude_vector": (sum(rows),)} if spec.kind == "dora" else {}
        for kind, shape in expected.items():
            if kind not in keys:
                raise ValueError(f"lacks {module}.{kind}")
            got = tuple(self.stored.shape(keys[kind]))
            if (got[-1:] if len(shape) == 1 and got[:-1] == (1,) else got) != shape:
                raise ValueError(f"{keys[kind]} is {got}, expected {shape}")
        a, b = (self.stored[keys[kind]].float() for kind in ("lora_A", "lora_B"))
        lengths: Sequence[Tensor | None] = [None] * len(rows)
        if spec.kind == "dora":
            lengths = torch.split(self.stored[keys["lora_magnitude_vector"]].float().flatten(), rows)
        each = zip(layers, torch.split(b, rows), lengths, strict=True)
        return {layer: Part(spec, a, mine.clone(), length) for layer, mine, length in each}

    def _whole(self, keys: Mapping[str, str], by_theirs: Mapping[str, Match]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for match in {id(by_theirs[name]): by_theirs[name] for name in keys}.values():
            if missing := [name for name in match.theirs if name not in keys]:
                raise ValueError(f"lacks {listed(missing)}")
            shapes = [self.shapes[name] for name in match.ours]
            tensors = match.layout.load([self.stored[keys[name]] for name in match.theirs], shapes)
            for name, tensor, shape in zip(match.ours, tensors, shapes, strict=True):
                if tensor.shape != shape:
                    raise ValueError(f"{name} is {tuple(tensor.shape)} there, and {tuple(shape)} in the model")
                found[name] = tensor
        return found


def load_adapter(
    model: Module, folder: str | Path, *, name: str = DEFAULT, trainable: bool = False, families: Sequence[Family] | None = None
) -> None:
    """Hang the adapter in a folder, PEFT's or one that `save_adapter` wrote, on a model; passes then use it.

    What it brings whole (a head) replaces the model's own. trainable: its matrices can be trained on. families: whose names it
    may use; None: the public one of the model's configuration. Raises ValueError as `read_adapter` does.
    """
    stored = read_adapter(Path(folder), model.config, families or families_of(model.config))
    hang(model, stored, name=name, trainable=trainable)


@torch.no_grad()
def hang(model: Module, stored: StoredAdapter, *, name: str = DEFAULT, trainable: bool = False) -> None:
    """Hang an adapter that was read on a model."""
    parts = attach(model, {layer: part.spec for layer, part in stored.parts.items()}, name=name, trainable=trainable)
    for layer, part in parts.items():
        values = stored.parts[layer]
        part.lora_a.copy_(values.a)
        part.lora_b.copy_(values.b)
        if part.magnitude is not None and values.magnitude is not None:
            part.magnitude.copy_(values.magnitude)
        if not trainable:
            part.freeze(model.get_submodule(layer))
    ours = weights(model)
    for weight, tensor in stored.whole.items():
        ours[weight].copy_(tensor)


# Merged


class Merged(Mapping[str, Tensor]):
    """The weights of a model with an adapter in them, by our names, each made when it is asked for and in the type that it is stored in."""

    def __init__(self, under: Checkpoint, spec: config.Model, adapter: StoredAdapter) -> None:
        self.adapter, self.source = adapter, under.source()
        self.shapes = {name: tensor.shape for name, tensor in weights(build(spec, device="meta")).items()}
        self._match = {name: match for match in self.source.found for name in match.ours}
        for name in self.shapes.keys() - adapter.whole.keys():
            if self.source.shapes.get(name) != self.shapes[name]:
                raise ValueError(f"{adapter.path}: lacks {name}, which the model beneath has not or has otherwise")

    def shape(self, name: str) -> Size:
        """A weight's shape, without making it."""
        return self.shapes[name]

    def dtype(self, name: str) -> torch.dtype:
        """The type that a weight is stored in, without making it."""
        if name in self.adapter.whole:
            return self.adapter.whole[name].dtype
        return self.source.dtype(self._match[name].theirs[0])

    def __getitem__(self, name: str) -> Tensor:
        if name in self.adapter.whole:
            return self.adapter.whole[name]
        match, dtype = self._match[name], self.dtype(name)
        made = {other: torch.empty(self.source.shapes[other], dtype=dtype) for other in match.ours}
        self.source.fill(made)
        part = self.adapter.parts.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        return made[name] if part is None else merged(made[name], part.a, part.b, part.spec.scaling, part.magnitude).to(dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


# Writing


def save_adapter(
    model: Module, tokenizer: Tokenizer | None, folder: str | Path, base: str | Path, task: Mapping[str, Any] | None = None, *,
    name: str = DEFAULT,
) -> None:  # fmt: skip
    """Write an adapter of a model, not the model itself, to a folder that `load` reads, and PEFT wherever transformers knows the model.

    base: the path or name of the model beneath, as it is found again. task: as for `save`.

    The folder has PEFT's layout: adapter_config.json and adapter_model.safetensors; the tokenizer's files, generation_config.json and
    task.json beside them are as `save` writes them, and triform.json describes a model that is not the one beneath, in its head.
    A model without a public counterpart keeps Triform's names. Raises ValueError for a name that no adapter has.
    """
    under = Checkpoint.open(base)
    same = under.spec == model.config
    place = str(Path(base).resolve() if Path(base).exists() else base)
    families = families_of(model.config, under.family if same and under.path.is_dir() else None)
    data, tensors = adapter_files(model, name, place, families)
    files: dict[str, Any] = {ADAPTER: data, "task.json": dict(task or {}), "generation_config.json": marks_of(model.config, tokenizer)}
    if not same:
        files["triform.json"] = config.to_dict(model.config, hint=config.Model)
    with replacing_all(Path(folder), owned) as temporary:
        safetensors.write(temporary / WEIGHTS, {key: (t.dtype, tuple(t.shape)) for key, t in tensors.items()}, tensors.items())
        if tokenizer is not None:
            tokenizer.save(temporary)
        write_files(temporary, {file: found for file, found in files.items() if found})


def adapter_files(model: Module, name: str, base: str, families: Sequence[Family]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """adapter_config.json of an adapter on a model, and its tensors by PEFT's names; `base` is the path or name of the model beneath."""
    parts = adapter_parts(model, name)
    spec = next(iter(parts.values())).spec
    shapes = {n: t.shape for n, t in weights(build(model.config, device="meta")).items()}
    whole = [n for place in whole_parts(model, spec) for n in shapes if n.startswith(f"{place}.")]
    family, found = _expressing(families, shapes, [*(f"{layer}.weight" for layer in parts), *whole])
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    modules: list[str] = []
    for match in found:
        inside = [parts.get(n.removesuffix(".weight")) for n in match.ours]
        if not any(inside):
            continue
        module = family.in_memory(_stored(family, match.theirs[0]).removesuffix(".weight"))
        layers = [model.get_submodule(n.removesuffix(".weight")) for n in match.ours]
        joined = _joined(list(zip(layers, inside, strict=True)))
        modules.append(module)
        if len(joined["lora_A.weight"]) != spec.rank:
            ranks[module] = len(joined["lora_A.weight"])
        tensors |= {f"{_PREFIX}{module}.{kind}": tensor for kind, tensor in joined.items()}
    kept, saved = weights(model), list[str]()
    for match in found:
        if match.ours and match.ours[0] in whole:
            made = match.layout.save([kept[n] for n in match.ours])
            theirs = [_stored(family, n) for n in match.theirs]
            tensors |= {f"{_PREFIX}{n}": tensor.contiguous() for n, tensor in zip(theirs, made, strict=True)}
            saved += [n.rpartition(".")[0] for n in theirs]
    every = {family.in_memory(_stored(family, n).rpartition(".")[0]) for match in found for n in match.theirs}
    transposed = any(m.layout in (TRANSPOSED, FUSED_TRANSPOSED) for m in found)
    data = {
        "peft_type": "LORA", "task_type": _task_type(model.config, bool(saved)), "base_model_name_or_path": base, "inference_mode": True,
        "r": spec.rank, "lora_alpha": _number(spec.alpha), "lora_dropout": spec.dropout, "bias": "none",
        "target_modules": _endings(modules, every), "fan_in_fan_out": transposed, "use_rslora": spec.rslora,
        "use_dora": spec.kind == "dora", "init_lora_weights": True, "modules_to_save": sorted(set(saved)) or None,
        "rank_pattern": ranks, "alpha_pattern": {module: _number(_alpha(spec, rank)) for module, rank in ranks.items()},
    }  # fmt: skip
    return data, tensors


def _expressing(families: Sequence[Family], shapes: Mapping[str, Size], wanted: Iterable[str]) -> tuple[Family, list[Match]]:
    """The first family that has a name for every weight, and its matches."""
    for family in families:
        try:
            found = matches(family, shapes)
        except ValueError:
            continue
        if set(wanted) <= {name for match in found for name in match.ours}:
            return family, found
    raise AssertionError("the last family has every name")


def _stored(family: Family, name: str) -> str:
    return name.removeprefix(family.prefix) if family.bare else name


def _joined(parts: Sequence[tuple[nn.Module, LowRank | None]]) -> dict[str, Tensor]:
    """The matrices of one layer of theirs from those of ours in it: A on A, B beside B, and zeros between."""
    a = torch.cat([part.lora_a.detach() for _, part in parts if part is not None])
    sizes = [(_rows(layer), 0 if part is None else len(part.lora_a)) for layer, part in parts]
    b = a.new_zeros(sum(rows for rows, _ in sizes), len(a))
    row = column = 0
    for (rows, rank), (_, part) in zip(sizes, parts, strict=True):
        if part is not None:
            b[row : row + rows, column : column + rank] = part.lora_b.detach()
        row, column = row + rows, column + rank
    out = {"lora_A.weight": a.contiguous(), "lora_B.weight": b}
    if any(part is not None and part.magnitude is not None for _, part in parts):
        lengths = [matrix_of(layer).float().norm(dim=1) if part is None or part.magnitude is None else part.magnitude.detach()
                   for layer, part in parts]  # fmt: skip
        out["lora_magnitude_vector"] = torch.cat(lengths).detach()
    return out


def _rows(layer: nn.Module) -> int:
    sized: Any = layer
    rows: int = sized.out_features
    return rows


def _alpha(spec: config.Adapter, rank: int) -> float:
    """What makes the factor of an adapter of another rank the same."""
    return spec.scaling * (rank**0.5 if spec.rslora else rank)


def _number(value: float) -> float | int:
    return int(value) if value == int(value) else value


def _endings(modules: Sequence[str], every: Iterable[str]) -> list[str]:
    """The shortest endings that name these modules and none of the others."""
    others = set(every) - set(modules)
    found: dict[str, None] = {}
    for module in modules:
        words = module.split(".")
        for count in range(1, len(words) + 1):
            ending = ".".join(words[-count:])
            if not any(other == ending or other.endswith(f".{ending}") for other in others):
                break
        found[ending] = None
    return list(found)


def _task_type(spec: config.Model, with_head: bool) -> str | None:
    """What PEFT calls the model's task; where that is a head's, it expects the head in the file."""
    match getattr(spec, "head", None):
        case config.LanguageModel():
            return {"decoder-only": "CAUSAL_LM", "encoder-decoder": "SEQ_2_SEQ_LM"}.get(spec.form)
        case config.Classify() if with_head:
            return "SEQ_CLS"
        case config.ClassifyTokens() if with_head:
            return "TOKEN_CLS"
        case config.AnswerSpan() if with_head:
            return "QUESTION_ANS"
        case _:
            return None
