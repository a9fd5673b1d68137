"""How long a computation takes: its FLOPs over what the hardware reaches, and how fast a model reads and writes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from triform import config

from . import flops, memory
from .explain import Line
from .hardware import Fleet

# The share of the peak that training reaches, by the model's width (rows) and a card's peak at the precision (columns).
# Small matrices leave a fast card waiting for launches and memory; wide ones on slow cards come nearest to the peak.
WIDTHS = (512, 1024, 2048, 4096)
PEAKS = (50e12, 200e12, 500e12)
SHARES = (
    (0.25, 0.15, 0.10, 0.05),
    (0.35, 0.30, 0.25, 0.15),
    (0.40, 0.40, 0.35, 0.25),
    (0.45, 0.45, 0.42, 0.35),
    (0.45, 0.50, 0.47, 0.40),
)
# Of this machine's processor, whose peak is measured with a large product and so is already what can be reached.
CPU_SHARES = (0.45, 0.50, 0.55, 0.60, 0.60)
BANDWIDTH_SHARE = 0.6
SOURCE = (
    "default from published training runs: nanoGPT 124M on A100 26 %, TinyLlama 1.1B on A100 51 %, LLaMA 65B on A100 48 %, Llama 3 405B on "
    "H100 38 to 43 %, PaLM 540B 46 %, MegaScale 175B 55 %; see docs/planning.md"
)
_DECODE_SOURCE = "default: 60 % of the memory bandwidth, Databricks, LLM inference performance engineering (2023)"


@dataclass(frozen=True)
class Time:
    """How long FLOPs take on some cards.

    ideal_seconds: at the peak. expected_seconds: at `utilisation`, a share of the peak, for the `reason` given.
    """

    ideal_seconds: float
    expected_seconds: float
    utilisation: float
    reason: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Speed:
    """How fast a model generates.

    prefill_seconds: until a batch's prompts are read. step_seconds: for one further token of each sequence.
    tokens_per_second: of the whole batch. bound: what a step waits for, "memory" or "compute".
    """

    prefill_seconds: float
    step_seconds: float
    tokens_per_second: float
    bound: str
    lines: tuple[Line, ...]


def default_utilisation(fleet: Fleet, precision: str, width: int | None) -> tuple[float, str]:
    """The share of the peak that training a model of this width reaches on these cards, and why; None: an unknown width."""
    row = sum(width >= limit for limit in WIDTHS) if width is not None else 2
    size = f"a width of {width:,}" if width is not None else "a model of middle width"
    if fleet.card.kind == "cpu":
        return CPU_SHARES[row], f"default for {size} on a processor whose peak was measured; --calibrate measures this model"
    peak = fleet.card.at(precision)
    share = SHARES[row][sum(peak >= limit for limit in PEAKS)]
    several = "; what the cards send each other is not in it" if fleet.count > 1 else ""
    return share, f"default for {size} at {peak / 1e12:,.0f} TFLOP/s in {precision}{several}"


def estimate(flops: float, fleet: Fleet, precision: str, *, width: int | None = None, measured: tuple[float, str] | None = None) -> Time:
    """T = C / (peak x utilisation), in seconds.

    flops: of all steps, recomputation included. width: of the model, for the default utilisation. measured: a
    utilisation and where it is from, in place of the default. Raises ValueError for FLOPs or a utilisation not
    above 0, and for a precision that the card has not.
    """
    if not 0 < flops < math.inf:
        raise ValueError(f"flops: expected a number above 0, got {flops}")
    peak = fleet.peak(precision)
    share, reason = measured or default_utilisation(fleet, precision, width)
    if not 0 < share < math.inf:
        raise ValueError(f"utilisation: expected a share of the peak above 0, got {share}")
    numbers: dict[str, float | int | str] = {"C": flops, "peak": peak, "cards": fleet.count}
    lines = (
        Line(name="time at the peak", formula="T = C / peak", numbers=numbers, value=flops / peak, unit="s",
             source=fleet.card.sources.get("peak", "")),
        Line(name="time expected", formula="T = C / (peak x utilisation)", numbers=numbers | {"utilisation": share},
             value=flops / (peak * share), unit="s", source=SOURCE if measured is None else reason),
    )  # fmt: skip
    return Time(flops / peak, flops / (peak * share), share, reason, lines)


def generation(
    fleet: Fleet, precision: str, *, prompt_flops: float, token_flops: float, weights: float, cache: float, batch: int = 1,
    width: int | None = None,
) -> Speed:  # fmt: skip
    """How fast a batch is generated; cards share the weights.

    Reading the prompts (prefill) is bound by compute; every further token reads all weights once and each sequence's
    cache, which memory bounds until the batch is large. prompt_flops, token_flops: of one forward pass over one
    prompt, and over one token. weights: bytes that a step reads. cache: bytes of one sequence's keys and values.
    Raises ValueError for numbers below 0 and a batch below 1.
    """
    values = {"prompt_flops": prompt_flops, "token_flops": token_flops, "weights": weights, "cache": cache}
    for name, value in values.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name}: expected a number of at least 0, got {value}")
    if batch < 1:
        raise ValueError(f"batch: expected at least 1 sequence, got {batch}")
    share, reason = default_utilisation(fleet, precision, width)
    rate, bandwidth = fleet.peak(precision) * share, fleet.count * fleet.card.bandwidth * BANDWIDTH_SHARE
    prefill = batch * prompt_flops / rate
    reading, computing = (weights + batch * cache) / bandwidth, batch * token_flops / rate
    step = max(reading, computing)
    lines = (
        Line(name="time to read the prompts", formula="T = batch x C / (peak x utilisation)", value=prefill, unit="s",
             numbers={"batch": batch, "C": prompt_flops, "peak": fleet.peak(precision), "utilisation": share}, source=reason),
        Line(name="time of a token, memory", formula="T = (weights + batch x cache) / (bandwidth x share)", value=reading, unit="s",
             numbers={"weights": weights, "batch": batch, "cache": cache, "bandwidth": fleet.count * fleet.card.bandwidth,
                      "share": BANDWIDTH_SHARE}, source=_DECODE_SOURCE),
        Line(name="time of a token, compute", formula="T = batch x C / (peak x utilisation)", value=computing, unit="s",
             numbers={"batch": batch, "C": token_flops, "peak": fleet.peak(precision), "utilisation": share}, source=reason),
    )  # fmt: skip
    return Speed(prefill, step, batch / step if step else math.inf, "memory" if reading >= computing else "compute", lines)


def answers(
    model: config.Model, fleet: Fleet, *, prompt: int, context: int, batch: int = 1, dtype: memory.Dtype = "bf16"
) -> Speed | None:
    """How fast a model generates; None for one that does not.

    A step reads a weight for each multiply-add of one token: neither the table of embeddings, nor experts that were not chosen, nor
    an encoder. prompt: tokens that are read first, by the encoder where there is one. context: tokens of the decoder that the cache
    of a sequence holds in the step, on average.
    """
    if not isinstance(model, config.Transformer) or model.decoder is None or not isinstance(model.head, config.LanguageModel):
        return None
    both = model.encoder is not None

    def work(tokens: int, scored: int | None = None) -> int:
        return flops.forward(model, prompt, tokens, scored) if both else flops.forward(model, tokens, None, scored)

    once = max(0, 2 * work(1) - work(2))  # an encoder, and what cross-attention makes of what it read
    held = memory.inference(model, context=prompt if both else context, target=context if both else None, dtype=dtype).parts
    return generation(
        fleet, "bf16" if dtype in ("int8", "int4") else dtype,
        prompt_flops=work(1 if both else prompt, 1),
        token_flops=(work(context) - once) / context,
        weights=(work(1) - once) / 2 * memory.BITS[dtype] / 8,
        cache=held.get("cache", 0) + held.get("cross_cache", 0),
        batch=batch,
        width=model.decoder.width,
    )  # fmt: skip
