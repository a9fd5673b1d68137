"""/v1/chat/completions."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from triform import __version__
from triform.generate.constrained import Constraint, JsonSchema
from triform.generate.requests import Event

from . import tools
from .errors import bad
from .generation import Answers, sampling_of, spread, with_constraint
from .models import Writer
from .observe import Record
from .requests import ChatRequest, Message, NamedTool, SchemaFormat, TextFormat, Tool, ToolCall
from .responses import ChatCompletion
from .state import State, record_of, state_of, unless_gone
from .stream import EventStream
from .strict import StrictRoute
from .tokens import finite

router = APIRouter(route_class=StrictRoute)


def about(kind: str, writer: Writer) -> dict[str, Any]:
    """What every answer begins with."""
    fingerprint = f"triform-{__version__}"
    return {"id": f"{kind}-{uuid.uuid4().hex}", "created": int(time.time()), "model": writer.name, "system_fingerprint": fingerprint}


@router.post("/v1/chat/completions", response_model=ChatCompletion, tags=["generate"])
async def chat(body: ChatRequest, request: Request) -> Response:
    """Go on with a conversation. With `stream` the answer comes as server-sent events of chunks, ended by [DONE]."""
    state, record = state_of(request), record_of(request)
    writer: Writer = state.models.of_use(body.model, "generate")
    record.model = writer.name
    with ExitStack() as stack:
        answers = stack.enter_context(state.answering(writer, record))
        asked = await unless_gone(request, state.aside(_submit, state, writer, body, answers))
        talk = Talk(writer, body, asked, record)
        if state.settings.log_prompts:
            record.written["messages"] = [message.model_dump(exclude_none=True) for message in body.messages]
        if body.stream:
            later = stack.pop_all()
            return EventStream(talk.chunks(answers), later.close, state.settings.deadline + 30)
        return JSONResponse(await unless_gone(request, talk.whole(answers)))


@dataclass(frozen=True)
class Asked:
    """A conversation made ready: how tools are called in the answer, whether that is forced, and how long the prompt is."""

    dialect: tools.Dialect | None
    names: tuple[str, ...]
    forced: bool
    prompt_tokens: int


def _submit(state: State, writer: Writer, body: ChatRequest, answers: Answers) -> Asked:
    """Read the conversation and hand it to the engine."""
    count = body.n or 1
    if count > state.settings.answers:
        raise bad(f"n: expected at most {state.settings.answers}, got {count}", "n")
    if body.top_logprobs is not None and not body.logprobs:
        raise bad("top_logprobs: expected logprobs true beside it", "top_logprobs")
    given, forced = _tools(writer, body)
    variables = dict(body.chat_template_kwargs or {})
    wanted = body.max_completion_tokens or body.max_tokens
    sampling = sampling_of(body, wanted, body.top_logprobs or 0, state.settings)
    try:
        messages = [_plain(message) for message in body.messages]
        state.admit((_said(message) for message in messages), "messages")
        ids = writer.read_chat(messages, [tool.model_dump(exclude_none=True) for tool in given] or None, variables)
    except ValueError as error:
        raise bad(str(error), "messages") from None
    if forced and writer.tools is not None:
        ids = [*ids, *writer.tokenizer.encode(tools.opening(writer.tools))]
        sampling = with_constraint(sampling, JsonSchema(tools.schema(given, writer.tools)))
    elif (constraint := _form(body)) is not None:
        sampling = with_constraint(sampling, constraint)
    check_length(writer, state, ids, "messages")
    answers.record.prompt_tokens = len(ids)
    answers.submit(spread([ids], sampling, count))
    return Asked(writer.tools if given else None, tuple(tool.function.name for tool in given), forced, len(ids))


def check_length(writer: Writer, state: State, ids: Sequence[int], param: str) -> None:
    """Raise ServeError 400 for a prompt that is too long, or empty."""
    limit = min(writer.prompt_tokens, state.settings.prompt_tokens)
    if len(ids) > limit:
        raise bad(f"{param}: the prompt has {len(ids):,} tokens, and at most {limit:,} are taken", param, "context_length_exceeded")
    if not ids:
        raise bad(f"{param}: the prompt is empty, and the model has no token to begin with; give it some text", param)


def _tools(writer: Writer, body: ChatRequest) -> tuple[list[Tool], bool]:
    """The tools that the model is told of, and whether it must call one."""
    choice = body.tool_choice
    if not body.tools:
        if choice not in (None, "none", "auto"):
            raise bad("tool_choice: expected tools beside it", "tool_choice")
        return [], False
    if choice == "none":
        return [], False
    if writer.tools is None:
        raise bad(f"{writer.name} does not know tools: its chat template has no place for them", "tools", "tools_not_supported")
    found = list(body.tools)
    if isinstance(choice, NamedTool):
        found = [tool for tool in found if tool.function.name == choice.function.name]
        if not found:
            raise bad(f"tool_choice: no tool is named {choice.function.name!r}", "tool_choice")
    forced = choice == "required" or isinstance(choice, NamedTool)
    if forced and _form(body) is not None:
        raise bad("response_format: expected none beside a tool_choice that demands a call", "response_format")
    return found, forced


def _form(body: ChatRequest) -> Constraint | None:
    """What the answer is to look like."""
    wanted = body.response_format
    if wanted is None or isinstance(wanted, TextFormat):
        return None
    try:
        return JsonSchema(wanted.json_schema.json_schema if isinstance(wanted, SchemaFormat) else {"type": "object"})
    except ValueError as error:
        raise bad(str(error), "response_format") from None


def _plain(message: Message) -> dict[str, Any]:
    """A message as templates read it: the arguments of calls as data, and no developers, whom they do not know."""
    found = message.model_dump(exclude_none=True)
    if found["role"] == "developer":
        found["role"] = "system"
    for call in found.get("tool_calls", ()):
        try:
            call["function"]["arguments"] = json.loads(call["function"]["arguments"] or "{}")
        except (ValueError, RecursionError):
            raise bad("messages: expected the arguments of a tool call as JSON text", "messages") from None
    if found.get("content") is None and not found.get("tool_calls"):
        raise bad(f"messages: a message of the {found['role']} has no content", "messages")
    return found


def _said(message: Mapping[str, Any]) -> str:
    """The text of a message, which may be in parts."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "\n".join(part.get("text") or "" for part in content)


