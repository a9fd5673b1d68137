"""The best models for a budget, and what fits in a memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from triform import config

from . import cost, flops, memory, quantities, scaling, shapes, time
from .explain import Line
from .hardware import Fleet, hardware
from .parameters import parameters
from .setting import Recompute, Setting

RESERVE = 0.08  # of a device's memory: the driver's own, and what fragmentation takes
_MOST_EPOCHS = 16  # after so many, repeated text brings almost nothing (Muennighoff et al. 2023, section 6)
_LONGEST = 2**17  # tokens of a context that are looked for
_LARGEST_MICRO_BATCH = 2**16  # tokens; more do not make a device faster
_DEEPSEEK = "DeepSeek-AI 2024, https://arxiv.org/abs/2401.02954, equation 1"
_HOW: tuple[Recompute, ...] = ("none", "selective", "full")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What there is: devices, seconds or money (the tighter counts), and what is wanted. Read from text by `read_budget`."""

    fleet: Fleet
    seconds: float | None = None
    money: float | None = None
    form: str = "decoder-only"
    corpus: int | None = None
    vocab_size: int | None = None
    sequence: int | None = None
    data: str = "sanguo"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model that the budget trains in time. loss: the mean of the published fits, nats a token; lower is better.

    batch is that of one device; rate is AdamW's.
    """

    model: config.Transformer
    setting: Setting
    parameters: int
    tokens: int
    epochs: float
    steps: int
    rate: float
    loss: float
    seconds: float
    memory: int
    cost: cost.Cost
    lines: tuple[Line, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        width, depth = self.model.last.width, sum(s.depth for s in (self.model.encoder, self.model.decoder) if s)
        said = self.setting
        return {
            "parameters": self.parameters, "form": self.model.form, "width": width, "depth": depth, "batch": said.batch,
            "accumulate": said.accumulate, "sequence": said.sequence, "recompute": said.recompute, "optimizer": said.optimizer,
            "precision": said.precision, "tokens": self.tokens, "epochs": self.epochs, "steps": self.steps, "rate": self.rate,
            "loss": self.loss, "seconds": self.seconds, "memory": self.memory, "money": self.cost.money,
            "energy_kwh": self.cost.energy_kwh, "co2_kg": self.cost.co2_kg,
        }  # fmt: skip


def read_budget(text: str, price: float | None = None) -> Budget:
    """A budget from text such as "1x RTX3090, 24h, form=decoder, corpus=300M tokens".

    Items are hardware, a time (24h, 3 days), money ($100), and form=, corpus=, vocab=, sequence= or data= (a catalogue's
    name or a path). Raises ValueError for an item that is none of them, and where hardware or a limit is missing.
    """
    found: dict[str, Any] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, value = _item(item)
        if name in found:
            raise ValueError(f"budget: {name} is said twice, at {item!r}; say it once")
        found[name] = value
    if "fleet" not in found:
        raise ValueError(f"budget: expected hardware among the items, such as 1x RTX3090 or this, got {text!r}")
    if "seconds" not in found and "money" not in found:
        raise ValueError(f"budget: expected a time such as 24h, or money such as $100, among the items, got {text!r}")
    budget = Budget(**found)
    if budget.money is not None and budget.fleet.card.price is None and price is None:
        raise ValueError(f"budget: the price of {budget.fleet.card.name} is not known; give --price, or a time instead of money")
    return budget


def _item(item: str) -> tuple[str, Any]:
    name, equals, value = (part.strip() for part in item.partition("="))
    if equals:
        match name.lower():
            case "form":
                return "form", shapes.form_of(value)
            case "corpus":
                return "corpus", quantities.count(value, "corpus")
            case "vocab" | "vocab_size":
                return "vocab_size", quantities.count(value, "vocab")
            case "sequence":
                return "sequence", quantities.count(value, "sequence")
            case "data":
                return "data", value
        raise ValueError(f"budget: expected form=, corpus=, vocab=, sequence= or data=, got {item!r}")
    if item.startswith("$") or item.upper().endswith("USD"):
        return "money", float(quantities.count(item.strip("$").upper().removesuffix("USD"), "money"))
    if quantities.is_time(item):
        return "seconds", quantities.seconds(item, "budget")
    return "fleet", hardware(item)


def search(budget: Budget, *, count: int = 5, price: float | None = None, region: str | float = "world", **setting: Any) -> list[Candidate]:
    """The candidates with the lowest expected loss, best first, each of another size.

    Sizes go up in steps of a fifth; of each the least recomputation and the largest batch that fit are taken. setting:
    fields of `Setting` to keep. Raises ValueError where nothing fits.
    """
    seconds = budget.seconds or math.inf
    rent = budget.fleet.card.price if price is None else price
    if budget.money is not None and rent:
        seconds = min(seconds, budget.money / (rent * budget.fleet.count) * 3600)
    if not math.isfinite(seconds):
        raise ValueError("budget: the price of an hour is 0, so money is no limit; add a time such as 24h")
    found = []
    for size in _sizes():
        try:
            model = shapes.shaped(budget.form, size, budget.vocab_size)
        except ValueError:
            continue
        how = _setting(model, budget, setting)
        if how is None:
            break
        found.append(_candidate(model, how, budget, seconds, (price, region)))
    if not found:
        room = quantities.data_size(budget.fleet.card.memory)
        raise ValueError(f"budget: no model trains in the {room} of {budget.fleet.card.name}; lower sequence=")
    return sorted(found, key=lambda candidate: candidate.loss)[:count]


def _sizes() -> Iterator[int]:
    return (round(1e6 * 1.2**step) for step in range(76))


def _setting(model: config.Transformer, budget: Budget, given: dict[str, Any]) -> Setting | None:
    """The least recomputation, with the largest micro-batch that fits; one sequence is better not recomputed than many that are not."""
    card = budget.fleet.card
    room = card.memory * (1 - RESERVE)
    length = budget.sequence or min(4096, max(256, 2 ** round(math.log2(model.last.width))))
    precision = next(p for p in ("bf16", "fp16", "fp32") if p in card.peak)
    plain: dict[str, Any] = {"device": "cpu" if card.kind == "cpu" else "cuda", "precision": precision, "sequence": length} | given
    best = None
    for how in (given["recompute"],) if "recompute" in given else _HOW:
        one, two = (memory.training(model, Setting(**plain | {"batch": batch, "recompute": how})).total for batch in (1, 2))
        if one > room:
            continue
        most = min(1 + (room - one) / max(1, two - one), _LARGEST_MICRO_BATCH / length)
        batch = given.get("batch") or 2 ** int(math.log2(max(1, most)))
        best = Setting(**plain | {"batch": batch, "recompute": how})
        while best.batch > 1 and memory.training(model, best).total > room:
            best = replace(best, batch=best.batch // 2)
        batch = best.batch
        if batch * length >= 8192:
            break
    return best


def _candidate(
    model: config.Transformer, how: Setting, budget: Budget, seconds: float, about: tuple[float | None, str | float]
) -> Candidate:
    fleet, size = budget.fleet, parameters(model).active
    each = how.sequence + (how.target_length if model.form == "encoder-decoder" else 0)
    work = flops.training(model, how.sequence, how.target, how.scored, how.recompute) / each
    share, _ = time.default_utilisation(fleet, how.precision, model.last.width)
    tokens = seconds * fleet.peak(how.precision) * share / work
    if budget.corpus is not None:
        tokens = min(tokens, _MOST_EPOCHS * budget.corpus)
    whole = 6 * size * tokens
    best_batch, rate = 0.2920 * whole**0.3271, 0.3118 * whole**-0.1250
    micro = how.batch * each * fleet.count
    how = replace(how, accumulate=max(1, round(best_batch / micro)))
    steps = max(1, round(tokens / (micro * how.accumulate)))
    tokens = steps * micro * how.accumulate
    again = None if budget.corpus is None else scaling.repetition(size, budget.corpus, tokens)
    band = scaling.loss(size, again.tokens if again else tokens)
    spent = time.estimate(work * tokens, fleet, how.precision, width=model.last.width)
    lines = (
        *spent.lines,
        *band.lines,
        *((again.line,) if again else ()),
        Line(name="batch", formula="B = 0.2920 C^0.3271", numbers={"C": whole}, value=best_batch, unit="tokens", source=_DEEPSEEK),
        Line(name="learning rate", formula="0.3118 C^-0.1250", numbers={"C": whole}, value=rate, source=_DEEPSEEK),
    )
    return Candidate(
        model=model, setting=how, parameters=parameters(model).total, tokens=round(tokens), epochs=again.epochs if again else 1.0,
        steps=steps, rate=float(f"{rate:.2g}"), loss=(band.low + band.high) / 2, seconds=spent.expected_seconds,
        memory=memory.training(model, how).total, lines=lines,
        cost=cost.estimate(spent.expected_seconds, fleet, price=about[0], region=about[1], utilisation=spent.utilisation),
    )  # fmt: skip


def recipe(candidate: Candidate, budget: Budget) -> dict[str, Any]:
    """The recipe that trains a candidate, as plain data for `triform train`."""
    how, model = candidate.setting, candidate.model
    assert isinstance(model.last.input, config.Tokens)
    objectives: dict[str, dict[str, Any]] = {
        "decoder-only": {"kind": "Causal", "length": how.sequence},
        "encoder-only": {"kind": "Masked", "length": how.sequence},
        "encoder-decoder": {"kind": "SpanCorruption", "length": how.sequence},
    }
    tokenizer: dict[str, Any] = {"kind": "byte-bpe", "vocab_size": model.last.input.vocab_size}
    if model.form == "encoder-decoder":
        tokenizer["sentinels"] = 100
    every = max(1, candidate.steps // 20)
    return {
        "model": config.to_dict(model, hint=config.Model),
        "data": {"source": budget.data, "by": "paragraph"},
        "tokenizer": tokenizer,
        "objective": objectives[model.form],
        "train": {
            "steps": candidate.steps, "batch": how.batch, "accumulate": how.accumulate, "optimizer": how.optimizer,
            "rate": candidate.rate, "warmup": max(1, min(2000, candidate.steps // 50)), "recompute": how.recompute,
            "precision": how.precision, "validate_every": every, "checkpoint_every": every,
        },
    }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What a preset can do in a memory.

    training: how, or None where it cannot. context: tokens, at most 131,072, by precision of the weights.
    """

    name: str
    parameters: int
    training: str | None
    batch: int
    context: dict[str, int]


