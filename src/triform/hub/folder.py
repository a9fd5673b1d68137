"""Models from where they lie: Triform's own folders, public ones, and GGUF files, behind one `Checkpoint`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Size, Tensor

from triform import config
from triform.config.files import settle
from triform.nn import build
from triform.nn.feedforward import Experts
from triform.nn.norm import RMSNorm
from triform.text import Tokenizer
from triform.text.loading import holds_tokenizer

from .families import read_config
from .family import Family
from .fields import Fields, read_json
from .files import WeightFiles
from .names import locate
from .public import OWN, Module, Places, Source, weights
from .rules import listed
from .sentence import longest, with_head
from .spec import ADAPTER, base_of, is_adapter

Precision = Literal["auto", "fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_SAID = ("config.json", "generation_config.json")  # of tokens' ids; the later decides
_NOT_SIZES = ("window", "max_distance", "original_length", "end_token", "capacity", "top_k", "image")


@dataclass(frozen=True)
class Checkpoint:
    """A model as it lies in files, opened: what it is, what its weights are called, and the weights, not yet read.

    under: of an adapter, the model that it belongs to. Every ValueError is one line that names the path.
    """

    path: Path
    spec: config.Model
    family: Family
    stored: Mapping[str, Tensor]
    under: Checkpoint | None = None

    @classmethod
    def open(cls, path_or_name: str | Path) -> Checkpoint:
        """The model in a folder with triform.json or config.json, in a GGUF file or a folder with one, or of a name that `locate` knows.

        The folder of an adapter is the model that it belongs to with the adapter in its weights.
        """
        path = _gguf_in(locate(path_or_name))
        if path.is_file():
            if path.suffix != ".gguf":
                raise ValueError(f"{path}: expected a model's folder or a .gguf file")
            from .gguf import GGUFFile

            file = GGUFFile(path)
            return cls(path, file.spec, file.family, file)
        settle(path)
        if is_adapter(path):
            return cls.open(base_of(path)).with_adapter(path)
        try:
            if (path / "triform.json").is_file():
                spec, family = config.read(path), OWN
            elif (path / "config.json").is_file():
                spec, family = with_head(path, *read_config(read_json(path / "config.json")))
            else:
                raise ValueError("expected a model's folder, with triform.json or config.json, found neither")
            stored = WeightFiles(path)
            return cls(path, spec, family.as_stored(stored), stored)._as_stored()
        except ValueError as error:
            raise _named(path, error) from None

    def with_adapter(self, folder: str | Path) -> Checkpoint:
        """The model with the adapter in a folder (see `triform.hub.adapters`) in its weights, which are made as they are read."""
        from .adapters import Merged, families_of, read_adapter

        path = Path(folder)
        spec = config.read(path) if (path / "triform.json").is_file() else self.spec
        stored = read_adapter(path, spec, families_of(spec, self.family))
        return Checkpoint(path, spec, OWN, Merged(self, spec, stored), self)

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer that belongs to the model, with the ids that end and begin what it generates; None where there is none."""
        if self.under is not None and not holds_tokenizer(self.path):
            return self.under.tokenizer()
        if self.path.is_file():
            from .gguf import GGUFFile

            assert isinstance(self.stored, GGUFFile)
            return self.stored.tokenizer()
        if not holds_tokenizer(self.path):
            return None
        tokenizer = Tokenizer.load(self.path)
        said = any((self.path / name).is_file() for name in _SAID)
        tokenizer.ends, tokenizer.start = _marks(self.path if said or self.under is None else self.under.path, tokenizer)
        tokenizer.length = longest(self.path) or tokenizer.length
        return tokenizer

    def build(self, *, dtype: Precision = "auto", device: str | torch.device = "cpu") -> Module:
        """The model, ready to evaluate; its weights are read one at a time, into the memory that they stay in.

        dtype: of the model. "auto" takes the type that most of the stored numbers have (fp32
        for any but fp32, bf16, fp16 and fp64); the scales of RMSNorm and the routers of
        experts, which compute in fp32, stay in fp32 where they are stored so.
        """
        if dtype not in ("auto", *DTYPES):
            raise ValueError(f"dtype: expected one of auto, {', '.join(DTYPES)}, got {dtype!r}")
        try:
            model, source = self._meta()
            source.check()
            main = _main_dtype(source) if dtype == "auto" else DTYPES[dtype]
            model.to(main)
            if dtype == "auto":
                _keep_wide(model, source)
            model.to_empty(device=device)
            source.fill(weights(model))
        except ValueError as error:
            raise _named(self.path, error) from None
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise ValueError(f"{self.path}: not enough memory for the model ({str(error).splitlines()[0]})") from None
        return model.eval()

    def begin(self, model: Module) -> None:
        """Copy into a model the stacks of this one, and each head where the model's is alike.

        Raises ValueError that names what is missing, left over or of another shape in the stacks.
        """
        theirs, ours = self.spec, model.config
        skipped = tuple(f"{h}." for h in ("head", "sentence_head") if getattr(theirs, h, None) != getattr(ours, h, None))
        try:
            source = self._meta()[1]
            source.check()
            places = Places(model)
            wanted = {n: places.shape(n) for n in places if not n.startswith(skipped)}
            held = {n: shape for n, shape in source.shapes.items() if not n.startswith(skipped)}
            if missing := wanted.keys() - held.keys():
                raise ValueError(f"the checkpoint lacks {listed(missing)}, which the model has")
            if extra := held.keys() - wanted.keys():
                raise ValueError(f"the checkpoint has {listed(extra)}, which the model has not")
            for name, shape in wanted.items():
                if shape != held[name]:
                    raise ValueError(f"{name} is {tuple(held[name])} in the checkpoint, and {tuple(shape)} in the model")
            source.fill(places, wanted)
        except ValueError as error:
            raise _named(self.path, error) from None

    def source(self) -> Source:
        """Where the weights come from, by our names."""
        return self._meta()[1]

    def _meta(self) -> tuple[Module, Source]:
        """The model without memory, and where its weights come from."""
        _check_sizes(self.spec, sum(self._shape(name).numel() for name in self.stored), len(self.stored))
        try:
            model: Module = build(self.spec, device="meta")
        except RuntimeError as error:  # sizes whose product no tensor can have
            raise ValueError(f"the configuration asks for a tensor that cannot be ({str(error).splitlines()[0]})") from None
        return model, Source(self.stored, self.family, {n: t.shape for n, t in weights(model).items()})

    def _shape(self, name: str) -> Size:
        return Size(self.stored.shape(name)) if hasattr(self.stored, "shape") else self.stored[name].shape

    def _as_stored(self) -> Checkpoint:
        """With its output untied, where the file holds an output matrix that is not the token table.

        Hugging Face's transformers 5 writes `tie_word_embeddings: true` for every T5, the untied 1.1 too.
        """
        output = next((rule.theirs for rule in self.family.table if rule.ours == ("head.weight",)), None)
        spec = self.spec
        if not (isinstance(spec, config.Transformer) and isinstance(spec.head, config.LanguageModel) and spec.head.tied):
            return self
        if output is None or output not in self.stored or not self._meta()[1].differs(output):
            return self
        return replace(self, spec=replace(spec, head=replace(spec.head, tied=False)))


