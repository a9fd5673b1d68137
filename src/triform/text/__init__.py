"""Text: tokenizers (`tokenizer`), word segmentation (`segment`) and the report card of a tokenizer (`report`)."""

from .tokenizer import KINDS, SPECIAL_TOKENS, Tokenizer, train_tokenizer

__all__ = ["KINDS", "SPECIAL_TOKENS", "Tokenizer", "train_tokenizer"]
