"""Servers with small models, each on a port of its own."""

from __future__ import annotations

import asyncio
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import numpy as np
import tiny
import torch
from openai import OpenAI
from PIL import Image
from recipes import LINES

import triform
from triform import config
from triform.generate import PictureFormat
from triform.generate.engine import Engine
from triform.generate.requests import Event, Request, Ticket
from triform.serve import Judge, Models, Settings, Viewer, Writer, create_app, listen
from triform.serve.run import Server
from triform.text import Tokenizer, train_tokenizer

TEMPLATES = json.loads((Path(__file__).with_name("text") / "chat_templates.json").read_text(encoding="utf-8"))
CONTROL = ["<|im_start|>", "<|im_end|>"]
LABELS = ["fine", "rude", "violent"]


def chat_tokenizer(template: str = "qwen2.5") -> Tokenizer:
    """Byte-level BPE with the control tokens of ChatML, and a real family's template."""
    roles = {"pad": "[PAD]", "bos": "[BOS]", "eos": "<|im_end|>"}
    tokenizer = train_tokenizer(LINES * 4, kind="byte-bpe", vocab_size=340, min_frequency=1, special_tokens=["[PAD]", "[BOS]", *CONTROL])
    tokenizer.roles = roles
    tokenizer.ends = [tokenizer.id("<|im_end|>")]
    tokenizer.chat_template = TEMPLATES.get(template, template)
    return tokenizer


def random_writer(name: str = "tiny", capacity: int = 1024, slots: int = 4, queue: int = 16) -> Writer:
    """A decoder with random weights, behind the real engine."""
    tokenizer = chat_tokenizer()
    attention = config.Attention(heads=2, kv_heads=1, mask="causal", position=config.Rotary(), bias="none")
    block = config.Block(attention=attention, feed_forward=config.FeedForward(hidden=48))
    stack = config.Stack(width=24, depth=2, input=config.Tokens(vocab_size=tokenizer.vocab_size), pattern=(block,), norm=config.LayerNorm())
    model = disturbed(config.Transformer(decoder=stack, head=config.LanguageModel(tied=False)))
    return Writer(name, model, tokenizer, Engine(model, tokenizer, slots=slots, capacity=capacity, queue=queue))


def translator(name: str = "both") -> Writer:
    """An encoder-decoder with random weights, behind the real engine."""
    tokenizer = chat_tokenizer()
    tokens, hidden = config.Tokens(vocab_size=tokenizer.vocab_size), config.FeedForward(hidden=48)
    across = config.Attention(heads=2)
    read = config.Block(attention=across, feed_forward=hidden)
    write = config.Block(attention=config.Attention(heads=2, mask="causal", position=config.Rotary()), cross=across, feed_forward=hidden)
    encoder, decoder = (config.Stack(width=24, depth=1, input=tokens, pattern=(block,)) for block in (read, write))
    model = disturbed(config.Transformer(encoder=encoder, decoder=decoder, head=config.LanguageModel(tied=False)))
    return Writer(name, model, tokenizer, Engine(model, tokenizer, slots=2, capacity=64))


def disturbed(spec: config.Model) -> Any:
    """A model whose outputs vary from place to place."""
    model = triform.build(spec, seed=0).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def judge(name: str, head: config.Head) -> Judge:
    """An encoder with random weights."""
    tokenizer = train_tokenizer(LINES * 4, kind="wordpiece", vocab_size=261, min_frequency=1)
    block = config.Block(attention=config.Attention(heads=2), feed_forward=config.FeedForward(hidden=48))
    tokens = config.Tokens(vocab_size=tokenizer.vocab_size, position=config.Learned(length=64))
    stack = config.Stack(width=24, depth=2, input=tokens, pattern=(block,), norm=config.LayerNorm())
    labels = {config.Classify: LABELS, config.ClassifyTokens: ["O", "B-PER", "I-PER"]}.get(type(head))
    return Judge(name, disturbed(config.Transformer(encoder=stack, head=head)), tokenizer, {"labels": labels} if labels else {})


def viewer(name: str = "seer", labels: list[str] | None = None) -> Viewer:
    """A small model of pictures: a classifier with labels, or without them one of pictures and texts."""
    block = config.Block(attention=config.Attention(heads=2), feed_forward=config.FeedForward(hidden=48))
    image = config.Stack(width=24, depth=1, input=config.Patches(image=16, patch=8), pattern=(block,), norm=config.LayerNorm())
    tokenizer, spec = None, config.Transformer(encoder=image, head=config.Classify(labels=len(labels or ["", ""])))
    if labels is None:
        tokenizer = chat_tokenizer()
        tokens = config.Tokens(vocab_size=tokenizer.vocab_size, position=config.Learned(length=16))
        spec = config.DualEncoder(text=replace(image, input=tokens), image=image, width=24, end_token=tokenizer.eos)
    return Viewer(name, disturbed(spec), tokenizer, {"labels": labels} if labels else {}, PictureFormat.of(spec, {}))


