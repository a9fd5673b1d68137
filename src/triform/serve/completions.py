"""/v1/completions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from triform.generate.requests import Event

from .chat import about, check_length
from .errors import bad
from .generation import Answers, sampling_of, spread
from .models import Writer
from .observe import Record
from .requests import CompletionRequest
from .responses import Completion
from .state import State, record_of, state_of, unless_gone
from .stream import EventStream
from .strict import StrictRoute

router = APIRouter(route_class=StrictRoute)
_NEW_TOKENS = 16  # OpenAI's default


@router.post("/v1/completions", response_model=Completion, tags=["generate"])
async def complete(body: CompletionRequest, request: Request) -> Response:
    """Continue texts, or answer them by an encoder-decoder. With `stream` as server-sent events, ended by [DONE]."""
    state, record = state_of(request), record_of(request)
    writer: Writer = state.models.of_use(body.model, "generate")
    record.model = writer.name
    with ExitStack() as stack:
        answers = stack.enter_context(state.answering(writer, record))
        texts = await unless_gone(request, state.aside(_submit, state, writer, body, answers))
        writing = Writing(writer, body, texts, record)
        if state.settings.log_prompts:
            record.written["prompt"] = texts
        if body.stream:
            later = stack.pop_all()
            return EventStream(writing.chunks(answers), later.close, state.settings.deadline + 30)
        return JSONResponse(await unless_gone(request, writing.whole(answers)))


def _submit(state: State, writer: Writer, body: CompletionRequest, answers: Answers) -> list[str]:
    """Read the prompts and hand them to the engine; returns their texts."""
    texts, count = [body.prompt] if isinstance(body.prompt, str) else body.prompt, body.n or 1
    if not 1 <= len(texts) * count <= state.settings.answers:
        raise bad(f"prompt: expected 1 to {state.settings.answers} answers in all, got {len(texts) * count}", "prompt")
    if body.suffix:
        raise bad("suffix: texts are continued here, gaps are not filled; leave it out, or ask a masked model at /v1/fill-mask", "suffix")
    if body.best_of not in (None, count):
        raise bad(f"best_of: expected the same as n, {count}, as all answers are given, got {body.best_of}", "best_of")
    if body.echo and body.logprobs is not None:
        raise bad("echo: expected no logprobs beside it, as the prompt's tokens are not scored; leave one out", "echo")
    sampling = sampling_of(body, _NEW_TOKENS if body.max_tokens is None else body.max_tokens, body.logprobs or 0, state.settings)
    try:
        rows = writer.read_texts(texts)
    except ValueError as error:
        raise bad(str(error), "prompt") from None
    for ids in rows:
        check_length(writer, state, ids, "prompt")
    answers.record.prompt_tokens = sum(map(len, rows))
    answers.submit(spread(rows, sampling, count))
    return texts


@dataclass
class _Text:
    """One continuation as far as it has come, with its tokens as the older endpoint tells them."""

    text: str = ""
    finish: str | None = None
    tokens: list[str] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    tops: list[dict[str, float]] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    length: int = 0  # of the tokens' texts

    def told(self, since: int = 0) -> dict[str, Any]:
        """The log-probabilities of the tokens from a place on."""
        return {
            "tokens": self.tokens[since:], "token_logprobs": self.log_probs[since:], "top_logprobs": self.tops[since:],
            "text_offset": self.offsets[since:],
        }  # fmt: skip


class Writing:
    """Turns the engine's events into OpenAI's continuations."""

    def __init__(self, writer: Writer, body: CompletionRequest, texts: list[str], record: Record) -> None:
        self.writer, self.body, self.record = writer, body, record
        self.about = about("cmpl", writer) | {"object": "text_completion"}
        count = body.n or 1
        self.leads = [texts[place // count] if body.echo else "" for place in range(len(texts) * count)]
        self.texts = [_Text() for _ in self.leads]

    def _take(self, place: int, event: Event) -> None:
        text = self.texts[place]
        text.text += event.text
        if event.token is not None and event.finish_reason != "stop" and self.body.logprobs is not None:
            piece = self.writer.texts.named(event.token)
            text.tokens.append(piece)
            text.log_probs.append(max(event.log_prob, -9999.0))
            text.tops.append({self.writer.texts.named(token): max(chance, -9999.0) for token, chance in event.top})
            text.offsets.append(text.length)
            text.length += len(self.writer.texts.of(event.token)[0])
        if event.finish_reason is not None:
            text.finish = self.record.finish = "length" if event.finish_reason == "length" else "stop"

    @property
    def usage(self) -> dict[str, int]:
        """Tokens read and made."""
        read, made = self.record.prompt_tokens, self.record.new_tokens
        return {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}

    def _choice(self, place: int, text: str, since: int) -> dict[str, Any]:
        told = self.texts[place].told(since) if self.body.logprobs is not None else None
        return {"index": place, "text": text, "logprobs": told, "finish_reason": self.texts[place].finish}

    async def whole(self, answers: Answers) -> dict[str, Any]:
        """All continuations, when they have ended."""
        async for found in answers.events():
            if found is not None:
                self._take(*found)
        choices = [self._choice(place, lead + text.text, 0) for place, (lead, text) in enumerate(zip(self.leads, self.texts, strict=True))]
        return {**self.about, "choices": choices, "usage": self.usage}

    async def chunks(self, answers: Answers) -> AsyncIterator[dict[str, Any] | None]:
        """Each continuation in chunks."""
        for place, lead in enumerate(self.leads):
            if lead:
                yield {**self.about, "choices": [self._choice(place, lead, 0)]}
        async for found in answers.events():
            if found is None:
                yield None
                continue
            place, event = found
            since = len(self.texts[place].tokens)
            self._take(place, event)
            if event.text or event.finish_reason is not None or len(self.texts[place].tokens) > since:
                yield {**self.about, "choices": [self._choice(place, event.text, since)]}
        if self.body.stream_options is not None and self.body.stream_options.include_usage:
            yield {**self.about, "choices": [], "usage": self.usage}
