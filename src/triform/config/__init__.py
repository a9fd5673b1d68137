"""What a model is, as data: parts (`spec`), plain data and overrides (`serial`), named models (`presets`)."""

from .presets import preset, presets, read, resolve, save, source
from .serial import from_dict, to_dict, with_overrides
from .spec import (
    Activation,
    Alibi,
    AnswerSpan,
    Attention,
    Block,
    Bucketed,
    Classify,
    ClassifyTokens,
    DualEncoder,
    Embed,
    Experts,
    FeedForward,
    Head,
    Init,
    LanguageModel,
    LayerNorm,
    Learned,
    Linear,
    Llama3,
    Model,
    Norm,
    Patches,
    Pooling,
    RMSNorm,
    Rotary,
    Sinusoidal,
    Stack,
    Tokens,
    Transformer,
    Yarn,
)

__all__ = [
    "Activation", "Alibi", "AnswerSpan", "Attention", "Block", "Bucketed", "Classify", "ClassifyTokens", "DualEncoder", "Embed",
    "Experts", "FeedForward", "Head", "Init", "LanguageModel", "LayerNorm", "Learned", "Linear", "Llama3", "Model", "Norm",
    "Patches", "Pooling", "RMSNorm", "Rotary", "Sinusoidal", "Stack", "Tokens", "Transformer", "Yarn",
    "from_dict", "preset", "presets", "read", "resolve", "save", "source", "to_dict", "with_overrides",
]  # fmt: skip
