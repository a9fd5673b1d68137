"""The core: one attention, one block, one stack, one Transformer."""

from .adapter import add_adapter, merge_adapter, remove_adapter, without_adapter
from .attention import Attention, Trace
from .cache import Cache
from .feedforward import Experts, FeedForward, Routing
from .init import initialize
from .log_probs import linear_log_probs
from .loss import IGNORE, linear_cross_entropy
from .mask import Layout
from .model import Aux, DualEncoder, Output, Transformer, build
from .recompute import Recompute, recomputing
from .stack import Block, Stack

__all__ = [
    "IGNORE", "Attention", "Aux", "Block", "Cache", "DualEncoder", "Experts", "FeedForward", "Layout", "Output", "Recompute",
    "Routing", "Stack", "Trace", "Transformer", "add_adapter", "build", "initialize", "linear_cross_entropy", "linear_log_probs",
    "merge_adapter", "recomputing", "remove_adapter", "without_adapter",
]  # fmt: skip
