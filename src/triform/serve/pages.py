"""The pages for people: / to use the models, /docs to read about the API. They load nothing from elsewhere."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import Response

from .errors import ServeError

router = APIRouter(include_in_schema=False)
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}


@lru_cache(maxsize=32)
def _file(name: str) -> bytes:
    return files("triform.serve").joinpath("page", name).read_bytes()


@lru_cache(maxsize=1)
def _names() -> frozenset[str]:
    return frozenset(file.name for file in files("triform.serve").joinpath("page").iterdir())


def _page(name: str) -> Response:
    headers = {"Content-Security-Policy": _POLICY, "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}
    return Response(_file(name), media_type=_TYPES[name.rpartition(".")[2]], headers=headers)


@router.get("/")
async def index() -> Response:
    """The page to use the models."""
    return _page("index.html")


@router.get("/docs")
async def docs() -> Response:
    """The page about the API."""
    return _page("docs.html")


@router.get("/page/{name}")
async def part(name: str) -> Response:
    """A script, a style or a picture of a page."""
    if name not in _names():
        raise ServeError(404, "there is nothing at this address")
    return _page(name)
