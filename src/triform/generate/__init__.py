"""Models at work: text that goes on (`search`), masks filled (`fill`), texts judged (`classify`, `tag`), embedded, asked (`answer`)."""

from .answer import Answer, Answering, answer
from .classify import Judgement, classify, embed
from .constrained import JsonSchema, OneOf, Regex
from .engine import Engine
from .fewshot import FewShot
from .fill import Candidate, Filled, fill
from .forms import use_of
from .pictures import PictureFormat, classify_pictures
from .prepared import load_prepared, prepare
from .requests import Event, Full, Request, Scored, Ticket, TokenRun
from .sampler import Choices, NoChoice, State, choose
from .sampling import Beams, Contrastive, Sampling
from .search import Conversation, Generation, generate, generate_ids
from .speculative import Draft, Lookup
from .stream import TextStream
from .tag import Entity, tag

__all__ = [
    "Answer", "Answering", "Beams", "Candidate", "Choices", "Contrastive", "Conversation", "Draft", "Engine", "Entity", "Event", "FewShot",
    "Filled", "Full", "Generation", "JsonSchema", "Judgement", "Lookup", "NoChoice", "OneOf", "PictureFormat", "Regex", "Request",
    "Sampling", "Scored", "State", "TextStream", "Ticket", "TokenRun", "answer", "choose", "classify", "classify_pictures", "embed",
    "fill", "generate", "generate_ids", "load_prepared", "prepare", "tag", "use_of",
]  # fmt: skip
