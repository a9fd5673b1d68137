"""The models that judge: /v1/embeddings, /v1/moderations, /v1/classify, /v1/token-classify, /v1/answer, /v1/fill-mask."""

from __future__ import annotations

import asyncio
import base64
import uuid
from collections.abc import Awaitable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from triform.generate.content_filter import verdict
from triform.generate.fill import MASK

from .errors import ServeError, bad
from .generation import late
from .models import Asked, Judge, Viewer
from .requests import AnswerRequest, ClassifyRequest, EmbeddingRequest, FillRequest, TagRequest, TextsRequest
from .responses import Answers, Classified, Embeddings, FilledTexts, Moderations, Tagged
from .state import record_of, state_of, unless_gone
from .strict import StrictRoute

_PLAIN = Asked()
_MASKS = 64
_PICTURES = 64  # of a request: a few bytes may unfold to millions of pixels
router = APIRouter(route_class=StrictRoute, tags=["judge"])


async def _judged(request: Request, judge: Judge, given: str | Sequence[Any], asked: Asked = _PLAIN) -> tuple[list[Any], dict[str, int]]:
    """What a model says of each text, and the tokens that it read. Raises ServeError 400 for texts that it does not take."""
    state, record = state_of(request), record_of(request)
    texts = [given] if isinstance(given, str) else list(given)
    record.model = judge.name
    if not 1 <= len(texts) <= state.settings.texts:
        raise bad(f"input: expected 1 to {state.settings.texts} texts, got {len(texts)}", "input")
    if state.settings.log_prompts:
        record.written["input"] = texts
    lengths = await unless_gone(request, state.aside(judge.count, texts))
    limit = min(filter(None, (judge.prompt_tokens, state.settings.prompt_tokens)))
    if max(lengths) > limit:
        number = lengths.index(max(lengths))
        message = f"input: text {number} has {max(lengths):,} tokens, and at most {limit:,} are taken; shorten or part it"
        raise bad(message, "input", "context_length_exceeded")
    return await _in_time(request, judge(texts, asked)), _usage(request, sum(lengths))


async def _seen(request: Request, viewer: Viewer, body: ClassifyRequest) -> tuple[list[Any], dict[str, int]]:
    """What a model says of each picture, and the places that it read. Raises ServeError 400 for what it does not take."""
    state = state_of(request)
    record_of(request).model = viewer.name
    given, labels = [body.input] if isinstance(body.input, str) else body.input, tuple(dict.fromkeys(body.labels or ()))
    if not 1 <= len(given) <= _PICTURES:
        raise bad(f"input: expected 1 to {_PICTURES} pictures, got {len(given)}", "input")
    if viewer.chooses and len(labels) < 2:
        raise bad(f"labels: expected at least two different texts, of which {viewer.name} finds the one that describes a picture", "labels")
    if labels and not viewer.chooses:
        raise bad(f"labels: expected none, as {viewer.name} has labels of its own", "labels")
    pixels = await unless_gone(request, state.aside(viewer.look, [_picture(number, one) for number, one in enumerate(given)]))
    return await _in_time(request, viewer(pixels, labels)), _usage(request, len(pixels) * viewer.prompt_tokens)


def _picture(number: int, given: str) -> bytes:
    """The bytes of a picture in base64, bare or in a data URL."""
    head, comma, rest = given.partition(",")
    text = rest if comma and head.startswith("data:") and head.endswith(";base64") else given
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise bad(f"input: picture {number}: expected an encoded picture as base64, or a data URL of it", "input") from None


async def _in_time(request: Request, work: Awaitable[list[Any]]) -> list[Any]:
    """What the model says, within the deadline."""
    try:
        async with asyncio.timeout(state_of(request).settings.deadline):
            return await unless_gone(request, work)
    except TimeoutError:
        raise late() from None


def _usage(request: Request, tokens: int) -> dict[str, int]:
    record_of(request).prompt_tokens = tokens
    return {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}


