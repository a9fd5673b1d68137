"""`triform classify`: judge texts."""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import asdict
from typing import Annotated

import typer

from .models import MODEL, open_model, progress, texts_of

app = typer.Typer(add_completion=False)


@app.command(epilog="Example: triform classify runs/critic/model 房间很干净，下次还来 - --json < reviews.txt")
def classify(
    name: Annotated[str, typer.Argument(metavar="MODEL", help=f"{MODEL}: a classifier.")],
    texts: Annotated[list[str], typer.Argument(metavar="TEXT", help='Texts to judge; "-" reads them, one a line.')],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print the most probable label of each text and its probability; of several labels, or of numbers, each with its own.

    Which of these a model judges by, its configuration says (problem_type).
    """
    from triform import hub
    from triform.generate import classify as judge

    written = texts_of(texts)
    place = hub.locate(name)
    model, tokenizer = open_model(place)
    task = hub.task(place)
    with progress(len(written), "texts") as done, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        problem = task.get("problem_type")
        found = judge(model, tokenizer, written, task.get("labels"), problem=problem, length=task.get("length"), on_batch=done)
    for warning in told:
        print(f"triform: {warning.message}", file=sys.stderr)
    if as_json:
        print(json.dumps([{"text": text} | asdict(one) for text, one in zip(written, found, strict=True)], ensure_ascii=False, indent=2))
        return
    for text, one in zip(written, found, strict=True):
        if problem is None:
            print(f"{one.label}\t{one.score:.3f}\t{text}")
            continue
        fitting = [(label, score) for label, score in one.scores.items() if problem == "regression" or score >= 0.5]
        print(" ".join(f"{label}={score:.3f}" for label, score in fitting) + f"\t{text}")
