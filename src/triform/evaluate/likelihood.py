"""How probable a model finds texts: what the choice between answers and perplexity are measured by.

Shapes: B rows, T tokens of a row, D width, P scored places, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from triform import config
from triform.generate.admission import start_of
from triform.generate.forms import Module, check_ids, evaluating, longest, padded, use_of
from triform.nn import Layout, Transformer
from triform.objectives.answers import fitted
from triform.objectives.preference import Written
from triform.text import Tokenizer
from triform.text.framing import judged, opening, source

_TOKENS = 4096  # of a batch, padding included
_SCORES = 2**24  # scores over the vocabulary that are made at a time


@dataclass(frozen=True)
class Likelihood:
    """Of a continuation: the sum of its tokens' log-probabilities (nats), whether each is the most probable one, and how many it has.

    cut: so many tokens of what stood before it were left out, as the model reads no more.
    """

    log_prob: float
    greedy: bool
    tokens: int
    cut: int = 0


@dataclass
class _Row:
    """What is read (and the decoder's input of an encoder-decoder), and which tokens are scored for whom, from which place on."""

    read: tuple[int, ...]
    target: tuple[int, ...] = ()
    prefix: int = 0
    asked: list[tuple[int, int, tuple[int, ...]]] = field(default_factory=list)  # number, place, tokens

    @property
    def size(self) -> int:
        return len(self.read) + len(self.target)


def log_likelihoods(
    model: Module, tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]],
    *, rendered: bool = False, on_rows: Callable[[int, int], None] | None = None,
) -> list[Likelihood]:  # fmt: skip
    """How probable each continuation is after its context, as lm-evaluation-harness defines it; a context may be empty.

    Both are encoded as one text, and blanks that end a context belong to the continuation. A decoder-only model begins with its
    opening, and after an empty context with bos or eos in any case. The encoder of an encoder-decoder reads the context. An
    encoder-only model has each token of the continuation hidden in turn, with all others seen (pseudo-log-likelihood,
    Salazar et al. 2020). What is too long for learned positions, or for the tokenizer's `length`, is cut at its beginning.

    rendered: contexts were written by a chat template: special tokens in them are tokens, and nothing is put before them.
    on_rows: called with how many rows are done, of how many. Raises ValueError for a model without a language-model head.
    """
    net = language_model(model)
    encoded = _encode(net, tokenizer, pairs, rendered)
    limit = limit_of(net, tokenizer)
    rows: dict[object, _Row] = {}
    cuts, counts = [0] * len(pairs), [len(tokens) for _, tokens in encoded]
    for number, (context, tokens) in enumerate(encoded):
        for row in _rows(net, tokenizer, context, tokens, limit):
            known = rows.setdefault((row.read, row.target, row.prefix), replace(row, asked=[]))
            known.asked += [(number, place, scored) for _, place, scored in row.asked]
        cuts[number] = 0 if limit is None else max(0, len(context) + len(tokens) - limit - (1 if net.config.form == "decoder-only" else 0))
    return _summed(net, tokenizer, list(rows.values()), counts, on_rows, cuts)


def token_log_probs(
    model: Module, tokenizer: Tokenizer, rows: Sequence[tuple[Sequence[int], Sequence[int]]],
    *, on_rows: Callable[[int, int], None] | None = None,
) -> list[Likelihood]:  # fmt: skip
    """As `log_likelihoods`, of tokens after tokens, (context, continuation), for a decoder-only model; a context has at least one."""
    net = language_model(model)
    made = []
    for number, (context, tokens) in enumerate(rows):
        asked = [(number, len(context) - 1, tuple(tokens))]
        made.append(_Row((*context, *tokens[:-1]), asked=asked))
    return _summed(net, tokenizer, made, [len(tokens) for _, tokens in rows], on_rows, [0] * len(rows))