@dataclass
class _Answer:
    """One answer as far as it has come."""

    parser: tools.ToolParser | None
    text: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    tokens: list[dict[str, Any]] = field(default_factory=list)
    finish: str | None = None

    def take(self, piece: str, last: bool) -> Iterator[str | ToolCall]:
        """What a piece of text brings, of plain text and calls."""
        if self.parser is None:
            found: list[str | ToolCall] = [piece] if piece else []
        else:
            found = [*self.parser.push(piece), *(self.parser.finish() if last else ())]
        for part in found:
            if isinstance(part, ToolCall):
                self.calls.append(part)
            else:
                self.text += part
        yield from found


class Talk:
    """Turns the engine's events into OpenAI's answers."""

    def __init__(self, writer: Writer, body: ChatRequest, asked: Asked, record: Record) -> None:
        self.writer, self.body, self.asked, self.record = writer, body, asked, record
        self.about = about("chatcmpl", writer)
        self.answers = [self._begin() for _ in range(body.n or 1)]

    def _begin(self) -> _Answer:
        if self.asked.dialect is None:
            return _Answer(None)
        parser = tools.ToolParser(self.asked.dialect, self.asked.names, once=self.body.parallel_tool_calls is False)
        if self.asked.forced and self.asked.dialect == "hermes":
            for _ in parser.push(tools.opening(self.asked.dialect)):
                pass
        return _Answer(parser)

    def _take(self, place: int, event: Event) -> tuple[list[str | ToolCall], list[dict[str, Any]]]:
        """The parts and the log-probabilities that an event brings to an answer."""
        answer, last = self.answers[place], event.finish_reason is not None
        piece = event.text
        if last and self.asked.forced and self.asked.dialect == "hermes" and event.finish_reason == "stop":
            piece += tools.CLOSING
        parts = list(answer.take(piece, last))
        tokens = [token_of(self.writer, event)] if self.body.logprobs and event.token is not None and event.finish_reason != "stop" else []
        answer.tokens += tokens
        if last:
            told = event.finish_reason if event.finish_reason in ("length", "content_filter") else None
            answer.finish = told or ("tool_calls" if answer.calls else "stop")
            self.record.finish = answer.finish
        return parts, tokens

    @property
    def usage(self) -> dict[str, Any]:
        """Tokens read and made."""
        read, made = self.asked.prompt_tokens, self.record.new_tokens
        return {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}

    async def whole(self, answers: Answers) -> dict[str, Any]:
        """All answers, when they have ended."""
        async for found in answers.events():
            if found is not None:
                self._take(*found)
        choices = [
            {"index": place, "message": _message(answer), "logprobs": self._logprobs(answer.tokens), "finish_reason": answer.finish}
            for place, answer in enumerate(self.answers)
        ]
        return {**self.about, "object": "chat.completion", "choices": choices, "usage": self.usage | _cached(answers)}

    async def chunks(self, answers: Answers) -> AsyncIterator[dict[str, Any] | None]:
        """Each answer in chunks."""
        for place in range(len(self.answers)):
            yield self._chunk(place, {"role": "assistant", "content": ""})
        async for found in answers.events():
            if found is None:
                yield None
                continue
            place, event = found
            answer = self.answers[place]
            called = len(answer.calls)
            parts, tokens = self._take(place, event)
            for part in parts or ([""] if tokens else []):
                delta: dict[str, Any] = {"content": part}
                if isinstance(part, ToolCall):
                    delta = {"tool_calls": [{"index": called, **part.model_dump()}]}
                    called += 1
                yield self._chunk(place, delta, tokens)
                tokens = []
            if answer.finish is not None and event.finish_reason is not None:
                yield self._chunk(place, {}, finish=answer.finish)
        if self.body.stream_options is not None and self.body.stream_options.include_usage:
            yield {**self.about, "object": "chat.completion.chunk", "choices": [], "usage": self.usage | _cached(answers)}

    def _chunk(
        self, place: int, delta: dict[str, Any], tokens: Sequence[dict[str, Any]] = (), finish: str | None = None
    ) -> dict[str, Any]:
        choice = {"index": place, "delta": delta, "logprobs": self._logprobs(tokens), "finish_reason": finish}
        return {**self.about, "object": "chat.completion.chunk", "choices": [choice]}

    def _logprobs(self, tokens: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
        return {"content": tokens, "refusal": None} if self.body.logprobs else None


def _message(answer: _Answer) -> dict[str, Any]:
    calls = [call.model_dump() for call in answer.calls]
    content = answer.text if answer.text.strip() or not calls else None
    return {"role": "assistant", "content": content, "refusal": None, **({"tool_calls": calls} if calls else {})}


def _cached(answers: Answers) -> dict[str, Any]:
    return {"prompt_tokens_details": {"cached_tokens": answers.tickets[0].reused}}


def token_of(writer: Writer, event: Event) -> dict[str, Any]:
    """An event's token with its log-probability, and the most probable ones in its place."""

    def told(token: int, log_prob: float) -> dict[str, Any]:
        text, raw = writer.texts.of(token)
        return {"token": text, "logprob": finite(log_prob), "bytes": list(raw)}

    assert event.token is not None
    return told(event.token, event.log_prob) | {"top_logprobs": [told(token, log_prob) for token, log_prob in event.top]}
