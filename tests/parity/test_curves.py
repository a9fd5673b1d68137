"""Training goes as it goes with transformers' modules in a plain PyTorch loop: the loss of each step, and the gradient's norm.

Both sides begin with the same weights and take the same batches of this project's own guides, English and Chinese. Theirs
is torch's AdamW, clipping and a learning rate written out here. Rounding differs from the first step on and training makes it grow,
in fp32 most of all where a relu's input is zero but for rounding: Adam makes a whole step of a gradient that one side alone has. So
T5's first version, with relu, is compared in fp64 alone, and its later one, with gated gelu, in both.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from collating import samples
from parity.cases import saved
from torch import Tensor
from torch.overrides import TorchFunctionMode

from triform import hub
from triform.objectives import Batch, Causal, Denoising, Masked, SpanCorruption
from triform.text import Tokenizer, train_tokenizer
from triform.train import TrainRecipe
from triform.train.batches import Batches
from triform.train.step import Steps

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}  # of a loss, in nats
OF_NORMS = 10  # times as much is allowed for the norm of a gradient
WARMUP, RATE, FLOOR, DECAY, CLIP = 20, 2e-3, 0.1, 0.1, 1.0
GUIDES = [Path(__file__).parents[2] / "docs" / name for name in ("guide.md", "zh/guide.md")]
Curve = list[tuple[float, float]]


def _packed(batch: Batch, causal: bool) -> dict[str, Tensor]:
    """What tells packed documents apart, as transformers wants it: a mask (B, 1, T, T) of what is seen, and each document's positions."""
    documents = torch.zeros_like(batch.inputs) if batch.layout is None else batch.layout.documents
    if batch.mask is not None:
        documents = documents.masked_fill(~batch.mask, -1)
    places = torch.arange(documents.shape[1]).expand_as(documents)
    seen = documents[:, :, None] == documents[:, None]
    first = seen.int().argmax(-1)  # the first place of the same document
    return {"attention_mask": (seen.tril() if causal else seen)[:, None], "position_ids": places - first}


def _of_decoder(batch: Batch) -> dict[str, Tensor]:
    return {"input_ids": batch.inputs, "labels": batch.labels, "shift_labels": batch.labels, **_packed(batch, causal=True)}


def _of_encoder(batch: Batch) -> dict[str, Tensor]:
    return {"input_ids": batch.inputs, "labels": batch.labels, **_packed(batch, causal=False)}


def _of_both(batch: Batch) -> dict[str, Tensor | None]:
    return {"input_ids": batch.inputs, "attention_mask": batch.mask, "decoder_input_ids": batch.target, "labels": batch.labels}


@dataclass(frozen=True)
class Pair:
    """A model of transformers without dropout, what it is trained to do, and how a batch is given to it."""

    model: str
    config: str
    arguments: dict[str, Any]
    objective: Any
    given: Callable[[Batch], dict[str, Any]]