def load(
    path_or_name: str | Path, *, dtype: Precision = "auto", device: str | torch.device = "cpu"
) -> tuple[Any, Tokenizer | None]:
    """A model, ready to evaluate, and its tokenizer (None where there is none).

    path_or_name: a folder that `save` wrote or in the layout of Hugging Face's hub, a .gguf
    file, or a name that `locate` knows. dtype: "auto" (as stored), "fp32", "bf16" or "fp16"; see `Checkpoint.build`.

    Raises ValueError of one line that names the file at fault.
    """
    found = Checkpoint.open(path_or_name)
    tokenizer = found.tokenizer()
    return found.build(dtype=dtype, device=device), tokenizer


def load_public(folder: str | Path, *, dtype: Precision = "auto", device: str | torch.device = "cpu") -> Module:
    """The model alone, as `load` gives it."""
    return Checkpoint.open(Path(folder)).build(dtype=dtype, device=device)


def task(folder: str | Path) -> dict[str, Any]:
    """What `save` was told of the model's task: its labels, and whatever was beside them; empty where nothing was.

    `problem_type` is that of a public configuration, where a Classify head does not choose one of its labels.
    """
    folder = Path(folder)
    found: dict[str, Any] = {}
    if is_adapter(folder) and not (folder / "task.json").is_file():
        folder = locate(base_of(folder))
    if (folder / "config.json").is_file():
        data = read_json(folder / "config.json")
        labels, problem = data.get("id2label"), data.get("problem_type")
        if isinstance(labels, dict) and all(labels.get(str(i)) for i in range(len(labels))):
            found["labels"] = [str(labels[str(i)]) for i in range(len(labels))]
        if problem in ("multi_label_classification", "regression"):
            found["problem_type"] = problem
    return found | (read_json(folder / "task.json") if (folder / "task.json").is_file() else {})


