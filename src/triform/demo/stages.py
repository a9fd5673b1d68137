"""The demo's three models: each trained from nothing by a recipe of `examples/`, then measured beside its baselines.

A stage writes `result.json` in its folder last; `triform.demo.report` says what is in it. What a
killed demo has finished is used again: runs resume, and a stage with a result is not repeated.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from triform import config, hub
from triform.generate import Sampling, classify, fill, generate
from triform.nn import IGNORE, Trace
from triform.planner.mask import mask_grid
from triform.text.framing import judged, opening, source
from triform.train import Recipe, Result, read_metrics, read_recipe, run
from triform.train.prepare import splits

from .baselines import MostFrequent, Trigram, Unigram, character_errors, linear_accuracy

Row = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """Where a stage works, and whom it tells: `say(part, what, share)` names the part, what it does, and how much is done, 0 to 1."""

    folder: Path
    say: Callable[[str, str, float], None]
    quick: bool = False

    def measure(self, what: str, share: float) -> None:
        """Say what is measured, after the training."""
        self.say("measure", what, share)

    def train(self, recipe: str, name: str, overrides: Sequence[str] = ()) -> tuple[Recipe, Result, Path]:
        """Run or go on with a recipe of the examples in this stage's folder."""
        short = ["train.steps=8", "train.warmup=2", "train.validate_every=8", "train.validation_batches=2"] if self.quick else []
        found = read_recipe(examples() / f"{recipe}.yaml", [*overrides, *short])
        steps = found.train.steps

        def report(row: Row) -> None:
            figures = f"loss {row['loss']:.2f}, {row['tokens_per_second']:,.0f} tokens/s"
            self.say(name, f"{name}: step {row['step']}/{steps}, {figures}", row["step"] / steps)

        self.say(name, f"{name}: preparing", 0.0)
        result = run(found, self.folder / name, resume=True, report=report)
        if not result.finished:
            raise KeyboardInterrupt
        return found, result, self.folder / name / "model"


def examples() -> Path:
    """The folder of recipes: beside the package when installed, at the repository's root in a checkout."""
    here = Path(__file__).resolve().parents[1]
    for folder in (here / "examples", here.parents[1] / "examples"):
        if folder.is_dir():
            return folder
    raise ValueError("the recipes in examples/ are missing; install triform from its wheel or run it from its checkout")


def _curves(runs: dict[str, Path]) -> list[dict[str, Any]]:
    found = []
    for name, folder in runs.items():
        rows = read_metrics(folder / "metrics.jsonl")
        for key, label in (("loss", "training"), ("validation_loss", "held-out")):
            points = [[row["step"], row[key]] for row in rows if key in row]
            if points:
                found.append({"name": f"{name}, {label}", "points": points, "unit": "nats per label"})
    return found


def _masks(spec: config.Transformer, length: int = 12) -> list[dict[str, Any]]:
    found = []
    for name, stack in (("encoder", spec.encoder), ("decoder", spec.decoder)):
        if stack is None:
            continue
        attention = stack.block(0).attention
        found.append({"name": f"{name}: {attention.mask}", "grid": mask_grid(attention, length)})
        cross = stack.block(0).cross
        if cross is not None:
            found.append({"name": "decoder to encoder: all", "grid": mask_grid(cross, length)})
    return found


def _sharp_heads(trace: Trace, kind: str, most: int) -> list[tuple[str, int, torch.Tensor]]:
    """Heads (name, number, weights (T, S)) of one kind of attention, those that look at fewest places first, at most two a layer."""
    found = []
    for name, weights in trace.attention.items():
        if name.endswith(kind):
            spread = -(weights[0] * weights[0].clamp(min=1e-9).log()).sum(-1).mean(-1)
            found += [(float(spread[head]), name, head, weights[0, head]) for head in spread.argsort()[:2].tolist()]
    return [(name, head, weights) for _, name, head, weights in sorted(found, key=lambda row: row[0])[:most]]


def _attention(heads: list[tuple[str, int, torch.Tensor]], rows: list[str], columns: list[str]) -> list[dict[str, Any]]:
    return [
        {
            "name": f"{name.replace('.layers.', ', layer ').replace('.', ', ')}, head {head}",
            "rows": rows,
            "columns": columns,
            "weights": [[round(float(v), 4) for v in row] for row in weights],
        }
        for name, head, weights in heads
    ]


