"""A recipe: all that a training run is made from, as data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import yaml

from triform import config, hub
from triform.config.files import read_yaml
from triform.config.spec import at_least, spec
from triform.data.cleaning import Clean, WeightedSource
from triform.nn.recompute import Recompute
from triform.objectives import ObjectiveSpec


@spec
class TokenizerRecipe:
    """A tokenizer's folder in `path`, or the name of a model as `hub.load` takes it; else what to train on the run's own training text.

    add: names of special tokens to put after its last one. chat_template: how conversations are written, instead of as the
    tokenizer says: a file (Jinja), or "chatml" or "plain" (see `triform.text.templates`).
    """

    path: str | None = None
    kind: Literal["byte-bpe", "bpe", "wordpiece", "unigram", "characters"] = "bpe"
    vocab_size: int = 8000
    min_frequency: int = 1
    sentinels: int = 0
    add: tuple[str, ...] = ()
    chat_template: str | None = None


@spec
class DataRecipe:
    """Where the text comes from, and what of it is held out.

    source: a file, a folder, a catalogue name, or hf:name; or a list of such, a mixture, each
    with a weight (see `triform.data.mixture`). validation_source: the same for
    the held-out text; without it, `tail` documents from the end or else `validation` of
    them are held out: a share, or how many, chosen by their content. clean: what is done to the
    documents before that (see `triform.data.cleaning`); those of validation_source are normalised
    only. `transform` names what happens to the rows after that (see `triform.data.transform`).
    folder: where prepared data are kept, instead of in the cache. skip_bad: rows that cannot be read or trained on are left out
    and counted (see `triform.data.rows`); otherwise the first one, which is told with its file and line, ends the run.
    """

    source: str | tuple[str | WeightedSource, ...]
    validation_source: str | None = None
    by: Literal["file", "line", "paragraph"] = "line"
    clean: Clean | None = None
    folder: str | None = None
    transform: tuple[str, ...] = ()
    validation: int | float = 0.05
    tail: int | None = None
    seed: int = 0
    skip_bad: bool = False

    def __post_init__(self) -> None:
        if not self.source:
            raise ValueError("source: expected at least one source")
        if self.validation < 0 or (isinstance(self.validation, float) and self.validation >= 1):
            raise ValueError(f"validation: expected a share below 1 or a whole number of documents, got {self.validation}")
        if self.tail is not None and self.tail < 1:
            raise ValueError(f"tail: expected at least 1 document, got {self.tail}")

    @property
    def sources(self) -> tuple[WeightedSource, ...]:
        """The sources, each with its weight."""
        given = (self.source,) if isinstance(self.source, str) else self.source
        return tuple(WeightedSource(source=each) if isinstance(each, str) else each for each in given)


@spec
class Guard:
    """What to do about a bad step: it is left out, and after `roll_back_after` in a row the weights are those of the last checkpoint.

    A step is bad when its loss or its gradient's norm is no number, or more than `spike` standard
    deviations above the mean of the last `window` good steps (null: never for that).
    """

    spike: float | None = 6.0
    window: int = 128
    roll_back_after: int = 3

    def __post_init__(self) -> None:
        if self.spike is not None and self.spike <= 0:
            raise ValueError(f"spike: expected a number above 0, or null, got {self.spike}")
        for name, least in (("window", 2), ("roll_back_after", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")


@spec
class SampleRecipe:
    """What the model makes of some prompts, every so many steps and at the end.

    A model that generates goes on from them (or answers, an encoder-decoder), with at most `max_new_tokens`, drawn with the run's
    seed; a masked model fills their [MASK]s; a classifier judges them.
    """

    prompts: tuple[str, ...]
    every: int = 500
    max_new_tokens: int = 64
    temperature: float = 0.8
    top_p: float = 0.95

    def __post_init__(self) -> None:
        at_least(self, 1, "every", "max_new_tokens")
        if not self.prompts:
            raise ValueError("prompts: expected at least one text")
        if self.temperature < 0:
            raise ValueError(f"temperature: expected 0 (the most probable token) or more, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: expected a share above 0 and at most 1, got {self.top_p}")


@spec
class Curriculum:
    """Short before long, in the first `share` of the steps; each sample comes as often as without.

    Rows of a stream (Causal, Prefix) are cut into equal pieces, at first as short as `start` of a row, then longer
    until they are whole: no token is lost, and a step reads as many as ever (Li et al. 2022 let the length grow likewise).
    Samples of other objectives have lengths of their own, and those of these steps come in the order of their lengths.
    """

    share: float = 0.3
    start: float = 0.125

    def __post_init__(self) -> None:
        for name in ("share", "start"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a share above 0 and at most 1, got {getattr(self, name)}")


@spec
class TrainRecipe:
    """The loop. `batch` counts samples of one micro-batch, of which `accumulate` make a step.

    optimizer: muon takes the stacks' matrices (Jordan et al. 2024) and leaves the rest to
    AdamW, at `muon_rate`. adafactor (Shazeer & Stern 2018) has factored second moments, no
    first ones, and a rate relative to each tensor's size, at most 1 / sqrt(step). adamw8bit
    keeps its moments in bytes (Dettmers et al. 2022). The first of `betas` is sgd's
    momentum. `rate` is the peak learning rate; it rises over `warmup` steps and falls by
    `schedule` to `floor` of the peak; `decay` is the share of the steps in which wsd
    (warm-up, stable, decay) falls. ema: of the weights an average is kept, which each step
    moves by 1 - `ema` of the way to them; validation and the exported model use it.

    precision auto: bf16 where this machine multiplies it faster; fp16, with a scaled loss,
    and fp8 (see `triform.train.fp8`) are for GPUs. recompute: what the backward pass works out again instead of keeping it
    (see `triform.nn.recompute`). offload: what it keeps waits in the processor's memory and not in the
    GPU's (see `triform.train.offload`). linear: whose products linear layers take in fp32 on the
    CPU; auto: the faster of the two here (see `triform.train.onednn`). compile: blocks by torch.compile; auto: on a GPU
    with a compiler (see `triform.train.compiled`). `clip` limits the norm of the gradients.

    smoothing, z_loss: of the labels, and of the scores' log-partition (see `linear_cross_entropy`).
    load_balance, router_z: weights of the experts' losses, which are taken over a
    micro-batch and averaged over the step by its tokens. bucket: that many steps share
    their samples out by length, which saves padding. keep: how many checkpoints, beside the one with the lowest
    validation loss. background: checkpoints are written from a copy while training goes on. guard: bad steps are left
    out; without it the first loss that is no number ends the run. export: the weights of the last step,
    or of the best validation. validation_batches: how many batches of the held-out samples,
    spread evenly over them, are scored each time; None: all. start: a model to begin from, by
    the folder, the file or the name that `hub.load` takes: its stacks, and its head where
    this model's is alike. adapter: what is trained beside that model's weights, which then stay as they are
    (see `triform.config.Adapter`). track: who is told the metrics beside the run's own files. samples: what the model
    makes of prompts as it learns.
    """

    steps: int
    batch: int = 32
    accumulate: int = 1
    optimizer: Literal["adamw", "adamw8bit", "adafactor", "muon", "sgd"] = "adamw"
    rate: float = 1e-3
    muon_rate: float = 0.02
    betas: tuple[float, ...] = (0.9, 0.95)
    weight_decay: float = 0.1
    warmup: int = 100
    schedule: Literal["cosine", "linear", "constant", "wsd", "inverse_sqrt"] = "cosine"
    decay: float = 0.2
    floor: float = 0.1
    clip: float = 1.0
    ema: float | None = None
    smoothing: float = 0.0
    z_loss: float = 0.0
    load_balance: float = 0.01
    router_z: float = 0.001
    precision: Literal["auto", "fp32", "bf16", "fp16", "fp8"] = "auto"
    recompute: Recompute = "none"
    offload: bool = False
    linear: Literal["auto", "torch", "onednn"] = "auto"
    compile: bool | Literal["auto"] = "auto"
    bucket: int = 1
    curriculum: Curriculum | None = None
    validate_every: int = 100
    validation_batches: int | None = None
    checkpoint_every: int = 100
    keep: int = 2
    background: bool = True
    guard: Guard | None = None
    export: Literal["last", "best"] = "last"
    start: str | None = None
    adapter: config.Adapter | None = None
    track: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    samples: SampleRecipe | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "bucket", "validate_every", "checkpoint_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("rate", "muon_rate", "clip"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: expected a number above 0, got {getattr(self, name)}")
        for name in ("weight_decay", "z_loss", "load_balance", "router_z", "warmup"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        if self.validation_batches is not None and self.validation_batches < 1:
            raise ValueError(f"validation_batches: expected at least 1, or null for all, got {self.validation_batches}")
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing: expected a share from 0 up to but not including 1, got {self.smoothing}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed: expected a whole number from 0 to {2**32 - 1}, got {self.seed}")
        if len(self.betas) != 2 or not all(0 <= b < 1 for b in self.betas):
            raise ValueError(f"betas: expected two numbers from 0 up to but not including 1, got {list(self.betas)}")
        for name in ("floor", "decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a share from 0 to 1, got {getattr(self, name)}")
        if self.adapter is not None and self.start is None:
            raise ValueError("adapter: expected train.start beside it, the model whose weights stay as they are, got nothing")
        if self.adapter is not None and self.precision == "fp8":
            raise ValueError("adapter: expected a precision other than fp8, whose layers take no adapter; choose bf16")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema: expected a share between 0 and 1, such as 0.999, or null, got {self.ema}")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run. `model` is a preset's name, a file, or a configuration; `set` overrides its fields by path."""

    model: str | dict[str, Any]
    data: DataRecipe
    objective: ObjectiveSpec
    train: TrainRecipe
    tokenizer: TokenizerRecipe = field(default_factory=TokenizerRecipe)
    set: dict[str, Any] = field(default_factory=dict)

    def architecture(self, vocab_size: int | None = None) -> config.Model:
        """The model's configuration, with the tokenizer's vocabulary where one is given.

        A model to begin from may have more rows than its tokenizer has tokens; they are kept where it is there already.
        """
        found = _architecture(self.model)
        overrides = dict(self.set)
        if vocab_size is not None:
            begun = None if self.train.start is None else _begun(self.train.start)
            for side in ("encoder", "decoder", "text"):
                if _rows(found, side):
                    overrides[f"{side}.input.vocab_size"] = max(vocab_size, _rows(begun, side))
        return config.with_overrides(config.Model, found, overrides)


