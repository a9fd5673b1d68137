"""What clients send, in OpenAI's shapes. Numbers are finite, sizes have bounds, and the OpenAPI document is made of this.

Fields of OpenAI's that change nothing here (`user`, `metadata`, `store` and the like) are let through unread.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Label = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
Stop = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**64)]
TokenId = Annotated[int, Field(ge=0, lt=2**31, strict=True)]


class Body(BaseModel):
    """A request."""

    model_config = ConfigDict(allow_inf_nan=False, extra="ignore", strict=False)


class Requested(Body):
    """A request to one of the models."""

    model: Name | None = Field(None, description="A name that /v1/models lists; left out, the first that can do this.")


class StreamOptions(Body):
    """What a stream holds beside the answer."""

    include_usage: bool | None = Field(None, description="End with a chunk that counts tokens.")


class Sampled(Requested):
    """How an answer is generated. `top_k`, `min_p`, `typical_p`, `repetition_penalty`, `no_repeat_ngram`, `min_tokens` go beyond OpenAI."""

    temperature: float | None = Field(None, ge=0, le=100, description="0 takes the most probable token; left out, 1.")
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=0, le=2**31 - 1, description="0 keeps every token.")
    min_p: float | None = Field(None, ge=0, le=1)
    typical_p: float | None = Field(None, gt=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    no_repeat_ngram: int | None = Field(None, ge=0, le=1024)
    logit_bias: dict[str, float] | None = Field(None, max_length=1024, description="From token id to a number from -100 to 100.")
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    seed: Seed | None = Field(None, description="Answer i draws from seed + i.")
    n: int | None = Field(None, ge=1, le=128, description="How many answers.")
    min_tokens: int | None = Field(None, ge=0, le=2**31 - 1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @field_validator("logit_bias")
    @classmethod
    def _biases(cls, found: dict[str, float] | None) -> dict[str, float] | None:
        for token, bias in (found or {}).items():
            if not (token.isascii() and token.isdigit() and len(token) < 10) or not -100 <= bias <= 100:
                raise ValueError(f"expected token ids and numbers from -100 to 100, got {token[:20]!r}: {bias:g}")
        return found


class TextPart(Body):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class CalledFunction(Body):
    """A function that the assistant called, its arguments as JSON text."""

    name: Name
    arguments: str


class ToolCall(Body):
    """A call of a tool by the assistant."""

    id: str = Field("", max_length=256)
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(Body):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = Field(None, max_length=256)
    tool_calls: list[ToolCall] | None = Field(None, max_length=128)
    tool_call_id: str | None = Field(None, max_length=256)


class Function(Body):
    """A function that the model may call."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="A JSON schema.")
    strict: bool | None = None


class Tool(Body):
    """A tool that the model may use."""

    type: Literal["function"]
    function: Function


class NamedFunction(Body):
    """A function by its name."""

    name: Name


class NamedTool(Body):
    """The tool that is to be used."""

    type: Literal["function"]
    function: NamedFunction


class Schema(Body):
    """A JSON schema that the answer is to fit."""

    model_config = ConfigDict(populate_by_name=True)

    name: str = Field("answer", max_length=64)
    description: str | None = None
    json_schema: dict[str, Any] = Field(default_factory=dict, alias="schema")
    strict: bool | None = None


class TextFormat(Body):
    """Any text."""

    type: Literal["text"]


class ObjectFormat(Body):
    """A JSON object."""

    type: Literal["json_object"]


class SchemaFormat(Body):
    """JSON that fits a schema."""

    type: Literal["json_schema"]
    json_schema: Schema


Format = Annotated[TextFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")]


class ChatRequest(Sampled):
    """A conversation to go on with."""

    messages: list[Message] = Field(min_length=1, max_length=10_000)
    max_completion_tokens: int | None = Field(None, ge=1, le=2**31 - 1)
    max_tokens: int | None = Field(None, ge=1, le=2**31 - 1, description="The older name of max_completion_tokens.")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[Tool] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: Format | None = None
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description='More that the chat template reads, such as {"enable_thinking": false}.'
    )


class CompletionRequest(Sampled):
    """Texts to continue, or to answer by an encoder-decoder."""

    prompt: str | list[str] | list[TokenId] | list[list[TokenId]] = Field(description="A text or several, or their token ids.")
    max_tokens: int | None = Field(None, ge=0, le=2**31 - 1, description="Left out, 16. 0 is for prompts that are only scored.")
    logprobs: int | None = Field(None, ge=0, le=20, description="Tell so many of the most probable tokens at each step.")
    echo: bool | None = Field(None, description="Put the prompt before the answer; with logprobs its tokens are scored too.")
    prompt_logprobs: int | None = Field(
        None, ge=0, le=20, description="Score the tokens of the prompt, and tell so many of the most probable ones in their places."
    )
    suffix: str | None = None
    best_of: int | None = Field(None, ge=1, le=128)


class EmbeddingRequest(Requested):
    """Texts to turn into vectors."""

    input: str | list[str]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1, description="Only the model's own width.")


class TextsRequest(Requested):
    """Texts to judge."""

    input: str | list[str]


class ClassifyRequest(TextsRequest):
    """Texts or pictures to judge."""

    input: str | list[str] = Field(description="Texts; for a model of pictures encoded pictures as base64, or data URLs of them.")
    labels: Annotated[list[Label], Field(min_length=2, max_length=256)] | None = Field(
        None, description="For a model of pictures and texts: the texts to choose from."
    )


class FillRequest(TextsRequest):
    """Texts with [MASK] in them."""

    top: int = Field(5, ge=1, le=100, description="Candidates told for each mask.")


class TagRequest(TextsRequest):
    """Texts in which names are looked for."""

    aggregate: Literal["none", "simple", "first", "average", "max"] = Field(
        "simple", description="How tokens are joined: not at all, in a row of one label, or by words first."
    )


class AnswerRequest(Requested):
    """A question about a passage."""

    question: Annotated[str, StringConstraints(min_length=1)]
    context: Annotated[str, StringConstraints(min_length=1)]
    top: int = Field(1, ge=1, le=20, description="So many answers, the best first.")
    may_abstain: bool = Field(False, description="Whether an answer may be that there is none, an empty text.")
