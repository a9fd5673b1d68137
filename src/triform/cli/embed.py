"""`triform embed`: texts as vectors."""

from __future__ import annotations

import json
import sys
import warnings
from typing import TYPE_CHECKING, Annotated

import typer

from .models import MODEL, open_model, progress, texts_of

if TYPE_CHECKING:
    from torch import Tensor

app = typer.Typer(add_completion=False)


@app.command(epilog='Example: triform embed minilm "That is a happy person" "That is a happy dog" "Today is a sunny day"')
def embed(
    name: Annotated[str, typer.Argument(metavar="MODEL", help=f"{MODEL}: a sentence encoder.")],
    texts: Annotated[list[str], typer.Argument(metavar="TEXT", help='Texts to compare; "-" reads them, one a line.')],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: the vectors and their cosines.")] = False,
) -> None:
    """Print how like each text is to the others: the cosines of their vectors, 1 for texts of one meaning. One text: its vector."""
    from torch.nn.functional import normalize

    from triform import hub
    from triform.generate import embed as vectors_of

    written = texts_of(texts)
    place = hub.locate(name)
    model, tokenizer = open_model(place)
    with progress(len(written), "texts") as done, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        vectors = vectors_of(model, tokenizer, written, length=hub.task(place).get("length"), on_batch=done)
    for warning in told:
        print(f"triform: {warning.message}", file=sys.stderr)
    units = normalize(vectors, dim=-1)
    if as_json:
        print(json.dumps({"texts": written, "vectors": vectors.tolist(), "cosines": (units @ units.T).tolist()}, ensure_ascii=False))
    elif len(written) == 1:
        print(json.dumps(vectors[0].tolist()))
    else:
        _table(written, units @ units.T)


def _table(texts: list[str], cosines: Tensor) -> None:
    for number, (text, row) in enumerate(zip(texts, cosines.tolist(), strict=True), 1):
        print(f"{number:>3}  " + " ".join(f"{value:7.4f}" for value in row) + f"  {text}")
