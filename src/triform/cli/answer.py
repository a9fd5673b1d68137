"""`triform answer`: answers that stand in a passage."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from .models import MODEL, open_model, progress, texts_of

app = typer.Typer(add_completion=False)


@app.command(epilog='Example: triform answer distilbert/distilbert-base-cased-distilled-squad "Who won?" --passage report.txt --top 3')
def answer(
    name: Annotated[str, typer.Argument(metavar="MODEL", help=f"{MODEL}: one that answers from passages.")],
    questions: Annotated[list[str], typer.Argument(metavar="QUESTION", help='Questions; "-" reads them, one a line.')],
    passage: Annotated[Path, typer.Option(help='The file that the answers stand in; "-": standard input.')],
    top: Annotated[int, typer.Option(help="So many answers to each question, the best first.")] = 1,
    may_abstain: Annotated[bool, typer.Option("--may-abstain", help="An answer may be that there is none.")] = False,
    longest: Annotated[int, typer.Option(help="Tokens of the longest answer.")] = 30,
    overlap: Annotated[int, typer.Option(help="A long passage is read in windows that repeat so many tokens of the one before.")] = 128,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print the best answers to each question, their probability and where they stand in the passage."""
    from triform import hub
    from triform.generate import Answering
    from triform.generate import answer as find

    asked = texts_of(questions)
    if str(passage) == "-" and "-" in questions:
        raise ValueError("--passage: expected a file, as the questions come from standard input")
    text = _read(passage)
    place = hub.locate(name)
    model, tokenizer = open_model(place)
    with progress(len(asked), "questions") as done:
        how = Answering(top=top, may_abstain=may_abstain, longest=longest, length=hub.task(place).get("length"), overlap=overlap)
        found = find(model, tokenizer, asked, text, how, on_batch=lambda windows: done(min(windows, len(asked))))
    if as_json:
        rows = [{"question": one, "answers": [asdict(each) for each in some]} for one, some in zip(asked, found, strict=True)]
        print(json.dumps(rows, ensure_ascii=False, indent=2))
        return
    for question, some in zip(asked, found, strict=True):
        if len(asked) > 1:
            print(question)
        for each in some:
            print(f"{each.score:.3f}\t{each.start}-{each.end}\t{' '.join(each.text.split()) or '(no answer)'}")


def _read(file: Path) -> str:
    try:
        return (sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: expected text in UTF-8, got other bytes at byte {error.start}; convert it") from None
