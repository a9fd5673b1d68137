"""`triform convert`: a model in another format."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .models import MODEL, bar, loading

if TYPE_CHECKING:
    from triform.hub import Checkpoint

app = typer.Typer(add_completion=False)
_STORED = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
Dtype = Literal["auto", "fp32", "bf16", "fp16", "q8_0", "q4_0"]


@app.command(
    epilog="Examples: triform convert runs/storyteller/model storyteller.gguf --to gguf --dtype q8_0  ·  "
    "triform convert smollm2-135m-instruct smollm2 --to hf  ·  "
    "triform convert smollm2-135m-instruct merged --to hf --merge runs/idioms/model"
)
def convert(
    name: Annotated[str, typer.Argument(metavar="SRC", help=f"{MODEL}.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="The folder (hf) or the .gguf file to write.")],
    to: Annotated[Literal["hf", "gguf"], typer.Option("--to", help="hf: a folder that transformers opens; gguf: a file for llama.cpp.")],
    dtype: Annotated[Dtype, typer.Option(help="What numbers are stored as; auto: as they are. q8_0 and q4_0 are of gguf.")] = "auto",
    merge: Annotated[
        Path | None, typer.Option(metavar="ADAPTER", help="The folder of an adapter, of a run or of PEFT, that is put into the weights.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there already.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write a model, its tokenizer and its chat template in another format. Fails where the format has no counterpart, and says of what.

    An adapter's folder as SRC is the model that it belongs to with the adapter in its weights.
    """
    from triform import hub

    if to == "hf" and dtype in ("q8_0", "q4_0"):
        raise ValueError(f"--dtype: expected auto, fp32, bf16 or fp16 with --to hf, got {dtype}")
    _check(target, to, force)
    place = hub.locate(name)
    start = time.perf_counter()
    written = _folder(place, target, dtype, merge) if to == "hf" else _gguf(place, target, dtype, merge)
    merged = {} if merge is None else {"merged": str(merge)}
    facts = {"source": str(place), **merged, "path": str(target), "format": to, "bytes": sum(written.values()), "files": written}
    facts["seconds"] = round(time.perf_counter() - start, 2)
    _report(facts, as_json)


def _check(target: Path, to: str, force: bool) -> None:
    if to == "gguf" and target.suffix != ".gguf":
        raise ValueError(f"{target}: expected a name that ends in .gguf with --to gguf")
    if target.exists() and target.is_dir() != (to == "hf"):
        raise ValueError(f"{target}: expected {'a folder' if to == 'hf' else 'a file'} to write, found the other; choose another name")
    if not force and target.exists() and (to == "gguf" or any(target.iterdir())):
        raise ValueError(f"{target} is there already; --force replaces it")


def _source(place: Path, merge: Path | None) -> Checkpoint:
    """The model to write, opened."""
    from triform import hub

    found = hub.Checkpoint.open(place)
    return found if merge is None else found.with_adapter(merge)


def _folder(place: Path, target: Path, dtype: Any, merge: Path | None) -> dict[str, int]:
    """Write a public folder; returns the size of each of its files."""
    from triform import hub
    from triform.hub.saving import public_files

    source = _source(place, merge)
    public_files(source.spec, None)  # refuses what has no counterpart, before any weight is read
    with loading(place):
        model, tokenizer = source.build(dtype=dtype), source.tokenizer()
    hub.save(model, tokenizer, target, hub.task(merge or place))
    return {path.relative_to(target).as_posix(): path.stat().st_size for path in sorted(target.rglob("*")) if path.is_file()}


def _gguf(place: Path, target: Path, dtype: Any, merge: Path | None) -> dict[str, int]:
    """Write a GGUF file; returns its size."""
    from triform.hub import gguf

    source = _source(place, merge)
    with loading(place):
        model, tokenizer = source.build(), source.tokenizer()
    if tokenizer is None:
        raise ValueError(f"{place}: expected the model's tokenizer beside it, as a .gguf file holds both; found none")
    if dtype == "auto":
        dtype = _STORED[str(next(model.parameters()).dtype).removeprefix("torch.")]
    target.parent.mkdir(parents=True, exist_ok=True)
    with bar("tensors") as done:
        remarks = gguf.write(model, tokenizer, target, dtype, done=done)
    for remark in remarks:
        print(f"note: {remark}", file=sys.stderr)
    return {target.name: target.stat().st_size}


def _report(facts: dict[str, Any], as_json: bool) -> None:
    from triform.planner.quantities import data_size

    if as_json:
        print(json.dumps(facts, ensure_ascii=False, indent=2))
        return
    for file, size in facts["files"].items() if len(facts["files"]) > 1 else ():
        print(f"  {data_size(size):>8}  {file}")
    print(f"{facts['path']}: {data_size(facts['bytes'])} in {facts['seconds']:.1f} s")
