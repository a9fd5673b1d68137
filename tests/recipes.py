"""Chinese text and tiny recipes of every objective, for tests of training."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from triform.train import Recipe, read_recipe

LINES = [
    "话说天下大势，分久必合，合久必分。", "周末七国分争，并入于秦。", "及秦灭之后，楚、汉分争，又并入于汉。",
    "汉朝自高祖斩白蛇而起义，一统天下，后来光武中兴，传至献帝，遂分为三国。", "推其致乱之由，殆始于桓、灵二帝。",
    "桓帝禁锢善类，崇信宦官。", "及桓帝崩，灵帝即位，大将军窦武、太傅陈蕃共相辅佐。",
    "时有宦官曹节等弄权，窦武、陈蕃谋诛之，机事不密，反为所害。",
    "中涓自此愈横。", "建宁二年四月望日，帝御温德殿。", "方升座，殿角狂风骤起。", "只见一条大青蛇，从梁上飞将下来，蟠于椅上。",
    "帝惊倒，左右急救入宫，百官俱奔避。", "须臾，蛇不见了。", "忽然大雷大雨，加以冰雹，落到半夜方止，坏却房屋无数。",
    "建宁四年二月，洛阳地震；又海水泛溢，沿海居民，尽被大浪卷入海中。", "光和元年，雌鸡化雄。", "六月朔，黑气十余丈，飞入温德殿中。",
    "秋七月，有虹现于玉堂；五原山岸，尽皆崩裂。", "种种不祥，非止一端。", "帝下诏问群臣以灾异之由，议郎蔡邕上疏。",
    "帝览奏叹息，因起更衣。", "曹节在后窃视，悉宣告左右；遂以他事陷邕于罪，放归田里。", "后张让、赵忠、封谞等十人朋比为奸，号为十常侍。",
]  # fmt: skip
REVIEWS = [("这本书写得非常好，值得一看。", "positive"), ("房间很干净，服务也很好。", "positive"),
           ("质量太差了，我要退货。", "negative"), ("服务态度很差，再也不来了。", "negative")]  # fmt: skip
VOCABULARY = 120
REWARDS = '''
def different(completions, **columns):
    return [len(set(text)) / (1 + len(text)) + 0.1 * len(set(text)) for text in completions]


def short(completions, answer):
    return [float(len(text) < len(wanted)) if text else None for text, wanted in zip(completions, answer)]
'''


def _block(mask: str = "bidirectional", cross: bool = False, feed_forward: dict[str, Any] | None = None) -> dict[str, Any]:
    block: dict[str, Any] = {"attention": {"heads": 2, "mask": mask}, "dropout": 0.1}
    block["feed_forward"] = feed_forward or {"kind": "FeedForward", "hidden": 24}
    return block | ({"cross": {"heads": 2}} if cross else {})


def stack(*, position: bool = True, width: int = 16, **block: Any) -> dict[str, Any]:
    """A stack of one layer as plain data."""
    place = {"position": {"kind": "Learned", "length": 32}} if position else {}
    return {"width": width, "depth": 1, "input": {"kind": "Tokens", "vocab_size": 50, **place}, "pattern": [_block(**block)]}


def model(*stacks: str, head: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """A model with the stacks named, as plain data."""
    parts: dict[str, Any] = {"kind": "Transformer", "head": head or {"kind": "LanguageModel"}}
    for name in stacks:
        causal = {"mask": "causal", "cross": len(stacks) > 1} if name == "decoder" else {}
        parts[name] = stack(**causal, **fields)
    return parts | ({"share_tokens": True} if len(stacks) > 1 else {})


def _pictures() -> dict[str, Any]:
    return {"width": 16, "depth": 1, "input": {"kind": "Patches", "image": 6, "patch": 2, "channels": 1}, "pattern": [_block()]}


def _judging_pairs() -> dict[str, Any]:
    made = model("encoder")
    made["encoder"]["input"]["segments"] = 2
    return made | {"sentence_head": {"labels": 2, "transform": "tanh"}}


OBJECTIVES: dict[str, dict[str, Any]] = {
    "Causal": {"length": 16},
    "Prefix": {"length": 16},
    "FillInTheMiddle": {"kind": "Causal", "length": 16, "fim": 0.5},
    "Masked": {"length": 24, "whole_words": True},
    "NextSentence": {"kind": "Masked", "length": 24, "pairs": "next"},
    "SentenceOrder": {"kind": "Masked", "length": 24, "pairs": "order", "whole_words": True},
    "SpanCorruption": {"length": 16},
    "Mixture": {"kind": "SpanCorruption", "length": 16, "mixture": "ul2", "modes": True},
    "Denoising": {"length": 24, "rotate": 0.5, "mask": 0.1, "delete": 0.1},
    "SequenceToSequence": {"length": 24, "target_length": 24},
    "ImageClassification": {"image": "pixels", "size": 6, "channels": 1, "highest": 9, "labels": ["negative", "positive"]},
    "Contrastive": {"image": "pixels", "size": 6, "channels": 1, "highest": 9, "length": 16},
    "Classification": {"length": 24, "labels": ["negative", "positive"]},
    "SeveralLabels": {"kind": "Classification", "length": 24, "labels": ["negative", "positive"], "problem": "multi_label_classification"},
    "Regression": {"kind": "Classification", "length": 24, "labels": ["score"], "label": "score", "problem": "regression"},
    "Instruction": {"length": 32},
    "InstructionPairs": {"kind": "Instruction", "length": 24, "target_length": 24},
    "TokenClassification": {"length": 24, "labels": ["O", "B-X", "I-X"]},
    "QuestionAnswering": {"length": 24, "overlap": 6},
    "SentenceEmbedding": {"length": 24},
    "DPO": {"kind": "Preference", "length": 24, "sft": 0.1},
    "IPO": {"kind": "Preference", "length": 24, "target_length": 16, "loss": {"kind": "IPO"}},
    "SimPO": {"kind": "Preference", "length": 24, "loss": {"kind": "SimPO"}},
    "KTO": {"length": 24},
    "RewardModel": {"length": 24, "center": 0.01},
    "PPO": {"length": 24, "max_new_tokens": 6, "iterations": 2, "minibatches": 2, "kl_target": 0.1, "group": 2},
    "GRPO": {"length": 24, "max_new_tokens": 6, "iterations": 3, "kl": 0.1, "group": 4},
}


def _write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_data(folder: Path) -> None:
    """The files that `recipe` names, in a folder."""
    paragraphs = ["".join(LINES[i : i + 3]) for i in range(22)]
    (folder / "paragraphs.txt").write_text("\n".join(paragraphs) + "\n", encoding="utf-8")
    (folder / "lines.txt").write_text("\n".join(LINES) + "\n", encoding="utf-8")
    rows = [{"text": f"{text}{i}", "label": label, "score": i / 4} for i in range(6) for text, label in REVIEWS]
    (folder / "reviews.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    pictures = [{"pixels": [[(i * a + b) % 10 for a in range(7)] for b in range(6)], **row} for i, row in enumerate(rows)]
    (folder / "pictures.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in pictures), encoding="utf-8")
    _write(folder / "talks.jsonl", [{"prompt": line[:6], "response": line[6:] or line} for line in LINES])
    marked = [{"tokens": list(line), "labels": [("B-X", "I-X", "O", "O", "O")[i % 5] for i in range(len(line))]} for line in LINES]
    _write(folder / "marked.jsonl", marked)
    _write(folder / "asked.jsonl", [{"question": line[:3], "context": line, "answers": line[3:6]} for line in LINES if len(line) > 6])
    alike = [{"anchor": line, "positive": line[::-1], "negative": line[1:-1]} for line in LINES]
    _write(folder / "alike.jsonl", alike)
    pairs = [{"source": line, "target": line[::-1]} for line in LINES]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in pairs), encoding="utf-8")
    preferred = [{"prompt": line, "chosen": next_line, "rejected": line[::-1]} for line, next_line in pairwise(LINES)]
    asked = [{"prompt": line[:8], "answer": line[8:]} for line in LINES]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in asked), encoding="utf-8")
    (folder / "rewards.py").write_text(REWARDS, encoding="utf-8")
    (folder / "preferences.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in preferred), encoding="utf-8")


def plain(kind: str, folder: Path, **train: Any) -> dict[str, Any]:
    """A recipe as plain data: an objective on the files that `write_data` wrote, six steps of a tiny model."""
    models = {
        **dict.fromkeys(("Causal", "DPO", "SimPO", "KTO", "GRPO"), lambda: model("decoder")),
        "RewardModel": lambda: model("decoder", head={"kind": "Classify", "labels": 1, "pool": "last"}),
        "Prefix": lambda: {"kind": "Transformer", "head": {"kind": "LanguageModel"}, "decoder": stack(mask="prefix")},
        "FillInTheMiddle": lambda: model("decoder"),
        "Masked": lambda: model("encoder"),
        "ImageClassification": lambda: {"kind": "Transformer", "encoder": _pictures(), "head": {"kind": "Classify", "labels": 2}},
        "Contrastive": lambda: {"kind": "DualEncoder", "text": stack(mask="causal"), "image": _pictures(), "width": 8, "end_token": 6},
        "NextSentence": _judging_pairs,
        "SentenceOrder": _judging_pairs,
        "Classification": lambda: model("encoder", head={"kind": "Classify", "labels": 2, "pool": "mean"}),
        "SeveralLabels": lambda: model("encoder", head={"kind": "Classify", "labels": 2, "pool": "mean"}),
        "Regression": lambda: model("encoder", head={"kind": "Classify", "labels": 1, "pool": "mean"}),
        "Instruction": lambda: model("decoder"),
        "TokenClassification": lambda: model("encoder", head={"kind": "ClassifyTokens", "labels": 3}),
        "QuestionAnswering": lambda: model("encoder", head={"kind": "AnswerSpan"}),
        "SentenceEmbedding": lambda: model("encoder", head={"kind": "Embed"}),
    }
    files = {"Classification": "reviews.jsonl", "SequenceToSequence": "pairs.jsonl"}
    files |= dict.fromkeys(("SeveralLabels", "Regression"), "reviews.jsonl")
    files |= dict.fromkeys(("Instruction", "InstructionPairs"), "talks.jsonl")
    files |= {"TokenClassification": "marked.jsonl", "QuestionAnswering": "asked.jsonl", "SentenceEmbedding": "alike.jsonl"}
    files |= dict.fromkeys(("NextSentence", "SentenceOrder"), "paragraphs.txt")
    files |= dict.fromkeys(("ImageClassification", "Contrastive"), "pictures.jsonl")
    files |= dict.fromkeys(("DPO", "IPO", "SimPO", "KTO", "RewardModel"), "preferences.jsonl")
    files |= dict.fromkeys(("PPO", "GRPO"), "prompts.jsonl")
    objective = {"kind": kind, **OBJECTIVES[kind]}
    if kind in ("PPO", "GRPO"):
        objective["rewards"] = [f"{folder}/rewards.py:different", {"function": f"{folder}/rewards.py:short", "weight": 0.1}]
    few = kind in ("Classification", "Contrastive", "SeveralLabels", "Regression")
    tokenizer: dict[str, Any] = {"kind": "characters", "vocab_size": 40 if few else VOCABULARY}
    if kind == "FillInTheMiddle":
        tokenizer["add"] = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]
    if kind == "Mixture":
        tokenizer["add"] = ["[R]", "[S]", "[X]"]
    settings = {"steps": 6, "batch": 3, "warmup": 2, "validate_every": 2, "checkpoint_every": 2, "precision": "fp32", "keep": 9}
    return {
        "model": models.get(kind, lambda: model("encoder", "decoder"))(),
        "data": {"source": str(folder / files.get(kind, "lines.txt")), "validation": 0.2},
        "tokenizer": tokenizer | ({"sentinels": 8} if kind in ("SpanCorruption", "Mixture") else {}),
        "objective": objective,
        "train": settings | train,
    }


def recipe(kind: str, folder: Path, **train: Any) -> Recipe:
    """`plain` as a recipe."""
    return read_recipe(plain(kind, folder, **train))
