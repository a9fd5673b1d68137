"""Server-sent events, as OpenAI's clients read them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from .errors import ServeError
from .observe import log

_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


# Unicode's other line ends, at which some clients part lines too
_LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}


def event(data: Any) -> bytes:
    """One event."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).translate(_LINE_ENDS)
    return b"data: " + text.encode("utf-8", "replace") + b"\n\n"


class EventStream(StreamingResponse):
    """Events from `chunks`, ended by [DONE]; a None among them is a comment, and an error on the way the last event.

    close: called when all is sent, and when the client has gone, even before the first event.
    seconds: so long the client may take to read it all.
    """

    def __init__(self, chunks: AsyncIterator[Any], close: Callable[[], None], seconds: float) -> None:
        super().__init__(_events(chunks), media_type="text/event-stream", headers=_HEADERS)
        self._close, self._seconds = close, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            async with asyncio.timeout(self._seconds):
                await super().__call__(scope, receive, send)
        except TimeoutError:
            log.warning("a client read its stream too slowly and was cut off")
        finally:
            self._close()


async def _events(chunks: AsyncIterator[Any]) -> AsyncIterator[bytes]:
    try:
        async for chunk in chunks:
            yield b": waiting\n\n" if chunk is None else event(chunk)
    except ServeError as error:
        yield event(error.body)
        return
    except Exception:
        log.exception("a stream failed")
        yield event(ServeError(500, "the server made a mistake; its log says which", code="internal_error").body)
        return
    yield b"data: [DONE]\n\n"
