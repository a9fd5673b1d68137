"""The models that are served, each with what runs it: the engine for one that generates, a batcher for one that judges."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from triform import config, generate, hub
from triform.generate.content_filter import ContentFilter
from triform.generate.engine import Engine
from triform.generate.forms import longest
from triform.generate.pictures import PictureFormat
from triform.generate.prepared import Precision, blocks_of, prepare
from triform.text import Tokenizer, chat
from triform.text.framing import judged, opening, prompts, source

from .batcher import Batcher
from .errors import ServeError, bad
from .tokens import Offsets, Read, TokenTexts
from .tools import Dialect, dialect

_TOGETHER = 32  # texts that a model judges at once
_PICTURES = 16  # pictures that a model judges at once
_PIXELS = 2**24  # of a picture that is decoded
_PLACES = {
    "generate": "/v1/chat/completions or /v1/completions",
    "embed": "/v1/embeddings",
    "classify": "/v1/classify",
    "see": "/v1/classify, with a picture",
    "fill": "/v1/fill-mask",
    "tag": "/v1/token-classify",
    "answer": "/v1/answer",
}


class Served:
    """A model under the name that requests call it by."""

    tokenizer: Tokenizer

    def __init__(self, name: str, model: Any) -> None:
        self.name, self.model = name, model
        self.created = int(time.time())
        self.labels: list[str] | None = None

    @property
    def use(self) -> str:
        """What it is for, as `generate.use_of` says."""
        return generate.use_of(self.model.config) or ""

    @property
    def form(self) -> str:
        """encoder-only, decoder-only or encoder-decoder."""
        return str(self.model.config.form)


class Writer(Served):
    """A model that generates, behind an engine.

    adapter: the one of the model's that its requests are answered with; parent: the name of the model without it, where that is served.
    """

    def __init__(
        self, name: str, model: Any, tokenizer: Tokenizer, engine: Engine, *, adapter: str | None = None, parent: str | None = None
    ) -> None:
        super().__init__(name, model)
        self.adapter, self.parent = adapter, parent
        self.engine, self.tokenizer = engine, tokenizer
        self.texts = TokenTexts(tokenizer)
        self.tools: Dialect | None = dialect(tokenizer)
        slots, encodes = engine.batch.slots, model.config.encoder is not None
        limits = (slots.source_capacity if encodes else slots.capacity, longest(model.config.encoder if encodes else model.config.decoder))
        self.prompt_tokens = min(limit for limit in limits if limit is not None)

    @property
    def chats(self) -> bool:
        """Whether it answers conversations: by its chat template, or the last message by an encoder-decoder."""
        return self.tokenizer.chat_template is not None or self.form == "encoder-decoder"

    def read_prompts(self, given: Sequence[str | list[int]], *, offsets: bool = False) -> list[Read]:
        """Prompts, texts or token ids, as the model reads them. Names of special tokens in texts are those tokens."""
        texts = [one for one in given if isinstance(one, str)]
        if self.form == "encoder-decoder":
            framed = [source(self.tokenizer, ids) for ids in self.tokenizer.encode_batch(texts)]
        else:
            framed = prompts(self.tokenizer, texts)
        rows = iter(framed)
        return [self._of_text(one, next(rows), offsets) if isinstance(one, str) else self._of_ids(one) for one in given]

    def _of_text(self, text: str, ids: list[int], offsets: bool) -> Read:
        if not offsets:
            return Read(text, ids)
        own = [start for start, _ in self.tokenizer.offsets(text)]
        return Read(text, ids, (*[0] * (len(ids) - len(own)), *own))

    def _of_ids(self, ids: list[int]) -> Read:
        """Token ids, which a client has framed itself; what they begin with as every text does is no part of the text."""
        first = self.model.config.encoder or self.model.config.decoder
        if max(ids, default=0) >= first.input.vocab_size:
            raise ValueError(f"prompt: expected token ids below {first.input.vocab_size:,}, got {max(ids):,}")
        before = opening(self.tokenizer)
        lead = len(before) if before and ids[: len(before)] == before else 0
        offset = Offsets(self.texts)
        return Read(self.tokenizer.decode(ids[lead:], skip_special=False), ids, (*[0] * lead, *map(offset, ids[lead:])))

    def read_chat(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None, variables: Mapping[str, Any]) -> list[int]:
        """The token ids of a conversation, up to where the answer begins."""
        if self.tokenizer.chat_template is not None:
            rendered = chat.render(self.tokenizer, messages, tools=tools, variables=variables)
            return chat.encode(self.tokenizer, rendered).ids
        if self.form != "encoder-decoder":
            raise bad(f"{self.name} has no chat template; ask /v1/completions, or serve a model made for chat", "model")
        if messages[-1]["role"] != "user":
            raise bad("messages: expected the last to be the user's, as this model answers it alone", "messages")
        content = messages[-1].get("content") or ""
        text = content if isinstance(content, str) else "".join(part["text"] for part in content)
        return source(self.tokenizer, self.tokenizer.encode(text, plain=True))

    def gauges(self) -> dict[str, float]:
        """The engine's figures of the moment."""
        stats = self.engine.stats()
        names = ("running", "waiting", "slots", "slots_used", "cache_tokens", "cache_tokens_used", "prefix_hits")
        return {name: float(getattr(stats, name)) for name in names}

    def close(self) -> None:
        """End the engine; what still runs is cancelled."""
        self.engine.close(drain=False, timeout=10)


