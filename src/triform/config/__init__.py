"""What a model is, as data: parts (`spec`), plain data and overrides (`serial`), named models (`presets`)."""

from .adapter import Adapter
from .model import AnswerSpan, Classify, ClassifyTokens, DualEncoder, Embed, Head, Init, LanguageModel, Model, Pooling, Transformer
from .presets import preset, presets, read, resolve, save, source
from .serial import from_dict, to_dict, with_overrides
from .spec import (
    Activation,
    Alibi,
    Attention,
    Block,
    Bucketed,
    Experts,
    FeedForward,
    LayerNorm,
    Learned,
    Linear,
    Llama3,
    Norm,
    Patches,
    RMSNorm,
    Rotary,
    Sinusoidal,
    Stack,
    Tokens,
    Yarn,
)

__all__ = [
    "Activation", "Adapter", "Alibi", "AnswerSpan", "Attention", "Block", "Bucketed", "Classify", "ClassifyTokens", "DualEncoder", "Embed",
    "Experts", "FeedForward", "Head", "Init", "LanguageModel", "LayerNorm", "Learned", "Linear", "Llama3", "Model", "Norm",
    "Patches", "Pooling", "RMSNorm", "Rotary", "Sinusoidal", "Stack", "Tokens", "Transformer", "Yarn",
    "from_dict", "preset", "presets", "read", "resolve", "save", "source", "to_dict", "with_overrides",
]  # fmt: skip
