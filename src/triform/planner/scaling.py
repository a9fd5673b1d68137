"""How much text for how many parameters: fitted losses, the compute-optimal split of a budget, and repeated text.

Symbols: N parameters, D tokens, C = 6 N D training FLOPs, U unique tokens. Losses are in nats a token of the papers' own
text and tokenizer (English, 32,000 to 50,000 tokens), so they compare plans with each other and not with a run's loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .explain import Line

_HOFFMANN = "Hoffmann et al. 2022, https://arxiv.org/abs/2203.15556"
_BESIROGLU = "Besiroglu et al. 2024, https://arxiv.org/abs/2404.10102"
_MUENNIGHOFF = "Muennighoff et al. 2023, https://arxiv.org/abs/2305.16264"
TOKENS_A_PARAMETER = 20.0
REPEAT_TOKENS, REPEAT_PARAMETERS = 15.387756, 5.309743  # R*_D and R*_N of Muennighoff et al., appendix A


@dataclass(frozen=True)
class Law:
    """L(N, D) = E + A / N^alpha + B / D^beta."""

    name: str
    e: float
    a: float
    b: float
    alpha: float
    beta: float
    source: str

    def loss(self, parameters: float, tokens: float) -> float:
        """Nats a token. Raises ValueError unless both are above 0."""
        _positive(parameters=parameters, tokens=tokens)
        return self.e + self.a / math.pow(parameters, self.alpha) + self.b / math.pow(tokens, self.beta)

    def optimal(self, flops: float) -> tuple[float, float]:
        """N and D with the lowest loss of all that cost 6 N D = `flops`, in closed form: N = G (C / 6)^(beta / (alpha + beta))."""
        _positive(flops=flops)
        power = 1 / (self.alpha + self.beta)
        ratio = (self.alpha * self.a / (self.beta * self.b)) ** power
        parameters = ratio * (flops / 6) ** (self.beta * power)
        return parameters, flops / 6 / parameters

    def parameters_for(self, tokens: float) -> float:
        """The N for which D = `tokens` is compute-optimal."""
        _positive(tokens=tokens)
        return math.pow(self.alpha * self.a / (self.beta * self.b), 1 / self.alpha) * math.pow(tokens, self.beta / self.alpha)


# Equation 10 of the paper prints two digits of the exponents. Its TeX source has four, and only these give back the
# paper's own table A3: at 1e28 FLOPs the two-digit ones lead to a model 30 % smaller.
HOFFMANN = Law("hoffmann-2022", 1.69, 406.4, 410.7, 0.34, 0.28, f"{_HOFFMANN}, equation 10")
HOFFMANN_DIGITS = Law("hoffmann-2022-four-digits", 1.6934, 406.4, 410.7, 0.3392, 0.2849, f"{_HOFFMANN}, its TeX source as in {_BESIROGLU}")
BESIROGLU = Law("besiroglu-2024", 1.8172, 482.01, 2085.43, 0.3478, 0.3658, _BESIROGLU)
MUENNIGHOFF = Law("muennighoff-2023", 1.87, 521.0, 1488.0, 0.353, 0.353, f"{_MUENNIGHOFF}, section 6 and appendix A")
LAWS = {law.name: law for law in (HOFFMANN, HOFFMANN_DIGITS, BESIROGLU)}


@dataclass(frozen=True)
class Band:
    """The losses that the published fits give, lowest and highest, nats a token."""

    low: float
    high: float
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Optimum:
    """The compute-optimal parameters and tokens of a budget by the rule of 20 tokens a parameter, and by each fit."""

    flops: float
    parameters: float
    tokens: float
    by_law: dict[str, tuple[float, float]]
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Distance:
    """How far a plan is from the optimum of its own budget.

    tokens_a_parameter: D / N. wanted: 20. extra_loss: nats above the optimum's loss, the mean of the fits.
    advice: in words.
    """

    tokens_a_parameter: float
    wanted: float
    extra_loss: float
    optimum: Optimum
    advice: str


@dataclass(frozen=True)
class Repetition:
    """What a corpus is worth that is read more than once.

    epochs: passes over it. tokens: the unique tokens that would be worth as much (D'). share: of the tokens read.
    extra_loss: nats above that of as many unique tokens, the mean of the fits.
    """

    epochs: float
    tokens: float
    share: float
    extra_loss: float
    advice: str
    line: Line


def loss(parameters: float, tokens: float) -> Band:
    """The loss that a model of N parameters has after D unique tokens. Raises ValueError unless both are above 0."""
    lines = tuple(_loss_line(law, parameters, tokens) for law in LAWS.values())
    values = [line.value for line in lines]
    return Band(min(values), max(values), lines)


def optimal(flops: float) -> Optimum:
    """The best N and D for a budget of training FLOPs. Raises ValueError unless it is above 0."""
    _positive(flops=flops)
    parameters = math.sqrt(flops / (6 * TOKENS_A_PARAMETER))
    tokens = TOKENS_A_PARAMETER * parameters
    by_law = {name: law.optimal(flops) for name, law in LAWS.items()}
    numbers: dict[str, float | int | str] = {"C": flops}
    lines = [
        Line(name="optimal parameters", formula="N = sqrt(C / (6 x 20))", numbers=numbers, value=parameters,
             source=f"20 tokens a parameter: {_HOFFMANN}, table 3"),
        Line(name="optimal tokens", formula="D = 20 N", numbers={"N": parameters}, value=tokens, source=f"{_HOFFMANN}, table 3"),
    ]  # fmt: skip
    for name, law in LAWS.items():
        put_in = numbers | {"A": law.a, "B": law.b, "alpha": law.alpha, "beta": law.beta}
        formula = "N = (alpha A / (beta B))^(1 / (alpha + beta)) x (C / 6)^(beta / (alpha + beta))"
        lines.append(Line(name=f"optimal parameters, {name}", formula=formula, numbers=put_in, value=by_law[name][0], source=law.source))
    return Optimum(flops, parameters, tokens, by_law, tuple(lines))


def distance(parameters: float, tokens: float) -> Distance:
    """How far N and D are from the optimum of C = 6 N D. Raises ValueError unless both are above 0."""
    _positive(parameters=parameters, tokens=tokens)
    best = optimal(6 * parameters * tokens)
    ratio = tokens / parameters
    extra = sum(law.loss(parameters, tokens) - law.loss(*law.optimal(best.flops)) for law in LAWS.values()) / len(LAWS)
    if 0.5 <= ratio / TOKENS_A_PARAMETER <= 2:
        advice = "near the optimum of its budget"
    elif ratio > TOKENS_A_PARAMETER:
        advice = "a small model on much text: dearer to train than the optimum, cheaper to use, as LLaMA chose"
    else:
        advice = f"too little text for its size: for the same FLOPs {best.parameters:.3g} parameters on {best.tokens:.3g} tokens do better"
    return Distance(ratio, TOKENS_A_PARAMETER, max(0.0, extra), best, advice)


def repeated(unique: float, total: float) -> float:
    """D' = U + U R* (1 - exp(-R / R*)): the unique tokens that `total` tokens out of `unique` are worth; R = D / U - 1.

    Raises ValueError unless both are above 0. Up to one epoch it is `total` itself.
    """
    _positive(unique=unique, total=total)
    if total <= unique:
        return total
    return unique * (1 + REPEAT_TOKENS * -math.expm1(-(total / unique - 1) / REPEAT_TOKENS))


def effective_parameters(parameters: float, unique: float) -> float:
    """N': what parameters are worth beyond those that the unique tokens can use; as `repeated`, with R*_N and U_N.

    U_N is the compute-optimal size for the unique tokens by the paper's own fit.
    """
    _positive(parameters=parameters, unique=unique)
    useful = min(parameters, MUENNIGHOFF.parameters_for(unique))
    return useful * (1 + REPEAT_PARAMETERS * -math.expm1(-(parameters / useful - 1) / REPEAT_PARAMETERS))


def repetition(parameters: float, unique: float, total: float) -> Repetition:
    """What it costs that a corpus of `unique` tokens is read for `total` tokens. Raises ValueError unless all are above 0."""
    _positive(parameters=parameters)
    worth = repeated(unique, total)
    epochs = total / unique
    extra = sum(law.loss(parameters, worth) - law.loss(parameters, total) for law in LAWS.values()) / len(LAWS)
    if epochs <= 1:
        advice = "no text is read twice"
    elif epochs <= 4:
        advice = "up to four epochs repeated text is nearly as good as new"
    elif epochs <= 1 + REPEAT_TOKENS:
        advice = "each further epoch is worth less; more text would be better than more steps"
    else:
        advice = "further epochs bring almost nothing: more text, or a smaller model on fewer steps"
    line = Line(
        name="tokens that the repeated text is worth", formula="D' = U + U R* (1 - exp(-(D / U - 1) / R*))",
        numbers={"U": unique, "D": total, "R*": REPEAT_TOKENS}, value=worth, unit="tokens", source=f"{_MUENNIGHOFF}, equation 5",
    )  # fmt: skip
    return Repetition(epochs, worth, worth / total, extra, advice, line)


def _loss_line(law: Law, parameters: float, tokens: float) -> Line:
    return Line(
        name=f"loss, {law.name}", formula="L = E + A / N^alpha + B / D^beta",
        numbers={"N": parameters, "D": tokens, "E": law.e, "A": law.a, "B": law.b, "alpha": law.alpha, "beta": law.beta},
        value=law.loss(parameters, tokens), unit="nats a token", source=law.source,
    )  # fmt: skip


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not (0 < value < math.inf):
            raise ValueError(f"{name}: expected a number above 0, got {value}")
