"""Preferences for short answers: what examples/concise.yaml trains on, and how to see what came of it.

    python examples/concise.py make                      # questions answered by smollm2-135m-instruct, to runs/concise.jsonl
    triform train examples/concise.yaml                  # DPO with an adapter, to runs/concise
    python examples/concise.py measure                   # tokens and sentences of answers to questions that were held out
    python examples/concise.py measure runs/concise/model
    triform eval smollm2-135m-instruct --tasks perplexity=runs/concise.txt
    triform eval runs/concise/model --tasks perplexity=runs/concise.txt

The questions are the English ones of the catalogue's small talk. The better of two answers is the first sentence of what the model
itself says, and the worse one all of it, so that the pair tells nothing but to stop there. The last HELD questions are in no pair.
What the model otherwise knows is watched on plain English, the beginning of Python's own help, whose text depends on its version.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from pydoc_data.topics import topics

from triform import hub
from triform.config.files import replacing
from triform.data.catalogue import rows
from triform.generate import Sampling, generate, prepare
from triform.text.segment import sentences

MODEL = "smollm2-135m-instruct"
PAIRS, HELD, LONGEST, CHARACTERS = 200, 40, 96, 20_000
OUT, PLAIN = Path("runs/concise.jsonl"), Path("runs/concise.txt")


def questions() -> list[str]:
    """The different English questions, in the order of the data."""
    found = dict.fromkeys(row["prompt"].strip() for row in rows("chatterbot") if row["language"] == "english")
    return [text for text in found if text.endswith("?") and len(text) > 15]


def answers(place: str, asked: list[str]) -> list[tuple[str, int]]:
    """What a model says, always its most probable token, and how many tokens that takes."""
    model, tokenizer = hub.load(hub.locate(place))
    assert tokenizer is not None
    conversations = [[{"role": "user", "content": text}] for text in asked]
    found = generate(prepare(model, "int8"), tokenizer, conversations, Sampling(max_new_tokens=LONGEST, temperature=0))
    return [(one.text.strip(), len(one.ids)) for one in found]


def make() -> None:
    """Write pairs of answers as JSON lines, and plain English."""
    lines = []
    for question, (said, _) in zip(asked := questions()[:-HELD][:PAIRS], answers(MODEL, asked), strict=True):
        parts = [part.strip() for part in sentences(said) if part.strip()]
        if len(parts) > 1 and parts[0].endswith((".", "!", "?")):
            whole = parts if parts[-1].endswith((".", "!", "?")) else parts[:-1]
            if len(whole) > 1:
                lines.append(json.dumps({"prompt": question, "chosen": whole[0], "rejected": " ".join(whole)}, ensure_ascii=False))
    OUT.parent.mkdir(parents=True, exist_ok=True)
    for place, text in ((OUT, "\n".join(lines) + "\n"), (PLAIN, "\n".join(topics.values())[:CHARACTERS])):
        with replacing(place) as file:
            file.write_text(text, encoding="utf-8")
    print(f"{len(lines)} pairs in {OUT}, {CHARACTERS:,} characters of English in {PLAIN}")


def measure(place: str) -> None:
    """Print how long the answers to the held-out questions are."""
    found = answers(place, questions()[-HELD:])
    tokens, counts = [size for _, size in found], [len(sentences(text)) for text, _ in found]
    single = sum(count <= 1 for count in counts) / len(counts)
    print(f"{place}: {statistics.mean(tokens):.1f} tokens and {statistics.mean(counts):.2f} sentences an answer, {single:.0%} one sentence")


def main() -> None:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "measure"))
    parser.add_argument("model", nargs="?", default=MODEL, help="what to measure")
    given = parser.parse_args()
    make() if given.what == "make" else measure(given.model)


if __name__ == "__main__":
    main()
