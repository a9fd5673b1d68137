"""`triform tag`: labels of a text's parts (token classification)."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Literal

import typer

from .models import MODEL, open_model, progress, texts_of

app = typer.Typer(add_completion=False)
Aggregate = Literal["none", "simple", "first", "average", "max"]


@app.command(epilog="Example: triform tag ckiplab/bert-tiny-chinese-ner 曹操在许昌见了刘备。 --json")
def tag(
    name: Annotated[str, typer.Argument(metavar="MODEL", help=f"{MODEL}: a token classifier.")],
    texts: Annotated[list[str], typer.Argument(metavar="TEXT", help='Texts to look through; "-" reads them, one a line.')],
    aggregate: Annotated[
        Aggregate,
        typer.Option(help="none: each token; simple: tokens that go on with a label; the others first give a word's tokens one label."),
    ] = "simple",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print the parts of each text that have a label, their characters and probability. Long texts are read in windows."""
    from triform import hub
    from triform.generate import tag as find

    written = texts_of(texts)
    place = hub.locate(name)
    model, tokenizer = open_model(place)
    task = hub.task(place)
    with progress(len(written), "texts") as done:
        found = find(
            model, tokenizer, written, task.get("labels"), aggregate=aggregate, length=task.get("length"),
            on_batch=lambda windows: done(min(windows, len(written))),
        )  # fmt: skip
    if as_json:
        rows = [{"text": text, "entities": [asdict(one) for one in some]} for text, some in zip(written, found, strict=True)]
        print(json.dumps(rows, ensure_ascii=False, indent=2))
        return
    for text, some in zip(written, found, strict=True):
        if len(written) > 1:
            print(text)
        for one in some:
            print(f"{one.label}\t{one.score:.3f}\t{one.start}-{one.end}\t{one.text}")