def _named(path: Path, error: ValueError) -> ValueError:
    """The error, with the path in front where it is not yet."""
    text = str(error)
    return error if text.startswith(str(path)) else ValueError(f"{path}: {text}")


def _gguf_in(path: Path) -> Path:
    """The one .gguf file of a folder without a configuration, else the path itself."""
    if not path.is_dir() or any((path / name).is_file() for name in ("config.json", "triform.json", ADAPTER)):
        return path
    files = sorted(path.glob("*.gguf"))
    if len(files) > 1:
        raise ValueError(f"{path}: expected one .gguf file, found {len(files)}; name the one to load, such as {files[0]}")
    return files[0] if files else path


def _check_sizes(spec: config.Model, numbers: int, tensors: int) -> None:
    """Before modules are made for layers, or lists for experts, that cannot be there."""
    stacks = (spec.text, spec.image) if isinstance(spec, config.DualEncoder) else (spec.encoder, spec.decoder)
    depth = sum(stack.depth for stack in stacks if stack is not None)
    if depth > tensors:
        raise ValueError(f"the configuration asks for {depth} layers, and the checkpoint holds {tensors} tensors in all")
    _check_part(spec, numbers)


def _check_part(part: Any, numbers: int) -> None:
    for field in fields(part):
        value = getattr(part, field.name)
        if isinstance(value, int) and field.name not in _NOT_SIZES and value > max(numbers, 1):
            raise ValueError(f"the configuration asks for {field.name} {value}, and the checkpoint holds {numbers} numbers in all")
        for inner in value if isinstance(value, tuple) else (value,):
            if is_dataclass(inner):
                _check_part(inner, numbers)


def _main_dtype(source: Source) -> torch.dtype:
    """The type that most bytes of the weights are stored in."""
    held: dict[torch.dtype, int] = {}
    for found in source.found:
        for name in found.theirs:
            dtype = source.dtype(name)
            held[dtype] = held.get(dtype, 0) + source.shape(name).numel() * dtype.itemsize
    main = max(held, key=lambda dtype: held[dtype], default=torch.float32)
    return main if main in (*DTYPES.values(), torch.float64) else torch.float32


def _keep_wide(model: Module, source: Source) -> None:
    """Let weights that compute in fp32 have it where the file does; `model` is on meta."""
    for found in source.found:
        if any(source.dtype(name) != torch.float32 for name in found.theirs):
            continue
        for name in found.ours:
            place, _, last = name.rpartition(".")
            module = model.get_submodule(place)
            router = place.endswith(".router") and isinstance(model.get_submodule(place.removesuffix(".router")), Experts)
            if isinstance(module, RMSNorm) or router:
                setattr(module, last, torch.nn.Parameter(getattr(module, last).float()))


def _marks(folder: Path, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The ids that end a generation, and those that the decoder of an encoder-decoder begins with, as the folder says or by default."""
    said: dict[str, Any] = {}
    for name in _SAID:
        if (folder / name).is_file():
            said |= {k: v for k, v in read_json(folder / name).items() if v is not None}
    marks = Fields(said, f"{folder}: ")
    ends = _ids(marks, "eos_token_id", tokenizer)
    if not ends or tokenizer.chat_template is not None:  # a turn of a conversation ends with the tokenizer's own mark
        ends = [*ends, *tokenizer.ends]
    start = [i for name in ("decoder_start_token_id", "forced_bos_token_id") for i in _ids(marks, name, tokenizer)[:1]]
    return list(dict.fromkeys(ends)), start if "decoder_start_token_id" in said else tokenizer.start


def _ids(marks: Fields, name: str, tokenizer: Tokenizer) -> list[int]:
    value = marks.data.get(name)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(i) is int for i in ids):
        raise marks.fail(name, "a token's id, or a list of them")
    return [i for i in ids if 0 <= i < tokenizer.vocab_size]