@router.post("/v1/embeddings", response_model=Embeddings)
async def embeddings(body: EmbeddingRequest, request: Request) -> Response:
    """Texts as vectors."""
    judge = state_of(request).models.of_use(body.model, "embed")
    found, usage = await _judged(request, judge, body.input)
    width = len(found[0])
    if body.dimensions not in (None, width):
        raise bad(f"dimensions: expected {width}, the width of this model's vectors, or nothing, got {body.dimensions}", "dimensions")
    rows = [vector.numpy().astype("<f4") for vector in found]
    if not all(np.isfinite(row).all() for row in rows):
        raise ServeError(500, "the model gave vectors that are no numbers; its weights may be damaged", code="not_finite")
    told = [base64.b64encode(row.tobytes()).decode() if body.encoding_format == "base64" else row.tolist() for row in rows]
    data = [{"object": "embedding", "index": place, "embedding": vector} for place, vector in enumerate(told)]
    return JSONResponse({"object": "list", "data": data, "model": judge.name, "usage": usage})


@router.post("/v1/classify", response_model=Classified)
async def classify(body: ClassifyRequest, request: Request) -> Response:
    """The labels of texts, or of pictures."""
    judge = state_of(request).models.of_use(body.model, "classify", "see")
    if isinstance(judge, Viewer):
        found, usage = await _seen(request, judge, body)
    elif body.labels is not None:
        raise bad(f"labels: expected none, as {judge.name} has labels of its own", "labels")
    else:
        found, usage = await _judged(request, judge, body.input)
    return JSONResponse({"object": "list", "model": judge.name, "results": [asdict(one) for one in found], "usage": usage})


@router.post("/v1/moderations", response_model=Moderations)
async def moderations(body: TextsRequest, request: Request) -> Response:
    """The labels of texts by the classifier named with --moderation. Every label but the first is a category to flag.

    A text is flagged where one of them is the most probable label; or, where several labels may fit, is more probable than not.
    """
    models = state_of(request).models
    if models.moderator is None:
        raise ServeError(404, "no model moderates here; name a classifier: triform serve … --moderation PATH", code="model_not_found")
    judge = models.find(models.moderator)
    assert isinstance(judge, Judge)
    found, _ = await _judged(request, judge, body.input)
    told = [verdict(one, judge.problem) for one in found]
    results = [{"flagged": one.flagged, "categories": one.categories, "category_scores": one.scores} for one in told]
    return JSONResponse({"id": f"modr-{uuid.uuid4().hex}", "model": judge.name, "results": results})


@router.post("/v1/fill-mask", response_model=FilledTexts)
async def fill_mask(body: FillRequest, request: Request) -> Response:
    """Texts with every [MASK] filled, and what else could stand there."""
    judge = state_of(request).models.of_use(body.model, "fill")
    texts = [body.input] if isinstance(body.input, str) else body.input
    name = judge.tokenizer.tokens([judge.tokenizer.mask])[0] if judge.tokenizer.mask is not None else MASK
    if any(text.count(MASK) + (text.count(name) if name != MASK else 0) > _MASKS for text in texts):
        raise bad(f"input: expected at most {_MASKS} masks in a text, as each is filled by itself", "input")
    found, usage = await _judged(request, judge, body.input, Asked(top=body.top))
    return JSONResponse({"object": "list", "model": judge.name, "results": [asdict(one) for one in found], "usage": usage})


@router.post("/v1/token-classify", response_model=Tagged)
async def token_classify(body: TagRequest, request: Request) -> Response:
    """The names in texts: people, places, words."""
    judge = state_of(request).models.of_use(body.model, "tag")
    found, usage = await _judged(request, judge, body.input, Asked(aggregate=body.aggregate))
    results = [[asdict(entity) for entity in one] for one in found]
    return JSONResponse({"object": "list", "model": judge.name, "results": results, "usage": usage})


@router.post("/v1/answer", response_model=Answers)
async def answer(body: AnswerRequest, request: Request) -> Response:
    """The parts of a passage that answer a question, the best first. A long passage is read in windows."""
    judge = state_of(request).models.of_use(body.model, "answer")
    found, usage = await _judged(request, judge, [(body.question, body.context)], Asked(top=body.top, may_abstain=body.may_abstain))
    return JSONResponse({"model": judge.name, "answers": [asdict(one) for one in found[0]], "usage": usage})
