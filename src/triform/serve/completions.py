"""/v1/completions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from triform.generate.requests import Event, Scored

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
from .tokens import Offsets, Read, finite

router = APIRouter(route_class=StrictRoute)
_NEW_TOKENS = 16  # OpenAI's default


@router.post("/v1/completions", response_model=Completion, tags=["generate"])
async def complete(body: CompletionRequest, request: Request) -> Response:
    """Continue texts, or answer them by an encoder-decoder. With `stream` as server-sent events, ended by [DONE].

    With `echo` and `logprobs` the prompt's tokens are scored too; with `max_tokens` 0 nothing is added to them.
    """
    state, record = state_of(request), record_of(request)
    writer: Writer = state.models.of_use(body.model, "generate")
    record.model = writer.name
    with ExitStack() as stack:
        answers = stack.enter_context(state.answering(writer, record))
        prompts = await unless_gone(request, state.aside(_submit, state, writer, body, answers))
        writing = Writing(writer, body, prompts, record)
        if state.settings.log_prompts:
            record.written["prompt"] = [prompt.text for prompt in prompts]
        if body.stream:
            later = stack.pop_all()
            return EventStream(writing.chunks(answers), later.close, state.settings.deadline + 30)
        return JSONResponse(await unless_gone(request, writing.whole(answers)))


def _submit(state: State, writer: Writer, body: CompletionRequest, answers: Answers) -> list[Read]:
    """Read the prompts and hand them to the engine; returns them."""
    asked, count = _listed(body.prompt), body.n or 1
    if not 1 <= len(asked) * count <= state.settings.answers:
        raise bad(f"prompt: expected 1 to {state.settings.answers} answers in all, got {len(asked) * count}", "prompt")
    if body.suffix:
        raise bad("suffix: texts are continued here, gaps are not filled; leave it out, or ask a masked model at /v1/fill-mask", "suffix")
    if body.best_of not in (None, count):
        raise bad(f"best_of: expected the same as n, {count}, as all answers are given, got {body.best_of}", "best_of")
    if body.max_tokens == 0 and not body.echo and body.prompt_logprobs is None:
        raise bad("max_tokens: expected at least 1; 0 goes with echo or prompt_logprobs, for prompts that are only scored", "max_tokens")
    scored = _scored(body)
    if scored is not None and writer.form == "encoder-decoder":
        name = "echo" if body.prompt_logprobs is None else "prompt_logprobs"
        raise bad(f"{name}: expected no scores of the prompt, as {writer.name} is an encoder-decoder, which does not predict it", name)
    wanted = _NEW_TOKENS if body.max_tokens is None else max(1, body.max_tokens)
    sampling = sampling_of(body, wanted, body.logprobs or 0, state.settings)
    try:
        prompts = writer.read_prompts(asked, offsets=bool(body.echo) and body.logprobs is not None)
    except ValueError as error:
        raise bad(str(error), "prompt") from None
    for prompt in prompts:
        check_length(writer, state, prompt.ids, "prompt")
    state.admit((prompt.text for prompt in prompts), "prompt")
    answers.record.prompt_tokens = sum(len(prompt.ids) for prompt in prompts)
    answers.submit([replace(one, scored=scored) for one in spread([prompt.ids for prompt in prompts], sampling, count)])
    return prompts


def _listed(prompt: Any) -> list[str | list[int]]:
    """The prompts of a request: texts, or token ids."""
    one = isinstance(prompt, str) or (len(prompt) > 0 and isinstance(prompt[0], int))
    return [prompt] if one else list(prompt)


def _scored(body: CompletionRequest) -> int | None:
    """How many of the most probable tokens are told at each place of the prompt; None where it is not scored."""
    wanted = [body.prompt_logprobs, body.logprobs if body.echo else None]
    return max((count for count in wanted if count is not None), default=None)


@dataclass
class _Text:
    """One continuation as far as it has come, with its tokens as the older endpoint tells them."""

    prompt: Read
    offsets_of: Offsets
    text: str = ""
    finish: str | None = None
    begun: bool = False
    scored: list[dict[str, Any] | None] | None = None
    tokens: list[str] = field(default_factory=list)
    log_probs: list[float | None] = field(default_factory=list)
    tops: list[dict[str, float] | None] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)

    def add(self, token: str, log_prob: float | None, top: dict[str, float] | None, offset: int) -> None:
        """One more token."""
        self.tokens.append(token)
        self.log_probs.append(log_prob)
        self.tops.append(top)
        self.offsets.append(offset)

    def told(self, since: int) -> dict[str, Any]:
        """The log-probabilities of the tokens from a place on."""
        return {
            "tokens": self.tokens[since:], "token_logprobs": self.log_probs[since:], "top_logprobs": self.tops[since:],
            "text_offset": self.offsets[since:],
        }  # fmt: skip


class Writing:
    """Turns the engine's events into OpenAI's continuations."""

    def __init__(self, writer: Writer, body: CompletionRequest, prompts: list[Read], record: Record) -> None:
        self.writer, self.body, self.record = writer, body, record
        self.about = about("cmpl", writer) | {"object": "text_completion"}
        count = body.n or 1
        each = [prompts[place // count] for place in range(len(prompts) * count)]
        self.texts = [_Text(prompt, Offsets(writer.texts, len(prompt.text) if body.echo else 0)) for prompt in each]

    def _take(self, place: int, event: Event, prompt: list[Scored]) -> str:
        """Add an event to its continuation, before the first the prompt where it is wanted; the text that it brings."""
        text, piece = self.texts[place], event.text
        if not text.begun:
            text.begun = True
            piece = self._begin(text, prompt) + piece
        if event.finish_reason is not None:
            told = event.finish_reason if event.finish_reason in ("length", "content_filter") else None
            text.finish = self.record.finish = told or "stop"
        if self.body.max_tokens == 0:
            piece, text.finish = piece.removesuffix(event.text), "length"
        elif event.token is not None and event.finish_reason != "stop" and self.body.logprobs is not None:
            top = self._top(event.token, event.log_prob, event.top)
            text.add(self.writer.texts.named(event.token), finite(event.log_prob), top, text.offsets_of(event.token))
        text.text += piece
        return piece

    def _begin(self, text: _Text, prompt: list[Scored]) -> str:
        """Tell what is wanted of the prompt; its text, where that is to be put before the answer."""
        name, first = self.writer.texts.named, text.prompt.ids[0]
        if self.body.echo and self.body.logprobs is not None:
            text.add(name(first), None, None, 0)
            for one, offset in zip(prompt, text.prompt.offsets[1:], strict=True):
                text.add(name(one.token), finite(one.log_prob), self._top(one.token, one.log_prob, one.top[: self.body.logprobs]), offset)
        if self.body.prompt_logprobs is not None:
            text.scored = [None, *(self._ranked(one, self.body.prompt_logprobs) for one in prompt)]
        return text.prompt.text if self.body.echo else ""

    def _top(self, token: int, log_prob: float, top: tuple[tuple[int, float], ...]) -> dict[str, float]:
        """The most probable tokens by their texts, and the one that stands there, as OpenAI tells them."""
        found = dict[str, float]()
        for other, chance in sorted({token: log_prob, **dict(top)}.items(), key=lambda pair: -pair[1]):
            found.setdefault(self.writer.texts.named(other), finite(chance))  # of tokens with one text the most probable
        return found

    def _ranked(self, one: Scored, count: int) -> dict[str, dict[str, Any]]:
        """A prompt's token and the most probable ones in its place, as vLLM tells them."""
        found = {token: (chance, rank) for rank, (token, chance) in enumerate(one.top[:count], 1)} | {one.token: (one.log_prob, one.rank)}
        name = self.writer.texts.named
        return {str(i): {"logprob": finite(chance), "rank": rank, "decoded_token": name(i)} for i, (chance, rank) in found.items()}

    @property
    def usage(self) -> dict[str, int]:
        """Tokens read and made."""
        read, made = self.record.prompt_tokens, 0 if self.body.max_tokens == 0 else self.record.new_tokens
        return {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}

    def _choice(self, place: int, piece: str, since: int) -> dict[str, Any]:
        text = self.texts[place]
        told = text.told(since) if self.body.logprobs is not None else None
        found: dict[str, Any] = {"index": place, "text": piece, "logprobs": told, "finish_reason": text.finish}
        if text.scored is not None:
            found["prompt_logprobs"], text.scored = text.scored, None
        return found

    async def whole(self, answers: Answers) -> dict[str, Any]:
        """All continuations, when they have ended."""
        async for found in answers.events():
            if found is not None:
                self._take(*found, answers.tickets[found[0]].run.prompt)
        choices = [self._choice(place, text.text, 0) for place, text in enumerate(self.texts)]
        return {**self.about, "choices": choices, "usage": self.usage}

    async def chunks(self, answers: Answers) -> AsyncIterator[dict[str, Any] | None]:
        """Each continuation in chunks."""
        async for found in answers.events():
            if found is None:
                yield None
                continue
            place, event = found
            text = self.texts[place]
            since = len(text.tokens)
            piece = self._take(place, event, answers.tickets[place].run.prompt)
            if piece or event.finish_reason is not None or len(text.tokens) > since or text.scored is not None:
                yield {**self.about, "choices": [self._choice(place, piece, since)]}
        if self.body.stream_options is not None and self.body.stream_options.include_usage:
            yield {**self.about, "choices": [], "usage": self.usage}
