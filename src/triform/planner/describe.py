"""The parts of a configuration in words, for trees and pictures."""

from __future__ import annotations

from triform import config

_GATED = {"silu": "SwiGLU", "gelu": "GEGLU", "gelu_tanh": "GEGLU (tanh)", "relu": "ReGLU"}
_ACTIVATION = {"relu": "ReLU", "gelu": "GELU", "gelu_tanh": "GELU (tanh)", "quick_gelu": "quick GELU", "silu": "SiLU", "tanh": "tanh"}
_POOL = {"first": "first position", "mean": "mean over positions", "last": "last position", "end": "end token"}


def short(count: int) -> str:
    """A count with three digits and a unit: 109 M, 6.74 B."""
    for unit, size in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= size:
            value = count / size
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"
    return str(count)


def activation(name: config.Activation) -> str:
    """An activation as it is usually written."""
    return _ACTIVATION[name]


def norm(spec: config.Norm) -> str:
    """A norm's name."""
    return "RMSNorm" if isinstance(spec, config.RMSNorm) else "LayerNorm"


def position(spec: config.Learned | config.Sinusoidal | config.Rotary | config.Bucketed | config.Alibi | None) -> str:
    """A position's kind and its figure; nothing for None."""
    match spec:
        case config.Learned():
            return f"{spec.length:,} learned positions"
        case config.Sinusoidal():
            return "sinusoidal positions"
        case config.Rotary(scaling=scaling):
            name = "" if scaling is None else f", {type(scaling).__name__} × {scaling.factor:g}"
            return f"rotary θ {spec.theta:,.0f}{name}"
        case config.Bucketed():
            return f"relative bias, {spec.buckets} buckets"
        case config.Alibi():
            return "ALiBi"
        case None:
            return ""


def attention(spec: config.Attention, stack: config.Stack, *, cross: bool = False) -> list[str]:
    """What an attention sees, its heads, positions and norms, a phrase each."""
    kv = spec.kv_heads or spec.heads
    found = ["to the encoder" if cross else spec.mask, f"{spec.heads} heads of {stack.head_width(spec)}"]
    if spec.window:
        found[0] += f", window {spec.window:,}"
    if kv != spec.heads:
        found.append(f"{kv} kv heads (GQA)" if kv > 1 else "1 kv head (MQA)")
    if spec.position:
        found.append(position(spec.position))
    if spec.qk_norm:
        found.append("queries and keys normed")
    return found


def feed_forward(spec: config.FeedForward) -> str:
    """A feed-forward's hidden width and activation."""
    name = _GATED.get(spec.activation, f"gated {activation(spec.activation)}") if spec.gated else activation(spec.activation)
    return f"hidden {spec.hidden:,}, {name}"


def experts(spec: config.Experts) -> str:
    """How many experts there are, and how many a token passes."""
    return f"{spec.count} experts, {spec.top_k} a token{', one shared' if spec.shared else ''}; {feed_forward(spec.expert)}"


def patches(spec: config.Patches) -> str:
    """How many patches of what size an image gives."""
    return f"{spec.length - 1:,} patches of {spec.patch} × {spec.patch} and a class token"


def head(spec: config.Head) -> str:
    """What a head gives."""
    match spec:
        case config.LanguageModel():
            return "scores over the vocabulary" + (", tied" if spec.tied else "")
        case config.Classify():
            return f"{spec.labels:,} labels, {_POOL[spec.pool]}"
        case config.ClassifyTokens():
            return f"{spec.labels:,} labels for each token"
        case config.AnswerSpan():
            return "start and end scores for each token"
        case config.Embed():
            return f"one vector, {_POOL[spec.pool]}" + (", unit length" if spec.normalize else "")