def answer_likelihoods(
    model: Module, tokenizer: Tokenizer, answers: Sequence[Written], *, on_rows: Callable[[int, int], None] | None = None
) -> list[Likelihood]:
    """How probable answers are after their prompts, by the tokens that the assistant wrote; see `triform.objectives.preference`.

    A prompt that is too long with its answer loses its beginning. Raises ValueError for an encoder-only model.
    """
    net = language_model(model)
    if net.config.form == "encoder-only":
        raise ValueError("answers are written by a model with a decoder, and this one is encoder-only")
    limit, encodes = limit_of(net, tokenizer), net.config.form == "encoder-decoder"
    rows, counts = [], []
    for number, one in enumerate(answers):
        if encodes:
            start = start_of(tokenizer)
            prompt, answer = one.prompt[:limit], one.answer[: None if limit is None else limit - len(start) + 1]
            row, first = _Row(tuple(prompt), (*start, *answer[:-1])), len(start) - 1
        else:
            prompt, (answer,) = (one.prompt, [one.answer]) if limit is None else fitted(one.prompt, [one.answer], limit + 1)
            row, first = _Row((*prompt, *answer[:-1])), len(prompt) - 1
        row.asked = [(number, first + at, (token,)) for at, token in enumerate(answer) if one.scored[at]]
        rows.append(row)
        counts.append(len(row.asked))
    return _summed(net, tokenizer, rows, counts, on_rows, [0] * len(rows))


def limit_of(net: Transformer, tokenizer: Tokenizer) -> int | None:
    """The most tokens of a row: the tokenizer's, or the positions that the model has learned; None without any of them."""
    limits = (tokenizer.length, longest(net.config.encoder), longest(net.config.decoder))
    return min((limit for limit in limits if limit is not None), default=None)


def beginning(tokenizer: Tokenizer) -> list[int]:
    """What a text without a context follows: the opening, or bos, or eos. Raises ValueError for a tokenizer with none of them."""
    found = opening(tokenizer) or [token for token in (tokenizer.bos, tokenizer.eos) if token is not None][:1]
    if not found:
        raise ValueError("the tokenizer has neither a bos nor an eos token, and the first token needs one to follow; give it one")
    return found


def language_model(model: Module) -> Transformer:
    """The model, if it is one whose likelihoods are known. Raises ValueError for another."""
    if not isinstance(model, Transformer) or use_of(model.config) not in ("generate", "fill"):
        found = use_of(model.config)
        raise ValueError(f"likelihoods need a LanguageModel head, and this model is one to {found or 'compare texts and pictures'} with")
    return model


def _encode(
    net: Transformer, tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]], rendered: bool
) -> list[tuple[list[int], list[int]]]:
    """Context and continuation as tokens."""
    moved = []
    for number, (context, continuation) in enumerate(pairs, 1):
        if not continuation:
            raise ValueError(f"item {number}: expected a continuation to score, got an empty text")
        blanks = len(context) - len(context.rstrip())
        moved.append((context[: len(context) - blanks], context[len(context) - blanks :] + continuation))
    contexts = tokenizer.encode_batch([context for context, _ in moved], plain=not rendered)
    if net.config.form == "encoder-decoder":
        alone = tokenizer.encode_batch([continuation for _, continuation in moved], plain=not rendered)
        return [(source(tokenizer, context), tokens) for context, tokens in zip(contexts, alone, strict=True)]
    wholes = tokenizer.encode_batch([context + continuation for context, continuation in moved], plain=not rendered)
    begins = net.config.form == "decoder-only"
    found = []
    for own, whole in zip(contexts, wholes, strict=True):
        size = min(len(own), len(whole) - 1)  # the continuation's first letters may have become one token with the context's last
        before = [] if not begins or (rendered and size) else opening(tokenizer) if size else beginning(tokenizer)
        found.append((before + own[:size], whole[size:]))
    return found


