"""The application: its routes, its errors, its document."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response

from triform import __version__

from . import chat, completions, judging, pages
from .errors import ServeError, from_validation
from .guard import Guard
from .models import Models, Writer
from .responses import ErrorBody, Health, ModelCard, ModelList
from .settings import Settings
from .state import State, state_of

_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorBody, "description": "The request cannot be met as it stands."},
    401: {"model": ErrorBody, "description": "No valid API key."},
    404: {"model": ErrorBody, "description": "No such model."},
    408: {"model": ErrorBody, "description": "The body did not arrive."},
    413: {"model": ErrorBody, "description": "The body is too long."},
    429: {"model": ErrorBody, "description": "Too many requests; Retry-After says when."},
    500: {"model": ErrorBody, "description": "The server made a mistake."},
    503: {"model": ErrorBody, "description": "The server is stopping."},
    504: {"model": ErrorBody, "description": "The deadline is over."},
}


def create_app(models: Models, settings: Settings | None = None) -> FastAPI:
    """The application that serves models; an ASGI app for uvicorn (see `triform.serve.run`)."""
    state = State(models, settings or Settings())

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        state.close()

    description = "One server for models that write, judge, embed and fill in, with OpenAI's API. Errors have OpenAI's shape."
    app = FastAPI(title="Triform", version=__version__, description=description, docs_url=None, redoc_url=None, lifespan=life)
    app.state.triform = state
    for router in (chat.router, completions.router, judging.router):
        app.include_router(router, responses=_ERRORS)
    _add_models(app)
    _add_health(app)
    app.include_router(pages.router)
    app.add_exception_handler(ServeError, lambda _, error: error.response())
    app.add_exception_handler(RequestValidationError, lambda _, error: from_validation(error.errors()).response())
    app.add_exception_handler(HTTPException, _http_error)  # type: ignore[arg-type]
    app.add_middleware(Guard, state=state)
    if state.settings.origins:
        headers = ["Authorization", "Content-Type", "X-Request-ID"]
        app.add_middleware(CORSMiddleware, allow_origins=state.settings.origins, allow_methods=["GET", "POST"], allow_headers=headers)
    app.openapi = lambda: _document(app)  # type: ignore[method-assign]
    return app


def _document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, without the 422 that FastAPI would give: what does not fit is a 400 here, as it is with OpenAI."""
    if app.openapi_schema is None:
        found = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        for operations in found["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            found["components"]["schemas"].pop(name, None)
        app.openapi_schema = found
    return app.openapi_schema


def _http_error(_: Request, error: HTTPException) -> Response:
    messages = {404: "there is nothing at this address; /docs lists what there is", 405: "this address takes another method; see /docs"}
    return ServeError(error.status_code, messages.get(error.status_code, str(error.detail))).response()


def _card(model: Any, settings: Settings) -> dict[str, Any]:
    limit = min(filter(None, (model.prompt_tokens, settings.prompt_tokens)))
    writes = isinstance(model, Writer)
    return {
        "id": model.name, "object": "model", "created": model.created, "owned_by": "triform", "use": model.use, "form": model.form,
        "chat": writes and model.chats, "tools": writes and model.tools is not None, "max_prompt_tokens": limit, "labels": model.labels,
        "parent": model.parent if writes else None,
    }  # fmt: skip


def _add_models(app: FastAPI) -> None:
    errors: dict[int | str, dict[str, Any]] = {status: _ERRORS[status] for status in (401, 404)}

    @app.get("/v1/models", response_model=ModelList, responses={401: _ERRORS[401]}, tags=["models"])
    async def models(request: Request) -> Response:
        """The models that are served."""
        state = state_of(request)
        cards = [_card(model, state.settings) for model in state.models.by_name.values()]
        return JSONResponse({"object": "list", "data": cards})

    @app.get("/v1/models/{model:path}", response_model=ModelCard, responses=errors, tags=["models"])
    async def model(model: str, request: Request) -> Response:
        """One model."""
        state = state_of(request)
        return JSONResponse(_card(state.models.find(model), state.settings))


def _add_health(app: FastAPI) -> None:
    @app.get("/health", response_model=Health, tags=["server"])
    async def health() -> Response:
        """Whether the server is there."""
        return JSONResponse({"status": "ok"})

    @app.get("/ready", response_model=Health, responses={503: {"model": Health}}, tags=["server"])
    async def ready(request: Request) -> Response:
        """Whether the server takes requests: 503 once it is stopping."""
        draining = state_of(request).draining
        return JSONResponse({"status": "draining" if draining else "ok"}, 503 if draining else 200)

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}, 401: _ERRORS[401]}, tags=["server"])
    async def metrics(request: Request) -> Response:
        """Figures for Prometheus."""
        return Response(state_of(request).metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
