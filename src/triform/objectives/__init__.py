"""What a model is trained to do. Each objective turns examples into a batch, and a batch into a loss."""

from typing import Any

from triform.text import Tokenizer

from .base import Batch, Loss, Objective, Samples
from .causal import Causal, CausalObjective
from .classification import Classification, ClassificationObjective
from .denoising import Denoising, DenoisingObjective
from .masked import Masked, MaskedObjective
from .pairs import SequenceToSequence, SequenceToSequenceObjective
from .prefix import Prefix, PrefixObjective
from .spans import SpanCorruption, SpanCorruptionObjective

ObjectiveSpec = Causal | Prefix | Masked | SpanCorruption | Denoising | SequenceToSequence | Classification

_CLASSES: dict[type, type[Objective]] = {
    Causal: CausalObjective,
    Prefix: PrefixObjective,
    Masked: MaskedObjective,
    SpanCorruption: SpanCorruptionObjective,
    Denoising: DenoisingObjective,
    SequenceToSequence: SequenceToSequenceObjective,
    Classification: ClassificationObjective,
}


def build_objective(spec: Any, tokenizer: Tokenizer) -> Objective:
    """The objective of a recipe's part."""
    return _CLASSES[type(spec)](spec, tokenizer)


__all__ = [
    "Batch", "Causal", "Classification", "Denoising", "Loss", "Masked", "Objective", "ObjectiveSpec", "Prefix", "Samples",
    "SequenceToSequence", "SpanCorruption", "build_objective",
]  # fmt: skip
