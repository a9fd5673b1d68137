"""Results as the demo's stages write them."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from triform import config, planner

PINYIN = "xuan de yu guan yu zhang fei tao yuan jie yi"
CONTINUATIONS = (
    "却说曹操引兵至，见玄德军马已到，急令众将出迎。操曰：“吾视此人，非等闲之辈。”",
    "孔明曰：“主公勿忧。亮自有计，可教云长引五百军，伏于山后；\n翼德引一千军，往上流埋伏。待火起，两下夹攻。”",
)


def curve(name: str, start: float, end: float, steps: int, every: int = 1, unit: str = "nats per label") -> dict[str, Any]:
    draw = random.Random(name)
    noise = 0.06 if every == 1 else 0.01
    points = [[s, end + (start - end) * math.exp(-4 * s / steps) + draw.gauss(0, noise)] for s in range(every, steps + 1, every)]
    return {"name": name, "points": points, "unit": unit}


def figure(label: str, value: float, unit: str, better: str, ours: bool = False, note: str = "") -> dict[str, Any]:
    return {"label": label, "value": value, "unit": unit, "better": better, "ours": ours, "note": note}


def attention(name: str, rows: list[str], columns: list[str], causal: bool = False, diagonal: bool = False) -> dict[str, Any]:
    draw = random.Random(name)
    weights = []
    for i in range(len(rows)):
        scores = [draw.gauss(0, 1.4) - (abs(i * len(columns) / len(rows) - j) if diagonal else 0) for j in range(len(columns))]
        exps = [0.0 if causal and j > i else math.exp(s) for j, s in enumerate(scores)]
        weights.append([e / sum(exps) for e in exps])
    return {"name": name, "rows": rows, "columns": columns, "weights": weights}


def base(stage: str, title: str, task: str, seconds: float, tokens: int) -> dict[str, Any]:
    model = config.preset(stage)
    return {
        "stage": stage, "title": title, "form": model.form, "task": task, "config": config.to_dict(model, hint=config.Model),
        "parameters": planner.parameters(model).total, "training_flops": 3 * planner.flops.forward(model, 128, 128) * tokens // 128,
        "seconds": seconds, "tokens": tokens, "settings": {"optimizer": "AdamW", "learning rate": 0.001, "batch": 32, "steps": 400},
    }  # fmt: skip


def storyteller() -> dict[str, Any]:
    tokens = list("却说曹操引兵追赶，玄德大惊。")
    return base(
        "storyteller", "The storyteller", "Continues a passage of 三国演义; its last twelve chapters are held out.", 131.4, 1_638_400
    ) | {
        "curves": [curve("training, training", 8.2, 4.3, 400), curve("training, held-out", 8.0, 4.55, 400, 50)],
        "figures": [
            figure("The storyteller", 5.412, "bits per character", "lower", True, "1.8 M tokens seen"),
            figure("interpolated trigram", 5.873, "bits per character", "lower", note="same training text"),
            figure("unigram", 8.914, "bits per character", "lower"),
        ],
        "goal": {"text": "ahead of the trigram on held-out chapters", "met": True, "detail": "ahead by 0.46 bits per character"},
        "samples": [
            {"input": "却说曹操", "output": CONTINUATIONS[0], "reference": None, "note": "temperature 0.8, top-p 0.9"},
            {"input": "孔明曰：", "output": CONTINUATIONS[1], "reference": None, "note": None},
        ],
        "masks": [{"name": "causal", "grid": planner.mask_grid(config.Attention(heads=1, mask="causal"), 16)}],
        "attention": [attention("layer 2, head 3", tokens, tokens, causal=True), attention("layer 4, head 1", tokens, tokens, causal=True)],
    }  # fmt: skip


def critic() -> dict[str, Any]:
    tokens = ["[CLS]", "房间", "很", "干净", "，", "服务", "态度", "也", "不错", "，", "下次", "还会", "再来", "[SEP]"]
    return base("critic", "The critic", "Reads a review and says whether its writer was content.", 154.0, 2_457_600) | {
        "curves": [
            curve("pretraining, training", 8.3, 4.9, 300), curve("pretraining, held-out", 8.1, 5.1, 300, 50),
            curve("fine-tuning, training", 0.69, 0.26, 200), curve("fine-tuning, held-out", 0.69, 0.31, 200, 25),
            curve("without pretraining: training", 0.7, 0.36, 200),
        ],
        "figures": [
            figure("Critic", 87.6, "% correct", "higher", True, "pretrained on the reviews, then fine-tuned"),
            figure("Critic without pretraining", 84.9, "% correct", "higher", True),
            figure("TF-IDF and logistic regression", 88.1, "% correct", "higher", note="words by jieba, unigrams and bigrams"),
        ],
        "goal": {"text": "at or above the linear model on held-out reviews", "met": False, "detail": "missed by 0.50 points"},
        "samples": [
            {"input": "房间很干净，服务态度也不错，下次还会再来。", "output": "content", "reference": "content", "note": "98.1 %"},
            {"input": "隔音太差了，一晚上没睡好！", "output": "not content", "reference": "not content", "note": "96.4 %"},
            {"input": "书的内容一般，不过包装倒是挺好的。", "output": "content", "reference": "not content", "note": "54.0 %"},
        ],
        "masks": [{"name": "bidirectional", "grid": planner.mask_grid(config.Attention(heads=1), 16)}],
        "attention": [attention("layer 1, head 2", tokens, tokens), attention("layer 3, head 4", tokens, tokens, diagonal=True)],
    }  # fmt: skip


def translator() -> dict[str, Any]:
    pinyin, characters = PINYIN.split(), list("玄德与关羽张飞桃园结义")
    return base("translator", "The translator", "Writes the characters for a line of pinyin without tones.", 142.7, 2_048_000) | {
        "curves": [curve("training, training", 8.4, 0.9, 350), curve("training, held-out", 8.2, 1.2, 350, 50)],
        "figures": [
            figure("Translator", 71.3, "% of characters", "higher", True, "characters right"),
            figure("most frequent character for each syllable", 52.4, "% of characters", "higher"),
        ],
        "goal": {"text": "at least 15 points above the baseline", "met": True, "detail": "ahead by 3.90 points"},
        "samples": [
            {"input": " ".join(pinyin), "output": "玄德与关羽张飞桃园结义", "reference": "玄德与关羽张飞桃园结义", "note": None},
            {"input": "cao cao yin bing zhi chi bi", "output": "曹操引兵至此壁", "reference": "曹操引兵至赤壁", "note": None},
        ],
        "masks": [
            {"name": "encoder: bidirectional", "grid": planner.mask_grid(config.Attention(heads=1), 12)},
            {"name": "decoder: causal", "grid": planner.mask_grid(config.Attention(heads=1, mask="causal"), 12)},
            {"name": "decoder to encoder: all", "grid": [[1] * 10 for _ in range(12)]},
        ],
        "attention": [
            attention("cross-attention, layer 2, head 1", characters, pinyin, diagonal=True),
            attention("encoder, layer 1, head 1", pinyin, pinyin),
        ],
    }  # fmt: skip


STAGES = {"storyteller": storyteller, "critic": critic, "translator": translator}


def write(folder: Path, *names: str, **changes: Any) -> None:
    """Results of the named stages (all, if none is named) under a folder, with some keys changed."""
    for name in names or STAGES:
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "result.json").write_text(json.dumps(STAGES[name]() | changes, ensure_ascii=False), encoding="utf-8")
