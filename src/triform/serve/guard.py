"""What every request passes first: who asks, how much, and what is written down of it."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import time
import uuid
from collections.abc import Sequence
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ServeError
from .generation import stopping
from .observe import Record, log
from .state import State

_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
_PATIENCE = 30.0  # seconds for the next part of a body to arrive
_OVERFLOW = 16  # times the longest body that are read before the connection is cut
_GUARDED = ("/v1/", "/metrics")


class Guard:
    """Pure ASGI, so that a stream passes through untouched and a disconnect is seen at once.

    A body is read here, up to the bound, before anything parses it; the request then has it whole.
    """

    def __init__(self, app: ASGIApp, state: State) -> None:
        self.app, self.state = app, state
        self._keys = [hashlib.sha256(key.encode()).digest() for key in state.settings.keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        number = given if _ID.fullmatch(given) else uuid.uuid4().hex
        record = scope["triform.record"] = Record()
        told = _Told(send, number)
        self.state.running += 1
        self.state.metrics.running.set(self.state.running)
        failure = None
        try:
            self._check(scope, headers)
            body = await self._body(scope, receive)
            await self.app(scope, _replay(body, receive), told)
        except ServeError as error:
            await told.error(scope, receive, error)
        except Exception as error:
            failure = error
            await told.error(scope, receive, ServeError(500, "the server made a mistake; its log says which", code="internal_error"))
        finally:
            self.state.running -= 1
            self.state.metrics.running.set(self.state.running)
            self._tell(scope, number, told.status, record, failure)

    def _check(self, scope: Scope, headers: Headers) -> None:
        settings, path = self.state.settings, scope["path"]
        if settings.hosts and _host(headers.get("host", "")) not in settings.hosts:
            message = "this server is asked under another name than its own; serve it with API keys to allow that"
            raise ServeError(403, message, code="bad_host")
        if not path.startswith(_GUARDED):
            return
        if self._keys and not self._known(headers.get("authorization", "")):
            raise ServeError(401, "a valid API key is needed: Authorization: Bearer KEY", code="invalid_api_key")
        if path.startswith("/v1/"):
            if self.state.draining:
                raise stopping()
            if self.state.running > settings.concurrent:
                raise ServeError(429, "too many requests are under way; try again in a second", code="too_many_requests")

    def _known(self, authorization: str) -> bool:
        kind, _, key = authorization.partition(" ")
        digest = hashlib.sha256(key.strip().encode()).digest()
        found = False
        for known in self._keys:  # all of them, so that time tells nothing
            found |= hmac.compare_digest(digest, known)
        return found and kind.lower() == "bearer"

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return b""
        most, ends = self.state.settings.body_bytes, asyncio.get_running_loop().time() + self.state.settings.deadline
        parts, size, more = [], 0, True
        # what is too long is read on for a while, as clients look for an answer only when all is sent
        while more and size <= _OVERFLOW * most:
            try:
                async with asyncio.timeout_at(min(ends, asyncio.get_running_loop().time() + _PATIENCE)):
                    message = await receive()
            except TimeoutError:
                raise ServeError(408, f"nothing came of the body for {_PATIENCE:g} seconds", code="body_timeout") from None
            if message["type"] == "http.disconnect":
                raise ServeError(499, "the client went away", code="client_gone")
            part, more = message.get("body", b""), message.get("more_body", False)
            size += len(part)
            if size <= most:
                parts.append(part)
            else:
                parts.clear()
        if size > most:
            raise ServeError(413, f"the body is longer than {most:,} bytes", code="body_too_large")
        return b"".join(parts)

    def _tell(self, scope: Scope, number: str, status: int, record: Record, failure: Exception | None) -> None:
        route = getattr(scope.get("route"), "path", "other")
        self.state.metrics.tell(route, status, record)
        if route in ("/health", "/ready", "/metrics") and status == 200:
            return
        first = None if record.first_token is None else round(1000 * record.first_token, 1)
        fields: dict[str, Any] = {
            "id": number, "method": scope["method"], "route": route, "status": status,
            "milliseconds": round(1000 * (time.perf_counter() - record.began), 1), "model": record.model,
            "prompt_tokens": record.prompt_tokens, "new_tokens": record.new_tokens, "first_token_milliseconds": first,
            "finish": record.finish, **record.written,
        }  # fmt: skip
        fields = {name: value for name, value in fields.items() if value not in (None, 0)}
        if failure is not None:
            log.error("request failed", extra={"fields": fields}, exc_info=failure)
        else:
            log.info("request", extra={"fields": fields})


class _Told:
    """Sends on what is sent, with the headers that every response has, and remembers the status."""

    def __init__(self, send: Send, number: str) -> None:
        self._send, self._number = send, number
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-ID"] = self._number
            headers["X-Content-Type-Options"] = "nosniff"
        await self._send(message)

    async def error(self, scope: Scope, receive: Receive, error: ServeError) -> None:
        """Answer with an error, unless an answer has begun."""
        if not self.status:
            await error.response()(scope, receive, self)


def _replay(body: bytes, receive: Receive) -> Receive:
    told: Sequence[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    left = iter(told)

    async def again() -> Message:
        return next(left, None) or await receive()

    return again


def _host(header: str) -> str:
    """The name in a Host header, without its port."""
    return header[: header.find("]") + 1] if header.startswith("[") else header.partition(":")[0].lower()
