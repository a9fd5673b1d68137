"""Requests made ready to run: checked against the model, with all that the model and the tokenizer say about them."""

from __future__ import annotations

from dataclasses import replace

from triform import config
from triform.nn import Transformer
from triform.nn.adapter import adapter_number
from triform.text import Tokenizer
from triform.text.framing import decoder_start

from .constrained import Matcher
from .forms import check_ids
from .requests import Request, Ticket
from .rows import room
from .sampler import State
from .sampling import Sampling
from .scheduler import Row
from .slots import Slots
from .stream import TextStream


def row_of(net: Transformer, tokenizer: Tokenizer | None, ticket: Ticket, slots: Slots) -> Row:
    """A request made ready to run. Raises ValueError for what the model cannot run."""
    request, spec = ticket.request, net.config
    ids, encodes, sampling = list(request.ids), net.encoder is not None, request.sampling
    if sampling.search is not None:
        raise ValueError("search: the engine goes on with one token a request at a time; use `generate` for beams and contrastive search")
    if tokenizer is None and (sampling.stop or sampling.constraint is not None):
        name = "stop" if sampling.stop else "constraint"
        raise ValueError(f"{name}: expected a tokenizer too, as it is the text that tokens make that is looked at")
    if not ids:
        raise ValueError("ids: expected at least one token; begin an empty prompt with the tokenizer's bos")
    stack = spec.encoder if encodes else spec.decoder
    assert stack is not None
    prompt = _start(request, tokenizer) if encodes else ids
    check_ids([ids], stack)
    if encodes and spec.decoder is not None:
        check_ids([prompt], spec.decoder)
    assert isinstance(spec.last.input, config.Tokens)
    if request.prompt_log_probs is not None:
        _check_scored(spec, request.prompt_log_probs)
    if any(token >= spec.last.input.vocab_size for token, _ in sampling.biases):
        raise ValueError(f"logit_bias: expected ids below the model's {spec.last.input.vocab_size:,} tokens")
    most = room(spec, len(ids), len(prompt), sampling.max_new_tokens)
    if (encodes and len(ids) > slots.source_capacity) or len(prompt) > slots.capacity:
        there = slots.source_capacity if encodes else slots.capacity
        raise ValueError(f"the prompt has {len(ids):,} tokens and the engine's slots hold {there:,}; shorten it, or give a larger capacity")
    context = () if encodes else ids
    eos, barred, guide = frozenset(request.eos or ()), frozenset(request.barred), None
    if tokenizer is not None:
        eos = ends_of(tokenizer) if request.eos is None else eos
        barred |= unknown(spec, tokenizer)
        if sampling.constraint is not None:
            guide = Matcher(sampling.constraint, tokenizer, eos, context)
    state = State(spelled(sampling, tokenizer), prompt, eos=eos, barred=barred, guide=guide)
    # The last token needs no place, as it is not read again.
    mark = 0 if request.adapter is None else (1 + adapter_number(net, request.adapter)) << 40  # above any token's id
    row = Row(ticket, prompt, ids if encodes else (), state, min(most, slots.capacity + 1 - len(prompt)), mark)
    row.eos = eos
    if tokenizer is not None:
        row.stream = TextStream(tokenizer, context, sampling.stop)
    return row


def _start(request: Request, tokenizer: Tokenizer | None) -> list[int]:
    if request.start is not None:
        start = list(request.start)
    else:
        start = [] if tokenizer is None else start_of(tokenizer)
    if not start:
        raise ValueError("start: expected the token that the decoder begins with (the tokenizer's bos, or its pad as T5 has it)")
    return start


def _check_scored(spec: config.Transformer, top: int) -> None:
    if spec.encoder is not None or any(block.attention.mask == "prefix" for block in spec.last.pattern):
        raise ValueError("prompt_log_probs: expected a decoder-only model that sees its prompt from left to right; leave it out")
    if top < 0:
        raise ValueError(f"prompt_log_probs: expected at least 0 of the most probable tokens, got {top}")


def start_of(tokenizer: Tokenizer) -> list[int]:
    """What the decoder of an encoder-decoder begins with."""
    return list(tokenizer.start or [decoder_start(tokenizer)])


def ends_of(tokenizer: Tokenizer) -> frozenset[int]:
    """The tokens that end a text."""
    return frozenset(tokenizer.ends or ([] if tokenizer.sep is None else [tokenizer.sep]))


def spelled(sampling: Sampling, tokenizer: Tokenizer | None) -> Sampling:
    """The sampling with texts that are not to be written as the tokens that a tokenizer makes of them, alone and after a space."""
    texts = [word for word in sampling.bad_words if isinstance(word, str)]
    if not texts:
        return sampling
    if tokenizer is None:
        raise ValueError("bad_words: expected sequences of ids, or a tokenizer too, which texts need")
    found = tokenizer.encode_batch([form for text in texts for form in (text, f" {text}")], plain=True)
    given = [word for word in sampling.bad_words if not isinstance(word, str)]
    return replace(sampling, bad_words=tuple(dict.fromkeys([*given, *(tuple(ids) for ids in found)])))


def unknown(spec: config.Transformer, tokenizer: Tokenizer) -> frozenset[int]:
    """The ids that a model has beyond its tokenizer's: rows that round its table up to a size that computes fast."""
    assert isinstance(spec.last.input, config.Tokens)
    return frozenset(range(tokenizer.vocab_size, spec.last.input.vocab_size))
