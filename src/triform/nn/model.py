"""Encoder-only, decoder-only, encoder-decoder, and two towers, from one stack.

Shapes: B batch, T tokens of the input, U tokens of the target, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from triform import config

from .attention import Trace
from .cache import Cache
from .embed import TokenInput
from .feedforward import Routing
from .heads import Classify, LanguageModel, build_head
from .init import initialize
from .log_probs import linear_log_probs
from .loss import IGNORE, linear_cross_entropy, scored
from .mask import Layout, View
from .stack import Stack


@dataclass
class Aux:
    """What a pass has to say beside its result: the experts' choices, a layer each, and the losses made of them."""

    routing: list[Routing] = field(default_factory=list)

    @property
    def load_balance(self) -> Tensor | None:
        """Load-balance loss, mean over layers of experts; None without experts."""
        return torch.stack([r.load_balance() for r in self.routing]).mean() if self.routing else None

    @property
    def router_z(self) -> Tensor | None:
        """Router z-loss, mean over layers of experts; None without experts."""
        return torch.stack([r.z_loss() for r in self.routing]).mean() if self.routing else None


@dataclass
class Output:
    """What a model returns.

    logits: what the head gives: (B, T, V) or (B, U, V) scores over the vocabulary, (B, labels),
        (B, T, labels), (B, T, 2), or the vectors (B, D) of an Embed head; None without a
        head or when not asked for.
    hidden: (B, T or U, D), what the head reads.
    memory: (B, T, D), the encoder's output, where there are an encoder and a decoder.
    sentence_logits: (B, labels) of the sentence head, if there is one.
    """

    logits: Tensor | None
    hidden: Tensor
    aux: Aux
    memory: Tensor | None = None
    sentence_logits: Tensor | None = None


