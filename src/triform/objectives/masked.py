"""Masked language modelling: hidden tokens guessed from both sides (BERT, RoBERTa)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F

from triform import config
from triform.config.spec import spec
from triform.data.packing import pack
from triform.data.shards import Shards
from triform.nn import IGNORE, Layout
from triform.nn.norm import at_least_float
from triform.text import Tokenizer
from triform.text.segment import segmenter, word_ids

from .base import (
    Batch,
    Loss,
    Objective,
    Sample,
    Samples,
    auxiliary,
    need,
    need_language_model,
    packed,
    stack_rows,
    texts_of,
    token_accuracy,
)
from .sentences import begins, draw_pair, pair_samples


@spec
class Masked:
    """`rate` of the tokens are to be guessed; of these `hidden` turn into [MASK] and `random` into a random token, the rest stay.

    BERT's 80/10/10 is the default (Devlin et al. 2019, section 3.1). Masks are drawn anew
    each time a text is seen (RoBERTa); `dynamic: false` draws each text's once.
    `whole_words` hides the words that `segmenter` finds as wholes (Chinese words through
    jieba, others by spaces and punctuation). Short documents are packed into rows of
    `length`, each between [CLS] and [SEP] and unseen by the others; long ones are cut.

    pairs: rows are [CLS] A [SEP] B [SEP] instead, of sentences of one document, and the model's sentence head judges them:
    `next`, whether B follows A or is from another document (BERT); `order`, whether A and B have been swapped (ALBERT, Lan
    et al. 2020).
    """

    length: int = 512
    text: str = "text"
    rate: float = 0.15
    hidden: float = 0.8
    random: float = 0.1
    dynamic: bool = True
    whole_words: bool = False
    segmenter: str = "jieba"
    pairs: Literal["next", "order"] | None = None

    def __post_init__(self) -> None:
        if self.length < 3:
            raise ValueError(f"length: expected at least 3 tokens, got {self.length}")
        if self.pairs and self.length < 5:
            raise ValueError(f"length: expected at least 5 tokens for pairs, got {self.length}")
        if not 0 < self.rate < 1:
            raise ValueError(f"rate: expected a share between 0 and 1, got {self.rate}")
        if self.hidden < 0 or self.random < 0 or self.hidden + self.random > 1:
            raise ValueError(f"hidden: expected hidden + random to be at most 1, got {self.hidden} + {self.random}")

    def longest(self) -> dict[str, tuple[str, int]]:
        """For each stack the field that decides on its longest row, and that row's tokens."""
        return {"encoder": ("length", self.length)}