def _settings(recipe: Recipe, result: Result) -> dict[str, Any]:
    train = recipe.train
    vocabulary = "of the pretrained model" if recipe.tokenizer.path else f"{recipe.tokenizer.kind}, {recipe.tokenizer.vocab_size:,}"
    return {
        "steps": train.steps, "samples a step": train.batch * train.accumulate, "optimizer": train.optimizer,
        "precision": result.precision, "seed": train.seed,
        "vocabulary": vocabulary,
    }  # fmt: skip


def _write(stage: Stage, name: str, model: Any, runs: dict[str, Result], recipe: Recipe, parts: dict[str, Any]) -> None:
    spec = model.config
    result = {
        "stage": name,
        "form": spec.form,
        "config": config.to_dict(spec, hint=config.Model),
        "parameters": sum(p.numel() for p in model.parameters()),
        "training_flops": sum(r.flops for r in runs.values()),
        "seconds": sum(r.seconds for r in runs.values()),
        "tokens": sum(r.tokens for r in runs.values()),
        "curves": _curves({label: Path(r.folder) for label, r in runs.items()}),
        "masks": _masks(spec),
        "settings": _settings(recipe, next(iter(runs.values()))),
        **parts,
    }
    with hub.replacing(stage.folder / "result.json") as file:
        file.write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _figure(label: str, value: float, unit: str, better: str, *, ours: bool = False, note: str = "") -> dict[str, Any]:
    return {"label": label, "value": round(value, 4), "unit": unit, "better": better, "ours": ours, "note": note}


# The storyteller


@torch.inference_mode()
def document_bits(model: Any, ids: Sequence[int], first: int, window: int) -> float:
    """The information (bits) that a decoder-only model needs for ids[first:], each token read after at least half a window of context."""
    half, total = window // 2, 0.0
    tokens = torch.tensor(ids)
    for start in range(0, max(1, len(ids) - 1 - half), half):
        inputs, labels = tokens[start : start + window], tokens[start + 1 : start + 1 + window].clone()
        inputs = inputs[: len(labels)]
        labels[: max(0, (half if start else 0), first - 1 - start)] = IGNORE
        total += float(model.language_model_loss(model(inputs[None], logits=False).hidden, labels[None]))
    return total / math.log(2)


def storyteller(stage: Stage) -> None:
    """Decoder-only: goes on with 三国演义, of which the last 12 chapters are held out."""
    recipe, result, path = stage.train("storyteller", "storyteller")
    model, tokenizer = hub.load(path)
    assert tokenizer is not None
    stage.measure("storyteller: unigram and trigram on the same text", 0.0)
    train, held = (list(tokenizer.encode_batch([row["text"] for row in rows or ()], plain=True)) for rows in splits(recipe.data))
    characters = sum(map(len, held))
    unigram, trigram = Unigram(train, tokenizer.vocab_size), Trigram(train, tokenizer.vocab_size)
    before = opening(tokenizer)
    bits = 0.0
    for number, ids in enumerate(held):
        stage.measure(f"storyteller: held-out chapter {number + 1}/{len(held)}", 0.3 + 0.5 * number / len(held))
        bits += document_bits(model, [*before, *ids], len(before), recipe.objective.longest()["decoder"][1])
        if stage.quick:
            characters, held = len(ids), [ids]
            break
    ours = bits / characters
    one, three = (sum(baseline.bits(ids) for ids in held) / characters for baseline in (unigram, trigram))
    stage.measure("storyteller: going on with some beginnings", 0.8)
    prompts = ["却说曹操", "玄德曰：“", "且说孔明", "次日，关公", "正是："]
    sampling = Sampling(max_new_tokens=12 if stage.quick else 80, temperature=0.8, top_p=0.9, top_k=50, seed=1)
    told = generate(model, tokenizer, prompts, sampling)
    sentence = "却说玄德引关、张来见孔明，孔明曰：“"
    ids = [*before, *tokenizer.encode(sentence)]
    trace = Trace(weights=True)
    with torch.no_grad():
        model(torch.tensor([ids]), trace=trace)
    names = [t if len(t) == 1 else "" for t in tokenizer.tokens(ids)]
    unknown = sum(ids.count(tokenizer.unk) for ids in held) if tokenizer.unk is not None else 0
    note = f"{characters:,} characters of {len(held)} held-out chapters; {unknown:,} not in the vocabulary are one symbol for all three"
    parts = {
        "title": "The storyteller",
        "task": "A decoder-only model trained on 三国演义 but for its last 12 chapters. It reads left to right and continues a beginning.",
        "figures": [
            _figure("Triform storyteller", ours, "bits per character", "lower", ours=True, note=note),
            _figure("interpolated trigram", three, "bits per character", "lower", note="weights by context count, fitted by EM"),
            _figure("unigram", one, "bits per character", "lower", note="each character by its frequency"),
        ],
        "goal": _goal("ahead of the trigram on held-out chapters", three - ours, "bits per character"),
        "samples": [{"input": p, "output": g.text, "reference": None, "note": None} for p, g in zip(prompts, told, strict=True)],
        "attention": _attention(_sharp_heads(trace, "attention", 4), names, names),
    }
    _write(stage, "storyteller", model, {"training": result}, recipe, parts)


