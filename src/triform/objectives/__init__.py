"""What a model is trained to do. Each objective turns examples into a batch, and a batch into a loss."""

from typing import Any

from triform.text import Tokenizer

from .answering import QuestionAnswering, QuestionAnsweringObjective
from .base import Batch, Loss, Objective, Samples
from .causal import Causal, CausalObjective
from .classification import Classification, ClassificationObjective
from .contrastive import Contrastive, ContrastiveObjective
from .denoising import Denoising, DenoisingObjective
from .embedding import SentenceEmbedding, SentenceEmbeddingObjective
from .grpo import GRPO, GRPOObjective
from .images import ImageClassification, ImageClassificationObjective
from .instruction import Instruction, InstructionObjective
from .kto import KTO, KTOObjective
from .log_probs import LogProbs, log_probs
from .masked import Masked, MaskedObjective
from .pairs import SequenceToSequence, SequenceToSequenceObjective
from .ppo import PPO, PPOObjective
from .preference import Preference, PreferenceObjective
from .prefix import Prefix, PrefixObjective
from .reward_model import RewardModel, RewardModelObjective
from .spans import SpanCorruption, SpanCorruptionObjective
from .tagging import TokenClassification, TokenClassificationObjective

ObjectiveSpec = (
    Causal | Prefix | Masked | SpanCorruption | Denoising | SequenceToSequence | Classification | ImageClassification | Contrastive
    | Instruction | TokenClassification | QuestionAnswering | SentenceEmbedding
    | Preference | KTO | RewardModel | PPO | GRPO
)  # fmt: skip

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
    Instruction: InstructionObjective,
    TokenClassification: TokenClassificationObjective,
    QuestionAnswering: QuestionAnsweringObjective,
    SentenceEmbedding: SentenceEmbeddingObjective,
    Preference: PreferenceObjective,
    KTO: KTOObjective,
    RewardModel: RewardModelObjective,
    PPO: PPOObjective,
    GRPO: GRPOObjective,
}


def reads_text(spec: Any) -> bool:
    """Whether the objective of a recipe's part needs a tokenizer."""
    return _CLASSES[type(spec)].reads_text


def build_objective(spec: Any, tokenizer: Tokenizer | None) -> Objective:
    """The objective of a recipe's part; `tokenizer` is None where it reads no text."""
    return _CLASSES[type(spec)](spec, tokenizer)


__all__ = [
    "GRPO", "KTO", "PPO", "Batch", "Causal", "Classification", "Contrastive", "Denoising", "ImageClassification", "Instruction",
    "LogProbs", "Loss", "Masked", "Objective", "ObjectiveSpec", "Preference", "Prefix", "QuestionAnswering", "RewardModel", "Samples",
    "SentenceEmbedding", "SequenceToSequence", "SpanCorruption", "TokenClassification", "build_objective", "log_probs", "reads_text",
]  # fmt: skip