class Transformer(nn.Module):
    """An encoder, a decoder or both, and a head."""

    def __init__(self, spec: config.Transformer) -> None:
        super().__init__()
        self.config = spec
        self.encoder = Stack(spec.encoder, "encoder") if spec.encoder else None
        self.decoder = Stack(spec.decoder, "decoder", spec.encoder.width if spec.encoder else None) if spec.decoder else None
        if spec.share_tokens and self.encoder is not None and self.decoder is not None:
            assert isinstance(self.encoder.input, TokenInput)
            assert isinstance(self.decoder.input, TokenInput)
            self.decoder.input.token = self.encoder.input.token
        self.head = build_head(spec.head, spec.last)
        self.sentence_head = Classify(spec.sentence_head, spec.last.width) if spec.sentence_head else None

    @property
    def last(self) -> Stack:
        """The stack that the head reads."""
        stack = self.decoder if self.decoder is not None else self.encoder
        assert stack is not None
        return stack

    def forward(
        self,
        inputs: Tensor,
        mask: Tensor | None = None,
        target: Tensor | None = None,
        target_mask: Tensor | None = None,
        cache: Cache | None = None,
        layout: Layout | None = None,
        trace: Trace | None = None,
        logits: bool = True,
    ) -> Output:
        """One pass.

        inputs: token ids (B, T), or pixels (B, channels, side, side) for patches.
        mask: (B, T), False or 0 where padding, on either side.
        target: the decoder's input (B, U) of an encoder-decoder; target_mask likewise.
        cache: keys and values of earlier passes; with it `inputs` (or `target`) holds only
            what is new, and an encoder runs in the first pass alone.
        layout: segments, packed documents, prefix.
        trace: receives hidden states and attention weights.
        logits: False leaves the head out, for a loss that makes its logits in chunks.
        """
        layout = layout or Layout()
        hidden: Tensor | None = None
        memory: Tensor | None = None
        routing: list[Routing] = []
        if self.encoder is not None and not (cache is not None and cache.has_memory):
            hidden, routing = self.encoder(inputs, mask, layout, trace=trace)
        ids, seen = inputs, mask
        if self.decoder is not None:
            across = View()
            if self.encoder is not None:
                if target is None:
                    raise ValueError("an encoder-decoder needs target, the decoder's input, beside inputs")
                memory, across = hidden, self._across(mask, layout, cache)
                ids, seen = target, target_mask
                if (layout.documents is None) != (layout.target_documents is None):
                    raise ValueError("packed documents of an encoder-decoder: expected both documents and target_documents, got one")
                layout = Layout(documents=layout.target_documents)
            hidden, more = self.decoder(ids, seen, layout, (memory, across), cache, trace)
            routing = routing + more
        assert hidden is not None
        out = Output(None, hidden, Aux(routing), memory)
        if logits:
            out.logits = self.score(hidden, seen, ids)
            if self.sentence_head is not None:
                out.sentence_logits = self.sentence_head(hidden, seen, ids)
        return out

    def _across(self, mask: Tensor | None, layout: Layout, cache: Cache | None) -> View:
        if cache is not None:
            if not cache.has_memory:
                cache.memory_mask = mask
            mask = cache.memory_mask
        seen = None if mask is None else mask[:, None, None].bool()
        if layout.documents is not None and layout.target_documents is not None:
            same = (layout.target_documents[:, :, None] == layout.documents[:, None, :])[:, None]
            seen = same if seen is None else seen & same
        return View(seen)

    def score(self, hidden: Tensor, mask: Tensor | None = None, ids: Tensor | None = None) -> Tensor | None:
        """What the head gives for hidden states (B, T, D); `mask` and `ids` (B, T) are for heads that pool."""
        if self.head is None:
            return None
        if isinstance(self.head, LanguageModel):
            scores: Tensor = self.head(hidden, self.token_table)
            return scores
        judged: Tensor = self.head(hidden, mask, ids)
        return judged

    @property
    def token_table(self) -> Tensor | None:
        """The token embedding (V, D) of the stack that the head reads; None on a stage of a pipeline that lacks it."""
        return self.last.input.token.weight if isinstance(self.last.input, TokenInput) else None

    def language_model_loss(self, hidden: Tensor, labels: Tensor, *, z_loss: float = 0.0, smoothing: float = 0.0) -> Tensor:
        """Summed cross-entropy (nats) of the language-model head over labels (B, T), made in chunks (see `linear_cross_entropy`)."""
        head = self._language_model()
        hidden, labels = scored(hidden, labels)
        matrix = head.matrix(self.token_table)
        return linear_cross_entropy(head.features(hidden), matrix, labels, head.bias, z_loss=z_loss, smoothing=smoothing)

    def language_model_log_probs(
        self, hidden: Tensor, labels: Tensor, *, temperature: float = 1.0, entropy: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities (B, T) of labels (B, T) by the language-model head, 0 where a label is IGNORE, and, where asked for,
        the entropies (B, T) of what the head gives there, which have no gradient; nats, made in chunks (see `linear_log_probs`).

        temperature: the logits are divided by it first.
        """
        head = self._language_model()
        states, wanted = scored(hidden, labels)
        bias = head.bias if head.bias is None or temperature == 1 else head.bias / temperature
        features = head.features(states)
        found = linear_log_probs(
            features if temperature == 1 else features / temperature, head.matrix(self.token_table), wanted, bias, entropy=entropy
        )

        def placed(values: Tensor) -> Tensor:
            return values.new_zeros(labels.shape).masked_scatter(labels != IGNORE, values)

        return placed(found[0]), None if found[1] is None else placed(found[1])

    def _language_model(self) -> LanguageModel:
        if not isinstance(self.head, LanguageModel):
            raise ValueError(f"a language-model loss needs a LanguageModel head, and this model has {type(self.config.head).__name__}")
        return self.head


class DualEncoder(nn.Module):
    """A text tower and an image tower that meet in one space (CLIP)."""

    def __init__(self, spec: config.DualEncoder) -> None:
        super().__init__()
        self.config = spec
        self.text, self.image = Stack(spec.text, "text"), Stack(spec.image, "image")
        self.text_out = nn.Linear(spec.text.width, spec.width, bias=False)
        self.image_out = nn.Linear(spec.image.width, spec.width, bias=False)
        self.temperature = nn.Parameter(torch.empty(()))

    def embed_text(self, ids: Tensor, mask: Tensor | None = None, trace: Trace | None = None) -> Tensor:
        """Unit vectors (B, width) of texts (B, T)."""
        rank = ids if self.config.end_token is None else (ids == self.config.end_token).int()
        end = (rank if mask is None else rank.masked_fill(~mask.bool(), -1)).argmax(1)
        x, _ = self.text(ids, mask, trace=trace)
        return F.normalize(self.text_out(x[torch.arange(len(x), device=x.device), end]), dim=-1)

    def embed_image(self, pixels: Tensor, trace: Trace | None = None) -> Tensor:
        """Unit vectors (B', width) of images (B', channels, side, side)."""
        x, _ = self.image(pixels, trace=trace)
        return F.normalize(self.image_out(x[:, 0]), dim=-1)

    def forward(self, inputs: Tensor, mask: Tensor | None = None, target: Tensor | None = None, trace: Trace | None = None) -> Output:
        """Texts (B, T) and images `target` (B', channels, side, side) to scaled similarities, `logits` (B, B').

        `hidden` is the texts' vectors and `memory` the images'. Without a target, logits is None.
        """
        text = self.embed_text(inputs, mask, trace)
        if target is None:
            return Output(None, text, Aux())
        image = self.embed_image(target, trace)
        return Output(self.temperature.exp() * text @ image.T, text, Aux(), image)


class _Unfilled(TorchFunctionMode):
    """Layers made in this context are not filled: to fill one without memory, torch would first import its compiler, for a second."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == torch.nn.init.__name__:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return function(*args, **kwargs)


def build(
    model: str | Path | config.Model | dict[str, Any],
    overrides: Iterable[str] = (),
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int | None = None,
) -> Any:
    """A model with starting weights, from a preset's name, a configuration or its file.

    It is laid out on the meta device first; `device="meta"` leaves it there, without
    weights. `overrides` are paths such as `decoder.depth=6`. `seed` None draws from
    torch's global generator. Raises ValueError for a name or a field that does not exist.
    """
    spec = config.resolve(model, overrides)
    with torch.device("meta"), _Unfilled():
        module: Transformer | DualEncoder = DualEncoder(spec) if isinstance(spec, config.DualEncoder) else Transformer(spec)
    module.to(dtype)
    if torch.device(device).type != "meta":
        module.to_empty(device=device)
        initialize(module, spec.init, seed)
    return module