def _goal(text: str, ahead: float, unit: str) -> dict[str, Any]:
    way = "ahead by" if ahead >= 0 else "missed by"
    return {"text": text, "met": ahead >= 0, "detail": f"{way} {abs(ahead):.2f} {unit}"}


# The critic


def critic(stage: Stage) -> None:
    """Encoder-only: learns from reviews by guessing hidden words, then judges them."""
    recipe, pretrained, base = stage.train("critic-pretrain", "pretrain")
    paths = [f"tokenizer.path={base}"]
    judge_recipe, judged_result, path = stage.train("critic", "judge", [*paths, f"train.start={base}"])
    _, scratch, plain = stage.train("critic", "without-pretraining", [*paths, "train.start=null"])
    stage.measure("critic: TF-IDF and logistic regression", 0.0)
    train, held = ([(row["text"], row["label"]) for row in rows or ()] for rows in splits(judge_recipe.data))
    linear = linear_accuracy(train, held)
    texts, wanted = [t for t, _ in held], [label for _, label in held]
    scores = {}
    for label, folder in (("with", path), ("without", plain)):
        stage.measure(f"critic: judging {len(held):,} held-out reviews {label} pretraining", 0.5)
        model, tokenizer = hub.load(folder)
        assert tokenizer is not None
        task = hub.task(folder)
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # the longest are cut, as they were in training
            judgements = classify(model, tokenizer, texts, task["labels"], length=task["length"])
        scores[label] = sum(j.label == w for j, w in zip(judgements, wanted, strict=True)) / len(wanted)
        if label == "with":
            shown = judgements
    masked, tokenizer = hub.load(base)
    assert tokenizer is not None
    sentences = ["这本书写得非常[MASK]，值得一看。", "房间很[MASK]，服务也很好。", "质量太[MASK]了，我要退货。"]
    samples = [
        {"input": text, "output": found.text, "reference": None,
         "note": "fills: " + "  ".join(f"{c.text} {100 * c.probability:.0f} %" for c in found.masks[0])}
        for text, found in zip(sentences, fill(masked, tokenizer, sentences), strict=True)
    ]  # fmt: skip
    order = sorted((i for i in range(len(held)) if 8 <= len(texts[i]) <= 60), key=lambda i: shown[i].score)
    for i in [*order[-3:], *order[:3]]:
        note = f"{100 * shown[i].score:.0f} % sure"
        samples.append({"input": texts[i], "output": shown[i].label, "reference": wanted[i], "note": note})
    model, _ = hub.load(path)
    sentence = "房间很干净，但是服务态度太差了。"
    ids = judged(tokenizer, tokenizer.encode(sentence))
    trace = Trace(weights=True)
    with torch.no_grad():
        model(torch.tensor([ids]), trace=trace)
    names = tokenizer.tokens(ids)
    unit = "% correct"
    margin = 196 * math.sqrt(scores["with"] * (1 - scores["with"]) / len(held))
    note = f"{len(held):,} held-out reviews; 95 % interval ±{margin:.1f} points"
    parts = {
        "title": "The critic",
        "task": "An encoder-only model that guesses hidden Chinese words in reviews, then learns to judge them. It reads both ways.",
        "figures": [
            _figure("Triform critic", 100 * scores["with"], unit, "higher", ours=True, note=note),
            _figure("TF-IDF of characters + logistic regression", 100 * linear["characters"], unit, "higher", note="1 to 3, C = 10"),
            _figure("TF-IDF of words + logistic regression", 100 * linear["words"], unit, "higher", note="jieba, words and pairs, C = 10"),
            _figure("the same without pretraining", 100 * scores["without"], unit, "higher", note="same architecture, steps and data"),
        ],
        "goal": _goal("at or above the better linear model on held-out reviews", 100 * (scores["with"] - max(linear.values())), "points"),
        "samples": samples,
        "attention": _attention(_sharp_heads(trace, "attention", 4), names, names),
    }
    runs = {"pretraining": pretrained, "fine-tuning": judged_result, "without pretraining": scratch}
    _write(stage, "critic", model, runs, recipe, parts)


