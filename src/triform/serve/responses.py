"""What clients get, in OpenAI's shapes."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from .requests import ToolCall


class ErrorDetail(BaseModel):
    """What went wrong: one line for people, the field at fault, a code for programs."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """An error."""

    error: ErrorDetail


class Usage(BaseModel):
    """Tokens read and made."""

    prompt_tokens: int
    completion_tokens: int = 0
    total_tokens: int


class TopToken(BaseModel):
    """A token that could have been chosen."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogProb(TopToken):
    """A token that was chosen, its log-probability (nats), and the most probable ones in its place."""

    top_logprobs: list[TopToken] = []


class ChoiceLogProbs(BaseModel):
    """The tokens of an answer."""

    content: list[TokenLogProb]
    refusal: None = None


FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


class AnswerMessage(BaseModel):
    """What the assistant says."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChoiceLogProbs | None = None
    finish_reason: FinishReason


class ChatCompletion(BaseModel):
    """Answers to a conversation."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str | None = None
    choices: list[ChatChoice]
    usage: Usage


class TextLogProbs(BaseModel):
    """The tokens of a continuation, as the older endpoint tells them. The first of a prompt's tokens has no log-probability."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class PromptToken(BaseModel):
    """A token in a prompt's place: its log-probability (nats), how many are at least as probable, and its text."""

    logprob: float
    rank: int
    decoded_token: str


class TextChoice(BaseModel):
    """One continuation."""

    index: int
    text: str
    logprobs: TextLogProbs | None = None
    prompt_logprobs: list[dict[str, PromptToken] | None] | None = Field(
        None, description="Of each token of the prompt but the first: it, and the most probable ones in its place, by their ids."
    )
    finish_reason: FinishReason | None


class Completion(BaseModel):
    """Continuations."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str | None = None
    choices: list[TextChoice]
    usage: Usage


class Vector(BaseModel):
    """A text's vector: numbers, or base64 of little-endian 32-bit floats."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Embeddings(BaseModel):
    """Texts' vectors."""

    object: Literal["list"] = "list"
    data: list[Vector]
    model: str
    usage: Usage


class Moderation(BaseModel):
    """A judgement of the classifier that was named for moderation."""

    flagged: bool
    categories: dict[str, bool]
    category_scores: dict[str, float]


class Moderations(BaseModel):
    """Judgements of texts."""

    id: str
    model: str
    results: list[Moderation]


class Judged(BaseModel):
    """The most probable label of a text, its probability, and every label's."""

    label: str
    score: float
    scores: dict[str, float]


class Classified(BaseModel):
    """Texts' labels."""

    object: Literal["list"] = "list"
    model: str
    results: list[Judged]
    usage: Usage


class MaskCandidate(BaseModel):
    """A token that may stand in a mask's place."""

    text: str
    id: int
    probability: float


class FilledText(BaseModel):
    """A text with its masks filled, and the candidates of each."""

    text: str
    masks: list[list[MaskCandidate]]


class FilledTexts(BaseModel):
    """Texts filled in."""

    object: Literal["list"] = "list"
    model: str
    results: list[FilledText]
    usage: Usage


class EntityFound(BaseModel):
    """A part of a text that has a label: its characters from `start` up to `end`."""

    label: str
    score: float
    start: int
    end: int
    text: str


class Tagged(BaseModel):
    """The names in texts."""

    object: Literal["list"] = "list"
    model: str
    results: list[list[EntityFound]]
    usage: Usage


class AnswerFound(BaseModel):
    """A part of the passage, its characters from `start` up to `end`, and its probability; an empty text: there is no answer."""

    text: str
    score: float
    start: int
    end: int


class Answers(BaseModel):
    """Answers to a question."""

    model: str
    answers: list[AnswerFound]
    usage: Usage


class ModelCard(BaseModel):
    """A model that is served, and what it can be asked for."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "triform"
    use: str = Field(description="generate, fill, classify, see (classify pictures), tag, answer or embed")
    form: str = Field(description="encoder-only, decoder-only, encoder-decoder or dual-encoder")
    chat: bool = Field(description="Whether /v1/chat/completions takes it.")
    tools: bool = Field(description="Whether its chat template knows tools.")
    max_prompt_tokens: int
    labels: list[str] | None = None
    parent: str | None = Field(None, description="The model that this one is an adapter of, where that is served too.")


class ModelList(BaseModel):
    """The models that are served."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(BaseModel):
    """Whether the server is there, or ready."""

    status: Literal["ok", "draining"]
