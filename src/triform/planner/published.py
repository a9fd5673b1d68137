"""What the literature says of memory, beside Triform's own count."""

from __future__ import annotations

from triform import config

from .explain import Line
from .setting import Setting

_KORTHIKANTI = "Korthikanti et al. 2022, section 4, https://arxiv.org/abs/2205.05198"
_RAJBHANDARI = "Rajbhandari et al. 2020, section 3.1, https://arxiv.org/abs/1910.02054"
_ELEUTHER = "EleutherAI, Transformer Math 101, https://blog.eleuther.ai/transformer-math/"


def activations(model: config.Model, setting: Setting) -> list[Line]:
    """Bytes of the layers' activations in 16 bits on one device, with each choice of recomputing."""
    stacks = {"encoder": getattr(model, "encoder", None), "decoder": getattr(model, "decoder", None)}
    stacks |= {"text": getattr(model, "text", None), "image": getattr(model, "image", None)}
    plain = scores = halves = 0.0
    numbers: dict[str, float | int | str] = {"b": setting.batch}
    for name, stack in stacks.items():
        if stack is None:
            continue
        length = setting.target_length if name == "decoder" and model.form == "encoder-decoder" else setting.sequence
        s = stack.input.length if isinstance(stack.input, config.Patches) else length
        a, h, layers = stack.pattern[0].attention.heads, stack.width, stack.depth
        volume = s * setting.batch * h * layers
        plain, scores, halves = plain + 34 * volume, scores + 5 * volume * a * s / h, halves + 2 * volume
        numbers |= {f"s {name}": s, f"h {name}": h, f"a {name}": a, f"L {name}": layers}

    def line(how: str, formula: str, value: float) -> Line:
        return Line(name=f"activations, recompute {how}", formula=formula, numbers=numbers, value=value, unit="B", source=_KORTHIKANTI)

    return [
        line("none", "L s b h (10 + 24/t + 5 a s / (h t)), t = 1", plain + scores),
        line("selective", "L s b h (10 + 24/t), t = 1", plain),
        line("full", "2 L s b h", halves),
    ]


def states(parameters: int, optimizer: str) -> list[Line]:
    """Bytes of what is kept for each parameter, as mixed-precision training is usually counted."""
    p: dict[str, float | int | str] = {"P": parameters}
    own = {"adamw": 12, "muon": 12, "adamw8bit": 6, "sgd": 8}.get(optimizer)
    out = []
    if own is not None:
        name = f"optimizer and master weights, {'adamw' if optimizer == 'muon' else optimizer}"
        source = _RAJBHANDARI if own == 12 else _ELEUTHER
        out.append(Line(name=name, formula=f"{own} P", numbers=p, value=own * parameters, unit="B", source=source))
    if own == 12:
        out.append(Line(name="weights, gradients and optimizer", formula="(2 + 2 + 12) P", numbers=p, value=16 * parameters, unit="B",
                        source=_RAJBHANDARI))  # fmt: skip
        out.append(Line(name="the same with fp32 gradients", formula="(2 + 4 + 12) P", numbers=p, value=18 * parameters, unit="B",
                        source=_ELEUTHER))  # fmt: skip
    return out


def inference(weights: int) -> list[Line]:
    """Bytes of all that inference needs, from those of the weights."""
    return [Line(name="inference", formula="1.2 W", numbers={"W": weights}, value=1.2 * weights, unit="B", source=_ELEUTHER)]