# The translator


def _pairs(rows: Iterator[Any]) -> list[tuple[list[str], str]]:
    return [(row["source"].split(" "), row["target"]) for row in rows]


def translator(stage: Stage) -> None:
    """Encoder-decoder: writes characters from pinyin."""
    recipe, result, path = stage.train("translator", "translator")
    model, tokenizer = hub.load(path)
    assert tokenizer is not None
    parts_of = splits(recipe.data)
    train, held = (_pairs(iter(rows or ())) for rows in parts_of)
    held = [pair for pair in held if len(pair[0]) == len(pair[1])][: 32 if stage.quick else None]
    baseline = MostFrequent(pair for pair in train if len(pair[0]) == len(pair[1]))
    written: list[str] = []
    size = 128
    ranked = sorted(range(len(held)), key=lambda i: len(held[i][1]))
    answers: dict[int, str] = {}
    for first in range(0, len(ranked), size):
        chosen = ranked[first : first + size]
        stage.measure(f"translator: writing {len(held):,} held-out sentences", first / len(ranked))
        sampling = Sampling(max_new_tokens=8 if stage.quick else 80)
        found = generate(model, tokenizer, [" ".join(held[i][0]) for i in chosen], sampling, batch_size=size)
        answers |= {i: "".join(g.text.split()) for i, g in zip(chosen, found, strict=True)}
    written = [answers[i] for i in range(len(held))]
    simple = [baseline.write(syllables) for syllables, _ in held]
    ours, theirs = (_character_accuracy(answer, [t for _, t in held]) for answer in (written, simple))
    show = [i for i in ranked if 8 <= len(held[i][1]) <= 24]
    show = show[:: max(1, len(show) // 6)][:6]
    unit = "% of characters"
    best = next((i for i in show if 10 <= len(held[i][1]) <= 16), ranked[-1])
    parts = {
        "title": "The translator",
        "task": "An encoder-decoder model that writes Chinese characters from pinyin without tones, as an input method does.",
        "figures": [
            _figure("Triform translator", ours, unit, "higher", ours=True, note=f"{len(held):,} held-out sentences, written greedily"),
            _figure("most frequent character", theirs, unit, "higher", note="for each syllable, in the training text"),
        ],
        "goal": _goal("at least 15 points above the most frequent character of each syllable", ours - theirs - 15, "points"),
        "samples": [
            {"input": " ".join(held[i][0]), "output": written[i], "reference": held[i][1], "note": f"most frequent: {simple[i]}"}
            for i in show
        ],
        "attention": _cross_attention(model, tokenizer, *held[best]),
    }
    _write(stage, "translator", model, {"training": result}, recipe, parts)


def _han(text: str) -> str:
    return "".join(c for c in text if "\u3400" <= c <= "\u9fff")


def _character_accuracy(written: list[str], wanted: list[str]) -> float:
    """100 minus the character error rate (%), over Chinese characters alone, since punctuation is copied."""
    errors = sum(character_errors(_han(a), _han(b)) for a, b in zip(written, wanted, strict=True))
    return 100 * (1 - errors / max(1, sum(len(_han(b)) for b in wanted)))


def _cross_attention(model: Any, tokenizer: Any, syllables: list[str], text: str) -> list[dict[str, Any]]:
    ids, answer = source(tokenizer, tokenizer.encode(" ".join(syllables))), tokenizer.encode(text)
    target = [tokenizer.bos if tokenizer.bos is not None else tokenizer.pad, *answer]
    trace = Trace(weights=True)
    with torch.no_grad():
        model(torch.tensor([ids]), target=torch.tensor([target]), trace=trace)
    columns, rows = tokenizer.tokens(ids), [*tokenizer.tokens(answer), "[EOS]"]
    own = _sharp_heads(trace, "decoder.layers.0.attention", 1)
    seen = tokenizer.tokens(target)
    return _attention(_sharp_heads(trace, "cross", 3), rows, columns) + _attention(own, seen, seen)


STAGES: dict[str, Callable[[Stage], None]] = {"storyteller": storyteller, "critic": critic, "translator": translator}
