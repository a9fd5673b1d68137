"""Tokens to text as they come: whole characters only, and no further than a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

from triform.text import Tokenizer

_BROKEN = "\ufffd"  # what a tokenizer gives for bytes that are not a whole character (yet)


class TextStream:
    """The text that tokens add to a context.

    A character whose bytes are spread over several tokens is held back until it is
    whole, and text that may be the beginning of a stop string until it is known not to be.
    The pieces joined are `text`. Special tokens add nothing.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int] = (), stop: Sequence[str] = ()) -> None:
        self.tokenizer, self.stop = tokenizer, tuple(stop)
        self.text = ""
        self.stopped = False  # by a stop string
        self._special = tokenizer.special_ids
        # Tokens since the last but one that ended a character: what comes before them cannot change what is to come.
        self._ids = [i for i in context if i not in self._special]
        self._known = len(self._ids)
        self._released = 0

    def copy(self) -> TextStream:
        """Another that goes on from here by itself."""
        new = copy(self)
        new._ids = list(self._ids)
        return new

    def push(self, token: int) -> str:
        """The text that one more token makes certain, often the empty text."""
        if self.stopped or token in self._special:
            return ""
        self._ids.append(token)
        return self._take(last=False)

    def finish(self) -> str:
        """The text still held back. A character that was never completed is left out."""
        return "" if self.stopped else self._take(last=True)

    def _take(self, last: bool) -> str:
        before = self.tokenizer.decode(self._ids[: self._known])
        now = self.tokenizer.decode(self._ids)
        if last:
            now = now.rstrip(_BROKEN) if now.endswith(_BROKEN) else now
        elif now.endswith(_BROKEN):
            return ""
        if len(now) > len(before):
            self._ids, self._known = self._ids[self._known :], len(self._ids) - self._known
            self._extend(now[len(before) :])
        end = len(self.text) - (0 if last or self.stopped else self._held())
        piece, self._released = self.text[self._released : end], end
        return piece

    def _extend(self, piece: str) -> None:
        start = len(self.text)
        self.text += piece
        found = [at for s in self.stop if (at := self.text.find(s, max(0, start - len(s) + 1))) >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True

    def _held(self) -> int:
        """Characters at the end that a stop string may begin with."""
        longest = max(map(len, self.stop), default=1) - 1
        for size in range(min(longest, len(self.text)), 0, -1):
            if any(len(s) > size and s.startswith(self.text[-size:]) for s in self.stop):
                return size
        return 0
