"""Errors as OpenAI's clients expect them: a status, and `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import JSONResponse

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}


_MEMBER = re.compile(r"str|int|float|bool|(list|dict|constrained-)\b.*")


class ServeError(Exception):
    """A request that gets an error: its HTTP status, one line for people, the field at fault, and a code for programs."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, printable(message), param, code

    @property
    def body(self) -> dict[str, Any]:
        """What the client gets."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """Headers that belong to the status."""
        if self.status in (429, 503):
            return {"Retry-After": "1"}
        return {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}

    def response(self) -> JSONResponse:
        """The error as a response."""
        return JSONResponse(self.body, self.status, self.headers)


def bad(message: str, param: str | None = None, code: str | None = None) -> ServeError:
    """A request that cannot be met as it stands."""
    return ServeError(400, message, param=param, code=code)


def printable(text: str) -> str:
    """A text that can be sent: without half characters, and not longer than a screen."""
    sent = text.encode("utf-8", "replace").decode()
    return sent if len(sent) <= 1000 else f"{sent[:1000]}…"


def from_validation(errors: Sequence[Mapping[str, Any]]) -> ServeError:
    """What pydantic found wrong with a request, in one line that names the first field at fault."""
    first = errors[0]
    where = [str(part) for part in first["loc"] if part != "body"]
    # the names of a union's members are pydantic's own, and lower-case names are the request's
    param = ".".join(part for part in where if part.isdigit() or (part.replace("_", "").islower() and not _MEMBER.fullmatch(part)))
    if first["type"] == "json_invalid":
        return bad(f"the body is not JSON: {first.get('ctx', {}).get('error', first['msg'])}", code="invalid_json")
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    message = first["msg"].removeprefix("Value error, ")
    return bad(f"{param or 'body'}: {message[:1].lower()}{message[1:]}{more}", param or None, first["type"])
