"""Models at work: text that goes on (`search`), masks filled (`fill`), texts judged and embedded (`classify`)."""

from .classify import Judgement, classify, embed
from .fill import Candidate, Filled, fill
from .forms import use_of
from .requests import TokenRun
from .sampler import Choices, NoChoice, State, choose
from .sampling import Beams, Contrastive, Sampling
from .search import Conversation, Generation, generate, generate_ids
from .stream import TextStream

__all__ = [
    "Beams", "Candidate", "Choices", "Contrastive", "Conversation", "Filled", "Generation", "Judgement", "NoChoice", "Sampling", "State",
    "TextStream", "TokenRun", "choose", "classify", "embed", "fill", "generate", "generate_ids", "use_of",
]  # fmt: skip
