"""`triform classify`: judge texts, or pictures."""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .models import MODEL, loading, open_model, progress, texts_of

if TYPE_CHECKING:
    from triform.generate import Judgement
    from triform.hub import Checkpoint

app = typer.Typer(add_completion=False)


@app.command(
    epilog="Examples: triform classify runs/critic/model 房间很干净，下次还来 - --json < reviews.txt  ·  "
    'triform classify clip photo.jpg --label "a photo of a cat" --label "a photo of a dog"'
)
def classify(
    name: Annotated[str, typer.Argument(metavar="MODEL", help=f"{MODEL}: a classifier.")],
    texts: Annotated[
        list[str], typer.Argument(metavar="TEXT", help='Texts to judge, or files of pictures; "-" reads them, one a line.')
    ],
    label: Annotated[
        list[str] | None, typer.Option(help="For a model of pictures and texts (CLIP): a text that may describe a picture; give several.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print the most probable label of each text, or picture, and its probability; of several labels, or of numbers, each with its own.

    Which of these a model judges by, its configuration says (problem_type).
    """
    from triform import hub
    from triform.generate import use_of

    written = texts_of(texts)
    place = hub.locate(name)
    task, found = hub.task(place), hub.Checkpoint.open(place)
    if use_of(found.spec) == "see":
        kind, judged = "picture", _pictures(found, written, label or [])
    elif label:
        raise ValueError("--label: expected a model of pictures and texts; a classifier's labels are its own")
    else:
        kind, judged = "text", _texts(place, written)
    if as_json:
        print(json.dumps([{kind: text} | asdict(one) for text, one in zip(written, judged, strict=True)], ensure_ascii=False, indent=2))
        return
    problem = task.get("problem_type")
    for text, one in zip(written, judged, strict=True):
        if problem is None:
            print(f"{one.label}\t{one.score:.3f}\t{text}")
            continue
        fitting = [(name, score) for name, score in one.scores.items() if problem == "regression" or score >= 0.5]
        print(" ".join(f"{name}={score:.3f}" for name, score in fitting) + f"\t{text}")


def _texts(place: Path, texts: list[str]) -> list[Judgement]:
    from triform import hub
    from triform.generate import classify as judge

    model, tokenizer = open_model(place)
    task = hub.task(place)
    with progress(len(texts), "texts") as done, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        problem = task.get("problem_type")
        found = judge(model, tokenizer, texts, task.get("labels"), problem=problem, length=task.get("length"), on_batch=done)
    for warning in told:
        print(f"triform: {warning.message}", file=sys.stderr)
    return found


def _pictures(found: Checkpoint, files: list[str], labels: list[str]) -> list[Judgement]:
    from triform import config, hub
    from triform.generate import PictureFormat, classify_pictures

    task, both = hub.task(found.path), isinstance(found.spec, config.DualEncoder)
    if labels and not both:
        raise ValueError("--label: expected a model of pictures and texts; a classifier's labels are its own")
    if both and len(set(labels)) < 2:
        raise ValueError('--label: expected at least two texts to choose from, such as --label "a cat" --label "a dog"')
    for file in files:
        if not Path(file).is_file():
            raise ValueError(f"{file}: expected a picture's file, as the model judges pictures")
    with loading(found.path):
        model, tokenizer = found.build(), found.tokenizer() if both else None
    reading, names = PictureFormat.open(found.spec, found.path), labels if both else task.get("labels")
    with progress(len(files), "pictures") as done:
        return classify_pictures(
            model, files, names, tokenizer=tokenizer, reading=reading, problem=task.get("problem_type"), on_batch=done
        )
