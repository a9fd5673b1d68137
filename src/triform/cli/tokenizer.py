"""`triform tokenizer`: train one, look at what it makes of text, encode text."""

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(add_completion=False, help="Tokenizers: train one, look at what it makes of text, encode text.")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder with a tokenizer.json, or such a file.")]
Column = Annotated[str, typer.Option("--column", help="The column that holds the text, where a source has several.")]
Encoding = Annotated[str, typer.Option("--encoding", help="The encoding of text files, for example gb18030.")]
SOURCE = "A text, JSON lines, CSV or Parquet file, a folder, a name of `triform data list`, or hf:NAME."


def _texts(sources: Iterable[str], column: str, encoding: str) -> Iterator[str]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from triform.data.sources import open_source

    opened = [open_source(source, text=column, encoding=encoding) for source in sources]
    columns = (TextColumn("reading"), BarColumn(), TextColumn("{task.fields[read]:.1f} M characters"), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("reading", total=None, read=0.0)
        read = 0
        for source in opened:
            for row in source:
                read += len(row["text"])
                progress.update(task, read=read / 1e6)
                yield row["text"]


@app.command(epilog="Example: triform tokenizer train sanguo --kind bpe --vocab-size 8000 --out tokenizer")
def train(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE...", help=SOURCE)],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    kind: Annotated[Literal["byte-bpe", "bpe", "wordpiece", "unigram", "characters"], typer.Option(help="The kind of tokenizer.")] = "bpe",
    vocab_size: Annotated[int | None, typer.Option(help="Tokens in all; may be left out for characters.")] = None,
    sentinels: Annotated[int, typer.Option(help="How many of T5's <extra_id_0>, ... to add.")] = 0,
    min_frequency: Annotated[int, typer.Option(help="Drop pieces and characters seen less often.")] = 2,
    column: Column = "text",
    encoding: Encoding = "utf-8",
) -> None:
    """Train a tokenizer on text and write it as tokenizer.json."""
    from triform.text import train_tokenizer

    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; --out names the folder to write")
    tokenizer = train_tokenizer(
        _texts(sources, column, encoding), kind=kind, vocab_size=vocab_size, sentinels=sentinels, min_frequency=min_frequency
    )
    tokenizer.save(out)
    facts = tokenizer.training
    print(
        f"{kind}, {tokenizer.vocab_size:,} tokens, from {facts['bytes_sampled']:,} of {facts['bytes_read']:,} bytes read "
        f"({facts['texts']:,} texts) in {facts['seconds']:.1f} s: {out}"
    )


@app.command(epilog="Example: triform tokenizer report tokenizer --text sanguo")
def report(
    folder: Folder,
    text: Annotated[list[str], typer.Option("--text", metavar="SOURCE", help=SOURCE)],
    column: Column = "text",
    encoding: Encoding = "utf-8",
    as_json: AsJson = False,
) -> None:
    """Print a tokenizer's report card on a text: characters per token by script, unknowns, round trip, longest tokens, speed."""
    from triform.text import Tokenizer
    from triform.text.report import report as examine

    result = examine(Tokenizer.load(folder), _texts(text, column, encoding))
    if as_json:
        print(json.dumps(result.to_dict(), ensure_ascii=False, indent=2))
        return
    from rich.console import Console

    Console().print(result)


@app.command(epilog="Example: triform tokenizer encode tokenizer 却说曹操引兵十万")
def encode(
    folder: Folder,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The text to encode; - reads it from standard input.")],
    special: Annotated[bool, typer.Option("--special", help="Frame the text with its special tokens.")] = False,
    as_json: AsJson = False,
) -> None:
    """Encode one text: each token's id, its name in the vocabulary and the text that it stands for."""
    from triform.text import Tokenizer

    tokenizer = Tokenizer.load(folder)
    text = sys.stdin.read() if text == "-" else text
    encoding = tokenizer.encodings([text], special)[0]
    rows = [
        {"id": i, "token": token, "text": text[start:end]}
        for i, token, (start, end) in zip(encoding.ids, encoding.tokens, encoding.offsets, strict=True)
    ]
    if as_json:
        print(json.dumps({"ids": encoding.ids, "tokens": rows, "decoded": tokenizer.decode(encoding.ids)}, ensure_ascii=False, indent=2))
        return
    for row in rows:
        print(f"{row['id']:>8}  {row['token']}" + (f"  {row['text']!r}" if row["text"] != row["token"] else ""))