def _rows(net: Transformer, tokenizer: Tokenizer, context: list[int], tokens: list[int], limit: int | None) -> Iterator[_Row]:
    """The rows that score a continuation; their number is filled in by the caller."""
    if net.config.form == "encoder-decoder":
        start = start_of(tokenizer)
        kept = tokens if limit is None else tokens[: limit - len(start) + 1]
        read = context if limit is None else context[-limit:]
        yield _Row(tuple(read), (*start, *kept[:-1]), asked=[(0, len(start) - 1, tuple(kept))])
    elif net.config.form == "decoder-only":
        whole = context + tokens
        whole = whole if limit is None else whole[-(limit + 1) :]
        scored = tokens[-(len(whole) - 1) :]
        before = len(whole) - len(scored)
        prefix = before if _has_prefix(net) else 0
        yield _Row(tuple(whole[:-1]), prefix=prefix, asked=[(0, before - 1, tuple(scored))])
    else:
        if tokenizer.mask is None:
            raise ValueError("likelihoods by an encoder-only model need a tokenizer with a mask token, and this one has none")
        frame = judged(tokenizer, [])
        ids = (context + tokens) if limit is None else (context + tokens)[-(limit - len(frame)) :]
        row, first = judged(tokenizer, ids), 1 if len(frame) > 1 else 0
        for place in range(first + max(0, len(ids) - len(tokens)), first + len(ids)):
            yield _Row((*row[:place], tokenizer.mask, *row[place + 1 :]), asked=[(0, place, (row[place],))])


def _has_prefix(net: Transformer) -> bool:
    spec = net.config.decoder
    return spec is not None and any(block.attention.mask == "prefix" for block in spec.pattern)


def _summed(
    net: Transformer, tokenizer: Tokenizer, rows: list[_Row], counts: list[int], on_rows: Callable[[int, int], None] | None, cuts: list[int]
) -> list[Likelihood]:
    spec = net.config.encoder or net.config.decoder
    assert spec is not None
    check_ids([row.read for row in rows], spec)
    sums, greedy = [0.0] * len(counts), [True] * len(counts)
    done = 0
    for batch in _batches(rows):
        for number, log_prob, best in _scored(net, tokenizer, batch):
            sums[number] += log_prob
            greedy[number] &= best
        done += len(batch)
        if on_rows is not None:
            on_rows(done, len(rows))
    return [Likelihood(*found) for found in zip(sums, greedy, counts, cuts, strict=True)]


def _batches(rows: list[_Row]) -> Iterator[list[_Row]]:
    """Rows of like length together, the longest first, so that memory that suffices at first suffices to the end."""
    batch: list[_Row] = []
    for row in sorted(rows, key=lambda row: -row.size):
        if batch and (len(batch) + 1) * batch[0].size > _TOKENS:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _scored(net: Transformer, tokenizer: Tokenizer, batch: list[_Row]) -> Iterator[tuple[int, float, bool]]:
    """Of each thing asked of a batch: its number, its log-probability, and whether all its tokens are the most probable."""
    with evaluating(net) as device:
        fill = tokenizer.pad or 0
        ids, mask = padded([row.read for row in batch], fill, device)
        target = target_mask = layout = None
        if batch[0].target:
            target, target_mask = padded([row.target for row in batch], fill, device)
        if any(row.prefix for row in batch):
            places = torch.arange(ids.shape[1], device=device)
            layout = Layout(prefix=places < torch.tensor([[row.prefix] for row in batch], device=device))
        hidden = net(ids, mask, target, target_mask, layout=layout, logits=False).hidden
        wanted = [(row, *one) for row, each in enumerate(batch) for one in each.asked]
        spots = [(row, place + step, token) for row, _, place, tokens in wanted for step, token in enumerate(tokens)]
        log_probs, best = _of_tokens(net, hidden, torch.tensor(spots, device=device))
    at = 0
    for _, number, _, tokens in wanted:
        yield number, float(log_probs[at : at + len(tokens)].sum()), bool(best[at : at + len(tokens)].all())
        at += len(tokens)


def _of_tokens(net: Transformer, hidden: Tensor, spots: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities (P,), in double precision, of tokens at places (P, 3: row, place, token), and whether each is the best."""
    log_probs, best = [], []
    assert isinstance(net.config.last.input, config.Tokens)
    for some in torch.split(spots, max(1, _SCORES // net.config.last.input.vocab_size)):
        row, place, token = some.unbind(1)
        scores = net.score(hidden[row, place][None])
        assert scores is not None
        scores = scores[0].float().log_softmax(-1)
        log_probs.append(scores.gather(1, token[:, None])[:, 0].double().cpu())
        best.append((scores.argmax(-1) == token).cpu())
    return torch.cat(log_probs), torch.cat(best)