class MaskedObjective(Objective):
    """In: rows of documents, each [CLS] text [SEP], packed into at most `length` tokens.

    Out: inputs (B, T) with some tokens hidden, labels (B, T) the tokens that were there and IGNORE elsewhere, mask
    (B, T), and the documents' numbers (B, T) where a row holds several; T is the longest row of the batch. With `pairs`
    layout.segments (B, T) is 1 in the second sentence, and sentence (B,) is 1 where the pair is not as in the text.
    """

    spec: Masked

    def __init__(self, spec: Masked, tokenizer: Tokenizer) -> None:
        super().__init__(spec, tokenizer)
        known = set(tokenizer.backend.get_vocab(with_added_tokens=True).values())
        self.ordinary = np.array(sorted(known - tokenizer.special_ids), dtype=np.int64)
        self.segment = segmenter(spec.segmenter) if spec.whole_words else None

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Sequence[int]]]:
        """Columns "text", [CLS] ids [SEP], and "word", the number of the word each token is part of; 0 for what is never hidden:
        white space, the unknown, and the frame. For pairs "text" is a whole document without frame, and "begin" is 1 where a sentence
        begins."""
        t = self.tokenizer
        assert t.cls is not None
        assert t.sep is not None
        room, unknown = self.spec.length - 2, t.unk
        out: list[dict[str, Sequence[int]]] = []
        texts = texts_of(rows, self.spec.text)
        for text, encoding in zip(texts, t.encodings(texts, plain=True), strict=True):
            ids = encoding.ids
            words = range(len(ids)) if self.segment is None else word_ids(t, text, self.segment, encoding)
            size = max(1, len(ids)) if self.spec.pairs else room
            for start in range(0, len(ids), size):
                part = ids[start : start + size]
                number: dict[int, int] = {}
                own = [
                    0 if w is None or i == unknown else number.setdefault(w, len(number) + 1)
                    for i, w in zip(part, words[start : start + size], strict=True)
                ]
                if self.spec.pairs:
                    out.append({"text": part, "word": own, "begin": begins(t, text, encoding)})
                else:
                    out.append({"text": [t.cls, *part, t.sep], "word": [0, *own, 0]})
        return out

    def sizes(self) -> dict[str, int]:
        if self.spec.pairs:
            return {"text": self.tokenizer.vocab_size, "word": 2**32, "begin": 2}
        return {"text": self.tokenizer.vocab_size, "word": self.spec.length}

    def samples(self, shards: Shards) -> Samples:
        if self.spec.pairs:
            return pair_samples(shards, self.spec.pairs, self.spec.length - 3)
        text, word = shards.column("text"), shards.column("word")
        sizes = np.diff(text.offsets)
        bins = pack(sizes, self.spec.length)

        def get(index: int) -> Sample:
            spans = [slice(int(text.offsets[d]), int(text.offsets[d + 1])) for d in bins[index]]
            return {
                "text": np.concatenate([text.tokens[s] for s in spans]).astype(np.int64),
                "word": np.concatenate([word.tokens[s] for s in spans]).astype(np.int64),
                "document": np.repeat(np.arange(len(spans)), [s.stop - s.start for s in spans]),
                "index": np.array(index),
            }

        return Samples(bins.sums(sizes), get)

    def collate(self, samples: Sequence[Sample], seeds: Sequence[tuple[int, ...]]) -> Batch:
        drawn = [
            np.random.default_rng(seed if self.spec.dynamic else (seed[0], int(sample["index"])))
            for sample, seed in zip(samples, seeds, strict=True)
        ]
        if self.spec.pairs:
            return self._pairs(samples, drawn)
        rows = [self.hide(s["text"], s["word"], s["document"], rng) for s, rng in zip(samples, drawn, strict=True)]
        return self._batch(rows, layout=packed([s["document"] for s in samples]))

    def _batch(self, rows: Sequence[tuple[np.ndarray, np.ndarray]], **more: Any) -> Batch:
        inputs, mask = stack_rows([ids for ids, _ in rows], self.tokenizer.pad or 0)
        labels, _ = stack_rows([wanted for _, wanted in rows], IGNORE)
        return Batch(inputs, labels, mask, **more)

    def _pairs(self, samples: Sequence[Sample], drawn: Sequence[np.random.Generator]) -> Batch:
        assert self.spec.pairs is not None
        assert self.tokenizer.cls is not None
        assert self.tokenizer.sep is not None
        frame, room = (self.tokenizer.cls, self.tokenizer.sep), self.spec.length - 3
        pairs = [draw_pair(s, self.spec.pairs, room, frame, rng) for s, rng in zip(samples, drawn, strict=True)]
        rows = [self.hide(p.ids, p.words, p.segments, rng) for p, rng in zip(pairs, drawn, strict=True)]
        segments, _ = stack_rows([p.segments for p in pairs], 0)
        return self._batch(rows, layout=Layout(segments=segments), sentence=torch.tensor([p.label for p in pairs]))

    def loss(self, model: Any, batch: Batch, *, smoothing: float = 0.0, z_loss: float = 0.0) -> Loss:
        """With `pairs` the sentence head's cross-entropy is added: each row's weighs as much as its hidden tokens, so that
        the step's loss is the sum of both means, however it is divided into micro-batches."""
        if batch.sentence is None:
            return super().loss(model, batch, smoothing=smoothing, z_loss=z_loss)
        out = model(batch.inputs, batch.mask, layout=batch.layout, logits=False)
        total = model.language_model_loss(out.hidden, batch.labels, smoothing=smoothing, z_loss=z_loss)
        judged = at_least_float(model.sentence_head(out.hidden, batch.mask, batch.inputs))
        weight = (batch.labels != IGNORE).sum(1)
        sentence = (F.cross_entropy(judged, batch.sentence, reduction="none") * weight).sum()
        right = ((judged.argmax(-1) == batch.sentence) * weight).sum()
        metrics = {"sentence_loss": float(sentence.detach()), "sentence_accuracy": float(right)}
        if not model.training:
            metrics["accuracy"] = token_accuracy(model, out.hidden, batch.labels)
        return Loss(total + sentence, metrics, auxiliary(out))

    def uniform_loss(self, model: config.Model, batch: Batch) -> float | None:
        assert isinstance(model, config.Transformer)
        assert isinstance(model.last.input, config.Tokens)
        return math.log(model.last.input.vocab_size) + (0.0 if batch.sentence is None else math.log(2))

    def hide(self, ids: np.ndarray, word: np.ndarray, document: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Hide words of one row, each as a whole: the changed ids (T,) and the labels (T,).

        ids, word and document are (T,). As BERT does, words are taken in random order as long as they fit into `rate`
        of the row's tokens; a row too short for that loses one word.
        """
        place = np.where(word > 0, document * (word.max(initial=0) + 1) + word, 0)
        words, which, sizes = np.unique(place, return_inverse=True, return_counts=True)
        order = rng.permutation(np.flatnonzero(words))
        room = round(self.spec.rate * int(sizes[order].sum()))
        picked = np.zeros(len(words), dtype=bool)
        for i in order:
            if sizes[i] <= room:
                picked[i] = True
                room -= int(sizes[i])
            if not room:
                break
        if not picked.any():
            picked[order[:1]] = True
        chosen = picked[which]
        fate = rng.random(len(ids))
        changed, labels = ids.copy(), np.where(chosen, ids, IGNORE)
        changed[chosen & (fate < self.spec.hidden)] = self.tokenizer.mask
        swap = chosen & (fate >= self.spec.hidden) & (fate < self.spec.hidden + self.spec.random)
        changed[swap] = self.ordinary[rng.integers(0, len(self.ordinary), int(swap.sum()))]
        return changed, labels

    def check(self, model: config.Model) -> None:
        found = need_language_model(model, "Masked", "encoder-only")
        for name in ("mask", "cls", "sep"):
            need(getattr(self.tokenizer, name) is not None, "Masked", f"a tokenizer with a {name} token", "one without")
        if self.spec.pairs:
            head, read = found.sentence_head, found.last.input
            wanted = "a sentence_head of 2 labels (model.sentence_head: {labels: 2, transform: tanh})"
            need(head is not None and head.labels == 2, "Masked with pairs", wanted, "none" if head is None else f"{head.labels} labels")
            assert isinstance(read, config.Tokens)
            need(read.segments >= 2, "Masked with pairs", "an input of 2 segments (model.encoder.input.segments: 2)", read.segments)
