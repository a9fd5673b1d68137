"""A recipe: all that a training run is made from, as data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import yaml

from triform import config
from triform.config.spec import spec
from triform.objectives import Causal, Classification, Masked, ObjectiveSpec, SequenceToSequence, SpanCorruption


@spec
class TokenizerRecipe:
    """A tokenizer's folder in `path`, or what to train on the run's own training text."""

    path: str | None = None
    kind: Literal["byte-bpe", "bpe", "wordpiece", "unigram", "characters"] = "bpe"
    vocab_size: int = 8000
    min_frequency: int = 1
    sentinels: int = 0


@spec
class DataRecipe:
    """Where the text comes from, and what of it is held out.

    source: a file, a folder, a catalogue name, or hf:name. validation_source: the same for
    the held-out text; without it, `tail` documents from the end or else the share
    `validation` of the documents is held out, decided by their content. `transform` names
    what happens to the rows after that (see `triform.data.transform`).
    """

    source: str
    validation_source: str | None = None
    by: Literal["file", "line", "paragraph"] = "line"
    transform: tuple[str, ...] = ()
    validation: float = 0.05
    tail: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.validation < 1:
            raise ValueError(f"validation: expected a share from 0 up to but not including 1, got {self.validation}")


@spec
class TrainRecipe:
    """The loop. `batch` counts samples of one micro-batch, of which `accumulate` make a step.

    optimizer: muon takes the stacks' matrices (Jordan et al. 2024) and leaves the rest to
    AdamW, at `muon_rate`. `rate` is AdamW's peak learning rate; it rises over `warmup` steps
    and falls by `schedule` to `floor` of the peak. precision auto: bf16 where this
    machine multiplies it faster. export: the weights of the last step, or of the best
    validation. start: a model's folder whose stacks to begin from.
    """

    steps: int
    batch: int = 32
    accumulate: int = 1
    optimizer: Literal["adamw", "muon"] = "adamw"
    rate: float = 1e-3
    muon_rate: float = 0.02
    betas: tuple[float, ...] = (0.9, 0.95)
    weight_decay: float = 0.1
    warmup: int = 100
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    floor: float = 0.1
    clip: float = 1.0
    smoothing: float = 0.0
    z_loss: float = 0.0
    load_balance: float = 0.01
    router_z: float = 0.001
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    bucket: int = 1
    validate_every: int = 100
    validation_batches: int | None = None
    checkpoint_every: int = 100
    keep: int = 2
    export: Literal["last", "best"] = "last"
    start: str | None = None
    tensorboard: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "bucket", "validate_every", "checkpoint_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("rate", "muon_rate", "clip"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: expected a number above 0, got {getattr(self, name)}")
        if len(self.betas) != 2 or not all(0 <= b < 1 for b in self.betas):
            raise ValueError(f"betas: expected two numbers from 0 up to but not including 1, got {list(self.betas)}")
        if not 0 <= self.floor <= 1:
            raise ValueError(f"floor: expected a share from 0 to 1, got {self.floor}")
        if self.warmup < 0:
            raise ValueError(f"warmup: expected at least 0 steps, got {self.warmup}")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run. `model` is a preset's name, a file, or a configuration; `set` overrides its fields by path."""

    model: str | dict[str, Any]
    data: DataRecipe
    objective: Causal | Masked | SpanCorruption | SequenceToSequence | Classification
    train: TrainRecipe
    tokenizer: TokenizerRecipe = field(default_factory=TokenizerRecipe)
    set: dict[str, Any] = field(default_factory=dict)

    def architecture(self, vocab_size: int | None = None) -> config.Model:
        """The model's configuration, with the tokenizer's vocabulary where one is given."""
        found = config.resolve(self.model)
        overrides = dict(self.set)
        if vocab_size is not None:
            sides = [s for s in ("encoder", "decoder") if isinstance(found, config.Transformer) and getattr(found, s) is not None]
            overrides |= {f"{side}.input.vocab_size": vocab_size for side in sides}
        return config.with_overrides(config.Model, found, overrides)


def read_recipe(source: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> Recipe:
    """A recipe from a YAML file or plain data.

    Overrides are `train.steps=200` and the like; those that begin with `model.` set fields
    of the model by path. Raises ValueError that names the file and the field at fault.
    """
    where = "the recipe"
    if isinstance(source, Mapping):
        data: Any = dict(source)
    else:
        where = str(source)
        file = Path(source)
        if not file.is_file():
            raise ValueError(f"{file}: expected a recipe file, found none")
        try:
            data = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{file}: expected YAML, got {' '.join(str(error).split())}") from None
    try:
        recipe = cast(Recipe, config.from_dict(Recipe, data))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    plain, model = [], {}
    for text in overrides:
        path, equals, raw = text.partition("=")
        if path.startswith("model.") and equals:
            model[path.removeprefix("model.")] = yaml.safe_load(raw)
        else:
            plain.append(text)
    recipe = config.with_overrides(Recipe, recipe, plain)
    if model:
        recipe = config.with_overrides(Recipe, recipe, {"set": {**recipe.set, **model}})
    recipe.architecture()
    return recipe


__all__ = ["DataRecipe", "ObjectiveSpec", "Recipe", "TokenizerRecipe", "TrainRecipe", "read_recipe"]
