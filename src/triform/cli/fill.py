"""`triform fill`: the words behind the masks of a text."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from .models import MODEL, open_model, texts_of

app = typer.Typer(add_completion=False)


@app.command(epilog="Example: triform fill runs/critic-pretrain/model 这家酒店的服务很[MASK]。 --top 3")
def fill(
    name: Annotated[str, typer.Argument(metavar="MODEL", help=f"{MODEL}: a masked language model.")],
    texts: Annotated[list[str], typer.Argument(metavar="TEXT", help='Texts with [MASK] in them; "-" reads them, one a line.')],
    top: Annotated[int, typer.Option(help="Candidates shown for each mask.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Fill each [MASK] of a text, and show what else could stand there."""
    from triform.generate import fill as fill_in

    written = texts_of(texts)
    found = fill_in(*open_model(name), written, top)
    if as_json:
        print(json.dumps([{"masked": text} | asdict(one) for text, one in zip(written, found, strict=True)], ensure_ascii=False, indent=2))
        return
    for one in found:
        print(one.text)
        for number, candidates in enumerate(one.masks, 1):
            print(f"  mask {number}:  " + "  ".join(f"{c.text.strip() or repr(c.text)} {c.probability:.1%}" for c in candidates))