def picture(seed: int, width: int = 20, height: int = 30, kind: str = "PNG") -> bytes:
    """An encoded picture of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    held = io.BytesIO()
    Image.fromarray(pixels).save(held, kind)
    return held.getvalue()


class Scripted:
    """An engine's double that writes a given text, token by token, and knows who still runs.

    script: from a request to the text. pause: seconds between tokens.
    """

    def __init__(self, tokenizer: Tokenizer, script: Callable[[Request], str], pause: float = 0.0) -> None:
        self.tokenizer, self.script, self.pause = tokenizer, script, pause
        self.batch = SimpleNamespace(slots=SimpleNamespace(capacity=4096, source_capacity=0))
        self.live: set[Ticket] = set()
        self.asked: list[Request] = []

    def submit(self, request: Request, on_event: Callable[[Event], None] | None = None) -> Ticket:
        ticket = Ticket(request, on_event)
        self.live.add(ticket)
        self.asked.append(request)
        threading.Thread(target=self._write, args=(ticket,), daemon=True).start()
        return ticket

    def _write(self, ticket: Ticket) -> None:
        ids = self.tokenizer.encode(self.script(ticket.request), plain=True)
        room = ticket.request.sampling.max_new_tokens
        stream = triform.generate.TextStream(self.tokenizer)
        for number, token in enumerate([*ids, self.tokenizer.eos], 1):
            time.sleep(self.pause)
            if ticket.cancelled:
                ticket.hear(Event(None, finish_reason="cancelled"))
                break
            last = "stop" if token == self.tokenizer.eos else "length" if number == room else None
            text = stream.push(token) + (stream.finish() if last else "")
            ticket.hear(Event(token, -0.5, ((token, -0.5), (1, -1.5))[: ticket.request.sampling.top_log_probs], text, last))
            if last:
                break
        self.live.discard(ticket)

    def stats(self) -> Any:
        names = ("waiting", "slots", "slots_used", "cache_tokens", "cache_tokens_used", "prefix_hits")
        return SimpleNamespace(running=len(self.live), **dict.fromkeys(names, 0))

    def close(self, drain: bool = True, timeout: float | None = None) -> None:
        for ticket in self.live:
            ticket.cancel()


def scripted_writer(text: str | Callable[[Request], str], name: str = "scripted", template: str = "qwen2.5", pause: float = 0.0) -> Writer:
    """A writer that writes what it is told to."""
    tokenizer = chat_tokenizer(template)
    script = text if callable(text) else lambda _: text
    return Writer(name, tiny.build(tiny.decoder("rotary")), tokenizer, Scripted(tokenizer, script, pause))  # type: ignore[arg-type]


class Running:
    """A server that runs in a thread."""

    def __init__(self, models: Models, settings: Settings) -> None:
        self.app = create_app(models, settings)
        self.models, self.state = models, self.app.state.triform
        self.socket = listen("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.server = Server(self.app)
        self.server.capture_signals = _no_signals  # type: ignore[method-assign]
        self.thread = threading.Thread(target=lambda: asyncio.run(self.server.serve(sockets=[self.socket])), daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.005)

    def client(self, key: str = "none", **options: Any) -> OpenAI:
        """OpenAI's own client."""
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60, **options)

    def post(self, path: str, data: Any = None, **options: Any) -> httpx2.Response:
        """A plain request."""
        return httpx2.post(self.url + path, timeout=60, **({} if data is None else {"json": data}), **options)

    def get(self, path: str, **options: Any) -> httpx2.Response:
        """A plain request."""
        return httpx2.get(self.url + path, timeout=60, **options)

    def stop(self) -> None:
        """As SIGTERM does."""
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive()


@contextmanager
def _no_signals() -> Iterator[None]:
    yield


@contextmanager
def serving(*models: Writer | Judge | Viewer, moderator: str | None = None, **settings: Any) -> Iterator[Running]:
    """A server of these models, stopped afterwards."""
    running = Running(Models(models, moderator), Settings(**{"drain": 1.0} | settings))
    try:
        yield running
    finally:
        running.stop()
