"""A Triform model as lm-evaluation-harness asks it: likelihoods and written answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lm_eval.api.model import LM

from triform.generate.batch import run_together
from triform.generate.forms import expect
from triform.generate.requests import Request
from triform.generate.sampling import Sampling
from triform.nn import Transformer
from triform.text.framing import opening, source

from .likelihood import beginning, language_model, limit_of, log_likelihoods, token_log_probs
from .perplexity import windows
from .task import Judged

_LONGEST = 2048  # tokens that are read at a time where the model does not say, as in the harness
_MOST = 256  # tokens of an answer, as in the harness
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens")
_DRAWING = ("top_k", "top_p", "min_p", "typical_p")
_NO_CHANGE = {"num_beams": 1, "use_cache": True}
_BATCH = 32
_SEEDS = 2**30


class HarnessModel(LM):  # type: ignore[misc]
    """The harness' interface over a model of any form.

    chat: texts are written by the tokenizer's chat template, so that special tokens in them are tokens.
    seed: of answers that are drawn. on_progress: called with how many requests are done, of how many.
    """

    def __init__(
        self, judged: Judged, *, chat: bool = False, seed: int = 0, on_progress: Callable[[int, int], None] | None = None
    ) -> None:
        super().__init__()
        self.judged, self.chat, self.seed, self.on_progress = judged, chat, seed, on_progress
        self.net: Transformer = language_model(judged.model)

    @property
    def longest(self) -> int:
        """The most tokens that are read at a time."""
        return limit_of(self.net, self.judged.tokenizer) or _LONGEST

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """For each request (context, continuation) the log-probability, in nats, and whether greedy search would write it."""
        pairs = [request.args for request in requests]
        found = log_likelihoods(self.net, self.judged.tokenizer, pairs, rendered=self.chat, on_rows=self.on_progress)
        return [(one.log_prob, one.greedy) for one in found]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """For each request (text,) the log-probability of all its tokens, read window by window, none of which overlap."""
        texts = [request.args[0] for request in requests]
        tokenizer = self.judged.tokenizer
        if self.net.config.form != "decoder-only":
            return [one.log_prob for one in log_likelihoods(self.net, tokenizer, [("", text) for text in texts], on_rows=self.on_progress)]
        start = beginning(tokenizer)
        rows, owners = [], []
        for number, ids in enumerate(tokenizer.encode_batch(texts, plain=True)):
            own = windows(ids, self.longest, self.longest, start)
            rows += own
            owners += [number] * len(own)
        sums = [0.0] * len(texts)
        for number, one in zip(owners, token_log_probs(self.net, tokenizer, rows, on_rows=self.on_progress), strict=True):
            sums[number] += one.log_prob
        return sums

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """For each request (context, settings) the text that is written, up to the first of its stop strings `until`.

        What is too long to be read is cut at its beginning. Raises ValueError for settings that Triform does not know.
        """
        expect(self.net, "generate")
        found: list[str] = []
        for start in range(0, len(requests), _BATCH):
            batch = [self._request(start + row, *one.args) for row, one in enumerate(requests[start : start + _BATCH])]
            runs = run_together(self.net, self.judged.tokenizer, batch, rows=_BATCH)
            found += [run.text for run in runs]
            if self.on_progress is not None:
                self.on_progress(len(found), len(requests))
        return found

    def _request(self, number: int, context: str, settings: Mapping[str, Any]) -> Request:
        tokenizer = self.judged.tokenizer
        sampling = sampling_of(settings, self.seed * _SEEDS + number)
        ids = tokenizer.encode(context, plain=not self.chat)
        if self.net.encoder is not None:
            return Request(ids=source(tokenizer, ids, self.longest), sampling=sampling)
        before = [] if self.chat else opening(tokenizer) if ids else beginning(tokenizer)
        room = self.longest - len(before) - sampling.max_new_tokens
        if room < 1:
            raise ValueError(f"max_gen_toks: expected fewer than the {self.longest:,} tokens that the model reads, "
                             f"got {sampling.max_new_tokens:,}; lower it")  # fmt: skip
        return Request(ids=[*before, *ids[-room:]], sampling=sampling)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as the tokenizer's chat template writes it; without a generation prompt its last message is gone on with."""
        text = self.judged.tokenizer.render_chat(chat_history, generation_prompt=add_generation_prompt)
        if add_generation_prompt:
            return text
        last = chat_history[-1]["content"].strip()
        return text[: text.rindex(last) + len(last)]

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template by its name, or the default one, for the harness' notes."""
        templates = self.judged.tokenizer.chat_templates
        return templates.get(chat_template) if isinstance(chat_template, str) else self.judged.tokenizer.chat_template

    @property
    def tokenizer_name(self) -> str:
        """What caches of requests are named by."""
        return self.judged.tokenizer.fingerprint[:16]


def sampling_of(settings: Mapping[str, Any], seed: int) -> Sampling:
    """The harness' settings of an answer as ours. Raises ValueError for one that Triform does not have."""
    left = {name: value for name, value in settings.items() if value is not None}
    until = left.pop("until", ())
    most = [left.pop(name) for name in _LENGTHS if name in left] or [_MOST]
    temperature = left.pop("temperature", None)
    drawn = left.pop("do_sample", bool(temperature))
    how = {name: left.pop(name) for name in ("repetition_penalty", *_DRAWING) if name in left}
    for name, value in left.items():
        if _NO_CHANGE.get(name) != value:
            raise ValueError(f"generation_kwargs: {name}={value!r} is not known to Triform's adapter; leave it out of the task")
    stop = tuple(text for text in ([until] if isinstance(until, str) else until) if text)
    if not drawn:
        how = {name: value for name, value in how.items() if name not in _DRAWING}
    how["temperature"] = 0 if not drawn else 1 if temperature is None else temperature
    return Sampling(max_new_tokens=int(most[0]), stop=stop, seed=seed, **how)