SIZES = {"layers": 2, "attention_heads": 4, "ffn_dim": 128}
BART = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in SIZES.items()}
PAIRS = {
    "gpt2": Pair(
        "GPT2LMHeadModel", "GPT2Config",
        {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
        Causal(length=64), _of_decoder,
    ),
    "bert": Pair(
        "BertForMaskedLM", "BertConfig",
        {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, "max_position_embeddings": 64,
         "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
        Masked(length=64), _of_encoder,
    ),
    "t5": Pair(
        "T5ForConditionalGeneration", "T5Config",
        {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4, "dropout_rate": 0.0},
        SpanCorruption(length=64), _of_both,
    ),
    "t5-1.1": Pair(
        "T5ForConditionalGeneration", "T5Config",
        {"d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4, "dropout_rate": 0.0,
         "feed_forward_proj": "gated-gelu"},
        SpanCorruption(length=64), _of_both,
    ),
    "bart": Pair(
        "BartForConditionalGeneration", "BartConfig",
        BART | {"d_model": 64, "max_position_embeddings": 80, "dropout": 0.0},
        Denoising(length=64), _of_both,
    ),
}  # fmt: skip


@lru_cache
def _lines() -> list[str]:
    return [line for guide in GUIDES for line in guide.read_text("utf-8").splitlines() if len(line) > 8]


@lru_cache
def _tokenizer() -> Tokenizer:
    return train_tokenizer(_lines(), kind="bpe", vocab_size=1500, min_frequency=1, sentinels=20)


def _recipe(steps: int) -> TrainRecipe:
    return TrainRecipe(steps=steps, batch=4, rate=RATE, warmup=WARMUP, floor=FLOOR, weight_decay=DECAY, clip=CLIP, precision="fp32")


def _their_model(pair: Pair) -> Any:
    import transformers

    torch.manual_seed(0)
    tokenizer = _tokenizer()
    ids = {"pad_token_id": tokenizer.pad, "bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos}
    ids |= {"vocab_size": tokenizer.vocab_size, "decoder_start_token_id": tokenizer.bos}
    return getattr(transformers, pair.model)(getattr(transformers, pair.config)(**ids, **pair.arguments))


def _share(step: int, steps: int, warmup: int) -> float:
    """The rate's rise over `warmup` steps, and half a cosine down to the floor."""
    if step < warmup:
        return (step + 1) / warmup
    return FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


def _their_curve(
    pair: Pair, model: Any, batches: Batches, steps: int, *, eps: float = 1e-8, decays: int = 2, warmup: int = WARMUP, clip: float = CLIP
) -> Curve:
    """decays: how many dimensions a weight has at least to decay."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= decays], "weight_decay": DECAY},
        {"params": [p for p in model.parameters() if p.ndim < decays], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95), eps=eps)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share(step, steps, warmup))
    model.train()
    curve = []
    for step in range(steps):
        (batch,) = batches.step(step)
        loss = model(**pair.given(batch)).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        curve.append((float(loss.detach()), float(norm)))
    return curve


class _Wide(TorchFunctionMode):
    """fp64 stays fp64 where a module would turn it to fp32, as T5's norms do."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        narrows = function is torch.Tensor.float or (function is torch.Tensor.to and torch.float32 in (*args[1:], *kwargs.values()))
        return args[0] if narrows and args[0].dtype == torch.float64 else function(*args, **kwargs)


def _curves(name: str, steps: int, folder: Path, dtype: torch.dtype = torch.float32, **theirs: Any) -> tuple[Curve, Curve]:
    pair, recipe = PAIRS[name], _recipe(steps)
    reference = _their_model(pair)
    objective, found = samples(pair.objective, _tokenizer(), _lines(), folder)
    batches = Batches(objective, found, recipe)
    model, _ = hub.load(saved(reference))
    ours = Steps(model.config, model.to(dtype), objective, recipe, precision="fp32")
    rows = [ours.take(step, batches.step(step)) for step in range(steps)]
    with _Wide():
        return [(row["loss"], row["gradient_norm"]) for row in rows], _their_curve(pair, reference.to(dtype), batches, steps, **theirs)


def _apart(ours: Curve, theirs: Curve) -> tuple[float, float]:
    """The largest difference of a loss and of a norm, in all steps."""
    losses, norms = zip(*((abs(a - c), abs(b - d)) for (a, b), (c, d) in zip(ours, theirs, strict=True)), strict=True)
    return max(losses), max(norms)


SHORT = [(name, 24, torch.float64 if name == "t5" else torch.float32) for name in PAIRS]
LONG = [(name, 200, dtype) for name in PAIRS for dtype in TOLERANCE if (name, dtype) != ("t5", torch.float32)]


@pytest.mark.parametrize(
    ("name", "steps", "dtype"),
    SHORT + [pytest.param(*case, marks=pytest.mark.slow) for case in LONG],
    ids=str,
)
def test_the_curve_is_that_of_transformers(name: str, steps: int, dtype: torch.dtype, tmp_path: Path) -> None:
    ours, theirs = _curves(name, steps, tmp_path, dtype)
    loss, norm = _apart(ours, theirs)
    print(f"{name}, {dtype}, {steps} steps, loss {ours[0][0]:.3f} to {ours[-1][0]:.3f}: apart by {loss:.1e} at most, norms by {norm:.1e}")
    assert ours[-1][0] < ours[0][0] - 0.3  # it learns
    assert loss < TOLERANCE[dtype]
    assert norm < OF_NORMS * TOLERANCE[dtype]


@pytest.mark.parametrize("other", [{"eps": 1e-5}, {"decays": 1}, {"warmup": WARMUP - 1}, {"clip": 0.9}], ids=str)
def test_the_comparison_sees_another_rule(other: dict[str, Any], tmp_path: Path) -> None:
    loss, _ = _apart(*_curves("gpt2", 24, tmp_path, **other))
    assert loss > 2 * TOLERANCE[torch.float32]