def _architecture(model: str | dict[str, Any]) -> config.Model:
    """The configuration of a preset, of a configuration's file, of plain data, or of a saved model."""
    if isinstance(model, str) and model not in config.presets() and (Path(model).is_dir() or model.endswith(".gguf")):
        return hub.read_spec(model)
    return config.resolve(model)


def _begun(path_or_name: str) -> config.Model | None:
    """The model to begin from, or None: the run that makes it may come first, and a run that needs it says what is wrong."""
    try:
        return hub.read_spec(hub.locate(path_or_name, weights=False))
    except ValueError:
        return None


def _rows(model: config.Model | None, side: str) -> int:
    """How many tokens a side's table has room for; 0 where it reads none."""
    stack = getattr(model, side, None)
    return stack.input.vocab_size if stack is not None and isinstance(stack.input, config.Tokens) else 0


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
        data = read_yaml(file)
    try:
        recipe = cast(Recipe, config.from_dict(Recipe, data))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    plain, model = [], {}
    for text in overrides:
        path, equals, raw = text.partition("=")
        if path.strip().startswith("model.") and equals:
            try:
                model[path.strip().removeprefix("model.")] = yaml.safe_load(raw)
            except yaml.YAMLError:
                raise ValueError(f"override {text!r}: expected a YAML value after '=', got {raw!r}") from None
        else:
            plain.append(text)
    recipe = config.with_overrides(Recipe, recipe, plain)
    if model:
        recipe = config.with_overrides(Recipe, recipe, {"set": {**recipe.set, **model}})
    try:
        recipe.architecture()
    except ValueError as error:
        raise ValueError(f"{where}: model: {error}") from None
    return recipe


__all__ = [
    "Curriculum", "DataRecipe", "Guard", "ObjectiveSpec", "Recipe", "SampleRecipe", "TokenizerRecipe", "TrainRecipe", "read_recipe",
]  # fmt: skip