@dataclass(frozen=True)
class Asked:
    """What texts are asked for: so many candidates of each mask, or answers; how tokens are joined; whether there may be no answer."""

    top: int = 1
    aggregate: str = "simple"
    may_abstain: bool = False


class Judge(Served):
    """A model that judges, embeds, fills in, finds names or answers, behind a batcher.

    task: what is known of it (see `hub.task`): the names of labels, the problem, and the length that texts were cut to in training.
    """

    def __init__(self, name: str, model: Any, tokenizer: Tokenizer, task: Mapping[str, Any], *, queue: int = 8192) -> None:
        super().__init__(name, model)
        self.tokenizer = tokenizer
        self.length: int | None = task.get("length")
        self.problem = task.get("problem_type")
        if self.use in ("classify", "tag"):
            self.labels = list(task.get("labels") or map(str, range(model.config.head.labels)))
        self.batcher = Batcher(self._run, size=_TOGETHER, queue=queue)

    @cached_property
    def prompt_tokens(self) -> int | None:
        """The longest text in tokens, those around it included; None where there is no limit, or longer ones are read in windows."""
        spec = self.model.config
        if self.use in ("tag", "answer"):
            return None
        limits = [self.length, self.tokenizer.length, longest(spec.encoder), longest(spec.decoder)]
        return min((limit for limit in limits if limit is not None), default=None)

    def count(self, texts: Sequence[Any]) -> list[int]:
        """The tokens of each text, those around it included; of a question and its passage together."""
        if self.use == "answer":
            return [sum(map(len, self.tokenizer.encode_batch(pair, plain=True))) for pair in texts]
        if self.use == "fill":
            return list(map(len, self.tokenizer.encode_batch(texts, special=True)))
        return [len(judged(self.tokenizer, ids)) for ids in self.tokenizer.encode_batch(texts, plain=True)]

    async def __call__(self, texts: Sequence[Any], asked: Asked) -> list[Any]:
        """What the model says of each text: a `Judgement`, a vector, a `Filled`, a list of `Entity`, or of a pair a list of `Answer`."""
        parts = [texts[at : at + _TOGETHER] for at in range(0, len(texts), _TOGETHER)]
        found = await asyncio.gather(*(self.batcher(part, asked) for part in parts))
        return [one for part in found for one in part]

    def _run(self, texts: Sequence[Any], asked: Asked) -> list[Any]:
        if self.use == "answer":
            questions, passages = zip(*texts, strict=True)
            how = generate.Answering(top=asked.top, may_abstain=asked.may_abstain, length=self.length)
            return generate.answer(self.model, self.tokenizer, list(questions), list(passages), how)
        if self.use == "tag":
            aggregate: Any = asked.aggregate
            return generate.tag(self.model, self.tokenizer, texts, self.labels, aggregate=aggregate, length=self.length)
        if self.use == "fill":
            return generate.fill(self.model, self.tokenizer, texts, asked.top)
        if self.use == "embed":
            return list(generate.embed(self.model, self.tokenizer, texts, length=self.length).unbind())
        return generate.classify(self.model, self.tokenizer, texts, self.labels, problem=self.problem, length=self.length)

    def gauges(self) -> dict[str, float]:
        """Texts at work and texts that wait."""
        return {"running": self.batcher.running, "waiting": self.batcher.waiting}

    def close(self) -> None:
        """Run what waits, and end."""
        self.batcher.close()


