"""Models at work: text that goes on (`search`), masks filled (`fill`), texts judged and embedded (`classify`)."""

from .classify import Judgement, classify, embed
from .fill import Candidate, Filled, fill
from .forms import use_of
from .sampling import Sampler, Sampling
from .search import Conversation, Generation, TokenRun, generate, generate_ids
from .stream import TextStream

__all__ = [
    "Candidate", "Conversation", "Filled", "Generation", "Judgement", "Sampler", "Sampling", "TextStream", "TokenRun",
    "classify", "embed", "fill", "generate", "generate_ids", "use_of",
]  # fmt: skip
