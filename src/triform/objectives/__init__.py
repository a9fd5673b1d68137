"""What a model is trained to do. Each objective turns examples into a batch, and a batch into a loss."""

from typing import Any

from triform.text import Tokenizer

from .base import Batch, Loss, Objective, Samples
from .causal import Causal, CausalObjective
from .classification import Classification, ClassificationObjective
from .contrastive import Contrastive, ContrastiveObjective
from .denoising import Denoising, DenoisingObjective
from .images import ImageClassification, ImageClassificationObjective
from .masked import Masked, MaskedObjective
from .pairs import SequenceToSequence, SequenceToSequenceObjective
from .prefix import Prefix, PrefixObjective
from .spans import SpanCorruption, SpanCorruptionObjective

ObjectiveSpec = (
    Causal | Prefix | Masked | SpanCorruption | Denoising | SequenceToSequence | Classification | ImageClassification | Contrastive
)

_CLASSES: dict[type, type[Objective]] = {
    Causal: CausalObjective,
    Prefix: PrefixObjective,
    Masked: MaskedObjective,
    SpanCorruption: SpanCorruptionObjective,
    Denoising: DenoisingObjective,
    SequenceToSequence: SequenceToSequenceObjective,
    Classification: ClassificationObjective,
    ImageClassification: ImageClassificationObjective,
    Contrastive: ContrastiveObjective,
}


def reads_text(spec: Any) -> bool:
    """Whether the objective of a recipe's part needs a tokenizer."""
    return _CLASSES[type(spec)].reads_text


def build_objective(spec: Any, tokenizer: Tokenizer | None) -> Objective:
    """The objective of a recipe's part; `tokenizer` is None where it reads no text."""
    return _CLASSES[type(spec)](spec, tokenizer)


__all__ = [
    "Batch", "Causal", "Classification", "Contrastive", "Denoising", "ImageClassification", "Loss", "Masked", "Objective",
    "ObjectiveSpec", "Prefix", "Samples", "SequenceToSequence", "SpanCorruption", "build_objective", "reads_text",
]  # fmt: skip