class Viewer(Served):
    """A model that judges pictures, behind a batcher: by labels of its own (ViT), or by texts that a request gives (CLIP).

    task: as of `Judge`. reading: how a picture becomes what the model reads.
    """

    def __init__(self, name: str, model: Any, tokenizer: Tokenizer | None, task: Mapping[str, Any], reading: PictureFormat) -> None:
        super().__init__(name, model)
        if tokenizer is not None:
            self.tokenizer = tokenizer
        self.reading, self.problem = reading, task.get("problem_type")
        self.chooses = isinstance(model.config, config.DualEncoder)
        if not self.chooses:
            self.labels = list(task.get("labels") or map(str, range(model.config.head.labels)))
        stack = model.config.image if self.chooses else model.config.encoder
        self.prompt_tokens: int = stack.input.length  # of every picture
        self.batcher = Batcher(self._run, size=_PICTURES, queue=64 * _PICTURES)

    def look(self, pictures: Sequence[bytes]) -> list[Any]:
        """The pixels of encoded pictures. Raises ServeError 400 for what is no picture."""
        found = []
        for number, picture in enumerate(pictures):
            try:
                found.append(self.reading.read(picture, _PIXELS))
            except ValueError as error:
                raise bad(f"input: picture {number}: {error}", "input") from None
        return found

    async def __call__(self, pixels: Sequence[Any], labels: tuple[str, ...]) -> list[Any]:
        """A `Judgement` of each picture."""
        parts = [pixels[at : at + _PICTURES] for at in range(0, len(pixels), _PICTURES)]
        found = await asyncio.gather(*(self.batcher(part, labels) for part in parts))
        return [one for part in found for one in part]

    def _run(self, pixels: Sequence[Any], labels: tuple[str, ...]) -> list[Any]:
        tokenizer, names = (self.tokenizer, labels) if self.chooses else (None, self.labels)
        return generate.classify_pictures(
            self.model, pixels, names, tokenizer=tokenizer, reading=self.reading, problem=self.problem
        )

    def gauges(self) -> dict[str, float]:
        """Pictures at work and pictures that wait."""
        return {"running": self.batcher.running, "waiting": self.batcher.waiting}

    def close(self) -> None:
        """Run what waits, and end."""
        self.batcher.close()


Model = Writer | Judge | Viewer


class Models:
    """The models by name. moderator: the name of the classifier that /v1/moderations asks. guard: judges what is asked of the models
    that generate, and what they answer."""

    def __init__(self, models: Iterable[Model], moderator: str | None = None, guard: ContentFilter | None = None) -> None:
        self.guard = guard
        self.by_name: dict[str, Model] = {}
        for model in models:
            if model.name in self.by_name:
                raise ValueError(f"two models are named {model.name!r}; name them: triform serve first=PATH second=PATH")
            self.by_name[model.name] = model
        self.moderator = moderator
        if moderator is not None:
            found = self.by_name[moderator]
            if not isinstance(found, Judge) or found.use != "classify" or found.problem == "regression":
                raise ValueError(f"--moderation: expected a classifier, and {moderator} is none")

    def find(self, name: str | None) -> Model:
        """A model by name. Raises ServeError 404 for none."""
        if name not in self.by_name:
            known = ", ".join(self.by_name)
            raise ServeError(404, f"no model is named {name!r}; served here: {known}", param="model", code="model_not_found")
        return self.by_name[name]

    def of_use(self, name: str | None, *uses: str) -> Any:
        """A model for one of some uses: the one named, or the first. Raises ServeError 404 where there is none, 400 for another use."""
        if name is None:
            found = next((model for model in self.by_name.values() if model.use in uses), None)
            if found is None:
                raise ServeError(404, f"no model served here can {uses[0]}", param="model", code="model_not_found")
            return found
        model = self.find(name)
        if model.use not in uses:
            raise bad(f"{name} cannot {uses[0]}; ask it at {_PLACES[model.use]}", "model", "wrong_model")
        return model

    def gauges(self) -> dict[str, dict[str, float]]:
        """Every model's figures of the moment."""
        return {name: model.gauges() for name, model in self.by_name.items()}

    def close(self) -> None:
        """End all of them."""
        for model in self.by_name.values():
            model.close()


def open_model(place: str, name: str | None = None, *, dtype: Precision = "auto", queue: int = 256, **engine: Any) -> Model:
    """Load a model from a path or a name (see `hub.locate`), and make it ready to serve.

    name: what requests call it by; left out, the last part of its place, or the part before it where that is "model" (a run's folder).
    dtype: how the weights of a model that generates are kept (see `prepare`). queue: requests that may wait; of texts to judge
        32 times as many. engine: what `Engine` takes besides.

    Raises ValueError for a model that cannot be served.
    """
    path = hub.locate(place)
    model, tokenizer = hub.load(path)
    name = name or name_of(place, path)
    use = generate.use_of(model.config)
    if use not in _PLACES:
        head = getattr(model.config, "head", None)
        raise ValueError(f"{path}: this {model.config.form} model with the head {type(head).__name__} cannot be served")
    if tokenizer is None and (use != "see" or isinstance(model.config, config.DualEncoder)):
        raise ValueError(f"{path}: expected the model's tokenizer beside it, found none; put tokenizer.json there")
    if use == "see":
        return Viewer(name, model, tokenizer, hub.task(path), PictureFormat.open(model.config, path))
    assert tokenizer is not None
    if use == "generate":
        model = prepare(model, dtype, blocks_of(path))
        return Writer(name, model, tokenizer, Engine(model, tokenizer, queue=queue, **engine))
    return Judge(name, model, tokenizer, hub.task(path) if path.is_dir() else {}, queue=32 * queue)


def name_of(place: str, path: Path) -> str:
    """What requests call a model by whose name was not said."""
    if not Path(place).exists():
        return place
    path = path.resolve()
    return path.parent.name if path.name == "model" else path.stem if path.suffix == ".gguf" else path.name