def fits(room: int, *, sequence: int = 1024, report: Callable[[int, int], None] | None = None, **setting: Any) -> list[Fit]:
    """Every preset of a language model that trains or runs in so many bytes, largest first.

    Training is tried with the least recomputation first, then with 8-bit states. report: called with how many presets have been
    looked at, of how many. Raises ValueError where nothing fits.
    """
    found, names = [], config.presets()
    for number, name in enumerate(names):
        if report is not None:
            report(number, len(names))
        model = config.preset(name)
        if isinstance(model, config.DualEncoder) or not isinstance(model.last.input, config.Tokens):
            continue
        fit = _fit(name, model, round(room * (1 - RESERVE)), sequence, setting)
        if fit.training is not None or any(fit.context.values()):
            found.append(fit)
    if not found:
        raise ValueError(f"fits: nothing known by name fits in {quantities.data_size(room)}; the smallest needs more")
    return sorted(found, key=lambda fit: -fit.parameters)


def _fit(name: str, model: config.Transformer, room: int, sequence: int, given: dict[str, Any]) -> Fit:
    tables = [stack.input.position for stack in (model.encoder, model.decoder) if stack and isinstance(stack.input, config.Tokens)]
    length = min([sequence, *(table.length for table in tables if isinstance(table, config.Learned))])
    size, contexts = parameters(model).total, _contexts(model, room)
    optimizers = (given["optimizer"],) if "optimizer" in given else ("adamw", "adamw8bit")
    for optimizer in optimizers if 8 * size <= room else ():  # weights and gradients alone
        for how in (given["recompute"],) if "recompute" in given else _HOW:
            plain: dict[str, Any] = given | {"sequence": length, "optimizer": optimizer, "recompute": how}
            batch = memory.largest_training_batch(model, Setting(**plain | {"batch": 1}), room, limit=1024)
            if batch:
                return Fit(name=name, parameters=size, training=f"{optimizer}, recompute {how}", batch=batch, context=contexts)
    return Fit(name=name, parameters=size, training=None, batch=0, context=contexts)


def _contexts(model: config.Transformer, room: int) -> dict[str, int]:
    if model.decoder is None:
        return {}
    return {dtype: memory.longest_context(model, room, limit=_LONGEST, dtype=dtype) for dtype in ("bf16", "int8", "int4")}
